//! What processes share: memory, words in it, locks, and whether a process is alive. The only
//! folder with unsafe code, together with the few files elsewhere that say so in their first line.
//!
//! - `memory`: mappings
//! - `protocols`: the protocols between processes, model-checked
//! - `control`: the layout of the shared region; `cells`, `readers`, `latencies`: parts of it
//! - `liveness`: whether a process lives, by locked bytes of `lock`; `presence`: the bytes of this
//!   process
//! - `socket`: messages between processes
//! - `stats`: the types of the figures of a store
//! - `progress`: whether a living process makes progress

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
