//! Following the log: every committed change, in order, to whoever asks, from wherever they were.
//!
//! | file | its one job |
//! |---|---|
//! | `seek` | where in the log somebody reads on who knows all up to a transaction |
//! | `reader` | records, from the ring or from the segments, whichever still has them |
//! | `plan` | what of a transaction is delivered, found out before the first of it is |
//! | `delivery` | the changes of one transaction, one by one |
//! | `names` | the names of keyspaces, those that were dropped since included |
//!
//! A follower holds nothing back and is waited for by nobody: what it has not read in time is overwritten under it.
//! So it looks after each copy whether that was good, and a place that is gone is an error
//! that names the oldest one left, never a gap.

mod delivery;
mod names;
mod plan;
mod reader;
pub(crate) mod seek;

pub(crate) use delivery::{Admission, Admit, Delivered, Delivery};
pub(crate) use names::Names;
pub(crate) use plan::{Filter, Plan};
pub(crate) use reader::{Bound, Reader};
