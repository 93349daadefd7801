//! Monitoring and checking a store.
//!
//! - `stats`: the figures of a store that the caller has open
//! - `observe`: the same figures without joining the store
//! - `verify`: checks every page, record and word

mod log_walk;
pub(crate) mod observe;
pub(crate) mod stats;
pub(crate) mod verify;
