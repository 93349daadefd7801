//! One process's membership of a store.
//!
//! - `client`: joining a store, the identity of the process, its admission as a writer
//! - `create`: making a store
//! - `region`: making the shared region of a store that no process has open
//! - `pin`: pins, pooled by thread
//! - `waker`: the thread that completes awaited tickets

pub(crate) mod client;
pub(crate) mod create;
pub(crate) mod pin;
pub(crate) mod region;
pub(crate) mod waker;
