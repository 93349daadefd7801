//! Transactions: what happens between the public calls and the pages.
//!
//! - `ops`: the operations in a log record
//! - `queue`: lists of freed pages
//! - `runs`: runs of contiguous pages for large values, by size class
//! - `protection`: rule I3: which freed pages may be reused
//! - `workspace`: the pages of a running transaction
//! - `room`: what a writer does when the store is full; what is reserved for deletes
//! - `stream`: the way of log records into the ring, frame by frame if need be
//! - `catalog`: the tree of keyspaces
//! - `write`: the operations of a write transaction
//! - `commit`: the whole commit, in order
//! - `replay`: log records applied again, through the same write path

pub(crate) mod catalog;
pub(crate) mod commit;
pub(crate) mod ops;
pub(crate) mod protection;
pub(crate) mod queue;
pub(crate) mod replay;
pub(crate) mod room;
pub(crate) mod runs;
pub(crate) mod stream;
pub(crate) mod workspace;
pub(crate) mod write;
