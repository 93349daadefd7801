//! The store and the processes of a tour, and the checks after each fault: everything acknowledged
//! is there, and the other processes continue.

use super::census::{self, Census};
use super::children::{ChildOutput, ReaderLog, TourProcess, WriterLog, look};
use super::event::Nanoseconds;
use super::record::{FILES, TOTALS};
use super::source::Source;
use super::{READERS, WRITERS, open};
use crate::outcome::{CommandFailure, Outcome};
use std::array;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use untorn::{Keyspace, Stats, Store};

/// The tour waits for nothing that takes nearly as long.
const STAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The state that the steps act on.
pub(crate) struct Stage<'a> {
    pub(crate) path: &'a Path,
    pub(crate) source: &'a Source,
    pub(crate) bar: indicatif::ProgressBar,
    pub(crate) writers: Vec<TourProcess>,
    pub(crate) writer_logs: [ChildOutput<WriterLog>; WRITERS],
    pub(crate) readers: Vec<TourProcess>,
    pub(crate) reader_logs: [ChildOutput<ReaderLog>; READERS],
    pub(crate) violations: Vec<String>,
    pub(crate) torn_reads: u64,
    pub(crate) snapshots: u64,
    pub(crate) records_read: u64,
    open: Option<OpenStore>,
}

struct OpenStore {
    store: Store,
    files: Keyspace,
    totals: Keyspace,
}

/// The comparison of acknowledged and found commits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Comparison {
    /// Commits reported as visible before the snapshot was taken.
    pub(crate) acknowledged: u64,
    /// Commits in the snapshot.
    pub(crate) found: u64,
    /// Acknowledged ones that are not in it.
    pub(crate) lost: u64,
}

