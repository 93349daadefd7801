//! A descriptor that the host process may close without the library's knowledge.
//!
//! A host process may close descriptors that it did not open. Their numbers may then refer to other
//! files. So a descriptor that is kept for long is compared with its file's inode before each use.
//! It is not closed if its number refers to another file.
//!
//! A host may also open the same file and get the same number. A marked descriptor has a file
//! position that no other open file of that inode has, and the position is compared as well.
#![allow(unsafe_code)]

use rustix::fs::SeekFrom;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Device and inode, which identify a file whatever its path.
pub(crate) type FileId = (u64, u64);

/// An open file, unless other code has closed it.
#[derive(Debug)]
pub(crate) struct Descriptor {
    fd: ManuallyDrop<OwnedFd>,
    id: FileId,
    /// Its file position, if it is marked.
    mark: Option<u64>,
}

impl Descriptor {
    pub(crate) fn new(fd: OwnedFd) -> std::io::Result<Descriptor> {
        let id = file_id(&fd)?;
        Ok(Descriptor { fd: ManuallyDrop::new(fd), id, mark: None })
    }

    /// Keeps a descriptor as [`Descriptor::new`], and sets its file position to `mark`. For a
    /// regular file whose position and content are not used.
    pub(crate) fn marked(fd: OwnedFd, mark: u64) -> std::io::Result<Descriptor> {
        rustix::fs::seek(&fd, SeekFrom::Start(mark))?;
        let mut descriptor = Descriptor::new(fd)?;
        descriptor.mark = Some(mark);
        Ok(descriptor)
    }

    /// Returns the descriptor; `None` if it refers to another open file now, or to none.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        let is_marked = |mark| rustix::fs::seek(&*self.fd, SeekFrom::Current(0)).is_ok_and(|found| found == mark);
        (self.is_same_file(&*self.fd) && self.mark.is_none_or(is_marked)).then(|| self.fd.as_fd())
    }

    /// Returns whether another descriptor refers to the file that this one was opened for.
    pub(crate) fn is_same_file(&self, fd: impl AsFd) -> bool {
        file_id(fd).is_ok_and(|id| id == self.id)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.get().is_some() {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// Returns the identity of a file.
pub(crate) fn file_id(fd: impl AsFd) -> std::io::Result<FileId> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}
