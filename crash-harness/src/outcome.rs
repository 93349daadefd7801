//! The result of a suite: its figures for programs and its findings for people.

use crate::context::Context;
use crate::processes::sealed::Torn;
use crate::tradeoff::advice::Advice;
use crate::tradeoff::row::Row;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The kinds of violations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A value or a cell that is part old and part new.
    TornRead,
    /// An acknowledged change that is missing.
    LostAcked,
    /// A transaction of which only a part is there.
    HalfApplied,
    /// A later change that is there without an earlier one, a snapshot that changed, or a version
    /// that identifies two values.
    OrderViolation,
    /// A process was blocked for longer than the limit.
    BlockedReader,
    /// A panic, an unexpected signal, or a wrong result of a call.
    Misbehaved,
    /// `verify` found damage, or a page that can never be used again.
    Damaged,
}

/// A failed check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The kind of the violation.
    pub kind: Kind,
    /// Description of the violation.
    pub what: String,
}

impl From<Torn> for Finding {
    fn from(torn: Torn) -> Finding {
        Finding::new(Kind::TornRead, torn.to_string())
    }
}

impl Finding {
    /// Creates a finding.
    pub fn new(kind: Kind, what: impl Into<String>) -> Finding {
        Finding { kind, what: what.into() }
    }
}

/// A violation, and the command that repeats it.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// The kind of the violation.
    pub kind: Kind,
    /// Description of the violation, and the item of the suite that found it.
    pub what: String,
    /// A command line that repeats it.
    pub replay: String,
}

/// An item that could not be tried.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// The item.
    pub what: String,
    /// The reason.
    pub why: String,
}

/// A planted bug, and whether it was caught.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// The bug's name.
    pub name: String,
    /// Whether its check found it.
    pub caught: bool,
    /// The suite of that check.
    pub suite: String,
    /// Number of states that were checked before the bug was caught.
    pub states: u64,
}

/// Hit counts: the cells of a coverage map.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coverage {
    /// The kind of the cells: crash points, instructions, calls.
    pub of: String,
    /// The count of each cell by name, in the order of drawing.
    pub hits: Vec<(String, u64)>,
}

/// The result of one suite.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// The suite's name.
    pub suite: String,
    /// The store under test with its version and settings, if it is not untorn with default
    /// settings.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// Seed of its random choices.
    pub seed: u64,
    /// Run time in seconds.
    pub seconds: f64,
    /// Distinct crash states or kill points that were checked.
    pub states: u64,
    /// Processes that were killed.
    pub kills: u64,
    /// Values that were part old and part new.
    pub torn_reads: u64,
    /// Acknowledged changes that were missing.
    pub lost_acked: u64,
    /// Transactions that were partly applied.
    pub half_applied: u64,
    /// Changes out of order.
    pub order_violations: u64,
    /// Waits beyond the limit.
    pub blocked_readers: u64,
    /// All violations, including those of other kinds.
    pub violations: Vec<Violation>,
    /// Items that could not be tried.
    pub skipped: Vec<Skipped>,
    /// Items for which the time did not suffice, and items that are never covered.
    pub uncovered: Vec<String>,
    /// Observations that break no promise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Planted bugs, in the suite `controls`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
    /// Loss, latency and throughput by setting, in the suite `tradeoff`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Row>,
    /// The recommended settings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// Coverage maps.
    pub coverage: Vec<Coverage>,
    /// Further figures, by name.
    pub figures: BTreeMap<String, f64>,
    /// Set at the first violation. The context shares this flag.
    #[serde(skip)]
    is_violated: Arc<AtomicBool>,
}

impl Outcome {
    /// Creates an empty outcome.
    pub fn of(context: &Context) -> Outcome {
        Outcome {
            suite: context.suite.into(),
            seed: context.seed,
            is_violated: context.is_violated.clone(),
            ..Outcome::default()
        }
    }

    /// Returns whether nothing was violated and every planted bug was caught.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.variants.iter().all(|variant| variant.caught)
    }

    /// Records a violation.
    pub fn violated(&mut self, finding: Finding, item: &str, replay: String) {
        let count = match finding.kind {
            Kind::TornRead => Some(&mut self.torn_reads),
            Kind::LostAcked => Some(&mut self.lost_acked),
            Kind::HalfApplied => Some(&mut self.half_applied),
            Kind::OrderViolation => Some(&mut self.order_violations),
            Kind::BlockedReader => Some(&mut self.blocked_readers),
            Kind::Misbehaved | Kind::Damaged => None,
        };
        count.into_iter().for_each(|count| *count += 1);
        self.is_violated.store(true, Ordering::Relaxed);
        eprintln!("VIOLATION {:?} at {item}: {}\n  replay: {replay}", finding.kind, finding.what);
        self.violations.push(Violation { kind: finding.kind, what: format!("{item}: {}", finding.what), replay });
    }

    /// Records an item that could not be tried.
    pub fn skip(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.skipped.push(Skipped { what: what.into(), why: why.into() });
    }

    /// Returns what is not covered, with all items that have the same reason in one line.
    pub fn uncovered_in_short(&self) -> Vec<String> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for line in &self.uncovered {
            let (what, why) = line.rsplit_once(": ").unwrap_or(("", line));
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, things)) => things.push(what),
                None => reasons.push((why, vec![what])),
            }
        }
        let line = |(why, things): (&str, Vec<&str>)| match things.as_slice() {
            [""] => why.to_string(),
            [thing] => format!("{thing}: {why}"),
            things => format!("{} things, {why}: {}", things.len(), things.join(", ")),
        };
        reasons.into_iter().map(line).collect()
    }
}
