//! The logger's steps. Its threads execute one instruction each in turn, through a checkpoint with
//! its header, a flush of the log, and a sample of cells. Each state of shared memory and of the
//! files is checked in the same way as the states of a writer's update.
//!
//! The logger runs as threads of a process that does nothing else. The threads that take part are
//! stepped, one instruction of each in turn, which is one of many possible orders. The other
//! threads are stopped. A thread of the harness, which is not stepped, makes the requests to the
//! logger.

use super::kinds::{Digest, digest, prepare};
use super::memory::Memory;
use super::threads::Threads;
use super::{RECOVER_EACH, STEPS_MAX, judge_recovered, map, recovered};
use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::kill_loggers;
use crate::processes::process::{Checked, start_role};
use crate::processes::role::say;
use crate::processes::sealed::sealed;
use crate::workload::oracle;
use crate::workload::{self, misbehaved};
use std::path::Path;
use std::time::Duration;
use untorn::{Durability, Options, Store};

/// The operations of the logger, and the threads that take part.
pub(super) const KINDS: &[(&str, &[&str])] = &[
    ("logger: checkpoint with its header", &["untorn-checkpoint", "untorn-flush"]),
    ("logger: flush of a commit", &["untorn-flush"]),
    ("logger: sample of a cell", &["untorn-sampler", "untorn-flush"]),
];

/// Options with a long timeout, because a traced logger is slow.
fn options() -> Options {
    let mut options = workload::options();
    options.logger_timeout(Duration::from_secs(3600));
    options
}

/// Plays the traced process: runs the logger until it is killed.
pub(super) fn host(path: &Path) -> Result<(), Finding> {
    let store = options().logger_thread(true).open(path).map_err(misbehaved("opening"))?;
    // The previous logger may be dying. A durable commit needs a live logger, which is then the one
    // of this process.
    let put = store.keyspace("host").and_then(|host| host.put(b"k", b"v"));
    put.map_err(misbehaved("a durable put"))?;
    say("ready");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
        store.stats().map_err(misbehaved("stats"))?;
    }
}

/// A store and its logger, which is stopped.
struct LoggerSetup {
    store: Store,
    logger: Threads,
}

fn set_up(path: &Path, (kind, threads): (&str, &[&str])) -> Result<LoggerSetup, Finding> {
    prepare(path, kind)?;
    kill_loggers(path);
    let mut process = start_role(&instrumented::own(), "stepped", path, &["logger"], &[]);
    process.wait_for("ready", 1, HANGS)?;
    let store = options().open(path).map_err(misbehaved("opening"))?;
    let keys = store.keyspace("keys").map_err(misbehaved("keyspace"))?;
    // Writes pages whose checksums a checkpoint must compute.
    for i in 0..3u64 {
        keys.put(&(i * 20).to_be_bytes(), &sealed(i + 50, 100)).map_err(misbehaved("put"))?;
    }
    store.sync().map_err(misbehaved("sync"))?;
    // The logger's threads go to sleep.
    std::thread::sleep(Duration::from_millis(20));
    Ok(LoggerSetup { store, logger: Threads::take(process, threads)? })
}

/// Makes a request to the logger and returns when it is done.
fn ask(store: &Store, kind: &str) -> untorn::Result<()> {
    if kind.contains("checkpoint") {
        return store.checkpoint().map(drop);
    }
    if kind.contains("sample") {
        return store.cell("cell", 64)?.store_durable(&sealed(2, 64)).map(drop);
    }
    let keys = store.keyspace("keys")?;
    let mut txn = store.begin_with(Durability::Durable)?;
    txn.put(&keys, b"flushed", &sealed(4, 100))?;
    txn.commit().map(drop)
}

