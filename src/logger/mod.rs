//! The logger: the one process of a store that makes its commits durable.
//!
//! A direct client starts it by itself; see the [crate's documentation](crate#safety-model). The
//! functions here are for supervisors, which run a logger in the foreground, and for programs that
//! end one.
//!
//! The folder's files:
//!
//! - `daemon`: how a process becomes it
//! - `privileges`: how one that root starts becomes the store's owner
//! - `process`: its life, from the initialisation lock to leaving
//! - `check`: what it checks before it recovers, without changing a byte
//! - `rehearse`: the replay of the log in memory, which meets damage before a file changes
//! - `recover`: what it does first when nobody lives: checkpoint, log, ring
//! - `flush`: the flush thread: ring → segment → fsync → acknowledgement
//! - `recover_cells`: the same for cells and counters
//! - `background`: preallocation, growth, reaping
//! - `checkpoint`: one checkpoint
//! - `sampler`: cells and counters become records

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

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use check::check_arena;
