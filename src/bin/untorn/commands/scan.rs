//! `scan`: prints the records of a keyspace in key order, optionally of one prefix only.

use crate::arguments::{Format, Location};
use crate::outcome::{CommandFailure, Outcome};
use crate::output::Output;
use crate::{line, target, text};
use std::io::Write;

pub(crate) fn run(at: &Location, prefix: Option<&str>, format: Format) -> Outcome {
    let prefix = text::parse(prefix.unwrap_or_default(), format)?;
    let mut out = Output::new(format);
    let store = target::to_read(&at.store)?;
    for record in store.prefix(&at.keyspace, &prefix)? {
        let (key, value) = record?;
        line::write(&mut out, &at.keyspace, &key, &value, format)?;
    }
    out.flush().map_err(CommandFailure::output)
}
