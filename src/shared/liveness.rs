//! Liveness of processes, shown by locked bytes of the file `lock`. Each byte is locked by one open
//! file, which lives as long as the memory of its process.
//!
//! A claim is an open-file-description lock on one byte. Two things can keep the open file:
//!
//! - **A mapping.** One page of the file is mapped and the descriptor closed. The host process may
//!   close any descriptor, so the claim does not depend on one. A forked child does not inherit the
//!   mapping, and exec, exit and SIGKILL end it after the last thread has released the memory.
//! - **A descriptor.** On a stacked file system (overlayfs) a mapping refers to the file
//!   underneath, and the lock ends with `close`. There the descriptor stays open, in the table that
//!   all threads share. The kernel closes the table when the last thread ends, and each thread
//!   releases the memory before the table. So the lock outlives the memory here as well. See
//!   [`Private`](crate::shared::memory::private::Private) for children, and [`Claim::is_lost`] for
//!   a host process that closes the descriptor.
//!
//! **Proof.** Which of the two works is tested, not derived from the file system's name: a claim is
//! returned only after a fresh open of the file has found its lock. The test queries a random
//! *witness* byte, locked through the same open file, since another process may have taken a free
//! byte of the claim meanwhile. All locks of an open file end together. If neither of the two
//! passes the test on a file system, that is an error.
//!
//! **Invariant**: a free byte means that its client is dead for ever, since client ids are random
//! and never used twice. The byte is the only authority. If its state can't be read, the client
//! counts as alive: a superfluous wait for a lock costs time, but taking the lock of a living
//! process costs data. A waiter does not wait if the state stays unclear: it returns the cause
//! (`Engine::acquire_while_clear`).
//!
//! The offsets 0 and 1 are the initialisation lock and the logger. The mark by which the holder of
//! the initialisation lock shows progress (`progress.rs`) is below 2^32. Ids are between 2^32 and
//! 2^62, witnesses above.
//!
//! - `byte_lock`: locks on single bytes of a file
//! - `claim`: the locked bytes that this process holds
//! - `init_lock`: the initialisation lock

mod byte_lock;
mod claim;
mod init_lock;

use crate::error::reason::MismatchKind;
use crate::files::descriptor::Descriptor;
use crate::files::dir::LockFileId;
use crate::{Error, Result};
use byte_lock::{first_held, open_file, open_lock, random_in};
pub(crate) use byte_lock::{lock_some_byte, move_lock};
pub(crate) use claim::Claim;
pub(crate) use init_lock::InitLock;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The file's name in the store's directory.
pub(crate) const LOCK_FILE: &str = "lock";
/// The initialisation lock's byte.
const INIT_OFFSET: u64 = 0;
/// The logger's byte.
pub(crate) const LOGGER_OFFSET: u64 = 1;
/// The ids of clients, which are the offsets of their bytes.
pub(crate) const CLIENT_IDS: Range<u64> = 1 << 32..1 << 61;
/// The ids of loggers as owners of locks: a range of their own, so that one query of the other
/// range finds a living client.
pub(crate) const LOGGER_IDS: Range<u64> = 1 << 61..1 << 62;

/// The offsets of the witness bytes that prove claims: above all ids.
const WITNESSES: Range<u64> = 1 << 62..(1 << 63) - 1;

/// Returns the offset of the byte of `arena` that participants of this `lock` share. The inode
/// suffices, since both files are on the device of the directory.
pub(crate) fn arena_offset(lock_file: LockFileId) -> u64 {
    lock_file.inode() % WITNESSES.start
}

/// Returns the identity of `lock`, opened for writing. On a stacked file system, opening for
/// writing copies a file of a lower layer, and its inode may change.
pub(crate) fn lock_file_id(directory: impl AsFd) -> Result<LockFileId> {
    Ok(open_lock(directory, true)?.1)
}

