//! The public interface of direct clients.
//!
//! - `store`, `keyspace`, `snapshot`, `write_txn`, `ticket`, `options`: the store and its
//!   transactions
//! - `left_in_order`: the region of a store that was left in order
//! - `cursor`: lending cursors; `savepoint`: states that a write transaction can return to
//! - `composed`: calls composed of the above; `batch`: changes with conditions
//! - `cells`: values updated in place, and counters
//! - `feed`: the change feed
//! - `monitoring`: monitoring and checking a store
//! - `pinned`: values that hold their pin

pub(crate) mod batch;
pub(crate) mod cells;
mod composed;
pub(crate) mod cursor;
pub(crate) mod feed;
pub(crate) mod keyspace;
mod left_in_order;
pub(crate) mod monitoring;
mod open;
pub(crate) mod pinned;
pub(crate) mod savepoint;
pub(crate) mod snapshot;
pub(crate) mod store;
pub(crate) mod ticket;
pub(crate) mod write_txn;
