//! The sampler: commits the newest values of cells and counters as ordinary records, at the
//! interval of [`FlushPolicy::Every`] or of `Options::sample_interval`.
//!
//! One round:
//!
//! - clear the flag that something is dirty;
//! - copy the newest values of all that differ from their last committed sample;
//! - take the writer lock;
//! - put the values under their names, in one transaction, and commit it;
//! - record what was sampled.
//!
//! | dies here | then |
//! |---|---|
//! | between copying and the publication | nothing is recorded as sampled: the successor finds the same cells dirty |
//! | after the publication, before it is recorded | they are sampled once more |
//!
//! A value that is overwritten before the round copies it is never written to the log: a million
//! updates a second make one record per round.
//!
//! This thread waits for the writer lock no longer than a round lasts. It skips rounds while the
//! ring is half full, unless a caller waits for one.

use crate::api::cells::record::{CellRecord, KEYSPACE};
use crate::api::cells::{each_record, resolve_pending};
use crate::logger::process::Logger;
use crate::pages::reserve::SpaceQuota;
use crate::participant::engine::Engine;
use crate::participant::options::FlushPolicy;
use crate::participant::rest::LOGGER_POLL_INTERVAL;
use crate::participant::settings;
use crate::shared::cells::CellEntry;
use crate::shared::cells::CellKind;
use crate::shared::control::Control;
use crate::shared::protocols::atomic::Woken;
use crate::system::clock;
use crate::txn::write::Write;
use crate::{Error, Result, Version};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time between checks of a ring that is half full.
const RING_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Time between rounds that fail.
const SAMPLE_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The most by which the record of a sample is longer than its value: the name, and the headers of
/// both.
const SAMPLE_BYTES: usize = 512;

/// Samples until the logger ends.
pub(super) fn run(logger: &Logger) {
    let head = logger.engine.control.cells();
    let mut names = SampledNames::default();
    // Start and duration of the last round that succeeded.
    let mut last: Option<(Instant, Duration)> = None;
    let mut retry_at = clock::now();
    // The first round starts at once: a predecessor may have died in the middle of one.
    head.set_dirty();
    loop {
        let wait_key = head.sampler.prepare_wait();
        if logger.sampler_ending.load(Ordering::SeqCst) {
            return;
        }
        crash_point!("sample.round_begun");
        let now = clock::now();
        // The period follows the policy of now, not that of the last round. After a long round the
        // thread pauses for as long, since other threads need the writer lock, too.
        let next = last.map_or(now, |(began, took)| began + interval(&logger.engine).max(2 * took)).max(retry_at);
        let wanted = head.wanted();
        // Back off after a failed round, even if a client requested one: its cause may last.
        let is_asked = now >= retry_at && head.done().is_none_or(|done| wanted > done);
        let is_dirty = head.is_dirty();
        let is_due = is_dirty && now >= next && !is_ring_full(&logger.engine);
        if is_asked || is_due {
            match round(logger, &mut names, LOGGER_POLL_INTERVAL) {
                Ok(()) => {
                    let took = clock::since(now);
                    logger.engine.control.fixed().latencies.sample.record(took.as_nanos() as u64);
                    last = Some((now, took));
                }
                // A transaction has been open for long. What is dirty stays dirty.
                Err(Error::LockTimeout { .. }) => {}
                Err(error) => {
                    note_failure(&logger.engine, &error);
                    retry_at = clock::now() + SAMPLE_RETRY_DELAY;
                }
            }
            continue;
        }
        let left = match next.saturating_duration_since(now) {
            _ if !is_dirty => logger.rest.nap(LOGGER_POLL_INTERVAL),
            // The ring is full, for the time of a sync or longer.
            Duration::ZERO => RING_POLL_INTERVAL,
            left => left.clamp(Duration::from_micros(50), LOGGER_POLL_INTERVAL),
        };
        if head.sampler.wait(wait_key, left) == Woken::Perhaps {
            logger.rest.stir(&logger.engine);
        }
    }
}

