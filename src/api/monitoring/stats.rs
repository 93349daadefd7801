//! Figures of a store: what is visible, durable and checkpointed, where the space goes, and which
//! processes hold it.

use crate::files::geometry::Geometry;
use crate::pages::{extents, queue};
use crate::participant::settings;
use crate::process::client::DirectClient;
use crate::shared::control::Control;
use crate::shared::latencies;
use crate::shared::latencies::Acknowledged;
use crate::shared::liveness::{LOGGER_OFFSET, Tester};
use crate::shared::protocols::histogram::Latency;
use crate::shared::protocols::lock;
use crate::shared::protocols::lock::CommitClass;
use crate::shared::stats::*;
use crate::system::clock::now_ns;
use crate::{Result, TxnId};
use std::sync::Arc;

impl Latencies {
    fn gather(shared: &latencies::LatencyHistograms) -> Latencies {
        let by_class = |read: &dyn Fn(CommitClass) -> Latency| LatencyByClass {
            urgent: read(CommitClass::Urgent),
            bulk: read(CommitClass::Bulk),
        };
        Latencies {
            acknowledgement: Acknowledgements {
                urgent: shared.acknowledgement[Acknowledged::Durable].read(),
                within: shared.acknowledgement[Acknowledged::Within].read(),
                bulk: shared.acknowledgement[Acknowledged::Ticket].read(),
            },
            lock_wait: by_class(&|class| shared.lock[class].wait.read()),
            lock_hold: by_class(&|class| shared.lock[class].hold.read()),
            flush: shared.flush.read(),
            checkpoint: shared.checkpoint.read(),
            sample: shared.sample.read(),
        }
    }
}

impl Stats {
    pub(crate) fn gather(client: &Arc<DirectClient>) -> Result<Stats> {
        let engine = &client.engine;
        // Before the pin that the count of protected pages takes.
        let mut stats = Stats::read(&engine.control, &engine.geometry, engine.tester().ok().as_ref())?;
        // Figures that can't be counted must not suppress the others.
        let _ = count_held(client, &mut stats.readers);
        Ok(stats)
    }

    /// Reads the figures of the shared region; writes nothing. Without a `tester`, every process in
    /// its tables counts as alive.
    pub(crate) fn read(control: &Control, geometry: &Geometry, tester: Option<&Tester<'_>>) -> Result<Stats> {
        let fixed = control.fixed();
        let readers = readers(control)?;
        let image = control.newest()?;
        // While the words disagree, the transaction published last is good enough for a figure.
        let durable = control.durable().map_or_else(|| fixed.durable.last_txn(), |(durable, _)| durable);
        let counters = &fixed.counters;
        let now = now_ns();
        let lag_txns = image.txn.sequence().saturating_sub(durable.sequence());
        let lag_ns = if lag_txns == 0 { 0 } else { now.saturating_sub(fixed.logger.durable_as_of_ns()) };
        let mut pinning: Vec<u64> = Vec::new();
        control.for_each_reader(|_, slot| pinning.extend(slot.pinned().and(slot.owner())));
        let writer_id = fixed.writer.owner().map(lock::Owner::id);
        let clients = control.joined_clients().map(|(id, entry)| ClientStat {
            id,
            pid: entry.pid() as u32,
            age_ns: now.saturating_sub(entry.since_ns()),
            commits: entry.commits(),
            pins: pinning.iter().filter(|owner| **owner == id).count() as u64,
            is_alive: tester.is_none_or(|tester| tester.is_alive(id).unwrap_or(true)),
            holds_writer_lock: writer_id == Some(id),
        });
        let writer = writer_id.map(|_| HolderStat {
            pid: fixed.writer.holder_pid(),
            age_ns: now.saturating_sub(fixed.writer.holder_since_ns()),
        });
        // A logger that was killed leaves its pid behind.
        let has_logger = tester.is_none_or(|tester| tester.is_held(LOGGER_OFFSET).unwrap_or(true));
        let logger_pid = Some(fixed.logger.pid()).filter(|pid| has_logger && *pid != 0);
        let logger_age_ns = logger_pid.map(|_| now.saturating_sub(fixed.logger.started_ns()));
        let tail = image.log_tail.max(fixed.stream.tail());
        Ok(Stats {
            committed: image.txn,
            durable,
            checkpointed: fixed.checkpoint.finished(),
            lag_txns,
            lag_ns,
            acknowledged: counters.acknowledged.get(),
            region_start_seconds: counters.began_unix_seconds.get(),
            commits: image.commits,
            records: image.records,
            keyspaces: image.keyspaces,
            page_size: geometry.page_size as u64,
            pages_total: u64::from(image.high_water),
            pages_free: image.free_pages,
            arena_bytes: control.arena_bytes().unwrap_or(0),
            max_size: geometry.max_size,
            wal_bytes: tail.bytes_since(fixed.checkpoint.finished_lsn()),
            wal_segments: counters.wal_segments.get(),
            wal_spares: counters.wal_spares.get(),
            wal_kept: counters.wal_kept(),
            fsyncs: counters.fsyncs.get(),
            fsync_ns: counters.flush_ns.get(),
            deadlines: DeadlineStat::gather(control),
            checkpoints: counters.checkpoints.get(),
            lock_take_overs: counters.lock_take_overs.get(),
            reaped: counters.reaped_clients.get() + counters.reaped_readers.get(),
            logger_starts: counters.logger_starts(),
            logger_pid,
            logger_age_ns,
            writer,
            clients: clients.collect(),
            readers,
            cells: CellStat {
                samples: control.cells().rounds.get(),
                sampled_values: control.cells().values.get(),
                in_use: control.cell_entries()?.filter(|entry| entry.generation() != 0).count() as u64,
            },
            latencies: Latencies::gather(&fixed.latencies),
            needs_recovery: control.recovery_reason(),
        })
    }
}

