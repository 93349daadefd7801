//! Protocols between processes, generic over the atomics: the model checker runs this very code
//! with its own.
//!
//! - [`atomic`]: the words that the protocols are made of, and what a model puts in their place
//! - `futex`: the system calls by which a process sleeps on a word
//! - [`lock`]: which process may write
//! - [`pins`]: what readers hold; [`occupancy`]: where they are
//! - [`slots`]: which commit is the newest
//! - [`ring`]: the bytes of the log
//! - [`event_count`]: sleeping until something moves
//! - [`deadline`]: by when the log is to be flushed
//! - [`cell`]: values updated in place
//! - [`histogram`]: how long things take
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
