//! Changes of the store's directory, as the kernel reports them (`inotify`).
//!
//! A logger that no process uses looks for nothing by itself. What it must notice all the same are
//! changes of names: `lock`, the socket, or all files when the directory is removed; and a change
//! of the access file, which may move the socket.
//!
//! Only a process that belongs to the logger watches. A host may close descriptors that it does not
//! know, and inotify descriptors cannot be told from one another once a number has been given
//! again. The kernel allows a user a limited number of them. Without one, the thread that listens
//! looks every few seconds.

use crate::server::access;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Result;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Connections for some events of one read.
const EVENT_BYTES: usize = 4096;

/// What has changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::server) enum Change {
    /// The access file.
    Access,
    /// A name is gone.
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

    /// Readable when there is something to report.
    pub(in crate::server) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The gravest change since the last call.
    pub(in crate::server) fn next_change(&self) -> Option<Change> {
        let mut bytes = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = Reader::new(&self.0, &mut bytes);
        let mut found = None;
        while let Ok(event) = events.next() {
            let is_access = event.file_name().is_some_and(|name| name.to_bytes() == access::NAME.as_bytes());
            // More events than the kernel keeps may have been any.
            if event.events().intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::QUEUE_OVERFLOW) {
                found = Some(Change::Loss);
            } else if is_access {
                found = found.max(Some(Change::Access));
            }
        }
        found
    }
}
