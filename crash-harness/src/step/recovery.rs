//! The logger's recovery, step by step. It runs in its own process, which is stopped before and
//! after each system call. If a file of the store or its shared region has changed since the
//! previous stop, the store is copied in this state. Recovering the copy simulates a death in the
//! middle of recovery.
//!
//! A recovery changes files only by system calls, except for the mapped pages of the arena. Changes
//! to those pages are checked at the next call, not after each instruction. (A recovery has
//! millions of instructions, nearly all of which read pages and compute checksums.) A new region
//! has another name until it is complete. Kills also hit instructions between system calls.

use super::kinds::{Digest, digest, prepare};
use super::trace::Traced;
use super::{clear, judge_copy, map, stop_loggers};
use crate::context::Context;
use crate::faults::at_rest::{Files, load};
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers};
use crate::processes::memory_mark::{MARKED, drop_from_memory};
use crate::processes::process::start_role;
use crate::processes::sealed::sealed;
use crate::workload::oracle;
use crate::workload::{self, misbehaved};
use std::path::Path;
use untorn::Durability;
use untorn::logger::LoggerOptions;

/// The kinds of recovery: with the region of the dead processes; without a region, as after a
/// kernel crash; and a start that continues the region.
pub(super) const KINDS: &[&str] =
    &["recovery with the region", "recovery without a region", "continuation of the region"];
/// More stops than any recovery of a small store has.
const STOPS_MAX: u64 = 100_000;
/// A kill point is encoded as the number of stops times this, plus the number of single
/// instructions.
pub(super) const INSTRUCTIONS: u64 = 1000;

/// Plays the traced process: recovers the store and is its logger.
///
/// # Errors
/// The error of the logger.
pub(super) fn play(path: &Path) -> Result<(), Finding> {
    super::trace::stand_still(true)?;
    LoggerOptions::default().run(path).map_err(misbehaved("recovery"))
}

/// A store whose processes have all died, and a process that is stopped before its recovery.
struct RecoverySetup {
    /// The contents that a recovery without the region may find, in the order in which they become
    /// possible: the durable content, the same with all visible commits, and all visible content
    /// including the cells.
    without: Vec<Digest>,
    /// The content that a recovery with the region must find.
    visible: Digest,
    recovering: Traced,
}

fn set_up(path: &Path, kind: &str) -> Result<RecoverySetup, Finding> {
    prepare(path, kind)?;
    let (durable, mut visible);
    {
        let store = workload::open(path)?;
        let keys = store.keyspace("keys").map_err(misbehaved("keyspace"))?;
        // Makes a log that must be replayed.
        for i in 0..3u64 {
            keys.put(&(i * 20).to_be_bytes(), &sealed(i + 50, 100)).map_err(misbehaved("put"))?;
        }
        store.sync().map_err(misbehaved("sync"))?;
        durable = digest(&store)?;
        // With the logger stopped, later commits do not reach the log.
        stop_loggers(path, kind)?;
        let left = (|| {
            let mut txn = store.begin_with(Durability::Visible)?;
            txn.put(&keys, b"visible", &sealed(60, 100))?;
            txn.put(&keys, &20u64.to_be_bytes(), &sealed(61, 2000))?;
            txn.commit()?;
            store.cell("cell", 64)?.store(&sealed(3, 64))?;
            store.counter("counter")?.add(2)
        })();
        left.map_err(misbehaved("what is visible and not durable"))?;
        visible = digest(&store)?;
    }
    kill_loggers(path);
    if kind == KINDS[0] {
        drop_from_memory(path, &MARKED);
    }
    if kind == KINDS[1] {
        crash_kernel(path);
        visible.clone_from(&durable);
    }
    let is_cell = |name: &String| name.starts_with("cell ");
    let commits =
        visible.iter().filter(|entry| !is_cell(entry.0)).chain(durable.iter().filter(|entry| is_cell(entry.0)));
    let commits = commits.map(|(name, sum)| (name.clone(), *sum)).collect();
    let recovering = Traced::start(start_role(&instrumented::own(), "stepped", path, &["recovery"], &[]))?;
    Ok(RecoverySetup { without: vec![durable, commits, visible.clone()], visible, recovering })
}

/// Returns the files that count in a recovery. A region that is not in use yet does not count.
fn files(path: &Path) -> Files {
    let mut files = load(path);
    files.retain(|name, _| !["lock", "control.new"].contains(&name.as_str()));
    files
}

/// Steps through a recovery and checks every state. Returns the number of stops.
pub(super) fn through(context: &Context, path: &Path, kind: &str, outcome: &mut Outcome) -> Result<u64, Finding> {
    let RecoverySetup { without, visible, mut recovering } = set_up(path, kind)?;
    let (mut stops, mut changed_at, mut last, mut stage) = (0, Vec::new(), Files::new(), 0);
    // The recovery ends when the logger starts its other threads, which serve clients.
    while recovering.threads() == 1 {
        let now = files(path);
        if now != last {
            let has_region = now.contains_key("control");
            if has_region {
                judge_copy(context, path, true, &[&visible], stops)?;
            }
            // The content after a kernel crash never becomes older again.
            if kind == KINDS[0] && !has_region {
                // All processes have died, but the kernel has not crashed: everything visible is in
                // the log now.
                stage = stage.max(1);
            }
            let allowed: Vec<&Digest> = without[stage..].iter().collect();
            let found = judge_copy(context, path, false, &allowed, stops)?;
            stage += allowed.iter().position(|digest| **digest == found).unwrap_or_default();
            changed_at.push(stops);
            outcome.states += 1;
            context.may_continue(outcome.states, &format!("{kind}, stop {stops}"));
            last = now;
        }
        recovering.run_to_call()?;
        stops += 1;
        if stops > STOPS_MAX {
            return Err(Finding::new(Kind::BlockedReader, format!("{kind}: not finished after {STOPS_MAX} stops")));
        }
    }
    // All commits are durable once the logger serves clients. Cells become durable with the next
    // sample.
    judge_copy(context, path, false, &[&without[1], &visible], stops)?;
    judge_copy(context, path, true, &[&visible], stops)?;
    recovering.kill();
    outcome.figures.insert(format!("{kind}: stops"), stops as f64);
    outcome.figures.insert(format!("{kind}: states"), changed_at.len() as f64);
    outcome.coverage.push(map(kind, "stops", stops, &changed_at));
    Ok(stops)
}

/// Kills the recovering process after `at / 1000` stops and `at % 1000` instructions. The next
/// process recovers.
pub(super) fn kill_at(path: &Path, kind: &str, at: u64) -> Result<(), Finding> {
    let RecoverySetup { visible, mut recovering, .. } = set_up(path, kind)?;
    for _ in 0..at / INSTRUCTIONS {
        if recovering.threads() > 1 {
            break;
        }
        recovering.run_to_call()?;
    }
    for _ in 0..at % INSTRUCTIONS {
        if recovering.threads() > 1 {
            break;
        }
        recovering.step()?;
    }
    recovering.kill();
    let store = workload::open(path)?;
    let found = digest(&store)?;
    if found != visible {
        return Err(Finding::new(Kind::LostAcked, format!("{kind}: {found:?} instead of {visible:?}")));
    }
    super::kinds::write_on(&store)?;
    oracle::verified(&store)?;
    drop(store);
    clear(path);
    Ok(())
}
