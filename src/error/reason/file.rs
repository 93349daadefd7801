//! Reasons that concern the files of a store: their file system, their owner, and whether they
//! belong together.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The property that a file system lacks, in
/// [`Error::UnsupportedFileSystem`](crate::Error::UnsupportedFileSystem).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FileSystemReason {
    /// Its locks and syncs do not reach every process that sees the directory.
    /// [`Options::any_file_system`](crate::Options::any_file_system) opens the store anyway.
    NotShared,
    /// A lock is not seen through another open of the same file. No option opens the store.
    LockNotSeen {
        /// The file.
        file: String,
    },
}

impl fmt::Display for FileSystemReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileSystemReason::NotShared => f.write_str(
                "locks and syncs there do not reach every process that sees the directory; set `Options::any_file_system(true)` to open it \
                 anyway",
            ),
            FileSystemReason::LockNotSeen { file } => write!(
                f,
                "a lock of {file} is not seen through another open of it, so no process could test which others are alive"
            ),
        }
    }
}

/// The mismatch between files, in [`Error::Mismatch`](crate::Error::Mismatch).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MismatchKind {
    /// The file is missing. Restore it, or a backup of the whole store.
    Missing,
    /// The store's header is missing, while its log is there. Restore `checkpoint`, or a backup.
    MissingHeader,
    /// The name is not one of a regular file, or not one of a directory.
    WrongKind {
        /// The type found.
        found: String,
        /// The type required.
        expected: String,
    },
    /// The file was replaced while the store was open. Close the store in all processes and open it
    /// again.
    Replaced,
    /// `lock` was removed or replaced, and processes that had the store open before still have it
    /// open. No other process may join them. Close the store in all of them and open it again.
    LockReplaced,
    /// The log was replaced, a backup was copied over it for instance, while processes have the
    /// store open. Close the store in all of them and open it again.
    LogReplaced,
    /// The file is locked by a process that does not belong to the store.
    Locked,
    /// The file belongs to another store, or the store to another page size.
    OtherStore,
    /// The processes that have the store open run under another boot of the kernel (in another
    /// virtual machine), or the shared region is damaged.
    OtherBoot,
    /// `control` has the layout of another version of the library, which has the store open or had
    /// it open.
    OtherLayout {
        /// The layout of the file.
        found: u32,
        /// The layout that this version knows.
        known: u32,
    },
    /// A segment of the log is one of another store, of another version or of another size.
    Segment {
        /// What was expected and found.
        what: String,
    },
}

impl fmt::Display for MismatchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MismatchKind::Missing => f.write_str("it is missing"),
            MismatchKind::MissingHeader => f.write_str("it is missing, but the log holds segments of a store"),
            MismatchKind::WrongKind { found, expected } => write!(f, "it is {found}, expected {expected}"),
            MismatchKind::Replaced => f.write_str(
                "it was replaced while the store was open; close the store in all processes and open it again",
            ),
            MismatchKind::LockReplaced => f.write_str(
                "it was removed or replaced while processes had the store open, and they still have; close the store in all of them, then \
                 open it again: nothing is lost",
            ),
            MismatchKind::LogReplaced => f.write_str(
                "processes have the store open, and the log is not the one that they write: its files were replaced; close the store in \
                 all processes and open it again",
            ),
            MismatchKind::Locked => f.write_str("a process that does not belong to the store has locked it"),
            MismatchKind::OtherStore => f.write_str("its store id or page size is not the checkpoint's"),
            MismatchKind::OtherBoot => f.write_str(
                "the store is in use, but not by this boot of this kernel, or the region is damaged; stop all processes that have the \
                 store open, and open it again",
            ),
            MismatchKind::OtherLayout { found, known } => write!(
                f,
                "it has layout {found}, this version of the library has layout {known}: another version has \
                 the store open, or had it open, and it is being recovered"
            ),
            MismatchKind::Segment { what } => f.write_str(what),
        }
    }
}

