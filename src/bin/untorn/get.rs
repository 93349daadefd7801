//! `get`: prints the value of a key.

use crate::arguments::{Format, Location};
use crate::outcome::{Failure, Outcome};
use crate::target::Target;
use crate::{line, text};
use std::io::{self, Write};

pub(crate) fn run(at: &Location, key: &str, format: Format) -> Outcome {
    let key_bytes = text::parse(key, format)?;
    let Some(value) = Target::to_read(&at.store)?.get(&at.keyspace, &key_bytes)? else {
        return Err(Failure::NotFound(format!("there is no key {key:?} in keyspace {:?}", at.keyspace)));
    };
    let mut out = io::stdout().lock();
    if format.json {
        line::write(&mut out, &at.keyspace, &key_bytes, &value, format)?;
    } else {
        writeln!(out, "{}", text::render(&value, format)?).map_err(Failure::output)?;
    }
    out.flush().map_err(Failure::output)
}
