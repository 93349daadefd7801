//! The tour from beginning to end: index, kill, stop, kill the logger, finish, kill everything,
//! reopen, verify.

use super::children::look;
use super::event::{self, Nanoseconds};
use super::report::{TourFault, TourReport};
use super::source::Source;
use super::stage::Stage;
use super::writer::COMMAND_GO;
use super::{READERS, WRITERS};
use crate::outcome::{CommandFailure, Outcome};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const KILLED_SLOT: usize = 1;
const STOPPED_SLOT: usize = 2;
const STOPPED_FOR: Duration = Duration::from_millis(300);
/// Time for the other writers to queue behind the one that holds the lock.
const COMMAND_DELAY: Duration = Duration::from_millis(20);
/// Time without faults between two faults.
const STAGE_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the whole tour.
pub(crate) fn play(source: &Source, path: &Path) -> Outcome<TourReport> {
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}\n{elapsed:>6} {prefix}") {
        bar.set_style(style);
    }
    let started = Instant::now();
    let mut stage = Stage::set(source, path, bar.clone())?;
    let result = play_on(&mut stage, started);
    bar.finish_and_clear();
    result
}

fn play_on(stage: &mut Stage<'_>, started: Instant) -> Outcome<TourReport> {
    let before = stage.stats()?;
    stage.bar.set_message("indexing");
    let quarter = stage.source.names.len().div_ceil(4);
    let bar = stage.bar.clone();
    wait_for_files(stage, quarter, |fraction| bar.set_position((fraction * 25.0) as u64))?;
    stage.let_run(STAGE_INTERVAL)?;

    let mut faults = vec![kill_writer(stage)?];
    stage.bar.set_position(40);
    stage.let_run(STAGE_INTERVAL)?;

    faults.push(stop_writer(stage)?);
    stage.bar.set_position(55);
    stage.let_run(STAGE_INTERVAL)?;

    faults.push(kill_logger(stage)?);
    stage.bar.set_position(70);
    stage.let_run(STAGE_INTERVAL)?;

    stage.bar.set_message("indexing the rest");
    let bar = stage.bar.clone();
    wait_for_files(stage, stage.source.names.len(), |fraction| bar.set_position(70 + (fraction * 15.0) as u64))?;

    let after = stage.stats()?;
    let (fault, records) = kill_everything(stage)?;
    faults.push(fault);
    stage.bar.set_position(95);
    let verified = verify(stage)?;
    stage.close_store();

    let commits = after.commits.saturating_sub(before.commits);
    let fsyncs = after.fsyncs.saturating_sub(before.fsyncs);
    let refused = stage.writer_logs.iter().map(|log| look(log).refused.len() as u64).sum();
    Ok(TourReport {
        directory: stage.source.directory.clone(),
        files: stage.source.names.len() as u64,
        is_cut: stage.source.is_cut,
        too_long: stage.source.too_long,
        bytes: stage.source.bytes,
        records,
        commits,
        fsyncs,
        acknowledged_durable: stage.writer_logs.iter().map(|log| look(log).durable.len() as u64).sum(),
        refused,
        snapshots: stage.snapshots,
        records_read: stage.records_read,
        torn_reads: stage.torn_reads,
        violations: std::mem::take(&mut stage.violations),
        faults,
        verified,
        elapsed: started.elapsed(),
    })
}

/// Waits until this many files are indexed, as long as there is progress.
fn wait_for_files(stage: &mut Stage<'_>, count: usize, mut show: impl FnMut(f64)) -> Outcome {
    loop {
        let before = stage.files_indexed();
        show(before as f64 / count as f64);
        if before >= count {
            return Ok(());
        }
        if !stage.wait_for("a file to be indexed", |stage| stage.files_indexed() > before)? {
            return Ok(());
        }
    }
}

fn others(slot: usize) -> Vec<usize> {
    (0..WRITERS).filter(|&other| other != slot).collect()
}

