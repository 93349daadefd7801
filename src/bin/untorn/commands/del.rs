//! `del`: deletes a key, durably, and reports if it was absent; or deletes a range of keys, and
//! prints how many there were.

use crate::arguments::{DelOptions, Format, Location};
use crate::outcome::{CommandFailure, Outcome};
use crate::output::Output;
use crate::{target, text};
use std::io::Write;
use std::ops::Bound;

pub(crate) fn run(at: &Location, what: &DelOptions, format: Format) -> Outcome {
    match what {
        DelOptions { key: Some(key), .. } => delete_key(at, key, format),
        DelOptions { prefix: Some(prefix), .. } => {
            let prefix = text::parse(prefix, format)?;
            if prefix.is_empty() {
                let what = "--prefix is empty, so it would delete the whole keyspace; --from '' does that";
                return Err(CommandFailure::Usage(what.into()));
            }
            let end = end_of(&prefix);
            let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            delete_range(at, (Bound::Included(&*prefix), upper), format)
        }
        DelOptions { from, to, .. } => {
            let parse = |key: &Option<String>| key.as_ref().map(|key| text::parse(key, format)).transpose();
            let (start, end) = (parse(from)?, parse(to)?);
            if let (Some(start), Some(end)) = (&start, &end)
                && start > end
            {
                return Err(CommandFailure::Usage("--from is a greater key than --to".into()));
            }
            let lower = start.as_deref().map_or(Bound::Unbounded, Bound::Included);
            let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            delete_range(at, (lower, upper), format)
        }
    }
}

fn delete_key(at: &Location, key: &str, format: Format) -> Outcome {
    let key_bytes = text::parse(key, format)?;
    if target::to_change(&at.store)?.delete(&at.keyspace, &key_bytes)? {
        Ok(())
    } else {
        Err(CommandFailure::NotFound(format!("there is no key {key:?} in keyspace {:?}", at.keyspace)))
    }
}

fn delete_range(at: &Location, bounds: untorn::KeyBounds<'_>, format: Format) -> Outcome {
    let removed = target::to_change(&at.store)?.delete_range(&at.keyspace, bounds)?;
    let mut out = Output::new(format);
    let printed = match format.json {
        true => writeln!(out, "{}", serde_json::json!({ "deleted": removed })),
        false => writeln!(out, "{removed}"),
    };
    printed.and_then(|()| out.flush()).map_err(CommandFailure::output)
}

/// Returns the least key that is greater than all keys that begin with `prefix`, if there is one.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
