//! Pages: allocation, free queues, and the workspace of a transaction.
//!
//! - `workspace`: the pages of a running transaction: allocation, copy on write, return of freed
//!   pages
//! - `savepoints`: the pages that its savepoints need
//! - `queue`: lists of freed pages
//! - `extents`: extents of contiguous pages for large values, by size class
//! - `protection`: rule I3: which freed pages may be reused
//! - `unreplayed`: the extents to which the log refers, until recovery has replayed it
//! - `reserve`: the pages that are reserved for deletes and recovery; the checkpoint of a writer in
//!   a full store
//! - `memory`: pages in memory, for tests

pub(crate) mod extents;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod memory;
pub(crate) mod protection;
pub(crate) mod queue;
pub(crate) mod reserve;
mod savepoints;
pub(crate) mod unreplayed;
pub(crate) mod workspace;
