//! A crash-consistent, embedded, ordered key-value store that several processes open at once.
//!
//! Open a directory with [`Store::open`] from as many processes as you like. Any of them may be
//! killed at any instruction, and the machine may lose power: no reader ever sees a torn record or
//! half a transaction, and no acknowledged write is lost. Two terms are distinguished everywhere:
//! *visible* (other processes see the commit) and *durable* (an fsync has covered it).
//!
//! ```
//! # fn main() -> untorn::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("data");
//! use untorn::{Durability, Store};
//!
//! let store = Store::open(&path)?;
//! let users = store.keyspace("users")?;
//!
//! let mut txn = store.begin_with(Durability::Visible)?; // gives way to commits that wait for the disk
//! txn.put(&users, "alice", "1")?;
//! txn.put(&users, "bob", "2")?;
//! let ticket = txn.commit()?; // other processes see both, or neither
//! ticket.wait()?; // now they survive a power loss
//!
//! for entry in users.prefix("al")? {
//!     let (key, value) = entry?;
//!     assert_eq!((&*key, &*value), (&b"alice"[..], &b"1"[..]));
//! }
//! # drop(users);
//! # store.close()?;
//! # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Safety model
//!
//! ## What a direct client trusts
//! [`Store::open`] maps the store's files. A process with the right to write them can overwrite
//! records, break locks, and truncate a file, which kills readers by SIGBUS. So a direct client
//! trusts every process that opens the store: those of the directory's owner, and root. It does not
//! rely on their survival: any may be killed at any instruction. It does not trust the disk either:
//! bytes read from a file are checked, and damage is [`Error::Corrupt`]. Less trusted code uses
//! [`Client`], which maps nothing.
//!
//! ## Why `open` is a safe function
//! A reference into a mapped file is sound only if its bytes stay the same, and other processes can
//! write the file.
//!
//! - Participants follow a protocol. They write no page that a pinned commit reaches, and a
//!   reference lives no longer than its pin. All words that change are atomics.
//! - A process that writes the files by other means breaks the protocol from outside. Safe code can
//!   do so too, by the paths of the files. The standard library treats `/proc/self/mem` and
//!   debuggers in the same way: Rust's guarantees do not cover what the system lets a program do to
//!   memory by a file.
//! - Code that closes descriptors which it does not own breaks Rust's I/O safety. On a stacked file
//!   system (overlayfs), other processes may then treat this one as dead. Calls then return
//!   [`Error::Detached`]; bytes that were lent before may change.
//!
//! ## What `fork()` does
//! A child of `fork()` does not inherit the mappings. There, each call on a handle that the parent
//! opened returns [`Error::Forked`], and dropping one does nothing. A [`Value`] or a slice that is
//! held across `fork()` must not be read in the child: the read faults, or returns what the child
//! has mapped there since. `fork()` is unsafe, and its caller is responsible for that. The child
//! may open the store anew. `posix_spawn`, [`std::process::Command`] and `exec` pass nothing on.
//!
//! ## The function that runs before `main`
//! Each executable that links this library runs a function of it before `main`. It registers
//! handlers for `fork()` and checks the variable `UNTORN_BECOME_LOGGER`. If the variable is set,
//! the process becomes the logger of the store that it names, and `main` never runs. In this way a
//! client starts a logger without another program.
//!
//! To leave the function out, build without the default feature `logger-hook`. A client then starts
//! the program that [`Options::logger_program`] or the variable `UNTORN_LOGGER` names, or
//! `untorn-logger` beside the executable or on `PATH`. With the feature,
//! [`Options::logger_program`] still selects the program; the function remains, but only registers
//! the handlers unless the variable is set. In a library that a host loads, it does nothing.
//!
//! # Map of the modules
//! Each folder imports only what is below it in this list; `tests/suite/repository/layers.rs`
//! checks that.
//!
//! - `access`: what direct and message-passing clients have in common
//! - [`logger`]: the process that makes commits durable
//! - `server`: the server of message-passing clients, in the logger process
//! - `api`: the public interface of direct clients, with the change feed and the cells
//! - `txn`: write transactions, commit, replay
//! - `btree`: the copy-on-write B+tree
//! - `pages`: pages, free lists, extents, and the workspace of a transaction
//! - `process`: one process's membership of a store
//! - `admission`: the order in which writers get the writer lock
//! - `participant`: what clients and the logger have in common
//! - `shared`: shared memory: mappings, atomics, the protocols between processes; nearly all
//!   `unsafe` is here
//! - `files`: the directory, its files and what they contain
//! - `error`, `ids`, `limits` and the other files beside the folders: used by all
//! - `remote`: message-passing clients, which use `shared` and `files` alone

