//! The parts that processes share: memory, words in it, locks, and the liveness of processes.
//!
//! Almost all unsafe code of the crate is here; `docs/design.md` lists the files elsewhere that
//! have some.
//!
//! - `memory`: mappings
//! - `protocols`: the protocols between processes, model-checked
//! - `control`: the layout of the shared region; `cells`, `readers`, `latencies`: parts of it
//! - `liveness`: liveness tests by locked bytes of `lock`; `presence`: the bytes of this process
//! - `socket`: messages between processes
//! - `stats`: the types of a store's figures
//! - `progress`: visible progress of the holder of the initialisation lock

pub(crate) mod cells;
pub(crate) mod control;
pub(crate) mod latencies;
pub(crate) mod liveness;
pub(crate) mod memory;
pub(crate) mod presence;
pub(crate) mod progress;
pub(crate) mod protocols;
pub(crate) mod readers;
pub(crate) mod socket;
pub(crate) mod stats;

#[cfg(test)]
mod process_tests;
