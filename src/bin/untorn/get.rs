//! `get`: prints the value of a key.

use crate::arguments::{Format, Location};
use crate::outcome::{Failure, Outcome};
use crate::{line, text};
use std::io::{self, Write};
use untorn::{Keyspace, Store};

pub(crate) fn run(at: &Location, key: &str, format: Format) -> Outcome {
    let key_bytes = text::parse(key, format)?;
    let (_store, keyspace) = open_existing(at)?;
    let Some(value) = keyspace.get(&key_bytes[..])? else {
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

/// Opens a store and a keyspace for reading; neither is created.
pub(crate) fn open_existing(at: &Location) -> Outcome<(Store, Keyspace)> {
    let store = Store::options().create(false).read_only(true).open(&at.store)?;
    let keyspace = existing_keyspace(&store, &at.keyspace)?;
    Ok((store, keyspace))
}

/// A keyspace, unless it would have to be created.
pub(crate) fn existing_keyspace(store: &Store, name: &str) -> Outcome<Keyspace> {
    store.find_keyspace(name)?.ok_or_else(|| Failure::NotFound(format!("there is no keyspace {name:?}")))
}
