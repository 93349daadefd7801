//! Single steps: a writer executes one update instruction by instruction. A reader and a recovery
//! check each intermediate state of shared memory.
//!
//! **Exhaustive**: all instructions of the update are stepped. Each one that changed the shared
//! region or the arena gives a state. In each state a live reader must see the store as before or
//! as after the update, and never the old state after the new one (I1). A recovery of a copy with
//! the region, as after the death of all processes, must find what that reader saw. A recovery
//! without the region, as after a kernel crash, must find what was durable. A long run recovers
//! every state; a short run recovers one in `RECOVER_EACH` and those around the publication. Then
//! other processes write between the instructions of a reader or of a counter's addition (see
//! [`between`]). Then processes are killed at every k-th instruction, and another process writes
//! afterwards.
//!
//! The logger is stopped during this, so that only the writer changes anything. A writer changes
//! files only through the arena's mapping. The logger's own operations are stepped in `logger`,
//! which also watches the files. Its recovery is stepped in `recovery`.

pub mod between;
pub mod kinds;
mod logger;
mod memory;
mod recovery;
mod threads;
mod trace;

use crate::context::Context;
use crate::outcome::{Coverage, Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::{are_loggers_stopped, kill_loggers, signal_loggers};
use crate::processes::process::start_role;
use crate::workload;
use crate::workload::oracle;
use kinds::{Digest, KINDS, digest};
use memory::Memory;
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};
use trace::{Stopped, Traced};
use untorn::Store;

/// More instructions than any update has, to detect a loop.
const STEPS_MAX: u64 = 5_000_000;
/// In a short run, one of this many states is recovered.
const RECOVER_EACH: u64 = 32;
/// Number of cells of the map of an update's instructions.
const MAP_CELLS: u64 = 96;

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    let mut lengths = Vec::new();
    if let Err(why) = can_trace(context) {
        outcome.skip("single steps", why);
        return outcome;
    }
    for kind in KINDS {
        let steps = each(context, &mut outcome, kind, "all", |path, outcome| through(context, path, kind, outcome));
        lengths.extend(steps.map(|steps| (*kind, steps)));
    }
    for kind in logger::KINDS {
        let step = |path: &Path, outcome: &mut Outcome| logger::through(context, path, *kind, outcome);
        lengths.extend(each(context, &mut outcome, kind.0, "all", step).map(|steps| (kind.0, steps)));
    }
    for kind in recovery::KINDS {
        let step = |path: &Path, outcome: &mut Outcome| recovery::through(context, path, kind, outcome);
        let stops = each(context, &mut outcome, kind, "all", step);
        lengths.extend(stops.map(|stops| (*kind, stops * recovery::INSTRUCTIONS)));
    }
    for operation in between::OPERATIONS {
        let between = |path: &Path, outcome: &mut Outcome| between::try_all(context, path, operation, outcome);
        let _ = each(context, &mut outcome, operation, "between", between);
    }
    kills(context, &lengths, &mut outcome);
    if !context.is_long() {
        outcome
            .uncovered
            .push(format!("recoveries of all states: one in {RECOVER_EACH}; from 1,200 seconds on, of all"));
    }
    outcome.uncovered.push("recovery's stores to mapped pages, one by one: checked at the next system call".into());
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

/// Tests one update or operation in its own directory, if it is wanted and there is time. Returns
/// the result of the test.
fn each<T>(
    context: &Context,
    outcome: &mut Outcome,
    of: &str,
    what: &str,
    run: impl FnOnce(&Path, &mut Outcome) -> Result<T, Finding>,
) -> Option<T> {
    let name = format!("{of}:{what}");
    if !context.wants(&name) {
        return None;
    }
    if context.only.is_none() && !context.may_continue(outcome.states, &name) {
        outcome.uncovered.push(format!("{name}: the time was up"));
        return None;
    }
    let path = context.directory_in_memory(&name.replace([' ', ':'], "-"));
    let answer = run(&path, outcome);
    let answer = answer.map_err(|finding| outcome.violated(finding, &name, context.replay(&name))).ok();
    clear(&path);
    answer
}

/// Returns an error if an update can't be stepped on this machine. Where atomic operations are
/// loops of a load-exclusive and a store-exclusive instruction, a step between the two makes the
/// store fail each time, so the loop never ends.
fn supported() -> Result<(), String> {
    if cfg!(target_arch = "x86_64") { Ok(()) } else { Err("single steps are made on x86_64 only".into()) }
}

/// Checks that processes can be traced here.
fn can_trace(context: &Context) -> Result<(), String> {
    supported()?;
    let path = context.directory_in_memory("probe");
    let traced = set_up(&path, KINDS[0]);
    let answer = match traced {
        Ok(scenario) => {
            scenario.writer.kill();
            Ok(())
        }
        Err(finding) if finding.what.contains(trace::UNTRACEABLE) => Err(finding.what),
        // The suite will report any other error.
        Err(_) => Ok(()),
    };
    clear(&path);
    answer
}

