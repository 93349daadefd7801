//! Opening and creating the files and folders of a store. No other code opens or creates them.
//!
//! Other users may be able to write to a store's directory, so a name in it may lead anywhere. No
//! call follows a symbolic link (`O_NOFOLLOW`), waits for the other end of a FIFO or for a device
//! (`O_NONBLOCK`), or passes a descriptor on to another program (`O_CLOEXEC`). What was opened is
//! checked to be a regular file. A name that exists but is no regular file is an error that
//! contains [`WrongKind`]; it is never treated as missing.
//!
//! A file or folder that does not belong to its directory's owner is rejected as well
//! ([`OtherOwner`]): another user has put it there, and could change it while the store uses it.
//! Files of root are accepted in a directory of the caller's own, since a restored backup may
//! contain them, and root has access in any case. In another user's directory they are rejected,
//! since that user can place a hard link to any file of root there.
//!
//! Only [`create_new`] and [`create_folder`] change the owner of a file, since only they have
//! certainly created it: with `O_EXCL` and `mkdir` no other file can have taken the name.

use crate::disk::give_to_owner;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The error of a store's file or folder whose name leads to an object of another kind.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name} is {found}, expected {expected}")]
pub struct WrongKind {
    /// The name in the directory.
    pub name: String,
    /// The kind that was found.
    pub found: &'static str,
    /// The kind that is required.
    pub expected: &'static str,
}

impl WrongKind {
    /// Returns the [`WrongKind`] that caused `error`, if one did.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&WrongKind> {
        error.get_ref()?.downcast_ref()
    }

    /// Returns a text with the kinds that were found and required, for an error that already
    /// contains the file's name.
    #[must_use]
    pub fn what(&self) -> String {
        format!("it is {}, expected {}", self.found, self.expected)
    }
}

/// The error of a file or folder in a store's directory that belongs to another user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{name}: it belongs to uid {found}, the directory that it is in to uid {expected}; if it is part of the store, give it to the owner (chown \
     {expected})"
)]
pub struct OtherOwner {
    /// The name in the directory.
    pub name: String,
    /// The uid that owns it.
    pub found: u32,
    /// The uid that owns the directory.
    pub expected: u32,
}

impl OtherOwner {
    /// Returns the [`OtherOwner`] that caused `error`, if one did.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&OtherOwner> {
        error.get_ref()?.downcast_ref()
    }
}

const FILE: &str = "a regular file";
const FOLDER: &str = "a directory";
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Opens the regular file `name` in `dir` for reading, and for writing too if `write` is set.
///
/// # Errors
/// As the system reports them, `NotFound` if there is no such name; [`WrongKind`] if it is no
/// regular file; [`OtherOwner`].
pub fn open_file(dir: impl AsFd, name: &str, write: bool) -> io::Result<OwnedFd> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let file = fs::openat(&dir, name, access | SAFE, Mode::empty())
        .map_err(|errno| explain(&dir, name, FileType::RegularFile, errno))?;
    let stat = fs::fstat(&file)?;
    match describe(stat.st_mode) {
        FILE => check_owner(&dir, name, &stat).map(|()| file),
        found => Err(wrong_kind(name, found, FILE)),
    }
}

/// Creates the file `name` in `dir`, with mode 0600, and gives it to the directory's owner.
///
/// # Errors
/// As the system reports them, `AlreadyExists` if the name is taken.
pub fn create_new(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE;
    let file = fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    give_to_owner(&dir, &file);
    Ok(file)
}

/// Opens the folder `name` in `dir`.
///
/// # Errors
/// As the system reports them, `NotFound` if there is no such name; [`WrongKind`] if it is no
/// directory; [`OtherOwner`].
pub fn open_folder(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let folder = open_any_folder(&dir, name)?;
    check_owner(&dir, name, &fs::fstat(&folder)?)?;
    Ok(folder)
}

fn open_any_folder(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    fs::openat(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY | SAFE, Mode::empty())
        .map_err(|errno| explain(&dir, name, FileType::Directory, errno))
}

/// Checks that an opened file belongs to the owner of its directory.
fn check_owner(dir: impl AsFd, name: &str, stat: &Stat) -> io::Result<()> {
    let (found, expected, own) = (stat.st_uid, fs::fstat(dir)?.st_uid, geteuid().as_raw());
    let is_accepted = found == expected || (own == expected && found == 0) || (own != 0 && own == found);
    if is_accepted { Ok(()) } else { Err(io::Error::other(OtherOwner { name: name.to_owned(), found, expected })) }
}

/// Creates the folder `name` in `dir`, with mode 0700, and gives it to the directory's owner.
/// Returns false if it exists already.
///
/// # Errors
/// As the system reports them; [`WrongKind`] if the name exists and is no directory.
pub fn create_folder(dir: impl AsFd, name: &str) -> io::Result<bool> {
    let is_new = match fs::mkdirat(&dir, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno.into()),
    };
    if is_new {
        give_to_owner(&dir, open_any_folder(&dir, name)?);
    } else {
        open_folder(&dir, name)?;
    }
    Ok(is_new)
}

/// Returns the error of an open that the system refused with `errno`: [`WrongKind`] if the file's
/// kind is the reason.
fn explain(dir: impl AsFd, name: &str, expected: FileType, errno: Errno) -> io::Error {
    let found = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != expected => describe(stat.st_mode),
        _ => return errno.into(),
    };
    wrong_kind(name, found, if expected == FileType::Directory { FOLDER } else { FILE })
}

fn wrong_kind(name: &str, found: &'static str, expected: &'static str) -> io::Error {
    io::Error::other(WrongKind { name: name.to_owned(), found, expected })
}

fn describe(mode: u32) -> &'static str {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => FILE,
        FileType::Directory => FOLDER,
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of an unknown kind",
    }
}