impl<'a> Stage<'a> {
    /// Creates the store and starts all processes.
    pub(crate) fn set(source: &'a Source, path: &'a Path, bar: indicatif::ProgressBar) -> Outcome<Stage<'a>> {
        let mut stage = Stage {
            path,
            source,
            bar,
            writers: Vec::new(),
            writer_logs: array::from_fn(|_| ChildOutput::default()),
            readers: Vec::new(),
            reader_logs: array::from_fn(|_| ChildOutput::default()),
            violations: Vec::new(),
            torn_reads: 0,
            snapshots: 0,
            records_read: 0,
            open: None,
        };
        stage.open_store(true)?;
        for slot in 0..WRITERS {
            let writer = stage.start_writer(slot)?;
            stage.writers.push(writer);
        }
        for log in &stage.reader_logs {
            stage.readers.push(TourProcess::reader(path, log)?);
        }
        Ok(stage)
    }

    /// Starts the first or the next writer of a share.
    pub(crate) fn start_writer(&self, slot: usize) -> Outcome<TourProcess> {
        let names = self.share(slot);
        TourProcess::writer(self.path, &self.source.directory, slot, &names, &self.writer_logs[slot])
    }

    /// Distributes the files in turn, so that each share is spread over the whole tree.
    fn share(&self, slot: usize) -> Vec<&[u8]> {
        self.source.names.iter().skip(slot).step_by(WRITERS).map(Vec::as_slice).collect()
    }

    /// Opens the parent's own client of the store.
    pub(crate) fn open_store(&mut self, create: bool) -> Outcome {
        let store = open(self.path, create)?;
        let (files, totals) = (store.keyspace(FILES)?, store.keyspace(TOTALS)?);
        self.open = Some(OpenStore { store, files, totals });
        Ok(())
    }

    pub(crate) fn close_store(&mut self) {
        self.open = None;
    }

    fn opened(&self) -> Outcome<&OpenStore> {
        self.open.as_ref().ok_or_else(|| CommandFailure::System("the tour has closed its store".to_owned()))
    }

    pub(crate) fn store(&self) -> Outcome<&Store> {
        Ok(&self.opened()?.store)
    }

    pub(crate) fn stats(&self) -> Outcome<Stats> {
        Ok(self.store()?.stats()?)
    }

    pub(crate) fn violate(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    /// Waits until `is_true`, and keeps the progress bar moving. A timeout is a violation: a
    /// process is blocked.
    pub(crate) fn wait_for(&mut self, what: &str, mut is_true: impl FnMut(&Stage<'_>) -> bool) -> Outcome<bool> {
        let since = Instant::now();
        while !is_true(self) {
            if since.elapsed() > STAGE_TIMEOUT {
                self.violate(format!("waited {STAGE_TIMEOUT:?} in vain for {what}"));
                return Ok(false);
            }
            self.check_cast()?;
            self.show();
            thread::sleep(Duration::from_millis(2));
        }
        self.show();
        Ok(true)
    }

    /// Lets the processes run for a while.
    pub(crate) fn let_run(&mut self, time: Duration) -> Outcome {
        let since = Instant::now();
        self.wait_for("time to pass", |_| since.elapsed() >= time).map(|_| ())
    }

    /// Fails if a process has ended by itself; it should have reported why.
    fn check_cast(&mut self) -> Outcome {
        for slot in 0..self.writers.len() {
            if !self.writers[slot].is_running() {
                self.writers[slot].reap();
                let log = look(&self.writer_logs[slot]);
                return Err(ended(&format!("writer {slot}"), &log.torn, &log.failures));
            }
        }
        for index in 0..self.readers.len() {
            if !self.readers[index].is_running() {
                self.readers[index].reap();
                let log = look(&self.reader_logs[index]);
                return Err(ended(&format!("reader {index}"), &log.torn, &log.failures));
            }
        }
        Ok(())
    }

    fn show(&self) {
        self.bar.set_prefix(format!(
            "{} of {} files, {} commits, {} snapshots checked",
            self.files_indexed(),
            self.source.names.len(),
            self.writer_logs.iter().map(|log| look(log).commit).sum::<u64>(),
            self.reader_logs.iter().map(|log| look(log).snapshots).sum::<u64>(),
        ));
    }

    /// Returns the number of files that have a record, by the writers' reports.
    pub(crate) fn files_indexed(&self) -> usize {
        let per_slot = |slot: usize| {
            let log = look(&self.writer_logs[slot]);
            if log.passes == 0 { log.done as usize } else { self.share(slot).len() }
        };
        (0..WRITERS).map(per_slot).sum()
    }

    /// Returns the commits reported so far, per writer: (visible, durable).
    pub(crate) fn told(&self) -> [(u64, u64); WRITERS] {
        array::from_fn(|slot| {
            let log = look(&self.writer_logs[slot]);
            (log.commit, log.commit_durable)
        })
    }

    /// Checks in fresh snapshots that everything acknowledged before is there.
    ///
    /// The share of a dead writer must hold what it reported, and at most one commit more: the one
    /// that was visible and not yet reported when it died.
    pub(crate) fn compare(&mut self, after: &str, dead: &[usize]) -> Outcome<(Comparison, Census)> {
        let told = self.told();
        let (visible, durable) = {
            let OpenStore { store, files, totals } = self.opened()?;
            let durable = census::take(&store.durable_snapshot()?, files, totals)?;
            (census::take(&store.snapshot()?, files, totals)?, durable)
        };
        let mut comparison = Comparison { found: visible.commits(), ..Comparison::default() };
        for (slot, &(commit, commit_durable)) in told.iter().enumerate() {
            let found = visible.totals[slot].commits;
            let found_durable = durable.totals[slot].commits;
            comparison.acknowledged += commit;
            comparison.lost += commit.saturating_sub(found).max(commit_durable.saturating_sub(found_durable));
            if found < commit || found_durable < commit_durable {
                self.violate(format!(
                    "after {after}: writer {slot} was acknowledged {commit} commits, {commit_durable} durable; \
                     {found} and {found_durable} are there"
                ));
            }
            if dead.contains(&slot) {
                if found > commit + 1 {
                    self.violate(format!(
                        "after {after}: dead writer {slot} had reported {commit} commits, found {found}"
                    ));
                }
                // Its successor continues from there.
                look(&self.writer_logs[slot]).commit = found;
            }
        }
        for census in [&visible, &durable] {
            self.torn_reads += census.torn.len() as u64;
            let found = census.torn.iter().chain(&census.violations);
            self.violations.extend(found.map(|what| format!("after {after}: {what}")));
            self.snapshots += 1;
            self.records_read += census.records;
        }
        Ok((comparison, visible))
    }

    /// Waits until each of these writers has acquired the writer lock after `since`. Returns when
    /// the first and the last of them did.
    pub(crate) fn wait_for_commits(
        &mut self,
        what: &str,
        slots: &[usize],
        since: Nanoseconds,
    ) -> Outcome<Option<(Duration, Duration)>> {
        let first_after = |stage: &Stage<'_>, slot: usize| {
            let log = look(&stage.writer_logs[slot]);
            log.commits.iter().rev().map(|&(_, locked)| locked).take_while(|&locked| locked > since).last()
        };
        let came = self.wait_for(what, |stage| slots.iter().all(|&slot| first_after(stage, slot).is_some()))?;
        if !came {
            return Ok(None);
        }
        let times: Vec<Nanoseconds> = slots.iter().filter_map(|&slot| first_after(self, slot)).collect();
        let after = |time: Option<&Nanoseconds>| time.map(|time| Duration::from_nanos(time - since));
        Ok(after(times.iter().min()).zip(after(times.iter().max())))
    }

    /// Holds a writer half way through a transaction. Returns since when it has the writer lock.
    pub(crate) fn hold_writer(&mut self, slot: usize) -> Outcome<Nanoseconds> {
        look(&self.writer_logs[slot]).holding = None;
        self.writers[slot].command(super::writer::COMMAND_HOLD)?;
        let log = ChildOutput::clone(&self.writer_logs[slot]);
        self.wait_for("a writer to get the writer lock", |_| look(&log).holding.is_some())?;
        let since = look(&log).holding;
        since.ok_or_else(|| CommandFailure::CheckFailed(format!("writer {slot} never got the writer lock")))
    }

    /// Checks that no other writer had the lock while one held it.
    pub(crate) fn check_alone(&mut self, holder: usize, from: Nanoseconds, until: Nanoseconds) {
        for slot in (0..WRITERS).filter(|&slot| slot != holder) {
            let intruder =
                look(&self.writer_logs[slot]).commits.iter().any(|&(_, locked)| from < locked && locked < until);
            if intruder {
                self.violate(format!("writers {holder} and {slot} had the writer lock at the same time"));
            }
        }
    }
}

fn ended(process: &str, torn: &[String], failures: &[String]) -> CommandFailure {
    if torn.is_empty() {
        CommandFailure::System(format!("{process} ended by itself: {}", failures.join("; ")))
    } else {
        CommandFailure::CheckFailed(format!("{process} has read bytes that no writer wrote: {}", torn.join("; ")))
    }
}
