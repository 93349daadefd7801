//! Kills: the processes of any store are killed at random instants under load, one by one and all
//! at once, repeatedly on the same store. A new process opens and checks the remaining store.

use super::cuts::{ENOUGH, rounds};
use super::judge::{self, AcknowledgedBatches};
use super::{StoreUnderTest, work};
use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::process::{Checked, Process, start_role};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Number of deaths of one store, after which a new store is made.
const LIVES: u64 = 8;

/// Runs kills until the time is up.
pub fn run(context: &Context, tested: &dyn StoreUnderTest, outcome: &mut Outcome) {
    for round in rounds(context, tested.about().name) {
        let name = format!("{}:{round}", tested.about().name);
        let enough = outcome.violations.len() >= ENOUGH;
        if context.only.is_none() && (enough || !context.may_continue(outcome.states, &name)) {
            return;
        }
        let path = context.directory_in_memory(&format!("{}-{round}", tested.about().name));
        let done = lives(context, tested, &path, &mut context.random(round), outcome);
        tested.end(&path);
        let _ = std::fs::remove_dir_all(&path);
        if let Err(finding) = done {
            outcome.violated(finding, &name, replay(context, "kill", tested, &name));
        }
    }
}

/// Returns the command that repeats one item.
pub fn replay(context: &Context, run: &str, tested: &dyn StoreUnderTest, only: &str) -> String {
    format!(
        "cargo run --release -p crash-peers -- {run} --store {} --seed {} --only '{only}'",
        tested.about().name,
        context.seed
    )
}

/// Starts a process in a role of [`work`].
pub fn start(tested: &dyn StoreUnderTest, role: &str, path: &Path, arguments: &[&str]) -> Process {
    let arguments: Vec<&str> = [tested.about().name].into_iter().chain(arguments.iter().copied()).collect();
    start_role(&instrumented::own(), role, path, &arguments, &[])
}

/// The result of a check.
pub struct Found {
    /// The last batch of each writer that was there.
    pub there: BTreeMap<String, u64>,
    /// The last batch of each writer after the check has written more. All of these batches are
    /// durable.
    pub afterwards: BTreeMap<String, u64>,
}

/// Opens and checks the store at `path` in a new process, which then closes it or ends as if
/// killed.
///
/// # Errors
/// The first violation.
pub fn checked(tested: &dyn StoreUnderTest, path: &Path, how: &str) -> Result<Found, Finding> {
    let mut process = start(tested, "subject-check", path, &[how]);
    let begun = Instant::now();
    while process.is_running() {
        if begun.elapsed() > HANGS {
            return Err(Finding::new(Kind::BlockedReader, format!("opening and checking it took over {HANGS:?}")));
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    process.wait();
    process.refuse_finding()?;
    let lines = process.lines();
    let found = lines.iter().filter_map(|line| line.strip_prefix("F ")?.split_once(' '));
    let there: BTreeMap<_, _> = found.filter_map(|(name, n)| Some((name.to_string(), n.parse().ok()?))).collect();
    let mut afterwards = there.clone();
    afterwards.insert(work::LATER.into(), process.newest("L "));
    Ok(Found { there, afterwards })
}

fn lives(
    context: &Context,
    tested: &dyn StoreUnderTest,
    path: &Path,
    random: &mut StdRng,
    outcome: &mut Outcome,
) -> Result<(), Finding> {
    let about = tested.about();
    let mut acknowledged = AcknowledgedBatches::default();
    for life in 0..LIVES {
        if life > 0 && context.only.is_none() && !context.may_continue(outcome.states, about.name) {
            return Ok(());
        }
        let count = if about.many_processes { 3 } else { 1 };
        let mut writers: Vec<(String, Process)> = (0..count)
            .map(|i| format!("w{i}"))
            .map(|name| (name.clone(), start(tested, "subject-writer", path, &[&name])))
            .collect();
        let mut reader = about.many_processes.then(|| start(tested, "subject-reader", path, &[]));
        // At times the writers die before anything was written.
        if random.random_range(0..6) > 0 {
            writers[0].1.wait_for("V", 1, HANGS)?;
        }
        if about.many_processes {
            for _ in 0..3 {
                std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
                let (name, killed) = &mut writers[random.random_range(1..count)];
                killed.refuse_finding()?;
                killed.kill();
                outcome.kills += 1;
                outcome.states += 1;
                acknowledged.add(work::acknowledged(name, &killed.lines()));
                // The other writers and a new one must make progress without intervention.
                let seen = writers[0].1.lines().iter().filter(|line| line.starts_with('V')).count();
                writers[0].1.wait_for("V", seen + 1, HANGS)?;
                let (name, killed) = &mut writers[random.random_range(1..count)];
                if !killed.is_running() {
                    killed.kill();
                    killed.refuse_finding()?;
                    acknowledged.add(work::acknowledged(name, &killed.lines()));
                    *killed = start(tested, "subject-writer", path, &[name]);
                }
            }
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..40_000)));
        for (name, writer) in &mut writers {
            writer.refuse_finding()?;
            writer.kill();
            outcome.kills += 1;
            acknowledged.add(work::acknowledged(name, &writer.lines()));
        }
        if let Some(reader) = &mut reader {
            reader.refuse_finding()?;
            reader.kill();
            outcome.kills += 1;
        }
        tested.end(path);
        let how = if random.random_bool(0.5) { "close" } else { "abandon" };
        let found = checked(tested, path, how)?;
        tested.end(path);
        outcome.states += 1;
        judge::kept(&found.there, &acknowledged, about.after_kill)?;
        acknowledged = AcknowledgedBatches::found(&found.afterwards);
    }
    Ok(())
}
