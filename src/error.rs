//! The one public error: what went wrong, where, and what the caller can do.

pub(crate) mod codec;
mod limit_kind;
pub mod reason;

pub use limit_kind::LimitKind;

use crate::TxnId;
use reason::{
    DetachedReason, FileSystemReason, LockHolder, LockKind, LoggerFailure, MismatchKind, NotDurableReason,
    PermissionReason, RecoveryReason, Space,
};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use untorn_wal::files::{OtherOwner, WrongKind};

/// What the calls of this library return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The handle was made before a `fork()` and is used in the child. Open the store anew there.
    #[error(
        "this handle was opened before fork() and belongs to the parent process; open the store again in the child"
    )]
    Forked,
    /// A lock, mostly that of the one write transaction, was not free as long as the caller was
    /// ready to wait. Nothing of the call has happened. Try again; if the holder is a stopped
    /// process, continue or end it.
    #[error(
        "{lock} was not free within {waited:?} (holder: {})",
        holder.as_ref().map_or("unknown".into(), ToString::to_string)
    )]
    LockTimeout {
        /// The lock.
        lock: LockKind,
        /// How long the call waited.
        waited: Duration,
        /// The owner of the lock, as far as known.
        holder: Option<LockHolder>,
    },
    /// This thread already has a write transaction of this store open. Commit or drop it first.
    #[error("this thread already has a write transaction of this store open")]
    TransactionOpen,
    /// The logger process is alive but makes no progress (stopped, or its disk hangs).
    #[error(
        "the logger is alive but has made no progress for {waited:?}{}",
        visible.map_or(String::new(), |txn| format!("; transaction {txn} is visible, and not durable yet"))
    )]
    LoggerStalled {
        /// How long the call waited.
        waited: Duration,
        /// The transaction whose durability was waited for: it is visible, and becomes durable if
        /// the logger goes on. `None` if nothing of the call has happened.
        visible: Option<TxnId>,
    },
    /// No logger could be started, or none became ready. Nothing of the call has happened. Remove
    /// the cause and try again.
    #[error("no logger could be started: {reason}")]
    LoggerUnavailable {
        /// What was tried, and how it failed.
        reason: LoggerFailure,
    },
    /// A thread of the logger that this process runs in the foreground panicked. The logger has
    /// given up its place, so the next one, started by a client or a supervisor, goes on from where
    /// it ended.
    #[error("the logger's {thread} thread panicked: {message}; the logger has ended, start it again")]
    LoggerPanicked {
        /// The thread.
        thread: String,
        /// The panic's message.
        message: String,
    },
    /// The transaction is visible, but it is in doubt whether it will survive a power loss: the log
    /// can't be written, or no logger can be started just now. It must not be taken for one that
    /// has not happened.
    #[error("transaction {txn} is visible but not durable: {reason}")]
    NotDurable {
        /// The transaction.
        txn: TxnId,
        /// Why it did not become durable.
        reason: NotDurableReason,
    },
    /// The device has no room for the log, the arena or another file of the store. Nothing of the
    /// transaction happened. Free what [`Space`] names and try again. A store that has reached its
    /// own limit is an [`Error::Limit`] of [`LimitKind::StoreSize`].
    #[error("no space left for {what}")]
    DiskFull {
        /// What could not grow.
        what: Space,
    },
    /// The id belongs to a future that a power loss took back, or never was given by this store.
    #[error("transaction {txn} is none of this store's: it was lost in a crash, or never was")]
    Diverged {
        /// The id that was asked for.
        txn: TxnId,
    },
    /// The version that was asked for has been overwritten.
    #[error("that version has been overwritten")]
    Stale,
    /// The consumer fell behind what the log retains.
    #[error("changes before {oldest} are no longer retained")]
    Lagged {
        /// The oldest position that can still be read.
        oldest: TxnId,
    },
    /// A write or sync failed, after which the kernel may have dropped what was written: the store
    /// takes no more writes until all its clients have closed it. Nothing of the call has happened.
    #[error("the store needs recovery: {reason}; close it in all processes and open it again")]
    NeedsRecovery {
        /// What happened.
        reason: RecoveryReason,
    },
    /// Stored bytes are not what was written. Run `untorn verify`, and restore a backup. `what` is a
    /// text for people: file and offset are what a program can use.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Corrupt {
        /// The file, relative to the store's directory.
        file: String,
        /// Byte offset in the file.
        offset: u64,
        /// What was expected and found.
        what: String,
    },
    /// The store has a format that this version of the library does not know.
    #[error("{file} has format {found}, this library knows {known}; use the version of the library that wrote it")]
    FormatVersion {
        /// The file, relative to the store's directory.
        file: String,
        /// The format of the file.
        found: u32,
        /// The format that the library reads and writes.
        known: u32,
    },
    /// Files of the store do not belong together, or the store is in use in another boot; or a name
    /// in its directory leads to something else than a regular file. Nothing has changed.
    #[error("{file} does not fit: {what}")]
    Mismatch {
        /// The file, relative to the store's directory.
        file: String,
        /// How it does not fit, and what to do.
        what: MismatchKind,
    },
    /// There is no store at this path, and it was not to be created.
    #[error("there is no store at {path}")]
    NotFound {
        /// The path that was given.
        path: PathBuf,
    },
    /// The directory lies on a file system that cannot keep the store's promises. The store was not
    /// opened.
    #[error("{path} lies on {file_system}: {reason}")]
    UnsupportedFileSystem {
        /// The directory.
        path: PathBuf,
        /// The name of the file system, or its number as `statfs` gives it.
        file_system: String,
        /// What cannot be relied on, and the option that opens the store all the same, if there is
        /// one.
        reason: FileSystemReason,
    },
    /// The handle is cut off from the store, and nothing of the call has happened. Drop it and open
    /// the store again: what was acknowledged is there.
    #[error("this handle is cut off from the store: {reason}; drop it and open the store again")]
    Detached {
        /// What cuts it off.
        reason: DetachedReason,
    },
    /// The process lacks a right that a direct client needs. The store was not opened. Run as its
    /// owner, or use a message-passing client ([`Client`](crate::Client)).
    #[error("no permission for {what}; a direct client needs to read and write the directory's files")]
    Permission {
        /// The right that it lacks, and what to do.
        what: PermissionReason,
    },
    /// The handle was opened read-only.
    #[error("the store was opened read-only")]
    ReadOnly,
    /// The keyspace was dropped since the handle was made, or never existed.
    #[error("there is no keyspace {name:?}")]
    NoKeyspace {
        /// Its name.
        name: String,
    },
    /// The keyspace is a handle of another store.
    #[error("keyspace {name:?} belongs to another store")]
    OtherStore {
        /// Its name.
        name: String,
    },
    /// The name is the store's own: only the store itself creates, changes and drops keyspaces
    /// whose names begin so.
    #[error("keyspace {name:?} is the store's own, as its name begins with \"untorn.\"")]
    ReservedName {
        /// The name.
        name: String,
    },
    /// The cell has another length, or is a counter; or the counter is a cell.
    #[error("{name:?} is {}, not {}", cell_kind(*found), cell_kind(*wanted))]
    OtherCell {
        /// Its name.
        name: String,
        /// The length of the value that it has, in bytes; `None` for a counter.
        found: Option<u64>,
        /// What the call needs.
        wanted: Option<u64>,
    },
    /// An earlier call of the transaction failed in the middle. Roll it back and begin anew.
    #[error("an earlier error has ended the transaction; roll it back and begin anew")]
    TransactionFailed,
    /// There is no cell or counter of this name, or the one that the handle was made for was
    /// dropped.
    #[error("there is no cell or counter {name:?}")]
    NoCell {
        /// Its name.
        name: String,
    },
    /// A stated limit would be exceeded. Nothing of the transaction happened.
    #[error("{what} is {found}, the limit is {limit}")]
    Limit {
        /// What is limited.
        what: LimitKind,
        /// What was asked for.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// An option or argument makes no sense. Nothing has happened. `what` is a text for people: a
    /// correct program never gets this error.
    #[error("{what}")]
    Invalid {
        /// What is wrong, with its limits.
        what: String,
    },
    /// There is no connection to the server of messages, or it broke, and nothing of the call has
    /// happened. Try again. `reason` is a text for people, mostly the system's.
    #[error("no connection to the store's socket: {reason}")]
    Disconnected {
        /// What happened to it.
        reason: String,
    },
    /// The connection broke after a write was sent and before it was answered: it has happened, or
    /// it has not. Look before doing it again. `reason` is a text for people, mostly the system's.
    #[error("it is in doubt whether the write has happened: {reason}")]
    InDoubt {
        /// What happened to the connection.
        reason: String,
    },
    /// The store's access file does not allow it to this user, and nothing of the call has happened.
    /// `what` is a text for people, which the server composes.
    #[error("not allowed: {what}")]
    NotAllowed {
        /// What is not allowed, and by which rule.
        what: String,
    },
    /// The server of messages has no room for it just now, and nothing of the call has happened. Try
    /// again. `what` is a text for people, which the server composes.
    #[error("the server is busy: {what}")]
    Busy {
        /// What there is too much of.
        what: String,
    },
    /// The other side of a connection does not speak the protocol, or not this version of it. `what`
    /// is a text for people. Use the version of the library that the store's logger has.
    #[error("{what}")]
    Protocol {
        /// What was expected and found.
        what: String,
    },
    /// The operating system refused a call.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, on which file.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| match (WrongKind::of(&source), OtherOwner::of(&source)) {
            (Some(wrong), _) => {
                let what = MismatchKind::WrongKind { found: wrong.found.into(), expected: wrong.expected.into() };
                Error::Mismatch { file: wrong.name.clone(), what }
            }
            (None, Some(other)) => {
                let OtherOwner { name: file, found, expected } = other.clone();
                Error::Permission { what: PermissionReason::FileOwner { file, found, expected } }
            }
            (None, None) => Error::Io { what, source },
        }
    }

    /// An error of a rustix call.
    pub(crate) fn sys(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
        let what = what.into();
        move |errno| Error::Io { what, source: errno.into() }
    }

    /// The error as a number of the system, for words in shared memory that have room for no more.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            // Of a store that has reached its largest size.
            Error::DiskFull { .. } | Error::Limit { .. } => libc::ENOSPC,
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        }
    }

    pub(crate) fn corrupt(file: &str, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { file: file.to_string(), offset, what: what.into() }
    }
}

/// A cell or counter, for an error message.
fn cell_kind(len: Option<u64>) -> String {
    len.map_or("a counter".into(), |len| format!("a cell of {len} bytes"))
}
