//! The list of suites, and the division of time among them.

use crate::context::Context;
use crate::outcome::Outcome;

/// A suite.
#[derive(Clone, Copy)]
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// A one-line description.
    pub about: &'static str,
    /// Its weight in the division of time.
    pub weight: f64,
    /// Runs it.
    pub run: fn(&Context) -> Outcome,
}

impl Suite {
    /// Returns whether it needs the build with crash points and planted bugs.
    pub fn needs_instrumented_build(&self) -> bool {
        ["kill", "controls"].contains(&self.name)
    }
}

/// All suites, in the order in which `all` runs them.
pub const ALL: &[Suite] = &[
    Suite {
        name: "kill",
        about: "Real processes, killed at every named point and at random instants",
        weight: 2.0,
        run: crate::kill::run,
    },
    Suite {
        name: "step",
        about: "A writer is single-stepped through each kind of update, and each intermediate state is checked",
        weight: 2.0,
        run: crate::step::run,
    },
    Suite {
        name: "linearizability",
        about: "The answers that clients receive under kills must be those of one map, one transaction after the other",
        weight: 0.7,
        run: crate::history::run,
    },
    Suite {
        name: "faults",
        about: "Each call on a file fails in turn, the disk is full, bits flip, hostile peers send bytes",
        weight: 2.0,
        run: crate::faults::run,
    },
    Suite {
        name: "power",
        about: "The power fails at any instant, with any part of the unsynced data on the disk",
        weight: 3.0,
        run: crate::power::run,
    },
    Suite {
        name: "tradeoff",
        about: "How often to sync: records lost in a power cut, latency and throughput of four schemes, compared with models",
        weight: 0.7,
        run: crate::tradeoff::run,
    },
    Suite {
        name: "controls",
        about: "Bugs are planted one by one, and the check that is meant for each must find it",
        weight: 2.0,
        run: crate::controls::run,
    },
];
