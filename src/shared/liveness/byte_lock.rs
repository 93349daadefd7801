//! Open-file-description locks on single bytes of a file.
#![allow(unsafe_code)]

use super::LOCK_FILE;
use crate::error::reason::{FileAccess, PermissionReason};
use crate::files::dir::LockFileId;
use crate::shared::memory::private::Private;
use crate::{Error, Result};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use untorn_wal::files;

pub(super) fn open_lock(directory: impl AsFd, write: bool) -> Result<(OwnedFd, LockFileId)> {
    open_file(directory, LOCK_FILE, write)
}

pub(super) fn open_file(directory: impl AsFd, name: &str, write: bool) -> Result<(OwnedFd, LockFileId)> {
    let file = files::open_file(directory, name, write).map_err(|error| match Errno::from_io_error(&error) {
        Some(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
            let (access, errno) = (FileAccess::ReadWrite, errno.raw_os_error());
            Error::Permission { what: PermissionReason::File { access, file: name.into(), errno } }
        }
        _ => Error::io(format!("opening {name}"))(error),
    })?;
    let stat = rustix::fs::fstat(&file).map_err(Error::sys(format!("stat of {name}")))?;
    Ok((file, LockFileId::of(&stat)))
}

/// The mode of a lock on a byte: held by one open file alone, or shared by several. A shared lock
/// does not require that the file is open for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ByteLockMode {
    Alone,
    Shared,
}

fn byte_lock(mode: ByteLockMode, offset: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: if mode == ByteLockMode::Alone { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset as libc::off_t,
        l_len: len as libc::off_t,
        // Must be 0 for locks that belong to the open file.
        l_pid: 0,
    }
}

/// Tries to lock one byte of the file `name` for the open file. Returns false if another open file
/// holds it.
pub(super) fn try_lock_byte(file: &impl AsRawFd, name: &str, mode: ByteLockMode, offset: u64) -> Result<bool> {
    let lock = byte_lock(mode, offset, 1);
    // SAFETY: the descriptor is open and `lock` is a valid structure that the call only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(Error::io(format!("locking byte {offset} of {name}"))(error)),
    }
}

/// Opens `lock` and locks a random byte in `offsets`, without a claim. Returns `None` if another
/// open file holds the byte.
pub(crate) fn lock_some_byte(directory: impl AsFd, offsets: &Range<u64>) -> Result<Option<(Private, u64)>> {
    let at = random_in(offsets)?;
    // A position that every file system allows.
    let mark = random_in(&(1..1 << 30))?;
    let kept = Private::open_marked(mark, || {
        let (file, _) = open_lock(&directory, true)?;
        Ok(try_lock_byte(&file, LOCK_FILE, ByteLockMode::Alone, at)?.then_some(file))
    })?;
    Ok(kept.map(|file| (file, at)))
}

/// Moves the lock of one byte of `lock` to another byte. At each instant at least one of them is
/// locked. If another open file has locked `to`, the lock stays where it is.
pub(crate) fn move_lock(file: BorrowedFd<'_>, from: u64, to: u64) -> Result<()> {
    if !try_lock_byte(&file, LOCK_FILE, ByteLockMode::Alone, to)? {
        return Ok(());
    }
    let unlock = libc::flock { l_type: libc::F_UNLCK as libc::c_short, ..byte_lock(ByteLockMode::Alone, from, 1) };
    // SAFETY: the descriptor is open and `unlock` is a valid structure that the call only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const unlock) } == 0 {
        return Ok(());
    }
    Err(Error::io(format!("unlocking byte {from} of {LOCK_FILE}"))(std::io::Error::last_os_error()))
}

/// Returns the first locked byte in `offsets` of the file `name`. `file` must hold no locks,
/// because the query ignores those of the same open file.
pub(super) fn first_held(file: impl AsFd, name: &str, offsets: Range<u64>) -> Result<Option<u64>> {
    // The largest offset of a file is 2^63 - 1. A length of 0 would extend to the end of the file.
    let end = offsets.end.min(i64::MAX as u64);
    if offsets.start >= end {
        return Ok(None);
    }
    let mut lock = byte_lock(ByteLockMode::Alone, offsets.start, end - offsets.start);
    // SAFETY: the descriptor is open and `lock` is a valid structure, which the call may write.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(Error::io(format!("querying locks of {name}"))(std::io::Error::last_os_error()));
    }
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    Ok(Some((lock.l_start as u64).max(offsets.start)))
}

/// Returns a random number in `range`, whose end is a power of two, or one less.
pub(super) fn random_in(range: &Range<u64>) -> Result<u64> {
    loop {
        let mut bytes = [0; 8];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        match filled {
            Ok(8) | Err(Errno::INTR) => {}
            Ok(_) => continue,
            Err(errno) => return Err(Error::sys("getting random bytes")(errno)),
        }
        let number = u64::from_le_bytes(bytes) % range.end;
        // Rejects zero, the fixed offsets, and the bytes that an interrupted call left unfilled.
        if range.contains(&number) {
            return Ok(number);
        }
    }
}