/// The access to a file that a process lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FileAccess {
    /// Open a directory.
    Open,
    /// Read a file.
    Read,
    /// Write a file.
    Write,
    /// Read and write a file.
    ReadWrite,
    /// Create a file or directory.
    Create,
    /// Remove a file.
    Remove,
}

impl fmt::Display for FileAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileAccess::Open => "open",
            FileAccess::Read => "read",
            FileAccess::Write => "write",
            FileAccess::ReadWrite => "read and write",
            FileAccess::Create => "create",
            FileAccess::Remove => "remove",
        })
    }
}

/// The right that a direct client lacks, in [`Error::Permission`](crate::Error::Permission). A
/// message-passing client ([`Client`](crate::Client)) needs none of them.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PermissionReason {
    /// The system refused an access to a file or directory.
    File {
        /// The attempted access.
        access: FileAccess,
        /// The name or path.
        file: String,
        /// The system's error number.
        errno: i32,
    },
    /// The directory belongs to another user. Only that user may open the store.
    OtherUser {
        /// The directory.
        path: PathBuf,
        /// The uid that owns it.
        owner: u32,
        /// The uid of this process.
        own: u32,
    },
    /// The directory belongs to another user. The process uses
    /// [`Options::foreign_owner`](crate::Options::foreign_owner), but is not root.
    NotRoot {
        /// The directory.
        path: PathBuf,
        /// The uid that owns it.
        owner: u32,
        /// The uid of this process.
        own: u32,
    },
    /// The owner of the directory has no uid of its own in this user namespace.
    UnmappedOwner {
        /// The directory.
        path: PathBuf,
        /// The uid that represents all such users.
        shown: u32,
    },
    /// A file in the store's directory belongs to another user than the directory.
    FileOwner {
        /// The file.
        file: String,
        /// The uid that owns the file.
        found: u32,
        /// The uid that owns the directory.
        expected: u32,
    },
    /// The logger of another user's store could not become a process of that user.
    BecomeOwner {
        /// The directory.
        path: PathBuf,
        /// The uid that owns it.
        uid: u32,
        /// Its gid.
        gid: u32,
        /// The cause.
        why: String,
    },
}

impl fmt::Display for PermissionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PermissionReason::File { access, file, errno } => {
                write!(f, "{access} of {file} ({})", io::Error::from_raw_os_error(*errno))?;
                match &**file {
                    "control" => {
                        f.write_str(": every direct client, even a read-only one, records its snapshots in control")
                    }
                    _ => Ok(()),
                }
            }
            PermissionReason::OtherUser { path, owner, own } => write!(
                f,
                "a direct client of {}: it belongs to uid {owner}, this process runs as uid {own}, and the owner of a store can read everything \
                 that is put into it; run as uid {owner}, or use the store's socket as a message client; root may open it with \
                 Options::foreign_owner(true) (--foreign-owner)",
                path.display()
            ),
            PermissionReason::NotRoot { path, owner, own } => write!(
                f,
                "a direct client of {}: it belongs to uid {owner}, and of all other users only root may open it; this process runs as uid \
                 {own}; run as uid {owner}, or use the store's socket as a message client",
                path.display()
            ),
            PermissionReason::UnmappedOwner { path, shown } => write!(
                f,
                "a direct client of {}: its owner has no uid of its own in this user namespace, which reports all such users as {shown}; run \
                 where the owner's uid is mapped, or use the store's socket as a message client",
                path.display()
            ),
            PermissionReason::FileOwner { file, found, expected } => write!(
                f,
                "{file}: it belongs to uid {found}, the directory that it is in to uid {expected}; if it is part of the store, give it to \
                 the owner (chown {expected})"
            ),
            PermissionReason::BecomeOwner { path, uid, gid, why } => write!(
                f,
                "the logger of {}, which must run as its owner, uid {uid}, gid {gid}, and can't become that: {why}; run it as the owner",
                path.display()
            ),
        }
    }
}
