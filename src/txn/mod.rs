//! Transactions: the layer between the public calls and the pages.
//!
//! - `ops`: the operations in a log record
//! - `stream`: writing log records into the ring, frame by frame if they are long
//! - `catalog`: the tree of keyspaces
//! - `trees`: the keyspaces that a transaction has opened
//! - `write`: the operations of a write transaction
//! - `savepoint`: states that a transaction can return to
//! - `commit`: the whole commit, in order
//! - `replay`: log records applied again, through the same write path
//! - `check`: the checks of the files against the checkpoint header
//! - `roots`: the check of the pages that lead to all others

pub(crate) mod catalog;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod ops;
pub(crate) mod replay;
pub(crate) mod roots;
pub(crate) mod savepoint;
pub(crate) mod stream;
mod trees;
pub(crate) mod write;
