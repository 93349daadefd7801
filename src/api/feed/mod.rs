//! The change feed: every committed change, in order, from any transaction that the log still
//! reaches.
//!
//! | file | its one job |
//! |---|---|
//! | `changes` | the iterator that users get |
//! | `locate` | the log position at which a follower resumes that has consumed every transaction up to a given one |
//! | `reader` | records, from the ring or from the segments, whichever still has them |
//! | `transaction_filter` | which operations of a transaction are delivered; complete before the first one is |
//! | `transaction_cursor` | the changes of one transaction, one by one |
//! | `keyspace_names` | the names of keyspaces, those that were dropped since included |
//!
//! A follower holds nothing back, and no writer waits for it: records that it does not read in time
//! are overwritten. So it verifies each copy after it was made. A position that is gone is an error
//! that names the oldest one left, never a gap.

pub(crate) mod changes;
mod keyspace_names;
pub(crate) mod locate;
mod reader;
mod transaction_cursor;
mod transaction_filter;

pub(crate) use keyspace_names::KeyspaceNames;
pub(crate) use reader::{LogReader, ReadLimit};
pub(crate) use transaction_cursor::{Admit, CursorStep, Delivery, TransactionCursor};
pub(crate) use transaction_filter::{ChangeFilter, TransactionFilter};
