//! Each call on a file of the store fails in turn: only that call, that call and every later one of
//! its kind, or that call and all similar calls after it.
//!
//! The catalogue of calls comes from three lives of one store. In the first life the store is
//! created and used, its logger is killed, and then all processes die. The second life recovers the
//! store from the shared region and closes it in order. Then a simulated kernel crash removes the
//! shared region, and the third life recovers from the disk. The first run of the three lives
//! counts the calls. In every other run, one call fails, and the fault lasts at most until the end
//! of the life that made the call. After that, no call fails, and everything must work again.

use super::{acknowledged, after};
use crate::context::Context;
use crate::inject::{Effect, Ended, Fault, Injector, Site, Span, Traced};
use crate::outcome::{Coverage, Finding, Kind, Outcome};
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers};
use crate::processes::role::{self, Role};
use crate::workload::oracle::Acknowledged;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// Longest life, including errors.
const LIFE_MAX: Duration = Duration::from_secs(150);
/// The three lives: the name of the writer, and how it ends.
const LIVES: [(&str, &str); 3] = [("a", "die"), ("b", "leave"), ("c", "leave")];
/// Stores in use at once. A life spends most of its time waiting.
const AT_ONCE: usize = 4;

/// Counts and errors of one run of three lives.
#[derive(Default)]
struct Run {
    counts: BTreeMap<Site, u64>,
    fired: u64,
    errors: Vec<String>,
}

/// Runs this part for as long as the context and `may_continue` allow.
pub(super) fn run(context: &Context, outcome: &mut Outcome, may_continue: &(dyn Fn(u64, &str) -> bool + Sync)) {
    let named = context.only.as_deref().map(str::parse::<Fault>);
    if let Some(Err(_)) = &named
        && context.only.as_deref() != Some("calls")
    {
        return;
    }
    if let Some(Ok(fault)) = named {
        let name = fault.to_string();
        match three_lives(&context.directory_in_memory("named"), Some(fault)) {
            Ok(Ok(run)) => {
                eprintln!("{name}: {} calls failed", run.fired);
                run.errors.iter().for_each(|error| eprintln!("  {error}"));
                if run.fired == 0 {
                    outcome.uncovered.push(format!("{name}: the call did not come"));
                }
                outcome.states += u64::from(run.fired > 0);
            }
            Ok(Err(finding)) => outcome.violated(finding, &name, context.replay(&name)),
            Err(why) => outcome.skip("faults of single calls", why),
        }
        return;
    }
    let counts = match three_lives(&context.directory_in_memory("counted"), None) {
        Err(why) => return outcome.skip("faults of single calls", why),
        Ok(Err(finding)) => return outcome.violated(finding, "without a fault", context.replay("calls")),
        Ok(Ok(run)) => run.counts,
    };
    let faults = schedule(context, &counts);
    outcome.figures.insert("calls: in the catalogue".into(), counts.values().sum::<u64>() as f64);
    outcome.figures.insert("calls: sites".into(), counts.len() as f64);
    outcome.figures.insert("calls: faults that can be tried".into(), faults.len() as f64);

    let queue = Mutex::new(faults.iter().enumerate());
    let found = Mutex::new((outcome, BTreeMap::<Site, u64>::new(), 0u64, 0u64));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some((index, fault)) = next else { break };
                    let name = fault.to_string();
                    let states = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0.states;
                    if !may_continue(states, &name) {
                        break;
                    }
                    let path = context.directory_in_memory(&format!("call-{index}"));
                    let run = three_lives(&path, Some(fault.clone()));
                    let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let (outcome, hits, tried, missed) = &mut *found;
                    *tried += 1;
                    match run {
                        Ok(Ok(run)) if run.fired == 0 => *missed += 1,
                        Ok(Ok(_)) => {
                            outcome.states += 1;
                            *hits.entry(fault.site.clone()).or_default() += 1;
                        }
                        Ok(Err(finding)) => {
                            *hits.entry(fault.site.clone()).or_default() += 1;
                            outcome.violated(finding, &name, context.replay(&name));
                        }
                        Err(why) => outcome.skip(name, why),
                    }
                }
            });
        }
    });
    let (outcome, hits, tried, missed) = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    outcome.figures.insert("calls: faults tried".into(), tried as f64);
    outcome.figures.insert("calls: faults whose call did not come".into(), missed as f64);
    let hits_of = |site: &Site| (site.to_string(), hits.get(site).copied().unwrap_or(0));
    outcome.coverage.push(Coverage { of: "calls that failed".into(), hits: counts.keys().map(hits_of).collect() });
    if tried < faults.len() as u64 {
        let never: Vec<String> =
            counts.keys().filter(|site| !hits.contains_key(site)).map(ToString::to_string).collect();
        let left = faults.len() as u64 - tried;
        outcome.uncovered.push(format!("{left} of {} faults of single calls: the time was up", faults.len()));
        outcome
            .uncovered
            .extend(never.into_iter().map(|site| format!("{site}: no call of these has failed, the time was up")));
    }
}

