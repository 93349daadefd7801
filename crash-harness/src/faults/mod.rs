//! I/O and resource faults: each call on a file fails in turn, each sync loses its data, the disk
//! is full, descriptors run out, bits flip at rest and in the shared region, and hostile peers send
//! bytes. Errors must be clear, no process may crash, nothing acknowledged may be lost, and the
//! store must work again when the cause is gone.
//!
//! | file | its one job |
//! |---|---|
//! | `calls.rs` | each call fails, once and from then on |
//! | `syncs.rs`, `after_cut.rs` | each sync fails, then the power fails |
//! | `at_rest.rs` | damage to the files of a closed store |
//! | `full.rs`, `limits.rs` | a full disk; limits on bytes or descriptors of a process |
//! | `hostile.rs`, `live.rs` | hostile peers on the socket; bits that flip in the shared region |
//! | `worker.rs`, `acknowledged.rs` | a writer that copes with errors, and its acknowledgements |
//! | `processes.rs`, `after.rs` | the processes of a scenario, and the checks after it |

mod acknowledged;
mod after;
pub(crate) mod after_cut;
pub(crate) mod at_rest;
mod calls;
mod full;
mod hostile;
pub(crate) mod limits;
mod live;
mod processes;
mod syncs;
pub(crate) mod worker;

use crate::context::{Context, Limit, is_interrupted};
use crate::outcome::{Coverage, Outcome};
use processes::ScenarioFailure;
use std::sync::atomic::{AtomicBool, Ordering};

/// For each part, the fraction of the suite's time after which the part ends.
const CALLS: f64 = 0.4;
const SYNCS: f64 = 0.55;
const AT_REST: f64 = 0.68;
const FULL: f64 = 0.75;
const LIMITS: f64 = 0.87;
const HOSTILE: f64 = 0.94;
const LIVE: f64 = 1.0;

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    let until = |share: f64| {
        // Each part does at least one unit of work.
        let has_begun = AtomicBool::new(false);
        move |states: u64, doing: &str| {
            let gone = match context.limit {
                Limit::Seconds(seconds) => context.elapsed().as_secs_f64() / seconds as f64,
                Limit::States(most) => states as f64 / most as f64,
            };
            let is_first = !has_begun.swap(true, Ordering::Relaxed);
            (context.may_continue(states, doing) && gone < share) || (is_first && !is_interrupted())
        }
    };
    calls::run(context, &mut outcome, &until(CALLS));
    syncs::run(context, &mut outcome, &until(SYNCS));
    at_rest::run(context, &mut outcome, &until(AT_REST));
    scenarios(context, &mut outcome, &until(FULL), "full disks", full_disks(context));
    scenarios(context, &mut outcome, &until(LIMITS), "limits", limited(context));
    scenarios(context, &mut outcome, &until(HOSTILE), "strangers", strangers(context));
    scenarios(context, &mut outcome, &until(LIVE), "bits that flip in the region", flips(context));
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

/// A scenario: its name, and a function that plays it and returns additional figures.
type FaultScenario<'c> = (String, Box<dyn Fn() -> Result<Vec<(&'static str, f64)>, ScenarioFailure> + 'c>);

/// Returns whether a scenario is to be played. A replay line names one scenario or a prefix of
/// names such as `descriptors:client`.
fn is_meant(context: &Context, name: &str) -> bool {
    let Some(only) = context.only.as_deref() else { return true };
    name.strip_prefix(only).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// Plays as many scenarios as the time permits.
fn scenarios<'c>(
    context: &'c Context,
    outcome: &mut Outcome,
    may_continue: &dyn Fn(u64, &str) -> bool,
    of: &str,
    scenarios: Box<dyn Iterator<Item = FaultScenario<'c>> + 'c>,
) {
    let mut hits = Vec::new();
    for (name, play) in scenarios {
        let is_named = context.only.is_some() && context.wants(&name);
        if !is_meant(context, &name) {
            continue;
        }
        if !is_named && !may_continue(outcome.states, &name) {
            outcome.uncovered.push(format!("{of}: {name} and what comes after it: the time was up"));
            break;
        }
        match play() {
            Ok(figures) => {
                outcome.states += 1;
                hits.push((name, 1));
                for (figure, value) in figures {
                    *outcome.figures.entry(format!("{of}: {figure}")).or_default() += value;
                }
            }
            Err(ScenarioFailure::Skipped(why)) => outcome.skip(name, why),
            Err(ScenarioFailure::Found(finding)) => outcome.violated(finding, &name, context.replay(&name)),
        }
        if is_named {
            break;
        }
    }
    if !hits.is_empty() {
        outcome.coverage.push(Coverage { of: of.into(), hits });
    }
}

fn full_disks(context: &Context) -> Box<dyn Iterator<Item = FaultScenario<'_>> + '_> {
    Box::new(full::FILE_SYSTEMS.into_iter().map(move |kind| {
        let scenario = move || {
            let turned_away = full::play(context, kind)?;
            Ok(vec![("readers that got the error", turned_away as f64)])
        };
        (format!("disk-full:{kind}"), Box::new(scenario) as Box<dyn Fn() -> _>)
    }))
}

fn limited(context: &Context) -> Box<dyn Iterator<Item = FaultScenario<'_>> + '_> {
    Box::new(limits::all(context).into_iter().map(move |limited| {
        let path = context.directory_in_memory(&limited.name().replace(':', "-"));
        let name = limited.name();
        let scenario = move || {
            let played = limited.play(&path).map(|()| Vec::new());
            let _ = std::fs::remove_dir_all(&path);
            played
        };
        (name, Box::new(scenario) as Box<dyn Fn() -> _>)
    }))
}

/// Returns the numbers of a kind of scenario that has no last number, or the one number that a
/// replay line names.
fn numbers(context: &Context, kind: &str) -> Box<dyn Iterator<Item = u64>> {
    match context.only.as_deref() {
        None => Box::new(0..),
        Some(only) => {
            let number = only.strip_prefix(kind).and_then(|rest| rest.strip_prefix(':'));
            Box::new(number.and_then(|number| number.parse().ok()).into_iter())
        }
    }
}

fn strangers(context: &Context) -> Box<dyn Iterator<Item = FaultScenario<'_>> + '_> {
    Box::new(numbers(context, "hostile").map(move |n| {
        let path = context.directory_in_memory(&format!("hostile-{n}"));
        let scenario = move || {
            let played = hostile::play(&path, context.seed.wrapping_add(n));
            let _ = std::fs::remove_dir_all(&path);
            played.map(|connections| vec![("connections", connections as f64)])
        };
        (format!("hostile:{n}"), Box::new(scenario) as Box<dyn Fn() -> _>)
    }))
}

fn flips(context: &Context) -> Box<dyn Iterator<Item = FaultScenario<'_>> + '_> {
    let words = live::NUMBERS.iter().map(|(word, at)| ((*word).to_string(), Some(*at), 0));
    let numbers = numbers(context, "control-flip").map(|n| (n.to_string(), None, n));
    Box::new(words.chain(numbers).map(move |(which, at, n)| {
        let path = context.directory_in_memory(&format!("flips-{which}"));
        let scenario = move || {
            let played = live::play(&path, at, context.seed.wrapping_add(n));
            let _ = std::fs::remove_dir_all(&path);
            let flipped = played?;
            let refused = f64::from(u8::from(flipped.refused.is_some()));
            Ok(vec![("bits", flipped.flips.len() as f64), ("refused afterwards with a reason", refused)])
        };
        (format!("control-flip:{which}"), Box::new(scenario) as Box<dyn Fn() -> _>)
    }))
}
