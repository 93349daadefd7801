//! One run of a part of a suite, with a bug or without. The run is a child process of this program,
//! and its JSON is parsed here.

use super::table::{Check, Control};
use crate::context::Context;
use crate::outcome::Kind;
use crate::processes::cargo;
use serde::Deserialize;
use std::path::Path;
use std::process::{Command, Stdio};

/// Run time in seconds, for suites that are limited by time.
const SECONDS: &str = "8";

/// What a run found.
pub(super) struct Run {
    /// Number of distinct states.
    pub states: u64,
    /// Violations: kind and description.
    pub found: Vec<(Kind, String)>,
    /// Parts that were skipped.
    pub skipped: Vec<String>,
}

/// The fields of an outcome that are used here.
#[derive(Deserialize)]
struct Said {
    states: u64,
    violations: Vec<SaidViolation>,
    skipped: Vec<SaidSkipped>,
}

#[derive(Deserialize)]
struct SaidViolation {
    kind: Kind,
    what: String,
}

#[derive(Deserialize)]
struct SaidSkipped {
    what: String,
    why: String,
}

/// The result of trying a bug.
#[derive(Debug)]
pub enum Trial {
    /// The bug was found.
    Caught {
        /// States that were checked before the bug was found.
        states: u64,
        /// Description of the violation.
        what: String,
    },
    /// The bug was not found.
    Missed {
        /// States that were checked.
        states: u64,
        /// Description of what was found instead.
        instead: String,
    },
    /// The suite can't run on this machine.
    Impossible(String),
}

impl Trial {
    /// Returns the number of states that were checked.
    pub fn states(&self) -> u64 {
        match self {
            Trial::Caught { states, .. } | Trial::Missed { states, .. } => *states,
            Trial::Impossible(_) => 0,
        }
    }
}

/// Runs the check that is meant for a bug.
pub fn catch(context: &Context, program: &Path, control: &Control) -> Trial {
    if !control.check.is_a_suite() {
        return in_the_model(control.check.only);
    }
    let (mut states, mut instead) = (0, Vec::new());
    for attempt in 0..control.tries {
        match run(program, &control.check, control.bug, context.seed.wrapping_add(attempt)) {
            Ok(run) => {
                // A violation counts as a state even if the run ended before it was counted.
                states += run.states.max(u64::from(!run.found.is_empty()));
                for (kind, what) in run.found {
                    if control.shows_as.contains(&kind) {
                        return Trial::Caught { states, what };
                    }
                    instead.push(format!("{kind:?}, which does not fit: {what}"));
                }
                if !run.skipped.is_empty() {
                    return Trial::Impossible(run.skipped.join("; "));
                }
            }
            Err(what) => instead.push(what),
        }
    }
    if instead.is_empty() {
        instead.push("nothing was found".into());
    }
    Trial::Missed { states, instead: instead.join("; ") }
}

/// Runs a check once.
///
/// # Errors
/// If the process ended without a report. The error contains the reason.
pub(super) fn run(program: &Path, check: &Check, bug: &str, seed: u64) -> Result<Run, String> {
    let ended = Command::new(program)
        .arg(check.suite)
        .args(["--only", check.only, "--seconds", SECONDS, "--until-first", "--json", "-"])
        .args(["--seed", &seed.to_string()])
        .env("UNTORN_BUG", bug)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| format!("starting {}: {error}", program.display()))?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let Some(said) = said.lines().find_map(|line| serde_json::from_str::<Said>(line).ok()) else {
        let last = String::from_utf8_lossy(&ended.stderr).into_owned();
        return Err(format!(
            "it ended with {} and no outcome: {}",
            ended.status,
            last.lines().last().unwrap_or_default()
        ));
    };
    Ok(Run {
        states: said.states,
        found: said.violations.into_iter().map(|violation| (violation.kind, violation.what)).collect(),
        skipped: said.skipped.into_iter().map(|skipped| format!("{}: {}", skipped.what, skipped.why)).collect(),
    })
}

/// Runs the model of the bug, a unit test of the library. It passes if the model checker finds the
/// bug.
fn in_the_model(name: &str) -> Trial {
    // Reuses the build of an earlier `cargo test`, if there is one.
    let target = crate::processes::instrumented::target();
    let ended = cargo::command()
        .args(["test", "--quiet", "--lib", "--target-dir"])
        .arg(target)
        .args(["--", "--exact", name])
        .stdin(Stdio::null())
        .output();
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return Trial::Impossible(format!("running cargo: {error}")),
    };
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    // Ensures that exactly this test ran.
    if ended.status.success() && said.contains("1 passed") {
        return Trial::Caught { states: 1, what: format!("the model checker finds it: {name}") };
    }
    let last = String::from_utf8_lossy(&ended.stderr).into_owned();
    Trial::Missed { states: 1, instead: format!("{}: {}", ended.status, last.lines().last().unwrap_or_default()) }
}
