//! What processes share: memory, words in it, locks, and whether somebody is alive. The only folder with unsafe code,
//! together with the few files elsewhere that say so in their first line.
//!
//! Protocols, generic over the atomics and model-checked: [`lock`] (who may write), [`pins`] (what readers hold), [`occupancy`] (where),
//! [`slots`] (what is current), [`ring`] (the log's bytes), [`waiter`] (sleeping until something moves),
//! [`deadline`] (by when the log is to be flushed), [`cell`] (values updated in place), [`histogram`] (how long things take).
//! Their ground: [`atomic`], `futex`, `mapping`, `spans`, `liveness`, `progress`, `fork`. What lies in the memory: `control`, `readers`, `cells`, `latencies`, `arena`, `held`.

pub(crate) mod arena;
pub mod atomic;
pub mod cell;
pub(crate) mod cells;
pub(crate) mod control;
pub mod deadline;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod held;
pub mod histogram;
pub(crate) mod latencies;
pub(crate) mod liveness;
pub mod lock;
pub(crate) mod mapping;
pub mod occupancy;
pub mod pins;
pub(crate) mod private;
pub(crate) mod progress;
pub(crate) mod readers;
pub mod ring;
pub mod slots;
pub(crate) mod spans;
pub mod waiter;

#[cfg(test)]
mod process_tests;
