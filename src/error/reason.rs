//! The enums in the variants of [`Error`], each with the sentence that the error prints.
//!
//! Plain texts are used only where the operating system or a program has made them, and for paths
//! and names. All enums may get further variants.

mod file;

pub use file::{FileAccess, FileSystemReason, MismatchKind, PermissionReason};

use crate::{Error, TxnId, Version};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The lock that was not free, in [`Error::LockTimeout`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LockKind {
    /// The lock of the one write transaction.
    Writer,
    /// The lock under which a process makes the arena larger. Only a stopped process keeps it for
    /// long.
    Growth,
    /// The lock of a cell, which is held for less than a microsecond. Only a stopped process keeps
    /// it for long.
    Cell {
        /// The cell's name.
        name: String,
    },
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockKind::Writer => f.write_str("the writer lock"),
            LockKind::Growth => f.write_str("the lock for growing the arena"),
            LockKind::Cell { name } => write!(f, "the lock of cell {name:?}"),
        }
    }
}

/// The owner of a lock, in [`Error::LockTimeout`]. Process ids are those of the owner's pid
/// namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LockHolder {
    /// A process. If it has held the lock for long, it may be stopped.
    Process {
        /// Its process id.
        pid: u32,
        /// How long it has held the lock; `None` if that is not recorded.
        held_for: Option<Duration>,
    },
    /// Another thread of the process that made the call: it holds the lock, or is the next thread
    /// of this process to get it.
    Thread {
        /// The process id: that of the server for a message-passing client.
        pid: u32,
    },
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockHolder::Process { pid, held_for: Some(age) } => write!(f, "process {pid} for {age:?}"),
            LockHolder::Process { pid, held_for: None } => write!(f, "process {pid}"),
            LockHolder::Thread { pid } => write!(f, "another thread of process {pid}"),
        }
    }
}

/// What could not grow, in [`Error::DiskFull`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Space {
    /// The log. Free space on the device, or wait until a checkpoint has released segments.
    Log,
    /// The log, while segments that are retained for followers take the space and could not be
    /// deleted. Lower [`Options::retain_changes`](crate::Options::retain_changes).
    RetainedLog {
        /// How many segments are retained.
        segments: u64,
    },
    /// The arena. Free space on the device, or delete records.
    Arena {
        /// The most bytes that it still needs.
        bytes: u64,
    },
    /// The shared region `control`. Free space on the device.
    Control {
        /// The bytes that it still needs.
        bytes: u64,
    },
    /// The arena, while a snapshot protects most of the pages that could be reused. Close it.
    Snapshot {
        /// The snapshot's transaction.
        txn: TxnId,
        /// The process that has it open.
        pid: u32,
        /// How long it has been open, as far as known.
        open_for: Option<Duration>,
        /// How many free pages it protects.
        pinned_pages: u64,
        /// How many free pages there are.
        free_pages: u64,
        /// How many snapshots are open.
        snapshots: u64,
    },
    /// A checkpoint, which was to release space. Free space on the device.
    Checkpoint,
    /// The commit by which the logger records the values of cells and counters.
    CellSample,
    /// Another file or directory of the store.
    File {
        /// Its name or path.
        name: String,
    },
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Space::Log => f.write_str("the log"),
            Space::RetainedLog { segments } => write!(
                f,
                "the log: {segments} segments are kept for followers (`Options::retain_changes`) and could not be deleted"
            ),
            Space::Arena { bytes } => write!(f, "arena, which needs {bytes} bytes more"),
            Space::Control { bytes } => write!(f, "control, which needs {bytes} bytes more"),
            Space::Snapshot { txn, pid, open_for, pinned_pages, free_pages, snapshots } => {
                write!(
                    f,
                    "the arena: {pinned_pages} of {free_pages} free pages are held by the snapshot of transaction {txn} in process {pid}"
                )?;
                if let Some(age) = open_for {
                    write!(f, ", open for {age:.1?}")?;
                }
                if *snapshots > 1 {
                    write!(f, " ({snapshots} snapshots are open)")?;
                }
                f.write_str("; close it")
            }
            Space::Checkpoint => f.write_str("the checkpoint"),
            Space::CellSample => f.write_str("a sample of the cells"),
            Space::File { name } => f.write_str(name),
        }
    }
}