/// Returns whether any byte of the file `name` is locked, except the one at `offset` and the
/// witnesses.
pub(crate) fn is_held_beside(directory: impl AsFd, name: &str, offset: u64) -> Result<bool> {
    let (file, _) = open_file(directory, name, false)?;
    for offsets in [0..offset, offset + 1..WITNESSES.start] {
        if first_held(&file, name, offsets)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tests whether bytes are locked, through an open file of its own, so that it finds the claims of
/// this process too.
#[derive(Debug)]
pub(crate) struct Tester<'f> {
    file: TestFile<'f>,
}

#[derive(Debug)]
enum TestFile<'f> {
    Own(OwnedFd),
    /// A descriptor that the caller keeps open; the host may close it at any time.
    Kept(&'f Descriptor, BorrowedFd<'f>),
}

/// Opens `lock` for [`Tester::with`], so that bytes can be tested when the process has no
/// descriptor left to open it anew.
pub(crate) fn open_reserve(directory: impl AsFd, expected: LockFileId) -> Result<Descriptor> {
    // A position that every file system allows.
    let mark = random_in(&(1..1 << 30))?;
    match Tester::open(directory, Some(expected))?.file {
        TestFile::Own(file) => Descriptor::marked(file, mark).map_err(Error::io(format!("stat of {LOCK_FILE}"))),
        TestFile::Kept(..) => unreachable!("it was opened just now"),
    }
}

impl<'f> Tester<'f> {
    /// Returns a tester that uses a kept descriptor; `None` if the descriptor refers to another
    /// file now, or to none.
    pub(crate) fn with(kept: &'f Descriptor) -> Option<Tester<'f>> {
        Some(Tester { file: TestFile::Kept(kept, kept.get()?) })
    }

    /// Opens `lock` afresh. Fails if it is not the file `expected`, since its bytes then show
    /// nothing about any participant.
    pub(crate) fn open(directory: impl AsFd, expected: Option<LockFileId>) -> Result<Tester<'f>> {
        let (file, found) = open_lock(directory, true)?;
        match expected {
            Some(expected) if expected != found => {
                Err(Error::Mismatch { file: LOCK_FILE.to_string(), what: MismatchKind::Replaced })
            }
            _ => Ok(Tester { file: TestFile::Own(file) }),
        }
    }

    /// Opens `lock` read-only, which is enough to test bytes, for a process that may not write the
    /// file.
    pub(crate) fn open_to_look(directory: impl AsFd) -> Result<Tester<'f>> {
        Ok(Tester { file: TestFile::Own(open_lock(directory, false)?.0) })
    }

    /// Returns whether the byte at `offset` is locked. An offset beyond all possible file offsets
    /// is never locked.
    ///
    /// # Errors
    /// If the kernel cannot tell. The caller then treats the byte as held, or returns the error.
    pub(crate) fn is_held(&self, offset: u64) -> Result<bool> {
        match offset.checked_add(1) {
            Some(end) => Ok(self.first_held(offset..end)?.is_some()),
            None => Ok(false),
        }
    }

    /// Returns whether the client with this id is alive. No client has an id outside of the two
    /// ranges; such an id comes from damaged memory.
    ///
    /// # Errors
    /// As [`Tester::is_held`].
    pub(crate) fn is_alive(&self, id: u64) -> Result<bool> {
        Ok((CLIENT_IDS.start..LOGGER_IDS.end).contains(&id) && self.is_held(id)?)
    }

    /// Returns a locked byte in `offsets`, if there is one: one query finds out whether any client
    /// is alive.
    ///
    /// # Errors
    /// If the kernel cannot tell. The caller then assumes that a byte is locked, or returns the
    /// error.
    pub(crate) fn any_held(&self, offsets: Range<u64>) -> Result<Option<u64>> {
        self.first_held(offsets)
    }

    fn first_held(&self, offsets: Range<u64>) -> Result<Option<u64>> {
        let file = match &self.file {
            TestFile::Own(file) => file.as_fd(),
            TestFile::Kept(_, file) => *file,
        };
        let held = first_held(file, LOCK_FILE, offsets)?;
        // If the descriptor was closed, the query may have been made on another file, in which no
        // byte is locked.
        if let TestFile::Kept(kept, _) = &self.file
            && kept.get().is_none()
        {
            let source = std::io::Error::from_raw_os_error(libc::EBADF);
            return Err(Error::Io { what: format!("querying locks of {LOCK_FILE}"), source });
        }
        Ok(held)
    }
}
