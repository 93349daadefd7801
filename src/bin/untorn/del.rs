//! `del`: deletes a key, durably. Says so if it was not there.

use crate::arguments::{Format, Location};
use crate::get::existing_keyspace;
use crate::outcome::{Failure, Outcome};
use crate::text;
use untorn::Store;

pub(crate) fn run(at: &Location, key: &str, format: Format) -> Outcome {
    let key_bytes = text::parse(key, format)?;
    let store = Store::options().create(false).open(&at.store)?;
    let keyspace = existing_keyspace(&store, &at.keyspace)?;
    if keyspace.delete(&key_bytes[..])? {
        Ok(())
    } else {
        Err(Failure::NotFound(format!("there is no key {key:?} in keyspace {:?}", at.keyspace)))
    }
}
