//! A crash-consistent, embedded, ordered key-value store that several processes open at once.
//!
//! Open a directory with [`Store::open`] from as many processes as you like; any of them may be killed at
//! any instruction, and the machine may lose power: no reader ever sees a torn record or half a
//! transaction, and no acknowledged write is lost. Two words are kept apart everywhere: *visible* (other
//! processes see it) and *durable* (an fsync has covered it).
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
//! txn.put(&users, b"alice", b"1")?;
//! txn.put(&users, b"bob", b"2")?;
//! let ticket = txn.commit_with(Durability::Visible)?; // other processes see both, or neither
//! ticket.wait()?; // now they survive a power loss
//!
//! for entry in users.prefix(b"al")? {
//!     let (key, value) = entry?;
//!     assert_eq!((&*key, &*value), (&b"alice"[..], &b"1"[..]));
//! }
//! # drop(users);
//! # store.close()?;
//! # untorn::stop_logger(&path, std::time::Duration::from_secs(5))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Map of the modules
//! Data flows one way: `store` → `txn` → `tree` → `page` → `shm::arena`.
//!
//! - `store`, `keyspace`, `snapshot`, `write_txn`, `ticket`, `options`, `stats`, `observe`, `verify`: what users see
//! - `cells`: values that are updated in place, and counters
//! - `changes`, `feed`: following the log
//! - `client`: one process's use of one store: pins, locks, liveness
//! - `engine`: what clients and the logger have in common
//! - `txn`: write transactions, commit, reclaim, replay
//! - `tree`, `page`: the copy-on-write B+tree, which knows nothing of memory or processes
//! - `shm`: shared memory: mappings, atomics, the protocols between processes; nearly all `unsafe` is here
//! - `remote`, `socket`: message-passing clients; their server is in `logger`
//! - `logger`: the process that makes commits durable
//! - `dir`, `descriptor`, `header`, `slot`, `create`: the files and what they hold

#[macro_use]
mod crash;
mod cells;
mod changes;
mod client;
#[doc(hidden)]
pub mod crash_points;
#[doc(hidden)]
pub use untorn_wal::planted_bugs;
mod create;
mod descriptor;
mod dir;
mod engine;
mod environment;
mod error;
mod fault;
mod feed;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod header;
mod ids;
mod keyspace;
pub mod limits;
mod logger;
mod observe;
mod options;
mod owner;
mod page;
mod presence;
mod remote;
mod shm;
mod slot;
mod snapshot;
mod socket;
mod stats;
mod store;
mod ticket;
mod tree;
mod txn;
mod verify;
mod write_txn;

pub use cells::CellInfo;
pub use cells::cell::Cell;
pub use cells::counter::Counter;
pub use cells::record::{KEYSPACE as CELLS_KEYSPACE, Sample};
pub use changes::{Change, ChangeKind, Changes, Feed};
pub use error::{Error, Result};
pub(crate) use ids::{ClientId, KeyspaceId, PageId};
pub use ids::{TxnId, Version};
pub use keyspace::{CasOutcome, Keyspace};
pub use logger::daemon::{LoggerOptions, run_logger, stop_logger};
pub use observe::{Observation, observe};
pub use options::{Durability, FlushPolicy, Options};
pub use remote::{Batch, Client, ClientOptions, CommitOutcome, RemoteChanges, Scan};
pub use shm::histogram::Latency;
pub use snapshot::{Key, Range, Snapshot, Value};
pub use stats::{
    Acknowledgements, CellStat, ClientStat, DeadlineStat, HolderStat, Latencies, LatencyByClass, ReaderStat, Stats,
};
pub use store::Store;
pub use ticket::Ticket;
pub use verify::{Problem, VerifyReport};
pub use write_txn::{TxnRange, WriteTxn};

/// Handles may be used after a panic that unwound through one of their calls. Their shared state is in the region, where each
/// protocol goes on from the death of its process at any step, so from a panic too. Their own locks guard single values that
/// are replaced as a whole, and are not poisoned.
macro_rules! unwind_safe {
    ($($handle:ty),*) => {
        $(
            impl std::panic::UnwindSafe for $handle {}
            impl std::panic::RefUnwindSafe for $handle {}
        )*
    };
}
unwind_safe!(Keyspace, Snapshot, Range, Value, Ticket);

/// Has `cargo test` compile the programs in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The protocols between processes, for the model checker's tests, which run this very code with other atomics. Not
/// part of the library's interface: it may change in any release.
#[doc(hidden)]
pub mod protocols {
    pub use crate::shm::control::{BEATS_AT, CHECKED_NUMBERS, READER_CHUNK, REGION_INODE_AT};
    pub use crate::shm::readers::{READER_MAP_AT, READER_MAP_BYTES};
    pub use crate::shm::{atomic, cell, deadline, histogram, lock, occupancy, pins, ring, slots, waiter};
}
