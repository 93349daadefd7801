//! A mark that a file has only while the kernel keeps its inode in memory.
//!
//! A logger continues to use the region of dead processes only if all of their stores are still in
//! memory ([`crate::logger::adopt`]). A store into a mapping stays in the page cache when its
//! process dies. The kernel writes it back in any order. If that fails, the error is recorded in
//! the inode in memory, and the next sync of any process reports it. Once the inode was dropped
//! (`drop_caches`, an unmount), both the stored bytes and that error may be gone, and a later sync
//! succeeds.
//!
//! Therefore the mark is a property of the inode that no file system writes to the disk: the
//! expected lifetime of the data (`F_SET_RW_HINT`). The mark is the value "none", which has no
//! effect on the file. An inode that was read from the disk or just created has another value, "not
//! set". The mark proves that the same inode has been in memory ever since the mark was set: no
//! reboot, no unmount, no copy, no other file of the same name. If the file system or the user's
//! rights do not allow the mark, the logger always recovers the store.
#![allow(unsafe_code)]

use crate::files::dir;
use crate::files::dir::Dir;
use crate::{Error, Result};
use std::fs::File;
use std::os::fd::AsRawFd;

/// The commands of `fcntl`, from `linux/fcntl.h`; the C libraries do not name them.
const GET_HINT: libc::c_int = 1024 + 11;
const SET_HINT: libc::c_int = 1024 + 12;
/// The hint of an inode that was just read from the disk.
const NOT_SET: u64 = 0;
/// The hint that serves as the mark: nothing is known about the lifetime.
const MARK: u64 = 1;

/// The files whose stores are lost with the kernel's memory.
const MARKED: [&str; 2] = [dir::CONTROL, dir::ARENA];

fn hint(file: &File) -> Option<u64> {
    let mut hint = NOT_SET;
    // SAFETY: the descriptor is open, and the call writes one number to this variable.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), GET_HINT, &raw mut hint) };
    (answer == 0).then_some(hint)
}

fn set_hint(file: &File, hint: u64) -> std::io::Result<()> {
    // SAFETY: the descriptor is open, and the call reads one number from this variable.
    match unsafe { libc::fcntl(file.as_raw_fd(), SET_HINT, &raw const hint) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Returns whether the file has been in memory ever since it was marked.
pub(crate) fn has(file: &File) -> bool {
    hint(file) == Some(MARK)
}

/// Marks the file, if its file system and this process's rights allow that.
pub(crate) fn set(file: &File) {
    let _ = set_hint(file, MARK);
}

/// Removes the mark.
///
/// # Errors
/// [`Error::Io`] if the file keeps its mark.
pub(crate) fn clear(file: &File) -> Result<()> {
    match set_hint(file, NOT_SET) {
        Err(error) if has(file) => Err(Error::io("removing the mark of a file in memory")(error)),
        _ => Ok(()),
    }
}

/// Removes the marks of a store. If no client is alive when the next logger starts, that logger
/// recovers the store.
///
/// # Errors
/// Those of [`clear`], and those of opening the files.
pub(crate) fn clear_all(dir: &Dir) -> Result<()> {
    for name in MARKED {
        if let Some(file) = dir.open_file(name, true)? {
            clear(&file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every descriptor of the file shows the mark until it is removed, and a copy of the
    /// file does not have it.
    #[test]
    fn a_mark_belongs_to_one_inode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create(&path).unwrap();
        assert!(!has(&file));
        set(&file);
        drop(file);
        let file = File::options().write(true).open(&path).unwrap();
        assert!(has(&file), "the tests need a file system with hints");
        std::fs::copy(&path, folder.path().join("copy")).unwrap();
        assert!(!has(&File::open(folder.path().join("copy")).unwrap()));
        clear(&file).unwrap();
        assert!(!has(&file));
    }
}
