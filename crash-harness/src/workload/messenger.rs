//! A message-passing writer. It maps nothing and must cope with loggers that die while it waits for
//! their answers.

use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::role::say;
use crate::processes::sealed::{sealed, unsealed};
use crate::workload::oracle;
use crate::workload::{KEYS, misbehaved};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Batch, Client, CommitOutcome, Durability, Error};

/// Writes until killed: the same transactions as other writers. Every fourth is acknowledged after
/// its fsync, the others when they are visible.
///
/// # Errors
/// The first violation.
pub fn write(path: &Path, name: &str) -> Result<(), Finding> {
    let client = connect(path)?;
    let mut n = last(&client, name)?;
    loop {
        n += 1;
        let durable = n.is_multiple_of(4);
        let durability = if durable { Durability::Durable } else { Durability::Visible };
        let len = if n.is_multiple_of(23) { 20_000 } else { 60 };
        let mut batch = Batch::new();
        batch.put("data", name.as_bytes(), &sealed(n, 30)).put("data", &oracle::key(name, n), &sealed(n, len));
        batch.delete("data", &oracle::key(name, n + KEYS / 2)).put("marks", name.as_bytes(), &sealed(n, 30));
        match commit(&client, &batch, durability)? {
            Answer::Committed => say(format_args!("{} {n}", if durable { "D" } else { "V" })),
            // The commit has happened completely or not at all, and not twice.
            Answer::InDoubt => {
                let found = last(&client, name)?;
                if found != n && found != n - 1 {
                    let what = format!("{name}: {n} was in doubt, {found} is there");
                    return Err(Finding::new(Kind::OrderViolation, what));
                }
                n = found;
            }
        }
    }
}

enum Answer {
    Committed,
    InDoubt,
}

fn commit(client: &Client, batch: &Batch, durability: Durability) -> Result<Answer, Finding> {
    let start = Instant::now();
    loop {
        match client.commit_with(batch, durability) {
            Ok(CommitOutcome::Committed(_)) => return Ok(Answer::Committed),
            Ok(CommitOutcome::Mismatch { .. }) => {
                return Err(Finding::new(Kind::Misbehaved, "a batch without conditions did not match"));
            }
            Err(Error::InDoubt { .. } | Error::NotDurable { .. }) => return Ok(Answer::InDoubt),
            Err(Error::Disconnected { .. } | Error::Busy { .. }) if start.elapsed() < HANGS => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(misbehaved("a batch by message")(error)),
        }
    }
}

/// Connects as soon as a server accepts.
pub(crate) fn connect(path: &Path) -> Result<Client, Finding> {
    let start = Instant::now();
    loop {
        match Client::connect(path.join("logger.sock")) {
            Ok(client) => return Ok(client),
            Err(_) if start.elapsed() < HANGS => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(misbehaved("connecting")(error)),
        }
    }
}

fn last(client: &Client, name: &str) -> Result<u64, Finding> {
    let start = Instant::now();
    loop {
        match client.get("marks", name.as_bytes()) {
            Ok(None) | Err(Error::NoKeyspace { .. }) => return Ok(0),
            Ok(Some(value)) => return Ok(unsealed(&value)?),
            Err(Error::Disconnected { .. } | Error::Busy { .. }) if start.elapsed() < HANGS => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(misbehaved("a get by message")(error)),
        }
    }
}
