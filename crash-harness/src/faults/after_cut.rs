//! Disk states after a power cut. A separate process recovers and checks them one after the other.

use super::acknowledged;
use super::at_rest::in_process;
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::process::{Checked, start_role};
use crate::processes::role::{Role, say};
use crate::workload::misbehaved;
use crate::workload::oracle;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs a process that checks the states `0`, `1`, … of a directory. The acknowledgements of each
/// are in `0.said`, ….
///
/// # Errors
/// The index of the first state that violates a promise, and the finding.
pub(super) fn judge(states: &Path, count: usize) -> Result<(), (usize, Finding)> {
    let mut process = start_role(&instrumented::own(), "cut", states, &[&count.to_string()], &[]);
    let (mut heard, mut since) = (0, Instant::now());
    while process.is_running() {
        if process.lines_count() != heard {
            (heard, since) = (process.lines_count(), Instant::now());
        }
        if since.elapsed() > HANGS {
            let what = format!("recovery and checks took more than {HANGS:?}");
            return Err((process.newest("T ") as usize, Finding::new(Kind::BlockedReader, what)));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended_well = process.wait();
    let at = process.newest("T ") as usize;
    process.refuse_finding().map_err(|finding| (at, finding))?;
    if ended_well {
        Ok(())
    } else {
        Err((at, Finding::new(Kind::Misbehaved, "the process that recovers the store died")))
    }
}

/// Plays the role of the process that `judge` runs.
///
/// # Errors
/// The violation in the state whose number was printed last.
pub(crate) fn play(role: &Role) -> Result<(), Finding> {
    let count: usize = role.arguments.first().and_then(|count| count.parse().ok()).unwrap_or(0);
    for index in 0..count {
        say(format_args!("T {index}"));
        let said = std::fs::read_to_string(role.store.join(format!("{index}.said"))).unwrap_or_default();
        let said: Vec<String> = said.lines().map(ToString::to_string).collect();
        let acknowledged = acknowledged::by(&said);
        let path = role.store.join(index.to_string());
        let has_store = path.join("checkpoint").exists();
        if !has_store && (acknowledged.durable > 0 || acknowledged.cell > 0) {
            return Err(Finding::new(Kind::LostAcked, "the store is gone"));
        }
        // If the cut came before the store existed, nothing was acknowledged, and a store can be
        // created.
        let store = in_process().create(!has_store).open(&path).map_err(misbehaved("recovering after the cut"))?;
        oracle::kept(&store, [("a", acknowledged)], true)?;
        let mut problems = store.verify().map_err(misbehaved("verify"))?.problems;
        // A torn older header is reported until the next checkpoint overwrites it.
        problems.retain(|problem| problem.file != "checkpoint");
        if !problems.is_empty() {
            return Err(Finding::new(Kind::Damaged, format!("verify: {problems:?}")));
        }
    }
    Ok(())
}
