//! The events of a history: the beginnings and the answers of the clients' operations, with their
//! times. Each event is one JSON object on a line of its own.
//!
//! Times are from CLOCK_MONOTONIC, which all processes of a machine share. A client writes the
//! beginning before the call and the answer after it, each in one write. An operation whose process
//! died is therefore recorded without an answer.

use crate::outcome::{Finding, Kind};
use crate::processes::role::say;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One of the few keys of a history.
pub(super) type Key = u8;

/// An operation of a client, expressed as one transaction: if the versions are the expected ones,
/// it reads and then writes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Operation {
    /// The versions that keys must have; `None`: absent.
    pub(super) expect: Vec<(Key, Option<u64>)>,
    /// The keys that it reads, all in one state of the store.
    pub(super) read: Vec<Key>,
    /// The keys that it sets to a value or removes.
    pub(super) write: Vec<(Key, Option<u64>)>,
}

/// What an answer contains about a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Seen {
    Absent,
    /// The key exists. Value and version are set if the answer contains them.
    Present {
        value: Option<u64>,
        version: Option<u64>,
    },
}

/// The answer to an operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The operation happened.
    Done {
        /// The results of the reads, in the order of the operation's keys.
        read: Vec<Seen>,
        /// The transaction that the operation committed or read, if the answer contains it.
        at: Option<u64>,
    },
    /// The operation did not happen, because this key does not have the expected version.
    Mismatch { key: Key, current: Option<u64> },
}

/// What a client did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum What {
    Began(Operation),
    Answered(Answer),
    /// The client continues without knowing whether the operation happened.
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
    /// Creates an event with the current time.
    pub(super) fn now(client: u32, what: What) -> Event {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Event { client, at_ns: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64, what }
    }

    fn line(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// Prints the event for the harness, in one write.
    pub(super) fn tell(&self) {
        say(self.line());
    }
}

/// Returns the events among the lines that a process printed.
pub(super) fn parse<'l>(lines: impl IntoIterator<Item = &'l str>) -> Result<Vec<Event>, Finding> {
    let events = lines.into_iter().filter(|line| line.starts_with('{')).map(serde_json::from_str);
    events
        .collect::<Result<_, _>>()
        .map_err(|error| Finding::new(Kind::Misbehaved, format!("a recorded event: {error}")))
}

/// Saves a history in a directory that outlives the run.
pub(super) fn save(events: &[Event], name: &str) -> Result<PathBuf, Finding> {
    let directory = crate::processes::instrumented::target().join("crash-histories");
    let path = directory.join(format!("{name}.jsonl"));
    let text: String = events.iter().map(|event| event.line() + "\n").collect();
    let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, text));
    written.map_err(|error| Finding::new(Kind::Misbehaved, format!("saving {}: {error}", path.display())))?;
    Ok(path)
}

/// Loads a saved history.
pub(super) fn load(path: &Path) -> Result<Vec<Event>, Finding> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Finding::new(Kind::Misbehaved, format!("reading {}: {error}", path.display())))?;
    parse(text.lines())
}
