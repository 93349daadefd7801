//! Mutexes and condition variables between the threads of one process.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
