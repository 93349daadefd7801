//! What a suite found: the numbers that programs read, and what people want to see of it.

use crate::context::Context;
use crate::tradeoff::advice::Advice;
use crate::tradeoff::row::Row;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What can be violated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A value, or a cell, that is part old and part new.
    TornRead,
    /// Something that was acknowledged is not there.
    LostAcked,
    /// Part of a transaction.
    HalfApplied,
    /// A later change without an earlier one, a snapshot that changed, a version that names two
    /// values.
    OrderViolation,
    /// Somebody was held up for longer than the stated bound.
    BlockedReader,
    /// A panic, a signal that nobody sent, a call that answered what it must not.
    Misbehaved,
    /// `verify` found damage, or a page that nobody can use again.
    Damaged,
}

/// A check that failed.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was violated.
    pub kind: Kind,
    /// In which way, in words.
    pub what: String,
}

impl Finding {
    /// A finding.
    pub fn new(kind: Kind, what: impl Into<String>) -> Finding {
        Finding { kind, what: what.into() }
    }
}

/// A violation, and the command that shows it again.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// What was violated.
    pub kind: Kind,
    /// In which way, and where.
    pub what: String,
    /// One command line.
    pub replay: String,
}

/// Something that could not be tried, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// A planted bug, and whether it was caught.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// The bug's name.
    pub name: String,
    /// Whether the suite that is meant for it found it.
    pub caught: bool,
    /// That suite.
    pub suite: String,
    /// How many states were checked until then.
    pub states: u64,
}

/// How often something was hit: the cells of a coverage map.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coverage {
    /// What the cells are: crash points, instructions, calls.
    pub of: String,
    /// How often each was hit, by name, in the order in which they are drawn.
    pub hits: Vec<(String, u64)>,
}

/// What one suite found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// The suite's name.
    pub suite: String,
    /// Which store it tried, in which version and with which settings, if that is not untorn as it
    /// comes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// What its random choices followed.
    pub seed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Distinct crash states or kill points that were checked.
    pub states: u64,
    /// Processes that were killed.
    pub kills: u64,
    /// Values that were part old and part new.
    pub torn_reads: u64,
    /// Acknowledged changes that were not there.
    pub lost_acked: u64,
    /// Transactions that were there in part.
    pub half_applied: u64,
    /// Changes out of order.
    pub order_violations: u64,
    /// Waits beyond the stated bound.
    pub blocked_readers: u64,
    /// All violations, of these kinds and others.
    pub violations: Vec<Violation>,
    /// What could not be tried.
    pub skipped: Vec<Skipped>,
    /// What the time did not suffice for, or what is not covered at all.
    pub uncovered: Vec<String>,
    /// What was seen, breaks no promise, and is worth knowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Planted bugs, of the suite that has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
    /// Loss, latency and throughput by setting, of the suite that compares them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Row>,
    /// Which of these to use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// What was hit how often.
    pub coverage: Vec<Coverage>,
    /// Further figures, by name.
    pub figures: BTreeMap<String, f64>,
    /// Tells the context of the first violation.
    #[serde(skip)]
    is_violated: Arc<AtomicBool>,
}

impl Outcome {
    /// One without findings yet.
    pub fn of(context: &Context) -> Outcome {
        Outcome {
            suite: context.suite.into(),
            seed: context.seed,
            is_violated: context.is_violated.clone(),
            ..Outcome::default()
        }
    }

    /// Whether nothing was violated, and every planted bug was caught.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.variants.iter().all(|variant| variant.caught)
    }

    /// Notes a violation.
    pub fn violated(&mut self, finding: Finding, place: &str, replay: String) {
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
        eprintln!("VIOLATION {:?} at {place}: {}\n  replay: {replay}", finding.kind, finding.what);
        self.violations.push(Violation { kind: finding.kind, what: format!("{place}: {}", finding.what), replay });
    }

    /// Notes something that could not be tried.
    pub fn skip(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.skipped.push(Skipped { what: what.into(), why: why.into() });
    }

    /// What is not covered, for people: things that were left out for the same reason in one line.
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