/// Returns all faults in the order of the tries: one fault of each site, then a second one of each
/// site, and so on.
fn schedule(context: &Context, counts: &BTreeMap<Site, u64>) -> Vec<Fault> {
    let mut random = context.random(1);
    let mut of_sites: Vec<Vec<Fault>> = Vec::new();
    for (site, count) in counts {
        let mut faults = Vec::new();
        for effect in site.call.effects() {
            for span in [Span::Once, Span::Lasting, Span::Everything] {
                let is_real = match (span, effect) {
                    (Span::Once, _) => true,
                    // A signal interrupts a real call only now and then. If every call failed with
                    // EINTR, a correct retry loop would never end.
                    (_, Effect::Error(libc::EINTR)) => false,
                    (Span::Lasting, _) => true,
                    (Span::Everything, _) => site.call.can_spread(*effect),
                };
                if !is_real {
                    continue;
                }
                faults.extend((1..=*count).map(|nth| Fault { site: site.clone(), nth, effect: *effect, span }));
            }
        }
        faults.shuffle(&mut random);
        of_sites.push(faults);
    }
    let mut all = Vec::new();
    for round in 0..of_sites.iter().map(Vec::len).max().unwrap_or(0) {
        let mut of_round: Vec<Fault> = of_sites.iter().filter_map(|faults| faults.get(round).cloned()).collect();
        of_round.shuffle(&mut random);
        all.extend(of_round);
    }
    all
}

/// Runs three lives of a store, with a fault or without, and checks the store after each.
///
/// # Errors
/// The reason why nothing can be traced on this machine. The inner error is a finding.
fn three_lives(path: &Path, fault: Option<Fault>) -> Result<Result<Run, Finding>, String> {
    let has_fault = fault.is_some();
    // If a logger can't write, the shared region that it leaves is given up, including visible
    // transactions.
    let may_give_up =
        fault.as_ref().is_some_and(|fault| fault.span != Span::Once || fault.site.process.starts_with("untorn-logger"));
    let is_once = fault.as_ref().is_some_and(|fault| fault.span == Span::Once);
    let injector = Injector::new(path, fault)?;
    let mut run = Run::default();
    let mut acknowledged: Vec<(String, Acknowledged)> = Vec::new();
    let lived = (|| {
        let mut must_be_kept = String::new();
        let mut has_left = true;
        for (name, ending) in LIVES {
            if name == "c" {
                crash_kernel(path);
            }
            let fired_before = injector.fired();
            let mut command = Command::new(instrumented::own());
            // A writer that leaves in order makes everything durable.
            let kept = if has_left && !may_give_up { "visible" } else { "durable" };
            Role::new("enduring", path, &[name, "2", ending, &must_be_kept, kept]).assign_to(&mut command);
            command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let mut traced = injector.spawn(name, command)?;
            let lived = judge(&injector, &mut traced, name);
            let lines = traced.lines();
            let fired = injector.fired();
            run.errors.extend(lines.iter().filter(|line| line.starts_with("E ")).cloned());
            acknowledged.push((name.to_string(), acknowledged::by(&lines)));
            if let Err(finding) = lived {
                return Ok(Err(finding));
            }
            let is_done = lines.iter().any(|line| line == "done");
            // The store must survive a fault that passes, at the latest after it was opened again.
            if !is_done && (is_once || fired == fired_before) {
                let what = format!("{name} gave up although the fault has passed: {}", lines.join("; "));
                return Ok(Err(Finding::new(Kind::Misbehaved, what)));
            }
            if fired > 0 {
                injector.heal();
            }
            if !is_done {
                kill_loggers(path);
            }
            must_be_kept = acknowledged::write(&acknowledged);
            has_left = is_done || ending == "die";
        }
        Ok(Ok(()))
    })();
    run.fired = injector.fired();
    run.counts = injector.counts();
    let crashed = injector.ended().into_iter().find(Ended::crashed);
    drop(injector);
    kill_loggers(path);
    let judged = match (lived, crashed) {
        (Err(why), _) => return Err(why),
        (Ok(Err(finding)), _) => Err(finding),
        (_, Some(ended)) => {
            let note = std::fs::read_to_string(path.join("logger.panic")).unwrap_or_default();
            let what = format!("{} ended unexpectedly: {} {}", ended.process, ended.status, note.trim());
            Err(Finding::new(Kind::Misbehaved, what))
        }
        (Ok(Ok(())), None) => after::judge(path, &acknowledged, has_fault),
    };
    let _ = std::fs::remove_dir_all(path);
    Ok(judged.map(|()| run))
}

/// Waits for the end of a life and for the finding of its writer.
fn judge(injector: &Injector, traced: &mut Traced, name: &str) -> Result<(), Finding> {
    let status = traced.wait(LIFE_MAX);
    let lines = traced.lines();
    if let Some(finding) = lines.iter().find_map(|line| role::finding(line)) {
        return Err(Finding { what: format!("{}; its output: {}", finding.what, lines.join("; ")), ..finding });
    }
    match status {
        None => {
            let what = format!("{name} did not end within {LIFE_MAX:?}: {}", lines.join("; "));
            Err(Finding::new(Kind::BlockedReader, what))
        }
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let fired = injector.fired();
            let what = format!("{name} ended unexpectedly after {fired} failed calls: {status}: {}", lines.join("; "));
            Err(Finding::new(Kind::Misbehaved, what))
        }
    }
}
