//! One run of a part of a suite, with a bug or without: this program as a process of its own, and
//! what its JSON says.

use super::table::{Check, Control};
use crate::cargo;
use crate::context::Context;
use crate::outcome::Kind;
use serde::Deserialize;
use std::path::Path;
use std::process::{Command, Stdio};

/// Seconds that a run may take if its suite goes by the time at all.
const SECONDS: &str = "8";

/// What a run found.
pub(super) struct Run {
    /// Distinct states.
    pub states: u64,
    /// Violations, by kind and in words.
    pub found: Vec<(Kind, String)>,
    /// What it could not do.
    pub skipped: Vec<String>,
}

/// The parts of an outcome that are looked at.
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

/// How it went with a bug.
#[derive(Debug)]
pub enum Trial {
    /// Found.
    Caught {
        /// States until then.
        states: u64,
        /// What was found, in words.
        what: String,
    },
    /// Not found.
    Missed {
        /// States that were looked at.
        states: u64,
        /// What was found instead, in words.
        instead: String,
    },
    /// The suite can't do that here.
    Impossible(String),
}

impl Trial {
    /// States that were looked at.
    pub fn states(&self) -> u64 {
        match self {
            Trial::Caught { states, .. } | Trial::Missed { states, .. } => *states,
            Trial::Impossible(_) => 0,
        }
    }
}

/// Looks for a bug with the check that is meant for it.
pub fn catch(context: &Context, program: &Path, control: &Control) -> Trial {
    if !control.check.is_a_suite() {
        return in_the_model(control.check.only);
    }
    let (mut states, mut instead) = (0, Vec::new());
    for attempt in 0..control.tries {
        match run(program, &control.check, control.bug, context.seed.wrapping_add(attempt)) {
            Ok(run) => {
                // A violation is a state of its own, though one that came too early to be counted.
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

/// One run.
///
/// # Errors
/// If it ended without saying what it found: why.
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

/// A model's own test of the bug: it passes if the model checker finds something wrong with the
/// model that has it.
fn in_the_model(only: &str) -> Trial {
    let (test, name) = only.split_once(' ').expect("a test program, and one of its tests");
    // Where `cargo test` has built it, if somebody has run the tests.
    let target = crate::instrumented::target();
    let ended = cargo::command()
        .args(["test", "--quiet", "--test", test, "--target-dir"])
        .arg(target)
        .args(["--", "--exact", name])
        .stdin(Stdio::null())
        .output();
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return Trial::Impossible(format!("running cargo: {error}")),
    };
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    // That exactly this one ran, and not none.
    if ended.status.success() && said.contains("1 passed") {
        return Trial::Caught { states: 1, what: format!("the model checker finds it: {name}") };
    }
    let last = String::from_utf8_lossy(&ended.stderr).into_owned();
    Trial::Missed { states: 1, instead: format!("{}: {}", ended.status, last.lines().last().unwrap_or_default()) }
}