/// Why no logger could be started, in [`Error::LoggerUnavailable`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LoggerFailure {
    /// No program could be started, or each ended at once. Name one by
    /// [`Options::logger_program`](crate::Options::logger_program) or `UNTORN_LOGGER`.
    Programs {
        /// The programs that were tried, in this order.
        tried: Vec<TriedProgram>,
    },
    /// A setuid program starts only itself or the program that
    /// [`Options::logger_program`](crate::Options::logger_program) names, and neither is available.
    NoProgram,
    /// The logger's thread could not be started
    /// ([`Options::logger_thread`](crate::Options::logger_thread)).
    Thread {
        /// What the system reported.
        error: String,
    },
    /// A logger was started, but did not become ready in time.
    NotReady,
    /// Another process is opening, recovering or leaving the store, and is stopped or hangs.
    Initializing {
        /// How long it has made no progress.
        stalled_for: Duration,
    },
    /// A thread of the logger panicked, and the logger is ending.
    Panicked,
    /// A logger was started and failed.
    Reported {
        /// The error that it reported.
        error: Arc<Error>,
    },
    /// A program was started that did not write the status of a logger of this version.
    Foreign {
        /// What it wrote.
        output: String,
    },
}

impl fmt::Display for LoggerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoggerFailure::Programs { tried } => {
                for (index, program) in tried.iter().enumerate() {
                    write!(f, "{}{program}", if index == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
            LoggerFailure::NoProgram => {
                f.write_str("a setuid program starts only itself or the program of Options::logger_program")
            }
            LoggerFailure::Thread { error } => write!(f, "thread: {error}"),
            LoggerFailure::NotReady => f.write_str("a logger started, but did not become ready"),
            LoggerFailure::Initializing { stalled_for } => write!(
                f,
                "another process is opening, recovering or closing the store and has made no progress for {stalled_for:?}"
            ),
            LoggerFailure::Panicked => f.write_str("a thread of the logger panicked"),
            LoggerFailure::Reported { error } => error.fmt(f),
            LoggerFailure::Foreign { output } => f.write_str(output),
        }
    }
}

/// A program that was tried as the logger, in [`LoggerFailure::Programs`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TriedProgram {
    /// The program's path or name.
    pub program: String,
    /// What the system reported, or how the program ended.
    pub failure: String,
}

impl TriedProgram {
    pub(crate) fn new(program: String, failure: impl Into<String>) -> TriedProgram {
        TriedProgram { program, failure: failure.into() }
    }
}

impl fmt::Display for TriedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.program, self.failure)
    }
}

/// Why a visible transaction did not become durable, in [`Error::NotDurable`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NotDurableReason {
    /// The store takes no more writes until all processes have closed it. Recovery then decides
    /// whether the transaction survives.
    NeedsRecovery {
        /// The cause.
        reason: RecoveryReason,
    },
    /// No logger could be started just now. [`Ticket::wait`](crate::Ticket::wait) may be retried.
    NoLogger {
        /// The cause.
        reason: LoggerFailure,
    },
    /// The logger whose server committed the transaction is exiting, and did not wait for the
    /// flush.
    LoggerExiting,
    /// The value of a cell is stored and visible, but no durable transaction contains it.
    Cell {
        /// The cell's name.
        name: String,
        /// The version of the value.
        version: Version,
        /// The cause.
        error: Arc<Error>,
    },
    /// The wait failed with another error. [`Ticket::wait`](crate::Ticket::wait) may be retried.
    Failed {
        /// The error.
        error: Arc<Error>,
    },
}

