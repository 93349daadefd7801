//! A consumer of the change feed. The feed must deliver each transaction of each writer once and in
//! order, even after the consumer was killed and resumed.

use crate::outcome::{Finding, Kind};
use crate::processes::role::say;
use crate::processes::sealed::unsealed;
use crate::workload::{misbehaved, open};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use untorn::{Error, Feed, TxnId};

/// Follows the writers' marks from the oldest retained change until the process is killed.
///
/// # Errors
/// The first violation.
pub fn follow(path: &Path, is_durable: bool) -> Result<(), Finding> {
    let store = open(path)?;
    let feed = if is_durable { Feed::Durable } else { Feed::Visible };
    let mut from = TxnId::ZERO;
    let mut last: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    loop {
        let mut changes = match store.changes(from, feed) {
            Ok(changes) => changes.keyspace("marks"),
            Err(Error::Lagged { oldest }) => {
                last.clear();
                from = oldest;
                continue;
            }
            Err(error) => return Err(misbehaved("changes")(error)),
        };
        loop {
            match changes.try_next(Duration::from_millis(50)) {
                Ok(Some(change)) => {
                    let value = change.value().ok_or_else(|| Finding::new(Kind::Misbehaved, "a mark was removed"))?;
                    let n = unsealed(value)?;
                    if is_durable {
                        say(format_args!("F {} {n}", String::from_utf8_lossy(change.key())));
                    }
                    // Under steady load the follower never waits, so it reports progress here.
                    if n.is_multiple_of(8) {
                        say("ok");
                    }
                    let before = last.insert(change.key().to_vec(), n);
                    if before.is_some_and(|before| before + 1 != n) {
                        let name = String::from_utf8_lossy(change.key()).into_owned();
                        let what = format!("the feed of {name}: {n} after {before:?}, at {}", change.txn_id());
                        return Err(Finding::new(Kind::OrderViolation, what));
                    }
                }
                Ok(None) => say("ok"),
                Err(Error::Lagged { oldest }) => {
                    last.clear();
                    from = oldest;
                    break;
                }
                Err(error) => return Err(misbehaved("the feed")(error)),
            }
        }
    }
}
