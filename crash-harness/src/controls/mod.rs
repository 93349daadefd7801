//! Controls: does the harness find anything at all? Each bug of the catalogue
//! ([`untorn::planted_bugs`]) is switched on in a run of the suite that is meant for it, which must
//! find it; and the same run without a bug must find nothing.
//!
//! A run is this program once more, in the build that has the bugs, told which one by its
//! environment. It counts as caught only if a check fails that fits the bug: a panic somewhere
//! proves nothing about lost acknowledgements. A bug that is not caught fails the suite. So does a
//! bug that can be found in what is published ([`published`]).
//!
//! | file | its one job |
//! |---|---|
//! | `table.rs` | which suite is meant for which bug, and what it is to find |
//! | `trial.rs` | one run of a suite, with a bug or without |
//! | `published.rs` | no manifest switches the bugs on, and no published program has them |
//!
//! Alone, the suite makes all runs, however long that takes (about two minutes on two processors);
//! among others it keeps to its share of the time, and what it did not come to is said to be not
//! covered, and counts as neither caught nor missed.

pub mod published;
pub mod table;
mod trial;

use crate::context::{Context, is_interrupted};
use crate::instrumented;
use crate::outcome::{Finding, Kind, Outcome, Variant};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use table::{CONTROLS, Check, Control};
pub use trial::{Trial, catch};

/// Runs side by side: most of them wait for deaths more than they work.
const AT_ONCE: usize = 2;

/// Something to do, by itself.
enum Job {
    /// A bug that must be caught.
    Planted(&'static Control),
    /// A check without a bug, which must find nothing.
    Clean(Check),
    /// What is published.
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

/// All that there is to do: bugs, then the same checks without them, each once.
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
                    if is_interrupted() || (!context.may_go_on(states, &name) && context.is_one_of_several) {
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
                // Ctrl-C has ended the try as well.
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
