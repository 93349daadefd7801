//! The logger: one process of a store that makes its commits durable.
//!
//! - `keeper`: how clients start it
//! - `daemon`: how a process becomes it
//! - `process`: its life, from the initialisation lock to leaving
//! - `recover`: what it does first when nobody lives: checkpoint, log, ring
//! - `flush`: the flush thread: ring → segment → fsync → acknowledgement
//! - `background`: the other thread: preallocation, growth, reaping, checkpoints
//! - `checkpoint`: one checkpoint
//! - `settings`: what clients tell it through `control`

pub(crate) mod background;
pub(crate) mod checkpoint;
pub(crate) mod daemon;
pub(crate) mod flush;
pub(crate) mod keeper;
pub(crate) mod process;
pub(crate) mod recover;
pub(crate) mod settings;
