//! What must hold when the cause of a fault is gone and all its witnesses are dead: the store opens, all that was acknowledged is there,
//! and somebody works with it as if nothing had been.

use crate::oracle::{self, Told};
use crate::outcome::{Finding, Kind};
use crate::process::{Process, crash_kernel, kill_loggers};
use crate::{victim, workload};
use std::path::Path;

/// Judges a store that nobody has open: as it is, after another writer has worked with it, and without its shared region.
pub(super) fn judge(path: &Path, told: &[(String, Told)], after_power_cut: bool) -> Result<(), Finding> {
    let told = || told.iter().map(|(name, told)| (name.as_str(), *told));
    {
        let store = workload::open(path)?;
        oracle::kept(&store, told(), after_power_cut)?;
        oracle::verified(&store)?;
    }
    let mut heir = Process::start(&victim::own(), "writer", path, &["heir", "1"], &[]);
    if !heir.wait() {
        heir.refuse_finding()?;
        return Err(Finding::new(Kind::Misbehaved, "the writer that came afterwards failed"));
    }
    let of_heir = Told::by(&heir);
    kill_loggers(path);
    crash_kernel(path);
    let store = workload::open(path)?;
    oracle::kept(&store, told().chain([("heir", of_heir)]), true)?;
    oracle::verified(&store)?;
    drop(store);
    kill_loggers(path);
    Ok(())
}
