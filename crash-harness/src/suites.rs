//! Which suites there are, and how the time of `all` is divided.

use crate::context::Context;
use crate::outcome::Outcome;

/// A suite.
#[derive(Clone, Copy)]
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Its share of the time, beside the others'.
    pub weight: f64,
    /// Runs it.
    pub run: fn(&Context) -> Outcome,
}

impl Suite {
    /// Whether it asks for the build with crash points and planted bugs.
    pub fn needs_victims(&self) -> bool {
        ["kill", "controls"].contains(&self.name)
    }
}

/// All of them, in the order in which `all` runs them.
pub const ALL: &[Suite] = &[
    Suite {
        name: "kill",
        about: "Real processes, killed at every named point and at random instants",
        weight: 2.0,
        run: crate::kill::run,
    },
    Suite {
        name: "step",
        about: "A writer is single-stepped through each kind of update, and each state on the way is judged",
        weight: 2.0,
        run: crate::step::run,
    },
    Suite {
        name: "linearizability",
        about: "What clients were told under kills must be what one map would have told, one transaction after the other",
        weight: 0.7,
        run: crate::history::run,
    },
    Suite {
        name: "faults",
        about: "Each call about a file fails in turn, the disk is full, bits flip, strangers send bytes",
        weight: 2.0,
        run: crate::faults::run,
    },
    Suite {
        name: "power",
        about: "The power goes at any instant, with any part of what was not synced on the disk",
        weight: 3.0,
        run: crate::power::run,
    },
    Suite {
        name: "tradeoff",
        about: "How often to sync: records lost in a power cut, latency and throughput of four schemes, beside what models predict",
        weight: 0.7,
        run: crate::tradeoff::run,
    },
    Suite {
        name: "controls",
        about: "Bugs are planted one by one, and the suite that is meant for each must find it",
        weight: 2.0,
        run: crate::controls::run,
    },
];
