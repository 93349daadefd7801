//! Controls: tests of the harness itself. For each bug of the catalogue ([`untorn::planted_bugs`]),
//! this suite switches the bug on and runs the check that is meant for it. The check must find the
//! bug. The same check without a bug must find nothing.
//!
//! Each run is a process of the instrumented build, and an environment variable names its bug. The
//! bug counts as caught only if the violation is of a kind that fits the bug: a panic proves
//! nothing about lost acknowledgements. The suite fails if a bug is not caught. The suite also
//! fails if published code contains a planted bug ([`published`]).
//!
//! | file | its one job |
//! |---|---|
//! | `table.rs` | the check that is meant for each bug, and the violations that prove it |
//! | `trial.rs` | one run of a suite, with a bug or without |
//! | `published.rs` | checks that no manifest and no published program contains the bugs |
//!
//! If the suite runs alone, it makes all runs, which takes about two minutes on two processors.
//! Together with other suites, it stays within its share of the time. It reports the bugs that it
//! did not try as not covered, neither caught nor missed.

pub mod published;
pub mod table;
mod trial;

use crate::context::{Context, is_interrupted};
use crate::outcome::{Finding, Kind, Outcome, Variant};
use crate::processes::instrumented;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use table::{CONTROLS, Check, Control};
pub use trial::{Trial, catch};

/// Concurrent runs. Most runs wait for deaths more than they compute.
const AT_ONCE: usize = 2;

/// An independent unit of work.
enum Job {
    /// A bug that must be caught.
    Planted(&'static Control),
    /// A check without a bug, which must find nothing.
    Clean(Check),
    /// The check of the published manifests and programs.
    Published,
}

impl Job {
    fn name(&self) -> String {
        match self {
            Job::Planted(control) => control.bug.to_string(),
            Job::Clean(check) => format!("clean {check}"),
            Job::Published => "published".into(),
        }
    }
}

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    match instrumented::program() {
        Ok(program) => {
            all(context, program, &mut outcome);
        }
        Err(why) => outcome.skip("planted bugs", why),
    }
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

/// Returns all jobs: the bugs, then each of their checks once without a bug.
fn jobs() -> Vec<Job> {
    let checks: BTreeSet<Check> = CONTROLS.iter().map(|control| control.check).collect();
    let planted = CONTROLS.iter().map(Job::Planted);
    planted.chain(checks.into_iter().filter(Check::is_a_suite).map(Job::Clean)).chain([Job::Published]).collect()
}

fn all(context: &Context, program: &Path, outcome: &mut Outcome) {
    let wanted: Vec<Job> = jobs().into_iter().filter(|job| context.wants(&job.name())).collect();
    let queue = Mutex::new(wanted.iter());
    let found = Mutex::new(&mut *outcome);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = { queue.lock().expect("not poisoned").next() } {
                    let name = job.name();
                    let states = found.lock().expect("not poisoned").states;
                    if is_interrupted() || (!context.may_continue(states, &name) && context.is_one_of_several) {
                        found.lock().expect("not poisoned").uncovered.push(format!("{name}: the time was up"));
                        continue;
                    }
                    job.run(context, program, &found);
                }
            });
        }
    });
    outcome.variants.sort_by(|a, b| a.name.cmp(&b.name));
    let caught = outcome.variants.iter().filter(|variant| variant.caught).count();
    outcome.figures.insert("planted bugs that were tried".into(), outcome.variants.len() as f64);
    outcome.figures.insert("planted bugs that were caught".into(), caught as f64);
}

impl Job {
    fn run(&self, context: &Context, program: &Path, outcome: &Mutex<&mut Outcome>) {
        let name = self.name();
        match self {
            Job::Planted(control) => {
                let tried = catch(context, program, control);
                // Ctrl-C ends the child process of the trial, too.
                if is_interrupted() && !matches!(tried, Trial::Caught { .. }) {
                    outcome.lock().expect("not poisoned").uncovered.push(format!("{name}: it was interrupted"));
                    return;
                }
                let mut outcome = outcome.lock().expect("not poisoned");
                outcome.states += tried.states();
                match tried {
                    Trial::Impossible(why) => outcome.skip(name, why),
                    Trial::Missed { states, instead } => {
                        eprintln!(
                            "NOT CAUGHT: {name}, by {}: {instead}\n  replay: {}",
                            control.check,
                            context.replay(&name)
                        );
                        outcome.variants.push(control.variant(false, states));
                    }
                    Trial::Caught { states, what } => {
                        eprintln!("caught: {name}, by {} in {states} states: {what}", control.check);
                        outcome.variants.push(control.variant(true, states));
                    }
                }
            }
            Job::Clean(check) => {
                let tried = trial::run(program, check, "", context.seed);
                if is_interrupted() {
                    return;
                }
                let mut outcome = outcome.lock().expect("not poisoned");
                match tried {
                    Ok(run) if !run.skipped.is_empty() => outcome.skip(name, run.skipped.join("; ")),
                    Ok(run) if run.states > 0 && run.found.is_empty() => outcome.states += run.states,
                    Ok(run) => {
                        let what = format!("without a bug, {} states: {:?}", run.states, run.found);
                        outcome.violated(Finding::new(Kind::Misbehaved, what), &name, context.replay(&name));
                    }
                    Err(what) => outcome.violated(Finding::new(Kind::Misbehaved, what), &name, context.replay(&name)),
                }
            }
            Job::Published => {
                let looked = published::look();
                if is_interrupted() {
                    return;
                }
                let mut outcome = outcome.lock().expect("not poisoned");
                match looked {
                    Ok(Ok(programs)) => outcome.states += programs,
                    Ok(Err(finding)) => outcome.violated(finding, &name, context.replay(&name)),
                    Err(why) => outcome.skip("what is published", why),
                }
            }
        }
    }
}

impl Control {
    fn variant(&self, caught: bool, states: u64) -> Variant {
        Variant { name: self.bug.into(), caught, suite: self.check.suite.into(), states }
    }
}
