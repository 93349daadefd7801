//! The reports of the tour's processes to their parent: one event is one line, written at once and
//! in order.
//!
//! Times are those of CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share.

use rustix::time::{ClockId, clock_gettime};
use std::io::{self, Write};

/// A point in time, in nanoseconds.
pub(crate) type Nanoseconds = u64;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TourEvent {
    /// A writer's commit is visible.
    Committed {
        /// The number of the writer's commit, counted from 1.
        commit: u64,
        /// Passes through its list so far.
        passes: u64,
        /// Files done in this pass.
        done: u64,
        /// When it requested the writer lock.
        asked: Nanoseconds,
        /// When it got it.
        locked: Nanoseconds,
    },
    /// A writer's commit, and all before it, were acknowledged as durable.
    Durable {
        /// The number of the writer's commit.
        commit: u64,
        /// When that commit began.
        asked: Nanoseconds,
        /// When the acknowledgement arrived.
        acknowledged: Nanoseconds,
    },
    /// A writer holds the writer lock in the middle of a transaction, and waits.
    Holding {
        /// Since when.
        locked: Nanoseconds,
    },
    /// A commit is visible, but the store did not acknowledge its durability.
    Refused(String),
    /// A reader's counts so far.
    Checked {
        /// Snapshots read from end to end.
        snapshots: u64,
        /// Records in them.
        records: u64,
    },
    /// A reader saw bytes that no writer wrote.
    Torn(String),
    /// A reader saw a violation of a guarantee.
    Violation(String),
    /// The process can't continue.
    Failed(String),
}

impl TourEvent {
    /// Writes the line to standard output, in one call, so that a kill leaves all of it or nothing.
    pub(crate) fn tell(&self) -> io::Result<()> {
        let mut line = match self {
            TourEvent::Committed { commit, passes, done, asked, locked } => {
                format!("committed {commit} {passes} {done} {asked} {locked}")
            }
            TourEvent::Durable { commit, asked, acknowledged } => format!("durable {commit} {asked} {acknowledged}"),
            TourEvent::Holding { locked } => format!("holding {locked}"),
            TourEvent::Refused(what) => format!("refused {}", what.escape_default()),
            TourEvent::Checked { snapshots, records } => format!("checked {snapshots} {records}"),
            TourEvent::Torn(what) => format!("torn {}", what.escape_default()),
            TourEvent::Violation(what) => format!("violation {}", what.escape_default()),
            TourEvent::Failed(what) => format!("failed {}", what.escape_default()),
        };
        line.push('\n');
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.flush()
    }

    /// Parses the event of a line.
    pub(crate) fn parse(line: &str) -> Option<TourEvent> {
        let (name, rest) = line.split_once(' ')?;
        let mut numbers = rest.split(' ').map_while(|word| word.parse().ok());
        let mut number = || numbers.next();
        Some(match name {
            "committed" => TourEvent::Committed {
                commit: number()?,
                passes: number()?,
                done: number()?,
                asked: number()?,
                locked: number()?,
            },
            "durable" => TourEvent::Durable { commit: number()?, asked: number()?, acknowledged: number()? },
            "holding" => TourEvent::Holding { locked: number()? },
            "refused" => TourEvent::Refused(rest.to_owned()),
            "checked" => TourEvent::Checked { snapshots: number()?, records: number()? },
            "torn" => TourEvent::Torn(rest.to_owned()),
            "violation" => TourEvent::Violation(rest.to_owned()),
            "failed" => TourEvent::Failed(rest.to_owned()),
            _ => return None,
        })
    }
}

/// Returns the time of now.
pub(crate) fn now() -> Nanoseconds {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
