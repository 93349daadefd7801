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

/// The result of the calls of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All errors of this library, by what the caller can do about them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
// A tag of its own: with one in a niche of the reasons, each check of a result costs instructions
// (get of a snapshot: 1,635 instead of 1,617).
#[repr(u32)]
pub enum Error {
    /// The handle was opened before a `fork()` and is used in the child. Open the store anew there.
    #[error(
        "this handle was opened before fork() and belongs to the parent process; open the store again in the child"
    )]
    Forked,
    /// A lock, usually that of the one write transaction, was not free within the time that the
    /// caller allowed. The call had no effect. Try again; if the holder is a stopped process,
    /// continue or end it.
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
        /// The transaction whose durability was waited for. It is visible, and becomes durable if
        /// the logger continues. `None` if the call had no effect.
        visible: Option<TxnId>,
    },
    /// No logger could be started, or none became ready. The call had no effect. Remove the cause
    /// and try again.
    #[error("no logger could be started: {reason}")]
    LoggerUnavailable {
        /// What was tried, and how it failed.
        reason: LoggerFailure,
    },
    /// A thread of the logger that this process runs in the foreground panicked. The logger has
    /// given up its byte of `lock`. The next logger, started by a client or a supervisor, continues
    /// from where it ended.
    #[error("the logger's {thread} thread panicked: {message}; the logger has ended, start it again")]
    LoggerPanicked {
        /// The thread.
        thread: String,
        /// The panic's message.
        message: String,
    },
    /// The transaction is visible, but may not survive a power loss: the log can't be written, or
    /// no logger can be started just now. Do not treat it as a transaction that has not happened.
    #[error("transaction {txn} is visible but not durable: {reason}")]
    NotDurable {
        /// The transaction.
        txn: TxnId,
        /// Why it did not become durable.
        reason: NotDurableReason,
    },
    /// The device has no space for the log, the arena or another file of the store. The transaction
    /// had no effect. Free what [`Space`] names and try again. A store that has reached its own
    /// limit returns [`Error::Limit`] with [`LimitKind::StoreSize`].
    #[error("no space left for {what}")]
    DiskFull {
        /// What could not grow.
        what: Space,
    },
    /// The id belongs to commits that a power loss took back, or this store never assigned it.
    #[error("transaction {txn} is not one of this store: a crash lost it, or it never existed")]
    Diverged {
        /// The requested id.
        txn: TxnId,
    },
    /// The requested version has been overwritten.
    #[error("the version has been overwritten")]
    Stale,
    /// The consumer fell behind what the log retains, or a large value that it has not read was
    /// overwritten or deleted and its space reused.
    #[error("changes before {oldest} are no longer retained")]
    Lagged {
        /// The oldest position that can still be read.
        oldest: TxnId,
    },
    /// A write or sync failed, after which the kernel may have dropped the written data. The store
    /// takes no more writes until all its clients have closed it. The call had no effect.
    #[error("the store needs recovery: {reason}; close it in all processes and open it again")]
    NeedsRecovery {
        /// What happened.
        reason: RecoveryReason,
    },
    /// Stored bytes differ from what was written. Run `untorn verify`, and restore a backup. `what`
    /// is for display; programs can use file and offset.
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
    #[error(
        "{file} has format {found}, this library supports {known}; use the version of the library that wrote it, or load its `untorn dump` into a new store"
    )]
    FormatVersion {
        /// The file, relative to the store's directory.
        file: String,
        /// The format of the file.
        found: u32,
        /// The format that the library reads and writes.
        known: u32,
    },
    /// Files of the store do not belong together, or the store is in use in another boot; or a name
    /// in its directory is not a regular file. Nothing has changed.
    #[error("{file} does not fit: {what}")]
    Mismatch {
        /// The file, relative to the store's directory.
        file: String,
        /// The mismatch, and its remedy.
        what: MismatchKind,
    },
    /// There is no store at this path, and the call did not allow to create one.
    #[error("there is no store at {path}")]
    NotFound {
        /// The given path.
        path: PathBuf,
    },
    /// The directory is on a file system that can't keep the store's guarantees. The store was not
    /// opened.
    #[error("{path} lies on {file_system}: {reason}")]
    UnsupportedFileSystem {
        /// The directory.
        path: PathBuf,
        /// The name of the file system, or its number as `statfs` gives it.
        file_system: String,
        /// The operation that is not reliable, and the option that opens the store anyway, if there
        /// is one.
        reason: FileSystemReason,
    },
    /// The handle is cut off from the store, and the call had no effect. Drop it and open the store
    /// again: everything acknowledged is there.
    #[error("this handle is cut off from the store: {reason}; drop it and open the store again")]
    Detached {
        /// The cause.
        reason: DetachedReason,
    },
    /// The process lacks a right that a direct client needs. The store was not opened. Run as its
    /// owner, or use a message-passing client ([`Client`](crate::Client)).
    #[error("no permission for {what}; a direct client needs to read and write the directory's files")]
    Permission {
        /// The missing right, and its remedy.
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
    /// The name is reserved: only the store itself creates, changes and drops keyspaces whose names
    /// have this prefix.
    #[error("keyspace {name:?} is the store's own, as its name begins with \"untorn.\"")]
    ReservedName {
        /// The name.
        name: String,
    },
    /// The cell has another length or is a counter, or the counter is a cell.
    #[error("{name:?} is {}, not {}", cell_kind(*found), cell_kind(*wanted))]
    OtherCell {
        /// Its name.
        name: String,
        /// The length of its value in bytes; `None` for a counter.
        found: Option<u64>,
        /// The length that the call needs; `None` for a counter.
        wanted: Option<u64>,
    },
    /// An earlier call of the transaction failed halfway. Roll it back and begin a new one.
    #[error("an earlier error has ended the transaction; roll it back and begin anew")]
    TransactionFailed,
    /// There is no cell or counter of this name, or the one that the handle was made for was
    /// dropped.
    #[error("there is no cell or counter {name:?}")]
    NoCell {
        /// Its name.
        name: String,
    },
    /// A documented limit would be exceeded. The transaction had no effect.
    #[error("{what} is {found}, the limit is {limit}")]
    Limit {
        /// What is limited.
        what: LimitKind,
        /// The requested value.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// An option or argument is not valid. The call had no effect. `what` is for display: a correct
    /// program never gets this error.
    #[error("{what}")]
    Invalid {
        /// What is wrong, with its limits.
        what: String,
    },
    /// There is no connection to the server, or it broke, and the call had no effect. Try again.
    /// `reason` is for display, and usually the system's text.
    #[error("no connection to the store's socket: {reason}")]
    Disconnected {
        /// What happened to it.
        reason: String,
    },
    /// The connection broke after a write was sent and before the reply arrived, so the write may
    /// or may not have happened. Check before repeating it. `reason` is for display, and usually
    /// the system's text.
    #[error("the write may or may not have happened: {reason}")]
    InDoubt {
        /// What happened to the connection.
        reason: String,
    },
    /// The store's access file does not allow this user to make the call, which had no effect.
    /// `what` is for display; the server composes it.
    #[error("not allowed: {what}")]
    NotAllowed {
        /// The denied operation, and the rule that denies it.
        what: String,
    },
    /// The server lacks the resources just now, and the call had no effect. Try again. `what` is
    /// for display; the server composes it.
    #[error("the server is busy: {what}")]
    Busy {
        /// The resource that is used up.
        what: String,
    },
    /// The peer does not speak the protocol, or not this version of it. `what` is for display. Use
    /// the version of the library that the store's logger has.
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

    /// Converts an error of a rustix call.
    pub(crate) fn sys(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
        let what = what.into();
        move |errno| Error::Io { what, source: errno.into() }
    }

    /// Returns the error as an error number of the system, for words in shared memory, which have
    /// no space for more.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            // A store that has reached its maximum size.
            Error::DiskFull { .. } | Error::Limit { .. } => libc::ENOSPC,
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        }
    }

    pub(crate) fn corrupt(file: &str, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { file: file.to_string(), offset, what: what.into() }
    }
}

/// Describes a cell or counter, for an error message.
fn cell_kind(len: Option<u64>) -> String {
    len.map_or("a counter".into(), |len| format!("a cell of {len} bytes"))
}
