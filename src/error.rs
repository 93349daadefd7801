//! The one public error: what went wrong, where, and what the caller can do.

use crate::TxnId;
use std::fmt;
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
    /// Another transaction kept the writer lock longer than the caller was ready to wait. Try
    /// again.
    #[error("the writer lock was not free within {waited:?} (holder: {holder})")]
    LockTimeout {
        /// How long the call waited.
        waited: Duration,
        /// Who holds the lock, as far as known.
        holder: String,
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
    /// No logger process could be started.
    #[error("no logger could be started: {reason}")]
    LoggerUnavailable {
        /// What was tried.
        reason: String,
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
        reason: String,
    },
    /// There is no room for the log or the arena. Nothing of the transaction happened.
    #[error("no space left for {what}")]
    DiskFull {
        /// What could not grow.
        what: String,
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
    /// A sync of the arena failed: the store is read-only until all its clients have closed it.
    #[error("the store needs recovery: {reason}; close it in all processes and open it again")]
    NeedsRecovery {
        /// What happened.
        reason: String,
    },
    /// Stored bytes are not what was written.
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
    /// in its directory leads to something else than a regular file.
    #[error("{file} does not fit: {what}")]
    Mismatch {
        /// The file, relative to the store's directory.
        file: String,
        /// What was expected and found.
        what: String,
    },
    /// There is no store at this path, and it was not to be created.
    #[error("there is no store at {path}")]
    NotFound {
        /// The path that was given.
        path: PathBuf,
    },
    /// The directory lies on a file system that cannot keep the store's promises.
    #[error("{path} lies on {file_system}: {reason}")]
    UnsupportedFileSystem {
        /// The directory.
        path: PathBuf,
        /// The name of the file system, or its number as `statfs` gives it.
        file_system: String,
        /// What cannot be relied on, and the option that opens the store all the same, if there is
        /// one.
        reason: String,
    },
    /// The handle is cut off from the store, and nothing of the call has happened. Drop it and open
    /// the store again: what was acknowledged is there.
    #[error("this handle is cut off from the store: {reason}; drop it and open the store again")]
    Detached {
        /// What cuts it off.
        reason: String,
    },
    /// The process lacks a right that a direct client needs.
    #[error("no permission for {what}; a direct client needs to read and write the directory's files")]
    Permission {
        /// The file and the access that was refused.
        what: String,
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
    /// An option or argument makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong, with its limits.
        what: String,
    },
    /// There is no connection to the server of messages, or it broke, and nothing of the call has
    /// happened. Try again.
    #[error("no connection to the store's socket: {reason}")]
    Disconnected {
        /// What happened to it.
        reason: String,
    },
    /// The connection broke after a write was sent and before it was answered: it has happened, or
    /// it has not. Look before doing it again.
    #[error("it is in doubt whether the write has happened: {reason}")]
    InDoubt {
        /// What happened to the connection.
        reason: String,
    },
    /// The store's access file does not allow it to this user.
    #[error("not allowed: {what}")]
    NotAllowed {
        /// What is not allowed, and by which rule.
        what: String,
    },
    /// The server of messages has no room for it just now. Try again.
    #[error("the server is busy: {what}")]
    Busy {
        /// What there is too much of.
        what: String,
    },
    /// The other side of a connection does not speak the protocol, or not this version of it.
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
            (Some(wrong), _) => Error::Mismatch { file: wrong.name.clone(), what: wrong.what() },
            (None, Some(other)) => Error::Permission { what: other.to_string() },
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

    /// A full disk: `name` needs `bytes` more.
    pub(crate) fn disk_full(name: &str, bytes: u64) -> Error {
        Error::DiskFull { what: format!("{name}, which needs {bytes} bytes more") }
    }

    pub(crate) fn corrupt(file: &str, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { file: file.to_string(), offset, what: what.into() }
    }

    /// The error in words that another process of this library can turn back into it.
    pub(crate) fn to_words(&self) -> String {
        let whole = |text: &str| text.replace('\n', " ");
        let errno = |error: &io::Error| error.raw_os_error().unwrap_or(0);
        match self {
            Error::Corrupt { file, offset, what } => format!("corrupt\n{file}\n{offset}\n{}", whole(what)),
            Error::Mismatch { file, what } => format!("mismatch\n{file}\n{}", whole(what)),
            Error::FormatVersion { file, found, known } => format!("version\n{file}\n{found}\n{known}"),
            Error::DiskFull { what } => format!("full\n{}", whole(what)),
            Error::Permission { what } => format!("permission\n{}", whole(what)),
            Error::Io { what, source } => format!("io\n{}\n{}", whole(what), errno(source)),
            other => format!("other\n{}", whole(&other.to_string())),
        }
    }

    /// What [`Error::to_words`] made; `None` for nothing at all.
    pub(crate) fn from_words(words: &str) -> Option<Error> {
        if words.is_empty() {
            return None;
        }
        let parts: Vec<&str> = words.lines().collect();
        Some(match parts[..] {
            ["corrupt", file, offset, what] => Error::corrupt(file, offset.parse().unwrap_or(0), what),
            ["mismatch", file, what] => Error::Mismatch { file: file.into(), what: what.into() },
            ["version", file, found, known] => Error::FormatVersion {
                file: file.into(),
                found: found.parse().unwrap_or(0),
                known: known.parse().unwrap_or(0),
            },
            ["full", what] => Error::DiskFull { what: what.into() },
            ["permission", what] => Error::Permission { what: what.into() },
            ["io", what, errno] => Error::Io {
                what: what.into(),
                source: io::Error::from_raw_os_error(errno.parse().unwrap_or(libc::EIO)),
            },
            ["other", what] => Error::LoggerUnavailable { reason: what.into() },
            _ => Error::LoggerUnavailable { reason: words.replace('\n', " ") },
        })
    }
}

/// A cell or counter, for an error message.
fn cell_kind(len: Option<u64>) -> String {
    len.map_or("a counter".into(), |len| format!("a cell of {len} bytes"))
}

/// Defines [`LimitKind`] with the text of each kind.
macro_rules! limit_kinds {
    ($($(#[$doc:meta])* $kind:ident => $text:literal,)*) => {
        /// What an [`Error::Limit`] limits.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum LimitKind {
            $($(#[$doc])* $kind,)*
            /// A limit of a server that this version of the library does not know.
            Other,
        }

        impl LimitKind {
            const ALL: &[LimitKind] = &[$(LimitKind::$kind),*];

            /// What is limited, in words.
            pub fn text(self) -> &'static str {
                match self {
                    $(LimitKind::$kind => $text,)*
                    LimitKind::Other => "a quantity that the server limits",
                }
            }
        }
    };
}

limit_kinds! {
    /// A quarter of the page size: 1,024 at the default.
    KeyLength => "the length of a key in bytes",
    /// 1 GiB; by message 16 MiB.
    ValueLength => "the length of a value in bytes",
    /// 255 bytes.
    KeyspaceNameLength => "the length of a keyspace's name in bytes",
    /// 255 bytes.
    CellNameLength => "the length of a cell's name in bytes",
    /// 1 to 4,096 bytes.
    CellLength => "the length of a cell in bytes (at least 1)",
    /// 1,048,576.
    Keyspaces => "the number of keyspaces",
    /// 65,536.
    Cells => "the number of cells and counters",
    /// 65,536, of all processes.
    Snapshots => "the number of pinned snapshots",
    /// 4,096.
    Clients => "the number of processes that have the store open",
    /// Sockets that a child of `fork()` must close.
    PrivateDescriptors => "the number of descriptors that children must not keep",
    /// The store has reached its maximum size, or all pages are numbered.
    StoreSize => "the store's size in bytes",
    /// [`Options::max_size`](crate::Options::max_size) asks for less than 4 MiB or more than 2³²
    /// pages.
    MaxSize => "the store's maximum size in bytes (at least 4 MiB)",
    /// The process may not write a file of this length.
    FileSize => "the size of a file in bytes (RLIMIT_FSIZE)",
    /// It does not fit the ring.
    LogRecord => "a log record in bytes",
    /// Of a damaged tree.
    TreeLevels => "levels of a tree",
    /// 2⁴⁴ in the life of a store.
    TransactionIds => "the number of a store's transactions (copy its records into a new store)",
    /// 2²⁰ in the life of a store.
    Incarnations => "the incarnation of a store (copy its records into a new store)",
    /// 2⁶⁴ in the life of a store.
    KeyspaceNumbers => "the number of a keyspace (copy the store's records into a new store)",
    /// 2⁶⁴ in the life of a cell.
    CellVersions => "the versions of a cell (copy its value into one of another name)",
    /// A new cell begins above those of all dropped ones.
    StoreCellVersions => "the versions of a store's cells (copy its records into a new store)",
    /// 2⁶⁴ checkpoints.
    HeaderSerials => "the serial of a header in checkpoint (restore a backup)",
    /// 16 MiB and 64 KiB.
    MessageLength => "the length of a message in bytes",
    /// As `MessageLength`.
    ReplyLength => "the length of a reply in bytes",
    /// 65,536.
    MessageKeys => "the number of keys in a message",
    /// 65,536.
    BatchChanges => "the number of changes in a batch",
    /// 65,536.
    MessageKeyspaces => "the number of keyspaces in a message",
    /// 8 for each connection.
    Scans => "the number of scans that a connection has open",
    /// [`Durability::Within`](crate::Durability::Within) of a message-passing client: the server's
    /// patience with a peer.
    CommitTime => "the time in microseconds that a message client gives a commit",
}

impl LimitKind {
    /// The kind with this text.
    pub(crate) fn from_text(text: &str) -> LimitKind {
        LimitKind::ALL.iter().copied().find(|kind| kind.text() == text).unwrap_or(LimitKind::Other)
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
