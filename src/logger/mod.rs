//! The logger: the one process of a store that makes its commits durable.
//!
//! A direct client starts it when it needs one; see the [crate's
//! documentation](crate#safety-model). The functions here are for supervisors, which run a logger
//! in the foreground, and for programs that stop one.
//!
//! The folder's files:
//!
//! - `daemon`: how a process becomes the logger
//! - `privileges`: how a logger that root starts becomes the store's owner
//! - `process`: its life, from the initialisation lock to its exit
//! - `check`: what it checks before it recovers, without changing a byte
//! - `rehearse`: the replay of the log in memory, which meets damage before a file changes
//! - `adopt`: whether and how it continues the region of processes that have all died
//! - `recover`: recovery from checkpoint, log and ring, if no client lives
//! - `recover_cells`: recovery of cells and counters
//! - `flush`: the flush thread: ring → segment → fsync → acknowledgement
//! - `background`: preallocation, growth, reaping
//! - `checkpoint`: one checkpoint
//! - `sampler`: commits cells and counters as records

mod adopt;
pub(crate) mod background;
mod check;
pub(crate) mod checkpoint;
pub(crate) mod daemon;
pub(crate) mod flush;
mod privileges;
pub(crate) mod process;
pub(crate) mod recover;
pub(crate) mod recover_cells;
mod rehearse;
pub(crate) mod sampler;

pub use daemon::{LoggerOptions, run_logger, stop_logger};
