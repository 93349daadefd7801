//! In which order writers write.
//!
//! - `gate`: the queue of this process's threads

pub(crate) mod gate;
