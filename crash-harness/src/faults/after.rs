//! Checks that must hold after the cause of a fault is gone and all affected processes are dead.
//! The store opens, everything acknowledged is there, and a new writer works normally.

use crate::outcome::{Finding, Kind};
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers};
use crate::processes::process::{Checked, start_role};
use crate::workload;
use crate::workload::oracle::{self, Acknowledged};
use std::path::Path;

/// Checks a store that no process has open, then checks it again after another writer has worked
/// with it and its shared region was removed.
pub(super) fn judge(
    path: &Path,
    acknowledged: &[(String, Acknowledged)],
    after_power_cut: bool,
) -> Result<(), Finding> {
    let acknowledged = || acknowledged.iter().map(|(name, acknowledged)| (name.as_str(), *acknowledged));
    {
        let store = workload::open(path)?;
        oracle::kept(&store, acknowledged(), after_power_cut)?;
        oracle::verified(&store)?;
    }
    let mut heir = start_role(&instrumented::own(), "writer", path, &["heir", "1"], &[]);
    if !heir.wait() {
        heir.refuse_finding()?;
        return Err(Finding::new(Kind::Misbehaved, "the writer that ran after the fault failed"));
    }
    let of_heir = Acknowledged::by(&heir);
    kill_loggers(path);
    crash_kernel(path);
    let store = workload::open(path)?;
    oracle::kept(&store, acknowledged().chain([("heir", of_heir)]), true)?;
    oracle::verified(&store)?;
    drop(store);
    kill_loggers(path);
    Ok(())
}
