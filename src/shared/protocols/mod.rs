//! Protocols between processes, generic over the atomics, so that the model checker runs the same
//! code with its own.
//!
//! - [`atomic`]: the words that the protocols are made of, and the trait through which a model
//!   replaces them
//! - `futex`: the system calls by which a process sleeps on a word
//! - [`lock`]: the lock that holds the id of the process that may write
//! - [`pins`]: the transactions that readers protect; [`occupancy`]: the map of the slots that hold
//!   them
//! - [`slots`]: the images of the newest commits
//! - [`ring`]: the bytes of the log
//! - [`event_count`]: sleeping until a word has changed
//! - [`deadline`]: the earliest deadline of a commit that no flush has covered
//! - [`cell`]: values updated in place
//! - [`histogram`]: distributions of latencies
//! - `loom_tests`: the models

pub(crate) mod atomic;
pub(crate) mod cell;
pub(crate) mod deadline;
pub(crate) mod event_count;
pub(crate) mod futex;
pub(crate) mod histogram;
pub(crate) mod lock;
pub(crate) mod occupancy;
pub(crate) mod pins;
pub(crate) mod ring;
pub(crate) mod slots;

#[cfg(test)]
mod loom_tests;