/// Returns the time between rounds.
fn interval(engine: &Engine) -> Duration {
    match settings::policy(engine) {
        FlushPolicy::Every(interval) => interval,
        _ => engine.control.cells().interval(),
    }
}

/// Returns whether half the ring waits to be flushed: writers need the rest.
fn is_ring_full(engine: &Engine) -> bool {
    let (Ok(newest), Some((_, durable))) = (engine.control.newest(), engine.control.durable()) else { return false };
    newest.log_tail.bytes_since(durable) > engine.control.ring_reach().unwrap_or(engine.geometry.ring_size) / 2
}

/// The names of cells, by generation.
#[derive(Default)]
pub(super) struct SampledNames(HashMap<u64, Vec<u8>>);

/// A value to be written to its record.
pub(super) struct Sampled {
    index: usize,
    generation: u64,
    kind: CellKind,
    version: Version,
    value: Vec<u8>,
}

impl Sampled {
    /// Returns what is recorded when this value is sampled.
    fn mark(&self) -> u64 {
        mark(self.kind, self.version, &self.value)
    }
}

/// Returns what is recorded of a sampled value: the version of a cell, the value of a counter.
pub(super) fn mark(kind: CellKind, version: Version, value: &[u8]) -> u64 {
    match (kind, value.try_into()) {
        (CellKind::Counter, Ok(bytes)) => u64::from_le_bytes(bytes),
        _ => version.as_u64(),
    }
}

/// Samples everything that is dirty now.
pub(super) fn round(logger: &Logger, names: &mut SampledNames, patience: Duration) -> Result<()> {
    let engine = &logger.engine;
    let head = engine.control.cells();
    let wanted = head.wanted();
    head.clear_dirty();
    if planted_bug!("acknowledge-sample-early") {
        head.set_done(wanted);
    }
    let done = collect(engine).and_then(|(dirty, damage)| {
        commit(logger, names, dirty, patience)?;
        // The others are sampled. But the round does not count as complete, and the store is not
        // marked as left in order.
        damage.map_or(Ok(()), Err)
    });
    if done.is_err() {
        head.set_dirty();
        return done;
    }
    head.set_done(wanted);
    crash_point!("sample.before_wake");
    head.done_event.notify();
    Ok(())
}

/// Copies the values that no committed sample holds. Also returns the error if one of them can't be
/// read.
fn collect(engine: &Engine) -> Result<(Vec<Sampled>, Option<Error>)> {
    let mut found = Vec::new();
    let mut damage = None;
    for (index, entry) in engine.control.cell_entries()?.enumerate() {
        let generation = entry.generation();
        let is_dirty = entry.is_dirty();
        if generation == 0 || !is_dirty {
            continue;
        }
        let read = entry.kind().and_then(|kind| newest(&engine.control, entry).map(|found| (kind, found)));
        match read {
            Ok((kind, (version, value))) => found.push(Sampled { index, generation, kind, version, value }),
            // The cell was dropped meanwhile, and its entry reused.
            Err(_) if entry.generation() != generation => {}
            Err(error) => damage = Some(error),
        }
    }
    Ok((found, damage))
}

/// Returns an entry's newest value, and the version of a cell.
pub(super) fn newest(control: &Control, entry: &CellEntry) -> Result<(Version, Vec<u8>)> {
    let kind = entry.kind()?;
    if kind == CellKind::Counter {
        return Ok((Version::default(), entry.counter_to_sample().to_le_bytes().to_vec()));
    }
    let view = control.cell_view(entry)?;
    let mut value = vec![0; kind.len()];
    // A fast writer may overwrite all copies during a read, but not during every one.
    for _ in 0..100_000 {
        if let Some(version) = view.try_load(&mut value) {
            return Ok((version, value));
        }
        std::hint::spin_loop();
    }
    Err(Error::corrupt(crate::files::dir::CONTROL, 0, "a cell has no value of its newest version"))
}

