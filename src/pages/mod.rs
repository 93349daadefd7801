//! Pages: allocation, free queues, and the workspace of a transaction.
//!
//! - `workspace`: the pages of a running transaction
//! - `savepoints`: which of them its savepoints need
//! - `queue`: lists of freed pages
//! - `runs`: runs of contiguous pages for large values, by size class
//! - `protection`: rule I3: which freed pages may be reused
//! - `room`: what a writer does when the store is full; what is reserved for deletes
//! - `memory`: pages in memory, for tests

#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod memory;
pub(crate) mod protection;
pub(crate) mod queue;
pub(crate) mod room;
pub(crate) mod runs;
mod savepoints;
pub(crate) mod workspace;
