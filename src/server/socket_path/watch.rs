//! Changes of the store's directory, as the kernel reports them (`inotify`).
//!
//! A logger whose store no process has open does not poll. It must still notice changes of names:
//! `lock`, the socket, or all files when the directory is removed. It must also notice a change of
//! the access file, which may move the socket.
//!
//! Only a process that is the logger alone uses a watch. A host may close descriptors that it did
//! not open, and a reused number of an inotify descriptor can't be recognised. The kernel allows
//! each user a limited number of watches. Without one, the listening thread polls every few
//! seconds.

use crate::server::access;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Result;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// The size of the buffer for the events of one read.
const EVENT_BYTES: usize = 4096;

/// The kind of a change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::server) enum Change {
    /// The access file changed.
    Access,
    /// A name was removed.
    Loss,
}

pub(in crate::server) struct Watch(OwnedFd);

impl Watch {
    pub(in crate::server) fn new(dir: BorrowedFd<'_>) -> Result<Watch> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        let flags = flags | WatchFlags::CREATE;
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        inotify::add_watch(&watch, path, flags | WatchFlags::ATTRIB | WatchFlags::ONLYDIR)?;
        Ok(Watch(watch))
    }

    /// Returns the descriptor, which is readable when there are changes.
    pub(in crate::server) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Returns the most important change since the last call.
    pub(in crate::server) fn next_change(&self) -> Option<Change> {
        let mut bytes = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = Reader::new(&self.0, &mut bytes);
        let mut found = None;
        while let Ok(event) = events.next() {
            let is_access = event.file_name().is_some_and(|name| name.to_bytes() == access::NAME.as_bytes());
            // If the kernel dropped events, any name may have changed.
            if event.events().intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::QUEUE_OVERFLOW) {
                found = Some(Change::Loss);
            } else if is_access {
                found = found.max(Some(Change::Access));
            }
        }
        found
    }
}
