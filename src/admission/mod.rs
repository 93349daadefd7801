//! The order in which writers get the writer lock.
//!
//! - `local_queue`: the queue of the threads of one process, with priority inheritance

pub(crate) mod local_queue;
