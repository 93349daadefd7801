//! `scan`: prints the records of a keyspace in key order, optionally of one prefix only.

use crate::arguments::{Format, Location};
use crate::get::open_existing;
use crate::outcome::{Failure, Outcome};
use crate::{line, text};
use std::io::{self, BufWriter, Write};

pub(crate) fn run(at: &Location, prefix: Option<&str>, format: Format) -> Outcome {
    let prefix = text::parse(prefix.unwrap_or_default(), format)?;
    let (_store, keyspace) = open_existing(at)?;
    let mut out = BufWriter::new(io::stdout().lock());
    for record in keyspace.prefix(&prefix[..])? {
        let (key, value) = record?;
        line::write(&mut out, &at.keyspace, &key, &value, format)?;
    }
    out.flush().map_err(Failure::output)
}
