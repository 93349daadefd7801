//! `dump`: writes all records of a keyspace, of one snapshot, in key order, as `load` reads them.

use crate::arguments::{Format, Location};
use crate::get::open_existing;
use crate::line;
use crate::outcome::{Failure, Outcome};
use std::io::{self, BufWriter, Write};

pub(crate) fn run(at: &Location, format: Format) -> Outcome {
    let (store, keyspace) = open_existing(at)?;
    let snapshot = store.snapshot()?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    for record in snapshot.range(&keyspace, ..)? {
        let (key, value) = record?;
        line::write(&mut out, &at.keyspace, &key, &value, format)?;
    }
    out.flush().map_err(Failure::output)
}
