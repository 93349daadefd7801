//! Each sync of a life fails in turn, as on a real disk: the data of the failed sync does not
//! become durable, although the page cache holds it and later syncs succeed. Then the power fails,
//! immediately or later. Everything acknowledged must survive.
//!
//! This needs the recording file system. An error that the tracer injects into a call loses no
//! data.

use super::after_cut;
use super::processes::{ScenarioFailure, ScenarioResult, found};
use crate::context::Context;
use crate::outcome::{Coverage, Finding, Kind, Outcome};
use crate::processes::loggers::kill_loggers;
use crate::processes::process::{Checked, Process, start_role};
use crate::processes::{instrumented, role};
use crate::recorder::choice::Choice;
use crate::recorder::{Event, OfOneBoot, Record, Recorder, SECTOR, own_mounts};
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest life, including errors.
const LIFE_MAX: Duration = Duration::from_secs(120);
/// Number of cuts after each failed sync, in addition to the immediate cut, and number of random
/// states of each cut.
const CUTS: usize = 6;
const RANDOM: u64 = 2;

/// A sync that fails.
#[derive(Clone, Copy, Debug)]
struct Failing {
    /// Number of preceding syncs that succeed, counting only those that make something durable.
    skip: usize,
    /// Whether all later syncs fail, too.
    lasting: bool,
}

impl Failing {
    fn name(self) -> String {
        format!("sync:{}:{}", self.skip + 1, if self.lasting { "lasting" } else { "once" })
    }

    fn parse(name: &str) -> Option<Failing> {
        let (nth, span) = name.strip_prefix("sync:")?.split_once(':')?;
        Some(Failing { skip: nth.parse::<usize>().ok()?.checked_sub(1)?, lasting: span == "lasting" })
    }
}

/// Runs this part.
pub(super) fn run(context: &Context, outcome: &mut Outcome, may_continue: &dyn Fn(u64, &str) -> bool) {
    if context.only.as_deref().is_some_and(|only| Failing::parse(only).is_none()) {
        return;
    }
    if let Err(error) = own_mounts() {
        return outcome.skip("failing syncs", format!("no mounts of its own: {error}"));
    }
    let mut states = 0;
    let failing = match context.only.as_deref() {
        Some(only) => Failing::parse(only).into_iter().collect(),
        None => match count() {
            Err(ScenarioFailure::Skipped(why)) => return outcome.skip("failing syncs", why),
            Err(ScenarioFailure::Found(finding)) => {
                return outcome.violated(finding, "no sync", context.replay("sync:0:once"));
            }
            Ok(count) => {
                outcome.figures.insert("syncs: of a life".into(), count as f64);
                let each = |lasting| (0..count).map(move |skip| Failing { skip, lasting });
                let mut all: Vec<Failing> = each(false).chain(each(true)).collect();
                all.shuffle(&mut context.random(3));
                all
            }
        },
    };
    let mut hits = Vec::new();
    for (index, one) in failing.iter().enumerate() {
        let name = one.name();
        if context.only.is_none() && !may_continue(outcome.states, &name) {
            let left = failing.len() - index;
            outcome.uncovered.push(format!("failing syncs: {left} of {}: the time was up", failing.len()));
            break;
        }
        match fail(context, *one) {
            Ok(checked) => {
                outcome.states += checked;
                states += checked;
                hits.push((name, checked));
            }
            Err(ScenarioFailure::Skipped(why)) => outcome.skip(name, why),
            Err(ScenarioFailure::Found(finding)) => {
                hits.push((name.clone(), 1));
                outcome.violated(finding, &name, context.replay(&name));
            }
        }
    }
    outcome.figures.insert("syncs: failed".into(), hits.len() as f64);
    outcome.figures.insert("syncs: states after them".into(), states as f64);
    outcome.coverage.push(Coverage { of: "syncs that failed, and states after them".into(), hits });
}

fn mount() -> ScenarioResult<Recorder> {
    let mounted = Recorder::mount(OfOneBoot::names(&["control", "logger.sock"]), None);
    mounted.map_err(|error| ScenarioFailure::Skipped(format!("no recording file system (root and FUSE): {error}")))
}

fn start(recorder: &Recorder) -> Process {
    let mark = recorder.mark().to_string_lossy().into_owned();
    let env = [(super::worker::MARK, mark.as_str())];
    start_role(&instrumented::own(), "enduring", &recorder.store(), &["a", "2", "leave", "", "visible"], &env)
}