fn kill_writer(stage: &mut Stage<'_>) -> Outcome<TourFault> {
    stage.bar.set_message("killing a writer in the middle of a transaction");
    let held = stage.hold_writer(KILLED_SLOT)?;
    thread::sleep(COMMAND_DELAY);
    let killed = event::now();
    stage.writers[KILLED_SLOT].kill();
    stage.writers[KILLED_SLOT].reap();
    stage.check_alone(KILLED_SLOT, held, killed);
    // Its successor is started before anything is waited for, so that `check_cast` never finds its
    // slot empty.
    let (comparison, _) = stage.compare("a writer's death", &[KILLED_SLOT])?;
    let restarted = event::now();
    stage.writers[KILLED_SLOT] = stage.start_writer(KILLED_SLOT)?;
    let went_on = stage.wait_for_commits("the others to go on", &others(KILLED_SLOT), killed)?;
    let successor = stage.wait_for_commits("the dead writer's successor", &[KILLED_SLOT], restarted)?;
    Ok(TourFault {
        what: "a writer killed, holding the writer lock",
        comparison,
        went_on: went_on.map(|(first, _)| first),
        all_went_on: went_on.map(|(_, last)| last),
        notes: successor
            .map(|(time, _)| format!("its files taken over after {} ms", time.as_millis()))
            .into_iter()
            .collect(),
    })
}

fn stop_writer(stage: &mut Stage<'_>) -> Outcome<TourFault> {
    stage.bar.set_message("stopping a writer in the middle of a transaction");
    let held = stage.hold_writer(STOPPED_SLOT)?;
    stage.writers[STOPPED_SLOT].signal(Signal::STOP)?;
    stage.writers[STOPPED_SLOT].command(COMMAND_GO)?;
    let snapshots_before = snapshots_told(stage);
    stage.let_run(STOPPED_FOR)?;
    let snapshots = snapshots_told(stage) - snapshots_before;
    let continued = event::now();
    stage.check_alone(STOPPED_SLOT, held, continued);
    if snapshots == 0 {
        stage.violate("no reader finished a snapshot while a writer was stopped");
    }
    stage.writers[STOPPED_SLOT].signal(Signal::CONT)?;
    let went_on = stage.wait_for_commits("the others to go on", &others(STOPPED_SLOT), continued)?;
    let waited = others(STOPPED_SLOT).into_iter().filter_map(|slot| longest_wait(stage, slot, held)).max();
    let (comparison, _) = stage.compare("a writer's stop", &[])?;
    let mut notes = vec![format!("readers meanwhile: {snapshots} snapshots")];
    if let Some(waited) = waited {
        notes.insert(0, format!("the others waited {} ms", waited.as_millis()));
    }
    Ok(TourFault {
        what: "a writer stopped for 300 ms, holding the writer lock",
        comparison,
        went_on: went_on.map(|(first, _)| first),
        all_went_on: went_on.map(|(_, last)| last),
        notes,
    })
}

fn snapshots_told(stage: &Stage<'_>) -> u64 {
    stage.reader_logs.iter().map(|log| look(log).snapshots).sum()
}

/// Returns the longest wait of a writer for the writer lock since a point in time.
fn longest_wait(stage: &Stage<'_>, slot: usize, since: Nanoseconds) -> Option<Duration> {
    let log = look(&stage.writer_logs[slot]);
    let recent = log.commits.iter().rev().take_while(|&&(_, locked)| locked > since);
    recent.map(|&(asked, locked)| Duration::from_nanos(locked - asked)).max()
}

fn kill_logger(stage: &mut Stage<'_>) -> Outcome<TourFault> {
    stage.bar.set_message("killing the logger");
    let Some(logger) = find_logger(stage)? else {
        stage.violate("there was no logger to kill");
        return Ok(TourFault::missing("the logger killed"));
    };
    let killed = event::now();
    logger.kill()?;
    let old = logger.number;
    let all: Vec<usize> = (0..WRITERS).collect();
    let successor =
        |stage: &Stage<'_>| stage.stats().ok().and_then(|stats| stats.logger_pid).is_some_and(|pid| pid != old);
    let came = stage.wait_for("a new logger", successor)?;
    let came_after = Duration::from_nanos(event::now() - killed);
    let durable_after = |stage: &Stage<'_>| {
        let firsts = stage.writer_logs.iter().filter_map(|log| {
            let log = look(log);
            log.durable.iter().rev().take_while(|&&(asked, _)| asked > killed).last().map(|&(_, at)| at)
        });
        firsts.min().map(|at| Duration::from_nanos(at - killed))
    };
    stage.wait_for("a durable commit under the new logger", |stage| durable_after(stage).is_some())?;
    let durable = durable_after(stage);
    let went_on = stage.wait_for_commits("the writers to go on", &all, killed)?;
    let (comparison, _) = stage.compare("the logger's death", &[])?;
    let mut notes = Vec::new();
    if came {
        notes.push(format!("a new logger after {} ms", came_after.as_millis()));
    }
    if let Some(durable) = durable {
        notes.push(format!("the first durable commit after {} ms", durable.as_millis()));
    }
    Ok(TourFault {
        what: "the logger killed",
        comparison,
        went_on: went_on.map(|(first, _)| first),
        all_went_on: went_on.map(|(_, last)| last),
        notes,
    })
}