fn clear(path: &Path) {
    signal_loggers(path, Signal::CONT);
    kill_loggers(path);
    let _ = std::fs::remove_dir_all(path);
}

/// A store in the state before the update, its reader, and a writer that is stopped before its
/// first instruction.
struct WriterSetup {
    store: Store,
    writer: Traced,
}

fn set_up(path: &Path, kind: &str) -> Result<WriterSetup, Finding> {
    kinds::prepare(path, kind)?;
    let store = workload::open(path)?;
    let writer = Traced::start(start_role(&instrumented::own(), "stepped", path, &[kind], &[]))?;
    store.sync().map_err(workload::misbehaved("sync"))?;
    stop_loggers(path, kind)?;
    Ok(WriterSetup { store, writer })
}

/// Stops the logger outside its critical sections. If it were stopped while it holds the writer
/// lock, the update would never end.
fn stop_loggers(path: &Path, kind: &str) -> Result<(), Finding> {
    let begun = Instant::now();
    loop {
        signal_loggers(path, Signal::STOP);
        while !are_loggers_stopped(path) {
            if begun.elapsed() > HANGS {
                return Err(Finding::new(Kind::Misbehaved, format!("{kind}: the logger did not stop")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // A dead writer holds this lock, and the update is to take it over.
        if kind == "lock take-over" {
            return Ok(());
        }
        let probe = workload::options().lock_timeout(Duration::from_millis(200)).open(path);
        match probe.and_then(|store| store.begin().map(untorn::WriteTxn::rollback)) {
            Err(untorn::Error::LockTimeout { .. }) if begun.elapsed() < HANGS => {}
            other => return other.map_err(workload::misbehaved("a test of the writer lock")),
        }
        signal_loggers(path, Signal::CONT);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Steps through one update and checks every state. Returns the number of instructions.
fn through(context: &Context, path: &Path, kind: &str, outcome: &mut Outcome) -> Result<u64, Finding> {
    let WriterSetup { store, mut writer } = set_up(path, kind)?;
    let before = digest(&store)?;
    let mut memory = Memory::of(path)?;
    let mut changed_at = Vec::new();
    let (mut seen, mut steps, mut recoveries) = (vec![(0, before.clone())], 0, 0_u64);
    loop {
        let is_over = writer.step()? == Stopped::AtTheEnd;
        steps += 1;
        if steps > STEPS_MAX {
            return Err(Finding::new(
                Kind::BlockedReader,
                format!("{kind}: not finished after {STEPS_MAX} instructions"),
            ));
        }
        if is_over || memory.has_changed() {
            changed_at.push(steps);
            let visible = digest(&store)?;
            let is_news = seen.last().is_none_or(|(_, last)| *last != visible);
            if is_over || is_news || context.is_long() || changed_at.len() as u64 % RECOVER_EACH == 1 {
                judge_copies(context, path, &[&before], &visible, steps)?;
                recoveries += 1;
            }
            outcome.states += 1;
            if outcome.states.is_multiple_of(16) {
                context.may_continue(outcome.states, &format!("{kind}, instruction {steps}"));
            }
            seen.push((steps, visible));
            // The reader's pins change the same region.
            memory.look();
        }
        if is_over {
            break;
        }
    }
    one_switch(kind, &seen)?;
    let count = format!("{kind}: instructions");
    outcome.figures.insert(count, steps as f64);
    outcome.figures.insert(format!("{kind}: states"), changed_at.len() as f64);
    outcome.figures.insert(format!("{kind}: states recovered"), recoveries as f64);
    outcome.coverage.push(map(kind, "instructions", steps, &changed_at));
    writer.resume();
    Ok(steps)
}

/// **I1**: readers see the state before, then the state after, and nothing else.
fn one_switch(kind: &str, seen: &[(u64, Digest)]) -> Result<(), Finding> {
    let (before, after) = (&seen[0].1, &seen[seen.len() - 1].1);
    if before == after {
        return Err(Finding::new(Kind::LostAcked, format!("{kind}: the update changed nothing")));
    }
    let switch = seen.iter().position(|(_, digest)| digest == after).unwrap_or(seen.len());
    let odd = seen[..switch].iter().find(|(_, digest)| digest != before);
    let odd = odd.or_else(|| seen[switch..].iter().find(|(_, digest)| digest != after));
    match odd {
        None => Ok(()),
        Some((step, digest)) => {
            let what = format!("{kind}: after instruction {step} neither the old state nor the new one: {digest:?}");
            Err(Finding::new(Kind::HalfApplied, what))
        }
    }
}

/// Recovers two copies. A recovery with the shared region must find the visible content. A recovery
/// without it must find a content that may have been durable.
fn judge_copies(
    context: &Context,
    path: &Path,
    durable: &[&Digest],
    visible: &Digest,
    step: u64,
) -> Result<(), Finding> {
    judge_copy(context, path, true, &[visible], step)?;
    judge_copy(context, path, false, durable, step).map(drop)
}

/// Recovers a copy, which must have one of these contents.
fn judge_copy(
    context: &Context,
    path: &Path,
    keeps_region: bool,
    expected: &[&Digest],
    step: u64,
) -> Result<Digest, Finding> {
    let found = recovered(context, path, keeps_region)?;
    judge_recovered(&found, keeps_region, expected, step)?;
    Ok(found)
}

/// Copies the store in its current state and returns the content that a recovery of the copy finds.
fn recovered(context: &Context, path: &Path, keeps_region: bool) -> Result<Digest, Finding> {
    let copy = context.directory_in_memory("copy");
    memory::copy_store(path, &copy, keeps_region)?;
    let store = memory::open_copy(&copy)?;
    let found = digest(&store)?;
    oracle::verified(&store)?;
    drop(store);
    let _ = std::fs::remove_dir_all(&copy);
    Ok(found)
}

/// Checks that a recovery found one of these contents.
fn judge_recovered(found: &Digest, kept_region: bool, expected: &[&Digest], step: u64) -> Result<(), Finding> {
    if expected.contains(&found) {
        return Ok(());
    }
    let (how, kind) = if kept_region { ("with", Kind::LostAcked) } else { ("without", Kind::OrderViolation) };
    let what = format!("at {step}: recovered {how} the region: {found:?} instead of {expected:?}");
    Err(Finding::new(kind, what))
}

/// Returns a map of an update's instructions: for each range, how many change shared memory.
fn map(kind: &str, unit: &str, steps: u64, changed_at: &[u64]) -> Coverage {
    let width = steps.div_ceil(MAP_CELLS).max(1);
    let cell = |index: u64| {
        let range = index * width + 1..=(index + 1) * width;
        let states = changed_at.iter().filter(|at| range.contains(at)).count() as u64;
        (format!("{unit} {} to {}: states", range.start(), range.end()), states)
    };
    Coverage { of: format!("{kind}: {steps} {unit}"), hits: (0..steps.div_ceil(width)).map(cell).collect() }
}

// ---- real kills

/// Kills a process at every k-th instruction, as often as there is time for.
fn kills(context: &Context, lengths: &[(&'static str, u64)], outcome: &mut Outcome) {
    if let Some((kind, at)) = context.only.as_deref().and_then(|only| only.split_once(":kill ")) {
        let mut known = KINDS.iter().chain(recovery::KINDS).copied().chain(logger::KINDS.iter().map(|kind| kind.0));
        let Some(kind) = known.find(|known| *known == kind) else { return };
        kill_at(context, kind, at.parse().unwrap_or(1), outcome);
        return;
    }
    let mut tried = 0_u64;
    // The instants are chosen by bisection: the first kills are spread over the whole update, later
    // ones fill the gaps.
    for halving in 0..20_u32 {
        for (kind, steps) in lengths {
            let parts = 1_u64 << halving;
            for part in (1..=parts).step_by(2) {
                let at = steps * part / (parts + 1);
                if context.only.is_some() || !context.may_continue(outcome.states, &format!("{kind}, killed at {at}")) {
                    outcome.figures.insert("kills at an instruction".into(), tried as f64);
                    return;
                }
                if at > 0 {
                    kill_at(context, kind, at, outcome);
                    tried += 1;
                }
            }
        }
    }
}

fn kill_at(context: &Context, kind: &str, at: u64, outcome: &mut Outcome) {
    let path = context.directory_in_memory("killed");
    let of_logger = logger::KINDS.iter().find(|known| known.0 == kind);
    let done = (|| {
        if let Some(kind) = of_logger {
            return logger::kill_at(&path, *kind, at);
        }
        if recovery::KINDS.contains(&kind) {
            return recovery::kill_at(&path, kind, at);
        }
        let WriterSetup { store, mut writer } = set_up(&path, kind)?;
        let before = digest(&store)?;
        for _ in 0..at {
            if writer.step()? == Stopped::AtTheEnd {
                break;
            }
        }
        writer.kill();
        let seen = digest(&store)?;
        signal_loggers(&path, Signal::CONT);
        let begun = Instant::now();
        kinds::write_on(&store)?;
        if begun.elapsed() > HANGS {
            let what = format!("the next writer was blocked for {:?}", begun.elapsed());
            return Err(Finding::new(Kind::BlockedReader, what));
        }
        kinds::undo_write_on(&store)?;
        let after = digest(&store)?;
        if after != seen {
            let what = format!("{seen:?}, and after the next writer {after:?}; before: {before:?}");
            return Err(Finding::new(Kind::HalfApplied, what));
        }
        oracle::verified(&store)
    })();
    clear(&path);
    outcome.kills += 1;
    outcome.states += 1;
    let name = format!("{kind}:kill {at}");
    if let Err(finding) = done {
        outcome.violated(finding, &name, context.replay(&name));
    }
}
