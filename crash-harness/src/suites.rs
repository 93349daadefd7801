//! Which suites there are, and how the time of `all` is divided.

use crate::context::Context;
use crate::outcome::Outcome;

/// A suite.
#[derive(Clone, Copy)]
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// Its share of the time, beside the others'.
    pub weight: f64,
    /// Runs it.
    pub run: fn(&Context) -> Outcome,
}

/// Real processes, killed at named points and at random instants.
pub const KILL: Suite = Suite { name: "kill", weight: 2.0, run: crate::kill::run };

/// Every instruction of every kind of update.
pub const STEP: Suite = Suite { name: "step", weight: 2.0, run: crate::step::run };

/// All of them, in the order in which `all` runs them.
pub const ALL: &[Suite] = &[KILL, STEP];
