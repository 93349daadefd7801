//! The copy-on-write B+tree: ordered entries over pages that never change once they are committed.
//!
//! - `node`: reading a page of the tree; its layout is described there. `node/key.rs`: the parts of
//!   a stored key
//! - `node_mut`: inserting, removing and overwriting one entry in place
//! - `rebuild`: rebuilding whole pages: compaction, splits, merges
//! - `search`: the descent to a key, for reads and writes; point lookups
//! - `position`: a gap between entries, and the moves of cursors
//! - `cursor`: iteration over a range from both ends; `point_cursor`: a cursor on one entry, moved
//!   by steps or to a key
//! - `edit`: put, delete and dropping a tree, by path copying
//! - `range`: removing a range of keys, subtree by subtree
//! - `balance`: the changes to branches when pages split, vanish or merge
//! - `check`: checks every invariant of a tree, for `untorn verify`
//! - `walk`: visits the pages of a tree, parents before children
//!
//! Invariants: all leaves are at level 0 and equally deep. Keys ascend inside and across pages. No
//! leaf is empty. A page's created_txn is not after its parent's: a copy of a child has a new page
//! number, so the parent changes, too. An empty tree has no pages.
//!
//! Deliberately absent: links between leaves, which path copying could not keep; reference counts;
//! concurrency.

mod balance;
pub(crate) mod check;
pub(crate) mod cursor;
pub(crate) mod edit;
pub(crate) mod node;
pub(crate) mod node_mut;
pub(crate) mod point_cursor;
pub(crate) mod position;
pub(crate) mod range;
pub(crate) mod rebuild;
pub(crate) mod search;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use crate::TxnId;

/// The result of a lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry<'a> {
    /// The transaction that wrote the entry last.
    pub(crate) version: TxnId,
    pub(crate) value: &'a [u8],
}
