//! `dump`: writes all records of a keyspace, of one snapshot, in key order, as `load` reads them:
//! `scan` of everything.

use super::scan;
use crate::arguments::{Format, Location};
use crate::outcome::Outcome;

pub(crate) fn run(at: &Location, format: Format) -> Outcome {
    scan::run(at, None, format)
}
