//! The check for each planted bug: the suite, the quick part of it, and the kinds of violation that
//! prove the bug. A test ensures that the table contains all bugs of the catalogue.

use crate::outcome::Kind::{
    self, BlockedReader, Damaged, HalfApplied, LostAcked, Misbehaved, OrderViolation, TornRead,
};

/// A part of a suite: what `crash-harness SUITE --only ONLY` runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Check {
    /// The suite, or `model` for the model checker's own tests.
    pub suite: &'static str,
    /// The part of the suite.
    pub only: &'static str,
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} --only '{}'", self.suite, self.only)
    }
}

impl Check {
    /// Returns whether the check is a suite of this program.
    pub fn is_a_suite(&self) -> bool {
        self.suite != MODEL
    }
}

/// Stands in for a suite's name if the check is a model of the model checker. Models are tests of
/// the library; `only` names one.
pub const MODEL: &str = "model";

/// A bug and the check that must catch it.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// The bug's name in the catalogue.
    pub bug: &'static str,
    /// The check for it.
    pub check: Check,
    /// The violations that prove the bug. Any other violation is no proof.
    pub shows_as: &'static [Kind],
    /// Number of tries with different random choices. Several are needed if the result depends on
    /// how the processes interleave.
    pub tries: u64,
}

const fn by(bug: &'static str, suite: &'static str, only: &'static str, shows_as: &'static [Kind]) -> Control {
    Control { bug, check: Check { suite, only }, shows_as, tries: 6 }
}

const fn often(control: Control) -> Control {
    Control { tries: 12, ..control }
}

/// The violations that a reader can find in pages that were reused while it read them: other bytes,
/// undecodable bytes, or bytes of another time.
const REUSED: &[Kind] = &[TornRead, HalfApplied, OrderViolation, Damaged, Misbehaved];

/// All controls. The controls that wait long come first.
pub const CONTROLS: &[Control] = &[
    by("lock-without-takeover", "kill", "commit.pages_written:kill", &[BlockedReader]),
    by("skip-reader-reread", "step", "snapshot read:between", REUSED),
    by("swing-before-record", "step", "small put:all", &[LostAcked]),
    by("trust-recycled-segment", "kill", "scenario:recycled segment", &[Damaged, OrderViolation]),
    often(by("acknowledge-before-extent", "power", "plain", &[LostAcked, Damaged])),
    by("acknowledge-before-fsync", "power", "plain", &[LostAcked, Damaged]),
    by("acknowledge-before-fsync", "tradeoff", "logger-durable:on-commit:1000", &[LostAcked]),
    often(by("acknowledge-sample-early", "kill", "sample.collected:end", &[LostAcked])),
    often(by("append-to-sealed-tail", "kill", "random:0", &[Damaged])),
    by("counter-by-load-and-store", "step", "counter addition:between", &[LostAcked]),
    often(by("feed-before-fsync", "kill", "flush.before_write:end", &[LostAcked])),
    often(by("feed-open-stream", "kill", "random:0", &[OrderViolation])),
    by("feed-skips-what-is-gone", "kill", "scenario:recycled under a follower", &[OrderViolation]),
    by("header-before-pages", "power", "plain", &[Damaged, LostAcked, HalfApplied, TornRead]),
    by("ignore-fsync-error", "power", "failed syncs log, no process dies", &[LostAcked, Damaged]),
    by(
        "liveness-by-pid",
        "kill",
        "scenario:namespaces",
        &[Damaged, HalfApplied, LostAcked, OrderViolation, BlockedReader],
    ),
    by("malformed-message-unwrapped", "faults", "hostile:0", &[Misbehaved]),
    by("mapped-without-blocks", "faults", "disk-full:tmpfs", &[Misbehaved]),
    by("message-answered-before-sync", "power", "by message", &[LostAcked]),
    by("no-abort-record", "kill", "scenario:unfinished stream", &[HalfApplied]),
    by("no-descriptor-no-file", "faults", "c:open:checkpoint:1:EMFILE:once", &[Misbehaved, LostAcked, Damaged]),
    by("number-without-complement", "faults", "control-flip:arena-pieces", &[Misbehaved]),
    by(
        "page-without-checksum",
        "faults",
        "left:flip:arena",
        &[TornRead, LostAcked, HalfApplied, OrderViolation, Damaged],
    ),
    by("read-cell-once", "step", "cell load:between", &[TornRead]),
    by("region-removed-first", "step", "recovery with the region:all", &[LostAcked, OrderViolation]),
    by("retry-fsync", "power", "failed syncs log, no process dies", &[LostAcked, Damaged]),
    often(by("reuse-one-txn-early", "kill", "random:0", REUSED)),
    by("reuse-referenced-extent", "kill", "scenario:overwritten large values", &[Damaged, LostAcked]),
    often(by("reuse-running-checkpoint", "kill", "random:0", &[Damaged])),
    by("seqlock-without-fence", "step", "cell store:all", &[HalfApplied, TornRead]),
    by(
        "short-write-is-done",
        "faults",
        "untorn-logger/untorn-flush:write:wal/seg-#:5:short:lasting",
        &[LostAcked, Damaged, Misbehaved],
    ),
    by("single-copy-cell", "step", "cell store:all", &[Damaged, TornRead, HalfApplied]),
    by("skip-directory-fsync", "power", "plain", &[LostAcked, Damaged]),
    by("snapshot-beyond-its-pin", "kill", "scenario:stalled reader", REUSED),
    by("sum-once", "power", "failed syncs arena, logger dies", &[Damaged, LostAcked, HalfApplied, TornRead]),
    by("trust-read-header", "power", "failed syncs header, all processes die", &[Damaged, LostAcked]),
    by("versions-go-on", "kill", "sample.collected:end", &[OrderViolation]),
    by("wal-without-crc", "power", "plain", &[Damaged, LostAcked, HalfApplied, TornRead]),
    by("within-answered-before-sync", "power", "plain", &[LostAcked]),
    // The model of the same bug. It covers reorderings of a weak memory model that x86 does not
    // show.
    by("seqlock-without-fence", MODEL, "shared::protocols::loom_tests::cell::planted_a_cell_without_fences", &[]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Goal: the table contains each bug of the catalogue, and each name in it is valid.
    #[test]
    fn all_bugs_of_the_catalogue_have_a_suite() {
        let in_catalogue: BTreeSet<&str> = untorn::planted_bugs::ALL.iter().map(|(name, _)| *name).collect();
        let in_table: BTreeSet<&str> = CONTROLS.iter().map(|control| control.bug).collect();
        assert_eq!(in_catalogue, in_table);
        for control in CONTROLS.iter().filter(|control| control.check.is_a_suite()) {
            let is_known = crate::suites::ALL.iter().any(|suite| suite.name == control.check.suite);
            assert!(is_known && !control.shows_as.is_empty() && control.tries > 0, "{control:?}");
        }
    }
}