#[cfg(not(target_os = "linux"))]
compile_error!("untorn runs on Linux only: it needs futexes between processes, locks of open files, and fallocate");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("untorn needs a 64-bit target: it reserves the address space of a whole store, 1 TiB by default");
#[cfg(not(target_endian = "little"))]
compile_error!("untorn needs a little-endian target: other processes read the shared region as little-endian bytes");

#[macro_use]
mod crash;
mod access;
mod admission;
mod api;
mod btree;
mod cas;
mod change;
#[doc(hidden)]
pub use crash::points as crash_points;
#[doc(hidden)]
pub use untorn_wal::planted_bugs;
mod durability;
mod environment;
mod error;
mod files;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod ids;
mod key_range;
pub mod limits;
pub mod logger;
mod pages;
mod participant;
mod prefix;
mod process;
mod remote;
mod server;
mod shared;
mod system;
mod txn;

pub use access::{Follow, KeyBounds, Records, StoreRead, StoreWrite};
pub use api::cells::CellInfo;
pub use api::cells::cell::Cell;
pub use api::cells::counter::Counter;
pub use api::cells::record::{KEYSPACE as CELLS_KEYSPACE, Sample};
pub use api::cursor::{Cursor, TxnCursor};
pub use api::feed::changes::Changes;
pub use api::keyspace::Keyspace;
pub use api::monitoring::observe::{Observation, observe};
pub use api::monitoring::verify::{Problem, VerifyReport};
pub use api::savepoint::Savepoint;
pub use api::snapshot::{Key, Range, Snapshot, SnapshotRange, Value};
pub use api::store::Store;
pub use api::ticket::Ticket;
pub use api::write_txn::{TxnRange, WriteTxn};
pub use cas::CasOutcome;
pub use change::{Change, ChangeKind, Feed};
pub use durability::Durability;
pub use error::{Error, LimitKind, Result, reason};
pub(crate) use ids::{ClientId, KeyspaceId, PageId};
pub use ids::{TxnId, Version};
pub use key_range::KeyRange;
pub use participant::options::{FlushPolicy, Options};
pub use remote::{Batch, Client, ClientOptions, CommitOutcome, RemoteChanges, Scan};
pub use shared::protocols::histogram::Latency;
pub use shared::stats::{
    Acknowledgements, CellStat, ClientStat, DeadlineStat, HolderStat, Latencies, LatencyByClass, ReaderStat, Stats,
};

/// Handles may be used after a panic that unwound through one of their calls. Their shared state is
/// in the region, where each protocol continues after the death of a process at any step, and so
/// after a panic. Their own locks guard single values that are replaced as a whole, and are not
/// poisoned. A call of a [`Client`] takes the connection, and returns it once it has the reply.
macro_rules! unwind_safe {
    ($($handle:ty),*) => {
        $(
            impl std::panic::UnwindSafe for $handle {}
            impl std::panic::RefUnwindSafe for $handle {}
        )*
    };
}
unwind_safe!(Keyspace, Snapshot, Range, Value, Ticket, Client);

/// Makes `cargo test` compile the programs in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Internals for the tests of this workspace: the positions of words of `control`, to damage them,
/// and the codec of errors. Not part of the library's interface: it may change in any release.
#[doc(hidden)]
pub mod internals {
    pub use crate::error::codec::{decode as decode_error, encode as encode_error};
    pub use crate::shared::control::{
        CHECKED_CELL_NUMBERS, CHECKED_NUMBERS, FLUSH_REQUEST_AT, HEARTBEAT_AT, IMAGES_AT, READER_CHUNK, REGION_INODE_AT,
    };
    pub use crate::shared::readers::{READER_MAP_AT, READER_MAP_BYTES};
}
