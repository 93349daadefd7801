//! The engine's interface to the system besides files, in one place each. A simulation of the whole
//! engine replaces these modules, the log's [`Disk`](untorn_wal::Disk), the futexes
//! (`shared/protocols/futex.rs`) and the liveness test (`shared/liveness.rs`).
//!
//! - `clock`: clocks, and sleeping
//! - `threads`: starting threads
//! - `sync`: mutexes and condition variables of one process
//! - `write_back`: writing what mappings have changed to the device

pub(crate) mod clock;
pub(crate) mod sync;
pub(crate) mod threads;
pub(crate) mod write_back;
