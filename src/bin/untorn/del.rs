//! `del`: deletes a key, durably. Says so if it was not there.

use crate::arguments::{Format, Location};
use crate::outcome::{Failure, Outcome};
use crate::{target, text};

pub(crate) fn run(at: &Location, key: &str, format: Format) -> Outcome {
    let key_bytes = text::parse(key, format)?;
    if target::to_change(&at.store)?.delete(&at.keyspace, &key_bytes)? {
        Ok(())
    } else {
        Err(Failure::NotFound(format!("there is no key {key:?} in keyspace {:?}", at.keyspace)))
    }
}
