//! What the engine asks of the system besides files, each in one place: a simulation of the whole
//! engine replaces these modules, the log's [`Disk`](untorn_wal::Disk), the futexes
//! (`shared/protocols/futex.rs`) and the test for a process's life (`shared/liveness.rs`).
//!
//! - `clock`: the time, and sleeping
//! - `threads`: starting threads
//! - `sync`: mutexes and condition variables of one process
//! - `write_back`: writing what mappings have changed to the device

pub(crate) mod clock;
pub(crate) mod sync;
pub(crate) mod threads;
pub(crate) mod write_back;