/// Returns the values that recovery must commit, in parts. Each part goes into one transaction that
/// fits into half the ring.
///
/// # Errors
/// [`Error::Corrupt`] if a value can't be read.
pub(super) fn parts(engine: &Engine) -> Result<Vec<Vec<Sampled>>> {
    let (dirty, damage) = collect(engine)?;
    if let Some(damage) = damage {
        return Err(damage);
    }
    let most = engine.geometry.ring_size as usize / 2;
    let mut parts: Vec<Vec<Sampled>> = Vec::new();
    let mut bytes = 0;
    for sampled in dirty {
        bytes += sampled.value.len() + SAMPLE_BYTES;
        match parts.last_mut() {
            Some(part) if bytes <= most => part.push(sampled),
            _ => {
                bytes = sampled.value.len() + SAMPLE_BYTES;
                parts.push(vec![sampled]);
            }
        }
    }
    Ok(parts)
}

/// Commits a part of what recovery found. It may use all pages, and requests no checkpoint: no
/// other thread could take one.
pub(super) fn commit_part(logger: &Logger, part: &[Sampled], patience: Duration) -> Result<()> {
    logger.with_writer_lock(patience, || {
        commit_locked(&logger.engine, &mut SampledNames::default(), part, SpaceQuota::All)
    })
}

fn is_commit_due(engine: &Engine, dirty: &[Sampled]) -> Result<bool> {
    let head = engine.control.cells();
    // The floor for the versions of dropped cells: without this, a clean stop would lose it.
    let is_floor_known = head.versions_gone() <= engine.control.newest()?.cells_floor;
    Ok(!dirty.is_empty() || head.pending().is_some() || !is_floor_known)
}

fn commit(logger: &Logger, names: &mut SampledNames, dirty: Vec<Sampled>, patience: Duration) -> Result<()> {
    let engine = &logger.engine;
    if !is_commit_due(engine, &dirty)? {
        return Ok(());
    }
    crash_point!("sample.collected");
    logger.with_writer_lock(patience, || commit_locked(engine, names, &dirty, SpaceQuota::Reserved))
}

fn commit_locked(engine: &Engine, names: &mut SampledNames, dirty: &[Sampled], quota: SpaceQuota) -> Result<()> {
    let head = engine.control.cells();
    let mut write = Write::begin(engine)?;
    resolve_pending(engine, &write)?;
    let Some(keyspace) = write.find_keyspace(KEYSPACE)? else { return Ok(()) };
    write.raise_cells_floor(head.versions_gone())?;
    if dirty.iter().any(|sampled| !names.0.contains_key(&sampled.generation)) {
        names.0.clear();
        each_record(&write, keyspace, |name, record| {
            names.0.insert(record.generation, name.to_vec());
            Ok(())
        })?;
    }
    // A full store must not keep cells from becoming durable.
    write.overwrites_only(quota);
    let mut put = Vec::new();
    for sampled in dirty {
        // A cell without a record is being created, or was dropped.
        let Some(name) = names.0.get(&sampled.generation) else { continue };
        let is_there = match write.get(keyspace, name)? {
            Some(bytes) => CellRecord::decode(name, bytes)?.generation == sampled.generation,
            None => false,
        };
        if !is_there {
            continue;
        }
        let record = CellRecord {
            kind: sampled.kind,
            index: sampled.index as u32,
            generation: sampled.generation,
            version: sampled.version,
            value: &sampled.value,
        };
        write.put(keyspace, name, &record.encode())?;
        put.push(sampled);
    }
    let committed = write.commit(None)?;
    crash_point!("sample.committed");
    // Under the lock, so that a freed entry is not reassigned meanwhile.
    for sampled in &put {
        let entry = engine.control.cell_entry(sampled.index)?;
        if entry.generation() == sampled.generation {
            entry.set_sampled(sampled.mark());
        }
    }
    if !put.is_empty() {
        head.rounds.add(1);
        head.values.add(put.len() as u64);
    }
    engine.control.fixed().logger.wake_flusher_at(committed.lsn);
    Ok(())
}

/// Notifies the callers that wait for a round.
fn note_failure(engine: &Engine, error: &Error) {
    let errno = match error {
        Error::Corrupt { .. } => 0,
        other => other.errno(),
    };
    engine.control.cells().note_failure(errno);
}
