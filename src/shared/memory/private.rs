//! Descriptors that a child of `fork()` must not keep. These are connections, whose peer would
//! never learn that this process is gone; listening sockets, at which no process would answer; and
//! files whose locks show that this process is alive (`liveness.rs`).
//!
//! This file lists them, and a handler that the C library calls in the child closes the child's
//! copies. The handler is registered before `main`, so it runs before the child's other handlers. A
//! host may have closed a descriptor in the meantime, and its number may refer to another file. So
//! the inode is compared in the handler, before each use, and at the drop. A marked descriptor has
//! a file position that no other open file of the same inode has, and that is compared as well.
//!
//! Two other ways copy the table of descriptors. A child of `vfork` or `posix_spawn` runs no
//! handlers, and has its copies until `exec` closes them, or until it ends. The parent thread waits
//! for that, so it is short, unless a file action of the spawn blocks. A raw `clone` system call
//! without `CLONE_FILES` is not detected: its child has the copies until it closes them.
#![allow(unsafe_code)]

use crate::files::descriptor::{FileId, file_id};
use crate::shared::memory::fork;
use crate::shared::memory::fork::ForkGuard;
use crate::{Error, LimitKind, Result};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::SeekFrom;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// The number of descriptors that can be listed. Further ones stay open in a child.
const ENTRIES: usize = 2048;

/// An entry of the list: empty if `next` is 0; otherwise the descriptor is `next` - 1.
struct ListedDescriptor {
    next: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
}

static LIST: [ListedDescriptor; ENTRIES] =
    [const { ListedDescriptor { next: AtomicI32::new(0), device: AtomicU64::new(0), inode: AtomicU64::new(0) } };
        ENTRIES];

/// Closes, in a child, the copies of its parent's descriptors. Calls only functions that are
/// allowed in a child just after `fork()`.
pub(crate) fn close_in_child() {
    for entry in &LIST {
        // Loads first: the kernel copies for the child only the pages that it writes to.
        let fd = entry.next.load(Ordering::Relaxed) - 1;
        if fd < 0 {
            continue;
        }
        entry.next.store(0, Ordering::Relaxed);
        // SAFETY: no code in the child uses the number: the threads that did are not there, and the
        // handles that they left return `Forked`.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let id = (entry.device.load(Ordering::Relaxed), entry.inode.load(Ordering::Relaxed));
        if file_id(borrowed).is_ok_and(|found| found == id) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// A descriptor that children of this process do not keep.
#[derive(Debug)]
pub(crate) struct Private {
    fd: ManuallyDrop<OwnedFd>,
    id: FileId,
    /// Its file position, if it is marked.
    mark: Option<u64>,
    entry: Option<usize>,
    fork: ForkGuard,
}

impl Private {
    /// Returns what `open` opens. No fork can happen meanwhile, so `open` must be quick and must
    /// not wait.
    pub(crate) fn open(open: impl FnOnce() -> io::Result<OwnedFd>) -> Result<io::Result<Private>> {
        let fork = ForkGuard::new()?;
        fork::without_forks(|| Private::list(open()?, None, fork))
    }

    /// Opens as [`Private::open`], for a regular file, and sets its file position to `mark`, which
    /// distinguishes it from other opens of the same file. Returns `None` if `open` opens nothing.
    ///
    /// # Errors
    /// [`Error::Limit`] if the list is full, since a child would keep the descriptor.
    pub(crate) fn open_marked(mark: u64, open: impl FnOnce() -> Result<Option<OwnedFd>>) -> Result<Option<Private>> {
        let fork = ForkGuard::new()?;
        fork::without_forks(|| {
            let Some(fd) = open()? else { return Ok(None) };
            rustix::fs::seek(&fd, SeekFrom::Start(mark)).map_err(Error::sys("marking a descriptor"))?;
            let private = Private::list(fd, Some(mark), fork).map_err(Error::io("stat of a descriptor"))?;
            if private.entry.is_none() {
                // Dropped by hand: the drop of `private` waits for the section that this runs in.
                let mut private = ManuallyDrop::new(private);
                // SAFETY: dropped once, here; the value around it is never used again.
                unsafe { ManuallyDrop::drop(&mut private.fd) };
                let (what, limit) = (LimitKind::PrivateDescriptors, ENTRIES as u64);
                return Err(Error::Limit { what, found: limit + 1, limit });
            }
            Ok(Some(private))
        })?
    }

    fn list(fd: OwnedFd, mark: Option<u64>, fork: ForkGuard) -> io::Result<Private> {
        let id = file_id(&fd)?;
        let is_taken = |entry: &ListedDescriptor| {
            let next = fd.as_raw_fd() + 1;
            entry.next.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        let entry = LIST.iter().position(is_taken);
        if let Some(index) = entry {
            LIST[index].device.store(id.0, Ordering::Relaxed);
            LIST[index].inode.store(id.1, Ordering::Relaxed);
        }
        Ok(Private { fd: ManuallyDrop::new(fd), id, mark, entry, fork })
    }

    /// Returns whether the number still refers to the open file that it was opened for.
    fn is_intact(&self) -> bool {
        let is_marked = |mark| rustix::fs::seek(&*self.fd, SeekFrom::Current(0)).is_ok_and(|found| found == mark);
        file_id(&*self.fd).is_ok_and(|id| id == self.id) && self.mark.is_none_or(is_marked)
    }

    /// Returns the descriptor.
    ///
    /// # Errors
    /// `NotConnected` in a child, or if other code has closed it.
    pub(crate) fn get(&self) -> io::Result<BorrowedFd<'_>> {
        if !self.fork.is_child() && self.is_intact() {
            return Ok(self.fd.as_fd());
        }
        Err(io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // In a child the descriptor is closed already.
        if self.fork.is_child() {
            return;
        }
        // An error means that the handlers could not be registered, so no descriptor was ever
        // listed.
        let _ = fork::without_forks(|| {
            if let Some(index) = self.entry {
                LIST[index].next.store(0, Ordering::Relaxed);
            }
            if self.is_intact() {
                // SAFETY: dropped once, here, and not used afterwards.
                unsafe { ManuallyDrop::drop(&mut self.fd) };
            }
        });
    }
}
