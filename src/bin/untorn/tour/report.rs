//! The results of the tour, as a short table or one JSON object.

use super::stage::Comparison;
use crate::arguments::Format;
use crate::outcome::{CommandFailure, Outcome};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The first violations are sufficient.
const VIOLATIONS_SHOWN_MAX: usize = 20;

/// One fault and its effects.
pub(crate) struct TourFault {
    pub(crate) what: &'static str,
    pub(crate) comparison: Comparison,
    /// When the first of the others had the writer lock again.
    pub(crate) went_on: Option<Duration>,
    /// When all of them had had it again.
    pub(crate) all_went_on: Option<Duration>,
    pub(crate) notes: Vec<String>,
}

impl TourFault {
    /// Returns a fault that could not be caused.
    pub(crate) fn missing(what: &'static str) -> TourFault {
        TourFault { what, comparison: Comparison::default(), went_on: None, all_went_on: None, notes: Vec::new() }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "acknowledged": self.comparison.acknowledged,
            "found": self.comparison.found,
            "lost": self.comparison.lost,
            "first_went_on_ms": self.went_on.map(milliseconds),
            "all_went_on_ms": self.all_went_on.map(milliseconds),
            "notes": self.notes,
        })
    }
}

/// The whole tour.
pub(crate) struct TourReport {
    pub(crate) directory: PathBuf,
    pub(crate) files: u64,
    /// Whether the limits excluded files.
    pub(crate) is_cut: bool,
    pub(crate) too_long: u64,
    pub(crate) bytes: u64,
    pub(crate) records: u64,
    pub(crate) commits: u64,
    pub(crate) fsyncs: u64,
    pub(crate) acknowledged_durable: u64,
    pub(crate) refused: u64,
    pub(crate) snapshots: u64,
    pub(crate) records_read: u64,
    pub(crate) torn_reads: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) faults: Vec<TourFault>,
    /// Pages that the store's own check has read.
    pub(crate) verified: u64,
    pub(crate) elapsed: Duration,
}

impl TourReport {
    /// Prints the report, and the path of the store if it still exists.
    pub(crate) fn print(&self, format: Format, kept: Option<&Path>) -> Outcome {
        let mut text = Vec::new();
        if format.json { writeln!(text, "{}", self.json(kept)) } else { self.table(&mut text, kept) }
            .map_err(CommandFailure::output)?;
        let mut out = io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush()).map_err(CommandFailure::output)
    }

    fn commits_per_fsync(&self) -> f64 {
        self.commits as f64 / self.fsyncs.max(1) as f64
    }

    fn json(&self, kept: Option<&Path>) -> Value {
        json!({
            "directory": self.directory.to_string_lossy(),
            "files": self.files,
            "files_cut": self.is_cut,
            "names_too_long": self.too_long,
            "bytes": self.bytes,
            "records": self.records,
            "commits": self.commits,
            "fsyncs": self.fsyncs,
            "commits_per_fsync": self.commits_per_fsync(),
            "acknowledged_durable": self.acknowledged_durable,
            "refused_durable": self.refused,
            "snapshots_checked": self.snapshots,
            "records_read": self.records_read,
            "torn_reads": self.torn_reads,
            "violations": self.violations,
            "faults": self.faults.iter().map(TourFault::json).collect::<Vec<_>>(),
            "pages_verified": self.verified,
            "seconds": self.elapsed.as_secs_f64(),
            "store": kept.map(Path::to_string_lossy),
        })
    }

    fn table(&self, out: &mut impl Write, kept: Option<&Path>) -> io::Result<()> {
        let megabytes = self.bytes as f64 / 1e6;
        writeln!(out, "{}: {} files, {megabytes:.1} MB", self.directory.display(), self.files)?;
        if self.is_cut {
            writeln!(out, "(there are more; --limit N sets how many are indexed)")?;
        }
        if self.too_long > 0 {
            writeln!(out, "({} more have names too long for a key)", self.too_long)?;
        }
        writeln!(out)?;
        writeln!(
            out,
            "{:52} {:>12} {:>8} {:>6}   others went on after (first, all)",
            "what happened", "acknowledged", "found", "lost"
        )?;
        for fault in &self.faults {
            let Comparison { acknowledged, found, lost } = fault.comparison;
            let went_on = match (fault.went_on, fault.all_went_on) {
                (Some(first), Some(all)) => format!("{:.1}, {:.1} ms", milliseconds(first), milliseconds(all)),
                _ => "–".to_owned(),
            };
            writeln!(out, "{:52} {acknowledged:>12} {found:>8} {lost:>6}   {went_on}", fault.what)?;
            for note in &fault.notes {
                writeln!(out, "    {note}")?;
            }
        }
        writeln!(out)?;
        let mut row = |name: &str, value: String| writeln!(out, "{name:24} {value:>12}");
        row("records", self.records.to_string())?;
        row("commits", self.commits.to_string())?;
        row("  acknowledged durable", self.acknowledged_durable.to_string())?;
        row("fsyncs", self.fsyncs.to_string())?;
        row("commits per fsync", format!("{:.1}", self.commits_per_fsync()))?;
        row("snapshots checked", self.snapshots.to_string())?;
        row("records read", self.records_read.to_string())?;
        row("torn reads", self.torn_reads.to_string())?;
        row("violations", self.violations.len().to_string())?;
        row("pages verified", self.verified.to_string())?;
        row("seconds", format!("{:.1}", self.elapsed.as_secs_f64()))?;
        if self.refused > 0 {
            row("durability refused", self.refused.to_string())?;
        }
        for violation in self.violations.iter().take(VIOLATIONS_SHOWN_MAX) {
            writeln!(out, "violation: {violation}")?;
        }
        if self.violations.len() > VIOLATIONS_SHOWN_MAX {
            writeln!(out, "(--json shows the others)")?;
        }
        if let Some(path) = kept {
            writeln!(out, "the store is at {}", path.display())?;
        }
        Ok(())
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
