//! `get`: prints the value of a key.

use crate::arguments::{Format, Location};
use crate::outcome::{CommandFailure, Outcome};
use crate::output::Output;
use crate::{line, target, text};
use std::io::Write;

pub(crate) fn run(at: &Location, key: &str, format: Format) -> Outcome {
    let key_bytes = text::parse(key, format)?;
    let Some(value) = target::to_read(&at.store)?.get(&at.keyspace, &key_bytes)? else {
        return Err(CommandFailure::NotFound(format!("there is no key {key:?} in keyspace {:?}", at.keyspace)));
    };
    let mut out = Output::new(format);
    if format.json {
        line::write(&mut out, &at.keyspace, &key_bytes, &value, format)?;
    } else {
        let text = text::render(&value, format)?;
        writeln!(out, "{text}").map_err(CommandFailure::output)?;
    }
    out.flush().map_err(CommandFailure::output)
}
