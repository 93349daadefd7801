//! Failing calls: one system call on a store's files fails, once or from then on. The call may be a
//! write, a sync or an open, and the cause may be a full disk or a disk error. In other runs, the
//! call does only half of its work. The writer retries and reopens the store. Then the cause is
//! removed, and a new process opens and checks the store. Every batch that the store promises to
//! keep after a power cut must be there.
//!
//! The effect of a failed sync on the page cache is simulated by [`super::faults`], not here.

use super::cuts::{ENOUGH, rounds, unfinished};
use super::judge;
use super::kills::{checked, replay};
use super::{StoreUnderTest, work};
use crate::context::Context;
use crate::inject::{Effect, Fault, Injector, Site, Span};
use crate::outcome::{Coverage, Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::role::Role;
use crate::processes::{instrumented, role};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Number of batches of the writer whose call fails.
const BATCHES: &str = "40";

/// Runs failing calls until the time is up.
pub fn run(context: &Context, tested: &dyn StoreUnderTest, outcome: &mut Outcome) {
    let name = tested.about().name;
    let path = context.directory_in_memory(&format!("{name}-counted"));
    let counted = write(tested, &path, None, outcome);
    remove(tested, &path);
    let sites: Vec<(Site, u64)> = match counted {
        Ok(Some(written)) => written.counts.into_iter().collect(),
        Ok(None) => return,
        Err(finding) => return outcome.violated(finding, name, replay(context, "errors", tested, name)),
    };
    let mut hits: BTreeMap<String, u64> = sites.iter().map(|(site, _)| (site.to_string(), 0)).collect();
    for round in rounds(context, name) {
        let enough = outcome.violations.len() >= ENOUGH;
        if context.only.is_none() && (enough || !context.may_continue(outcome.states, name)) {
            break;
        }
        let fault = chosen(&sites, &mut context.random(round));
        let path = context.directory_in_memory(&format!("{name}-{round}"));
        let done = write(tested, &path, Some(&fault), outcome);
        remove(tested, &path);
        // Real processes never make exactly the same calls twice.
        let has_come = !matches!(&done, Ok(Some(Written { fired: 0, .. }) | None));
        if has_come {
            outcome.states += 1;
            *hits.entry(fault.site.to_string()).or_default() += 1;
        } else {
            *outcome.figures.entry("faults whose call did not come".into()).or_default() += 1.0;
        }
        if let Err(finding) = done {
            outcome.violated(
                finding,
                &format!("{name}:{round}, {fault}"),
                replay(context, "errors", tested, &format!("{name}:{round}")),
            );
        }
    }
    outcome.coverage.push(Coverage { of: "calls that failed".into(), hits: hits.into_iter().collect() });
}

fn remove(tested: &dyn StoreUnderTest, path: &Path) {
    tested.end(path);
    let _ = std::fs::remove_dir_all(path);
}

/// Selects a call and its failure. Rare calls are selected as often as frequent ones.
fn chosen(sites: &[(Site, u64)], random: &mut StdRng) -> Fault {
    let (site, count) = &sites[random.random_range(0..sites.len())];
    let effects = site.call.effects();
    let effect = effects[random.random_range(0..effects.len())];
    let span = match random.random_range(0..3) {
        // A correct caller retries, which would never end if the error were permanent.
        _ if effect == Effect::Error(libc::EINTR) => Span::Once,
        0 if site.call.can_spread(effect) => Span::Everything,
        1 => Span::Lasting,
        _ => Span::Once,
    };
    Fault { site: site.clone(), nth: random.random_range(1..=*count), effect, span }
}

/// The calls of a writer.
struct Written {
    /// Number of calls of each site.
    counts: BTreeMap<Site, u64>,
    /// Number of calls that failed.
    fired: u64,
}

/// Runs a writer with this fault and the check after it. Returns `None` if nothing can be traced
/// here.
fn write(
    tested: &dyn StoreUnderTest,
    path: &Path,
    fault: Option<&Fault>,
    outcome: &mut Outcome,
) -> Result<Option<Written>, Finding> {
    let about = tested.about();
    let mut command = Command::new(instrumented::own());
    Role::new("subject-writer", path, &[about.name, "w0", BATCHES, "stubborn"]).assign_to(&mut command);
    let started = Injector::new(path, fault.cloned()).and_then(|injector| {
        let writer = injector.spawn("writer", command)?;
        Ok((injector, writer))
    });
    let (injector, mut writer) = match started {
        Ok(started) => started,
        Err(why) => {
            outcome.skip(about.name, why);
            return Ok(None);
        }
    };
    let ended = writer.wait(HANGS);
    injector.heal();
    writer.kill();
    let lines = writer.lines();
    let written = Written { counts: injector.counts(), fired: injector.fired() };
    let crashed = injector.ended().into_iter().find(|process| process.crashed());
    tested.end(path);
    drop(writer);
    drop(injector);
    if ended.is_none() {
        return Err(Finding::new(Kind::BlockedReader, format!("the writer did not finish within {HANGS:?}")));
    }
    if let Some(process) = crashed {
        return Err(Finding::new(Kind::Misbehaved, format!("a process ended unexpectedly: {}", process.status)));
    }
    // An error of an open or a read is to be expected. Wrong data is not.
    let found = lines.iter().find_map(|line| role::finding(line));
    match found {
        Some(finding) if finding.kind != Kind::Misbehaved || finding.what.starts_with(work::PANICKED) => {
            return Err(finding);
        }
        Some(_) => *outcome.figures.entry("writers that could not open or read the store".into()).or_default() += 1.0,
        None => {}
    }
    for (what, name) in work::FATES {
        let count = lines.iter().filter(|line| line.starts_with(what)).count();
        *outcome.figures.entry(name.into()).or_default() += count as f64;
    }
    let acknowledged = work::acknowledged("w0", &lines);
    match checked(tested, path, "close") {
        // Calls that fail permanently may lose data that no sync had covered, as a power cut does.
        // No store here promises more.
        Ok(found) => drop(judge::kept(&found.there, &acknowledged, about.after_cut)?),
        Err(finding) if acknowledged.is_empty() && finding.kind == Kind::Misbehaved => {
            let fault = fault.map(ToString::to_string).unwrap_or_default();
            unfinished(outcome, &format!("{}: {fault}: {}", about.name, finding.what));
        }
        Err(finding) => return Err(finding),
    }
    Ok(Some(written))
}