/// Waits a limited time for the end of the writer and checks that it reported no finding.
fn end(process: &mut Process, meanwhile: &mut dyn FnMut()) -> ScenarioResult<()> {
    let begun = Instant::now();
    while process.is_running() {
        meanwhile();
        if begun.elapsed() > LIFE_MAX {
            let said = process.lines().join("; ");
            return found(Kind::BlockedReader, format!("the writer did not end within {LIFE_MAX:?}: {said}"));
        }
    }
    let ended_well = process.wait();
    if let Some(finding) = process.lines().iter().find_map(|line| role::finding(line)) {
        return found(finding.kind, format!("{}: {}", finding.what, process.lines().join("; ")));
    }
    process.refuse_finding()?;
    if ended_well { Ok(()) } else { found(Kind::Misbehaved, "the writer ended unexpectedly") }
}

/// Returns the number of syncs of a life.
fn count() -> ScenarioResult<usize> {
    let recorder = mount()?;
    let mut process = start(&recorder);
    let ended = end(&mut process, &mut || std::thread::sleep(Duration::from_millis(2)));
    kill_loggers(&recorder.store());
    ended?;
    Ok(recorder.syncs(0, ""))
}

/// Runs one life with a sync that fails, and checks states that a power cut afterwards could leave.
/// Returns the number of checked states.
fn fail(context: &Context, failing: Failing) -> ScenarioResult<u64> {
    let recorder = mount()?;
    recorder.hold_sync("", failing.skip);
    let mut process = start(&recorder);
    let ended = end(&mut process, &mut || {
        let Some(held) = recorder.held(Duration::from_millis(5)) else { return };
        if failing.lasting {
            // The next hold must be requested before this sync is answered, so that no sync passes
            // in between.
            recorder.hold_sync("", 0);
        }
        held.fail();
    });
    let store = recorder.store();
    drop(process);
    // The syncs of the remaining loggers may be held, too.
    while kill_loggers(&store) > 0 {
        drop(recorder.held(Duration::ZERO));
    }
    let record = recorder.finish();
    ended?;
    judge(context, &record, &context.directory_in_memory(&failing.name()))
}

/// Lays the states out as directories and runs a process that recovers and checks them.
fn judge(context: &Context, record: &Record, scratch: &Path) -> ScenarioResult<u64> {
    let failed: Vec<usize> =
        (0..record.events.len()).filter(|at| matches!(record.events[*at], Event::SyncFailed { .. })).collect();
    // Only the first four failed syncs and the last one are used, because there are many if all
    // syncs fail.
    let failed: Vec<usize> = failed.iter().copied().take(4).chain(failed.last().copied()).collect();
    let mut cuts = BTreeSet::from([record.events.len()]);
    for at in failed {
        cuts.insert(at + 1);
        let marks = (at..record.events.len()).filter(|at| matches!(record.events[*at], Event::Mark(_)));
        cuts.extend(marks.map(|mark| mark + 1).take(CUTS));
    }
    let mut states = Vec::new();
    let mut seen = BTreeSet::new();
    let mut disk = record.disk(SECTOR);
    let mut said = Vec::new();
    for (at, event) in record.events.iter().enumerate() {
        disk.apply(at, event);
        if let Event::Mark(mark) = event {
            said.push(mark.clone());
        }
        if !cuts.contains(&(at + 1)) {
            continue;
        }
        let mut choices = vec![Choice::Nothing { names: true }, Choice::Everything { names: true }];
        choices.extend((0..RANDOM).map(|n| Choice::Random(context.seed.wrapping_add(at as u64 * 7 + n))));
        for choice in choices {
            let image = disk.image(&choice);
            if seen.insert((image.fingerprint(), said.len())) {
                states.push((format!("cut after event {at}, {choice}"), image, said.clone()));
            }
        }
    }
    let io = |error: std::io::Error| ScenarioFailure::Skipped(format!("laying out states: {error}"));
    std::fs::create_dir_all(scratch).map_err(io)?;
    let checked = states.len() as u64;
    for (index, (_, image, said)) in states.iter().enumerate() {
        image.lay_out(&scratch.join(index.to_string())).map_err(io)?;
        std::fs::write(scratch.join(format!("{index}.said")), said.join("\n")).map_err(io)?;
    }
    let judged = after_cut::judge(scratch, states.len());
    let _ = std::fs::remove_dir_all(scratch);
    match judged {
        Ok(()) => Ok(checked),
        Err((index, finding)) => {
            let name = states.get(index).map_or("", |(name, _, _)| name.as_str());
            Err(ScenarioFailure::Found(Finding { what: format!("{name}: {}", finding.what), ..finding }))
        }
    }
}
