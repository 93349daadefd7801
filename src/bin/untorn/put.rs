//! `put`: sets a key, durably. Creates the store and the keyspace if missing.

use crate::arguments::{Format, Location};
use crate::outcome::Outcome;
use crate::text;
use untorn::Store;

pub(crate) fn run(at: &Location, key: &str, value: &str, format: Format) -> Outcome {
    let (key, value) = (text::parse(key, format)?, text::parse(value, format)?);
    let store = Store::options().create(true).open(&at.store)?;
    store.keyspace(&at.keyspace)?.put(&key[..], &value[..])?;
    Ok(())
}
