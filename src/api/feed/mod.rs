//! Following the log: every committed change, in order, to whoever asks, from wherever they were.
//!
//! | file | its one job |
//! |---|---|
//! | `locate` | where in the log somebody reads on who knows all up to a transaction |
//! | `reader` | records, from the ring or from the segments, whichever still has them |
//! | `transaction_filter` | what of a transaction is delivered, found out before the first of it is |
//! | `transaction_cursor` | the changes of one transaction, one by one |
//! | `keyspace_names` | the names of keyspaces, those that were dropped since included |
//!
//! A follower holds nothing back and is waited for by nobody: what it has not read in time is overwritten under it.
//! So it looks after each copy whether that was good, and a place that is gone is an error
//! that names the oldest one left, never a gap.

mod keyspace_names;
pub(crate) mod locate;
mod reader;
mod transaction_cursor;
mod transaction_filter;

pub(crate) use keyspace_names::KeyspaceNames;
pub(crate) use reader::{ReadLimit, Reader};
pub(crate) use transaction_cursor::{Admission, Admit, CursorStep, TransactionCursor};
pub(crate) use transaction_filter::{ChangeFilter, TransactionFilter};