/// Steps through an operation of the logger and checks every state. Returns the number of
/// instructions.
pub(super) fn through(
    context: &Context,
    path: &Path,
    kind: (&str, &[&str]),
    outcome: &mut Outcome,
) -> Result<u64, Finding> {
    let LoggerSetup { store, mut logger } = set_up(path, kind)?;
    let kind = kind.0;
    let before = digest(&store)?;
    let mut memory = Memory::with_files(path)?;
    let (mut steps, mut recoveries, mut changed_at, mut last) = (0, 0_u64, Vec::new(), before.clone());
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&store, kind));
        let mut judge = |steps: u64, is_over: bool| {
            changed_at.push(steps);
            let visible = digest(&store)?;
            in_order(kind, &before, &last, &visible, steps)?;
            let is_news = visible != last;
            last = visible;
            if is_over || is_news || context.is_long() || changed_at.len() as u64 % RECOVER_EACH == 1 {
                let found = recovered(context, path, true)?;
                // The requesting thread is not stepped. It may have committed between the copy and
                // this check.
                let now = digest(&store)?;
                in_order(kind, &before, &last, &now, steps)?;
                judge_recovered(&found, true, &[&last, &now], steps)?;
                last = now;
                // The visible content becomes durable in one of these states. Once the request is
                // acknowledged, the content must be durable.
                let durable: &[&Digest] = if is_over { &[&last] } else { &[&before, &last] };
                judge_recovered(&recovered(context, path, false)?, false, durable, steps)?;
                recoveries += 1;
            }
            outcome.states += 1;
            if outcome.states.is_multiple_of(16) {
                context.may_continue(outcome.states, &format!("{kind}, instruction {steps}"));
            }
            Ok(())
        };
        let stepped = (|| {
            while steps < STEPS_MAX {
                if logger.step()? {
                    steps += 1;
                    if memory.has_changed() {
                        judge(steps, false)?;
                        memory.look();
                    }
                } else if asking.is_finished() {
                    return judge(steps, true);
                }
            }
            Err(Finding::new(Kind::BlockedReader, format!("{kind}: not finished after {STEPS_MAX} instructions")))
        })();
        // If the logger was killed in the middle, its successor completes and answers the request.
        logger.kill();
        let asked = asking.join().expect("does not panic");
        stepped.map(|()| asked)
    })?;
    asked.map_err(misbehaved("the request to the logger"))?;
    outcome.figures.insert(format!("{kind}: instructions"), steps as f64);
    outcome.figures.insert(format!("{kind}: states"), changed_at.len() as f64);
    outcome.figures.insert(format!("{kind}: states recovered"), recoveries as f64);
    outcome.coverage.push(map(kind, "instructions", steps, &changed_at));
    Ok(steps)
}

/// Checks the visible state: a checkpoint never changes it. Other operations may change it once,
/// and never back.
fn in_order(kind: &str, before: &Digest, last: &Digest, now: &Digest, step: u64) -> Result<(), Finding> {
    let may_change = last == before && !kind.contains("checkpoint");
    if now == last || may_change {
        return Ok(());
    }
    let what = format!("{kind}: after instruction {step}: {last:?}, then {now:?}");
    Err(Finding::new(Kind::HalfApplied, what))
}

/// Kills the logger at an instruction. Its successor completes the request.
pub(super) fn kill_at(path: &Path, kind: (&str, &[&str]), at: u64) -> Result<(), Finding> {
    let LoggerSetup { store, mut logger } = set_up(path, kind)?;
    let kind = kind.0;
    let before = digest(&store)?;
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&store, kind));
        let mut steps = 0;
        let stepped = (|| {
            while steps < at && !asking.is_finished() {
                steps += u64::from(logger.step()?);
            }
            Ok::<(), Finding>(())
        })();
        logger.kill();
        let asked = asking.join().expect("does not panic");
        stepped.map(|()| asked)
    })?;
    asked.map_err(misbehaved("the request to the logger"))?;
    let after = digest(&store)?;
    if (after == before) != kind.contains("checkpoint") {
        return Err(Finding::new(Kind::LostAcked, format!("{kind}: {before:?}, then {after:?}")));
    }
    store.checkpoint().map_err(misbehaved("checkpoint"))?;
    oracle::verified(&store)
}