/// The logger of the tour's store.
struct TourLogger {
    number: u32,
    descriptor: OwnedFd,
}

/// Returns the logger with a descriptor of its process. The descriptor is opened before the store
/// is asked again whether that is its logger, so a reused pid is detected.
fn find_logger(stage: &mut Stage<'_>) -> Outcome<Option<TourLogger>> {
    let pid_now = |stage: &Stage<'_>| stage.stats().ok().and_then(|stats| stats.logger_pid);
    stage.wait_for("a logger", |stage| pid_now(stage).is_some())?;
    let Some(number) = pid_now(stage) else { return Ok(None) };
    let Some(pid) = Pid::from_raw(number.cast_signed()) else { return Ok(None) };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
    Ok((pid_now(stage) == Some(number)).then_some(TourLogger { number, descriptor }))
}

impl TourLogger {
    fn kill(&self) -> Outcome {
        pidfd_send_signal(&self.descriptor, Signal::KILL)
            .map_err(|errno| CommandFailure::System(format!("killing the logger: {errno}")))
    }

    /// Returns whether it is more than an entry in the process table. While one of its threads is
    /// exiting, it has its memory, and with that its lock on the store.
    fn is_alive(&self) -> bool {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/stat", self.number)) else { return false };
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.number)) else { return false };
        // The name in parentheses may itself contain parentheses.
        let is_ended = matches!(status.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X'));
        !is_ended || threads.count() > 1
    }
}

fn kill_everything(stage: &mut Stage<'_>) -> Outcome<(TourFault, u64)> {
    stage.bar.set_message("killing everything");
    let logger = find_logger(stage)?;
    stage.close_store();
    // The logger last, so that no process is left to start another.
    for process in stage.writers.iter_mut().chain(&mut stage.readers) {
        process.kill();
    }
    match &logger {
        Some(logger) => logger.kill()?,
        None => stage.violate("there was no logger to kill with the others"),
    }
    for process in stage.writers.iter_mut().chain(&mut stage.readers) {
        process.reap();
    }
    stage.writers.clear();
    stage.readers.clear();
    if let Some(logger) = &logger {
        stage.wait_for("the logger's death", |_| !logger.is_alive())?;
    }
    stage.bar.set_message("reopening");
    let reopening = Instant::now();
    stage.open_store(false)?;
    let reopened = reopening.elapsed();
    if logger.is_some_and(|logger| stage.stats().is_ok_and(|stats| stats.logger_pid == Some(logger.number))) {
        stage.violate("the killed logger is still named as the store's logger");
    }
    let all: Vec<usize> = (0..WRITERS).collect();
    let (comparison, census) = stage.compare("the death of all processes", &all)?;
    if census.records != stage.source.names.len() as u64 {
        let files = stage.source.names.len();
        stage.violate(format!("there are {} records of {files} files", census.records));
    }
    collect_readers(stage);
    collect_writers(stage);
    let fault = TourFault {
        what: "everything killed",
        comparison,
        went_on: None,
        all_went_on: None,
        notes: vec![
            format!("{WRITERS} writers, {READERS} readers, the logger"),
            format!("reopened in {} ms", reopened.as_millis()),
        ],
    };
    Ok((fault, census.records))
}

fn collect_readers(stage: &mut Stage<'_>) {
    for log in &stage.reader_logs {
        let log = look(log);
        stage.snapshots += log.snapshots;
        stage.records_read += log.records;
        stage.torn_reads += log.torn.len() as u64;
        stage.violations.extend(log.torn.iter().chain(&log.violations).chain(&log.failures).cloned());
    }
}

fn collect_writers(stage: &mut Stage<'_>) {
    for log in &stage.writer_logs {
        let log = look(log);
        stage.torn_reads += log.torn.len() as u64;
        stage.violations.extend(log.torn.iter().chain(&log.failures).cloned());
    }
}

/// Runs the store's own check; returns the number of pages that it has read.
fn verify(stage: &mut Stage<'_>) -> Outcome<u64> {
    stage.bar.set_message("verifying");
    let report = stage.store()?.verify()?;
    for problem in &report.problems {
        stage.violate(format!("verify: {} at byte {}: {}", problem.file, problem.offset, problem.what));
    }
    Ok(report.pages)
}
