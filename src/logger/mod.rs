//! The logger: one process of a store that makes its commits durable.
//!
//! - `keeper`: how clients start it
//! - `daemon`: how a process becomes it
//! - `privileges`: how one that root starts becomes the store's owner
//! - `process`: its life, from the initialisation lock to leaving
//! - `rest`: when its threads look by themselves, and when they rest
//! - `panics`: what becomes of it when one of its threads panics
//! - `check`: what it checks before it recovers, without changing a byte
//! - `recover`: what it does first when nobody lives: checkpoint, log, ring
//! - `flush`: the flush thread: ring → segment → fsync → acknowledgement
//! - `recover_cells`: the same for cells and counters
//! - `background`: preallocation, growth, reaping
//! - `checkpoint`: one checkpoint
//! - `sampler`: cells and counters become records
//! - `serve`: the server of message-passing clients
//! - `settings`: what clients tell it through `control`

pub(crate) mod background;
mod check;
pub(crate) mod checkpoint;
pub(crate) mod daemon;
pub(crate) mod flush;
pub(crate) mod keeper;
mod panics;
mod privileges;
pub(crate) mod process;
pub(crate) mod recover;
pub(crate) mod recover_cells;
mod rest;
pub(crate) mod sampler;
mod serve;
pub(crate) mod settings;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use check::check_arena;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use serve::check_access;