impl From<Error> for NotDurableReason {
    fn from(error: Error) -> NotDurableReason {
        match error {
            Error::NeedsRecovery { reason } => NotDurableReason::NeedsRecovery { reason },
            Error::LoggerUnavailable { reason } => NotDurableReason::NoLogger { reason },
            other => NotDurableReason::Failed { error: Arc::new(other) },
        }
    }
}

impl fmt::Display for NotDurableReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotDurableReason::NeedsRecovery { reason } => reason.fmt(f),
            NotDurableReason::NoLogger { reason } => write!(f, "no logger could be started: {reason}"),
            NotDurableReason::LoggerExiting => f.write_str("the logger is exiting, and did not wait for the flush"),
            NotDurableReason::Cell { name, version, error } => {
                write!(f, "version {version} of cell {name:?} is stored, but not in it: {error}")
            }
            NotDurableReason::Failed { error } => error.fmt(f),
        }
    }
}

/// Why the store takes no more writes, in [`Error::NeedsRecovery`] and
/// [`Stats::needs_recovery`](crate::Stats::needs_recovery).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecoveryReason {
    /// A write or sync of the log failed.
    Log {
        /// The system's error number.
        errno: i32,
    },
    /// A sync of the arena failed.
    Arena {
        /// The system's error number.
        errno: i32,
    },
    /// The header of a checkpoint could not be written.
    CheckpointHeader {
        /// The system's error number.
        errno: i32,
    },
    /// `control` records a reason that this version of the library does not know.
    Unknown {
        /// The error number that is recorded with it.
        errno: i32,
    },
    /// The store must be recovered, but the logger that must exit first still runs. Try again.
    LoggerExiting,
    /// The log could not record that a checkpoint was taken.
    CheckpointNotRecorded,
}

impl fmt::Display for RecoveryReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, errno) = match self {
            RecoveryReason::Log { errno } => ("the log could not be written", errno),
            RecoveryReason::Arena { errno } => ("a sync of the arena failed", errno),
            RecoveryReason::CheckpointHeader { errno } => ("the checkpoint's header could not be written", errno),
            RecoveryReason::Unknown { errno } => ("control records a reason that this version does not know", errno),
            RecoveryReason::LoggerExiting => {
                return f.write_str("the store must be recovered, and its logger is still exiting");
            }
            RecoveryReason::CheckpointNotRecorded => return f.write_str("the log could not record the checkpoint"),
        };
        write!(f, "{what} ({})", io::Error::from_raw_os_error(*errno))
    }
}

/// The cause that cuts a handle off from its store, in [`Error::Detached`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DetachedReason {
    /// The file `lock` was removed while the store was open.
    LockRemoved {
        /// The store's directory.
        directory: PathBuf,
    },
    /// Another file was put in the place of `lock` while the store was open.
    LockReplaced {
        /// The store's directory.
        directory: PathBuf,
    },
    /// The directory was removed while the store was open.
    DirectoryRemoved {
        /// The store's directory.
        directory: PathBuf,
    },
    /// The file `lock` was replaced during the opening.
    LockReplacedInOpen,
    /// Code of this process has closed a descriptor of the library by which other processes detect
    /// that this one is alive.
    DescriptorClosed,
}

impl fmt::Display for DetachedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DetachedReason::LockRemoved { directory } => {
                write!(f, "lock was removed from {} while the store was open", directory.display())
            }
            DetachedReason::LockReplaced { directory } => {
                write!(f, "another file was put in the place of lock in {} while the store was open", directory.display())
            }
            DetachedReason::DirectoryRemoved { directory } => {
                write!(f, "the directory {} was removed while the store was open", directory.display())
            }
            DetachedReason::LockReplacedInOpen => f.write_str("lock was replaced during the opening"),
            DetachedReason::DescriptorClosed => f.write_str(
                "something in this process has closed a descriptor of lock that it did not open, by close_range() for instance; on \
                 this file system the descriptor shows other processes that this one is alive",
            ),
        }
    }
}
