//! `put`: sets a key, durably. Creates the store and the keyspace if missing.

use crate::arguments::{Format, Location};
use crate::outcome::Outcome;
use crate::{target, text};

pub(crate) fn run(at: &Location, key: &str, value: &str, format: Format) -> Outcome {
    let (key, value) = (text::parse(key, format)?, text::parse(value, format)?);
    target::to_fill(&at.store, &at.keyspace)?.put(&at.keyspace, &key, &value)?;
    Ok(())
}
