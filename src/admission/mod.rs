//! The order in which writers get the writer lock.
//!
//! - `gate`: the queue of the threads of one process

pub(crate) mod gate;
