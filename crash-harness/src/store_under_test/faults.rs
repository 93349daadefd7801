//! Failing syncs: one of a store's syncs fails, or several in a row, and the data that they cover
//! is lost. The page cache keeps the bytes, and later syncs succeed without them, as on Linux after
//! a failed write-back.
//!
//! The writer retries the same batch, reopens the store if that does not help, and continues. Then
//! another process opens the store and continues as well. Then the power fails.

use super::cuts::{ENOUGH, Model, Search, again, ended, recorder, rounds, store_path, unfinished};
use super::kills::{replay, start};
use super::{StoreUnderTest, work};
use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::recorder::{Event, Record};
use rand::Rng;
use rand::rngs::StdRng;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Number of batches of the writer whose syncs fail, and of the next writer.
const BATCHES: (&str, &str) = ("30", "8");
/// Number of cuts after each failure.
const CUTS: usize = 4;

/// Number of writers without a failing sync after which the store counts as one that never syncs.
const FRUITLESS: u32 = 8;

/// Runs failing syncs until the time is up.
pub fn run(context: &Context, tested: &dyn StoreUnderTest, model: Model, outcome: &mut Outcome) {
    let about = tested.about();
    if let Some(only) = context.only.as_ref().filter(|only| only.contains('@')) {
        return again(context, "faults", tested, model, only, outcome);
    }
    let mut fruitless = 0;
    for round in rounds(context, about.name) {
        if outcome.violations.len() >= ENOUGH || !context.may_continue(outcome.states, about.name) {
            return;
        }
        let name = format!("{}:{round}", about.name);
        let mut random = context.random(round);
        let recorded = record(tested, &mut random, outcome);
        let record = match recorded {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(finding) => {
                outcome.violated(finding, &name, replay(context, "faults", tested, &name));
                continue;
            }
        };
        let Some(from) = record.events.iter().position(|event| matches!(event, Event::SyncFailed { .. })) else {
            // The writer ended before the chosen sync, or the store never syncs.
            fruitless += 1;
            if fruitless > FRUITLESS && outcome.states == 0 {
                outcome.skip(about.name, "with these settings it never syncs");
                return;
            }
            continue;
        };
        *outcome.figures.entry("syncs that failed".into()).or_default() +=
            record.events.iter().filter(|event| matches!(event, Event::SyncFailed { .. })).count() as f64;
        Search { context, tested, run: "faults", round, record: &record, from, model, cuts: CUTS }
            .run(&mut random, outcome);
    }
}

/// Runs a writer whose syncs fail, and another writer after it.
fn record(tested: &dyn StoreUnderTest, random: &mut StdRng, outcome: &mut Outcome) -> Result<Option<Record>, Finding> {
    let Some(recorder) = recorder(tested, outcome) else { return Ok(None) };
    let path = store_path(&recorder)?;
    let failures = if random.random_bool(0.7) { 1 } else { 3 };
    recorder.hold_sync("", random.random_range(0..60));
    let is_over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        // Any process may make the call, including one that the store started.
        scope.spawn(|| {
            let mut failed = 0;
            while !is_over.load(Relaxed) {
                if let Some(held) = recorder.held(Duration::from_millis(5)) {
                    failed += 1;
                    if failed < failures {
                        recorder.hold_sync("", 0);
                    }
                    held.fail();
                }
            }
        });
        let done = two_writers(tested, &path, outcome);
        tested.end(&path);
        is_over.store(true, Relaxed);
        done
    });
    match done {
        Err(finding) if finding.kind == Kind::Misbehaved && recorder.marks(0, "V ") == 0 => {
            unfinished(outcome, &format!("{}: {}", tested.about().name, finding.what));
        }
        done => done?,
    }
    Ok(Some(recorder.finish()))
}

fn two_writers(tested: &dyn StoreUnderTest, path: &Path, outcome: &mut Outcome) -> Result<(), Finding> {
    for (name, batches) in [("w0", BATCHES.0), ("w1", BATCHES.1)] {
        let mut writer = start(tested, "subject-writer", path, &[name, batches, "stubborn"]);
        ended(&mut writer)?;
        for (what, name) in work::FATES {
            let count = writer.lines().iter().filter(|line| line.starts_with(what)).count();
            *outcome.figures.entry(name.into()).or_default() += count as f64;
        }
        // Ends the processes that the store started.
        tested.end(path);
    }
    Ok(())
}
