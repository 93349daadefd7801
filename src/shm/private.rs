//! Descriptors that a child of `fork()` must not keep: connections, whose other end would never learn that this process is
//! gone, and sockets that listen, at which nobody would ever answer.
//!
//! They are written down here, and a handler that the C library calls in the child closes its copies. A host may have
//! closed one in the meantime, and its number may name another file: so each is held against its inode, there, before
//! each use, and when it is dropped.
#![allow(unsafe_code)]

use super::fork::{self, ForkGuard};
use crate::Result;
use crate::descriptor::{FileId, file_id};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Descriptors that can be written down. Those beyond are left to the child.
const ENTRIES: usize = 2048;

/// Empty if `next` is 0; else the descriptor is one less.
struct Entry {
    next: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
}

static LIST: [Entry; ENTRIES] =
    [const { Entry { next: AtomicI32::new(0), device: AtomicU64::new(0), inode: AtomicU64::new(0) } }; ENTRIES];

/// Closes, in a child, the copies of its parent's descriptors. Calls only what may be called between `fork()` and whatever
/// the child does next.
pub(super) fn close_in_child() {
    for entry in &LIST {
        // Only what is written to is copied for the child.
        let fd = entry.next.load(Ordering::Relaxed) - 1;
        if fd < 0 {
            continue;
        }
        entry.next.store(0, Ordering::Relaxed);
        // SAFETY: nobody in the child uses the number: the threads that did are not there, and what they left answers `Forked`.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let id = (entry.device.load(Ordering::Relaxed), entry.inode.load(Ordering::Relaxed));
        if file_id(borrowed).is_ok_and(|found| found == id) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// A descriptor of this process alone.
#[derive(Debug)]
pub(crate) struct Private {
    fd: ManuallyDrop<OwnedFd>,
    id: FileId,
    entry: Option<usize>,
    fork: ForkGuard,
}

impl Private {
    /// What `open` opens. No child can come by it in between, so it is quick and doesn't wait.
    pub(crate) fn open(open: impl FnOnce() -> io::Result<OwnedFd>) -> Result<io::Result<Private>> {
        let fork = ForkGuard::new()?;
        fork::without_forks(|| {
            let fd = open()?;
            let id = file_id(&fd)?;
            let is_taken = |entry: &Entry| {
                let next = fd.as_raw_fd() + 1;
                entry.next.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            };
            let entry = LIST.iter().position(is_taken);
            if let Some(index) = entry {
                LIST[index].device.store(id.0, Ordering::Relaxed);
                LIST[index].inode.store(id.1, Ordering::Relaxed);
            }
            Ok(Private { fd: ManuallyDrop::new(fd), id, entry, fork })
        })
    }

    /// The descriptor.
    ///
    /// # Errors
    /// `NotConnected` in a child, or if somebody else has closed it.
    pub(crate) fn get(&self) -> io::Result<BorrowedFd<'_>> {
        if !self.fork.is_child() && file_id(&*self.fd).is_ok_and(|id| id == self.id) {
            return Ok(self.fd.as_fd());
        }
        Err(io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // In a child it is closed already.
        if self.fork.is_child() {
            return;
        }
        // An error means that there can be no handlers, so nothing was ever written down.
        let _ = fork::without_forks(|| {
            if let Some(index) = self.entry {
                LIST[index].next.store(0, Ordering::Relaxed);
            }
            if file_id(&*self.fd).is_ok_and(|id| id == self.id) {
                // SAFETY: dropped once, here, and not used afterwards.
                unsafe { ManuallyDrop::drop(&mut self.fd) };
            }
        });
    }
}
