//! What is recorded of a run: who began which operation when, and what it was answered; one JSON
//! object a line.
//!
//! Stamps are of CLOCK_MONOTONIC, which is one clock for all processes of a machine. The beginning
//! is written before the call and the answer after it, each in one write: an operation whose
//! process died is known, and has no answer.

use crate::outcome::{Finding, Kind};
use crate::role::say;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One of the few keys of a history.
pub(super) type Key = u8;

/// Everything that clients do, as one transaction: if the versions are the expected ones, it reads,
/// and then writes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Operation {
    /// The versions that keys must have; `None`: absent.
    pub(super) expect: Vec<(Key, Option<u64>)>,
    /// The keys that it reads, all of the same state.
    pub(super) read: Vec<Key>,
    /// The keys that it stores a value under, or removes.
    pub(super) write: Vec<(Key, Option<u64>)>,
}

/// What was told of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Seen {
    Absent,
    /// There, with this value and version as far as they were told.
    Present {
        value: Option<u64>,
        version: Option<u64>,
    },
}

/// What an operation was answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It happened.
    Done {
        /// What it read, key by key.
        read: Vec<Seen>,
        /// The transaction that it wrote, or as of which it read, if that was told.
        at: Option<u64>,
    },
    /// It did not, since this key's version is another one.
    Mismatch { key: Key, current: Option<u64> },
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum What {
    Began(Operation),
    Answered(Answer),
    /// The client goes on, and does not know whether the operation happened.
    InDoubt,
}

/// One line of a history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) client: u32,
    pub(super) at_ns: u64,
    pub(super) what: What,
}

impl Event {
    /// What happens now.
    pub(super) fn now(client: u32, what: What) -> Event {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Event { client, at_ns: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64, what }
    }

    fn line(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// Tells the harness, in one write.
    pub(super) fn tell(&self) {
        say(self.line());
    }
}

/// The events among the lines that a process said.
pub(super) fn parse<'l>(lines: impl IntoIterator<Item = &'l str>) -> Result<Vec<Event>, Finding> {
    let events = lines.into_iter().filter(|line| line.starts_with('{')).map(serde_json::from_str);
    events
        .collect::<Result<_, _>>()
        .map_err(|error| Finding::new(Kind::Misbehaved, format!("a recorded event: {error}")))
}

/// Saves a history where it outlives the run.
pub(super) fn save(events: &[Event], name: &str) -> Result<PathBuf, Finding> {
    let directory = crate::instrumented::target().join("crash-histories");
    let path = directory.join(format!("{name}.jsonl"));
    let text: String = events.iter().map(|event| event.line() + "\n").collect();
    let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, text));
    written.map_err(|error| Finding::new(Kind::Misbehaved, format!("saving {}: {error}", path.display())))?;
    Ok(path)
}

/// Loads one.
pub(super) fn load(path: &Path) -> Result<Vec<Event>, Finding> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Finding::new(Kind::Misbehaved, format!("reading {}: {error}", path.display())))?;
    parse(text.lines())
}