impl DeadlineStat {
    fn gather(control: &Control) -> DeadlineStat {
        let counters = &control.fixed().counters;
        let (met, missed) = (counters.deadlines_met.get(), counters.deadlines_missed.get());
        let told = met.saturating_add(missed);
        let flushes = counters.flushes.get();
        DeadlineStat {
            commits: counters.deadline_commits.get(),
            met,
            missed,
            met_share: (told > 0).then(|| met as f64 / told as f64),
            flushes,
            flushes_saved: counters.acknowledged.get().saturating_sub(flushes),
            flush_estimate_ns: counters.flush_estimate_ns.get(),
            wake_estimate_ns: counters.wake_estimate_ns.get(),
            policy_flushes_at_once: settings::flushes_at_once(control),
        }
    }
}

/// Returns which process pins which transaction.
fn readers(control: &Control) -> Result<Vec<ReaderStat>> {
    let fixed = control.fixed();
    let newest = control.newest()?.txn;
    let now = now_ns();
    let stat = |pid, is_loggers, txn: TxnId, since: Option<u64>| ReaderStat {
        pid,
        is_loggers,
        txn,
        txns_behind: newest.sequence().saturating_sub(txn.sequence()),
        age_ns: if is_loggers { None } else { Some(since.map_or(0, |since| now.saturating_sub(since))) },
        pages_held: None,
    };
    let mut found = Vec::new();
    control.for_each_reader(|_, slot| {
        if let Some(txn) = slot.pinned() {
            found.push(stat(slot.pid(), false, txn, slot.pinned_since(txn)));
        }
    });
    let logger_pid = fixed.logger.pid();
    found.extend(fixed.logger_pins.pinned().map(|txn| stat(logger_pid, true, txn, None)));
    found.sort_by_key(|reader| reader.txn);
    Ok(found)
}

/// Counts the pages that each pin protects from reuse: those that wait in the queues and that the
/// pinned transaction reaches (rule I3). Takes time in proportion to the queues' lengths.
fn count_held(client: &Arc<DirectClient>, readers: &mut [ReaderStat]) -> Result<()> {
    let arena = &client.engine.arena;
    // Pinned, so that the queues' own pages stay as they are.
    let (pin, image) = client.pin_image()?;
    let pages = pin.pages(client);
    let txns: Vec<TxnId> = readers.iter().map(|reader| reader.txn).collect();
    // A page is pinned by the pins from its created_txn up to its freed_txn: a range, since pins
    // are in order.
    let mut changes = vec![0_i64; txns.len() + 1];
    for state in extents::all_queues(&pages, &image)? {
        queue::walk(&pages, arena, &state, &mut |_, _| Ok(()), &mut |entry| {
            let first = txns.partition_point(|txn| *txn < entry.created_txn);
            let end = txns.partition_point(|txn| *txn < entry.freed_txn);
            changes[first] += i64::from(entry.pages);
            changes[end] -= i64::from(entry.pages);
            Ok(())
        })?;
    }
    let mut held = 0;
    for (reader, change) in readers.iter_mut().zip(changes) {
        held += change;
        reader.pages_held = u64::try_from(held).ok();
    }
    Ok(())
}
