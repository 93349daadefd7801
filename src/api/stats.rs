//! Figures of a store: what is visible, durable and checkpointed, where the space goes, and who
//! holds it.

use crate::files::geometry::Geometry;
use crate::pages::{extents, queue};
use crate::participant::engine::now_ns;
use crate::participant::settings;
use crate::process::client::DirectClient;
use crate::shared::control::Control;
use crate::shared::latencies;
use crate::shared::latencies::Acknowledged;
use crate::shared::liveness::{LOGGER_OFFSET, Tester};
use crate::shared::protocols::histogram::Latency;
use crate::shared::protocols::lock;
use crate::shared::protocols::lock::CommitClass;
use crate::{Result, TxnId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Figures of a store at one instant; made by [`Store::stats`](crate::Store::stats), and by message
/// by [`Client::stats`](crate::Client::stats).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// The newest visible transaction.
    pub committed: TxnId,
    /// The newest durable transaction.
    pub durable: TxnId,
    /// The newest transaction in a finished checkpoint; recovery replays what is younger.
    pub checkpointed: TxnId,
    /// Transactions that are visible and not durable.
    pub lag_txns: u64,
    /// How old the oldest of them is, in nanoseconds; 0 if there are none.
    ///
    /// What the logger knows of it: when it saw the commit come, or, of one that came during a
    /// flush that did not cover it, when that flush began, or, if it is stopped or dead, when it
    /// last saw all durable. So this may be too large by the duration of one flush, or by a minute
    /// beside a logger that does not run, and too small by the time that it takes to wake, or by 50
    /// ms for a commit that has time ([`Durability::Within`](crate::Durability::Within)), whose
    /// coming wakes nobody.
    pub lag_ns: u64,
    /// Commits that have become durable since the logger's shared region was made; with
    /// [`Stats::fsyncs`], how many share one.
    pub acknowledged: u64,
    /// When that region was made, in seconds since 1970: what is counted since then begins anew
    /// when this changes.
    pub region_start_seconds: u64,
    /// Transactions committed since the store was created.
    pub commits: u64,
    /// Records in all keyspaces.
    pub records: u64,
    /// Keyspaces.
    pub keyspaces: u64,
    /// Page size in bytes.
    pub page_size: u64,
    /// Pages handed out so far, free ones included.
    pub pages_total: u64,
    /// Pages waiting to be reused: free, or still held by a pin or a checkpoint.
    pub pages_free: u64,
    /// Bytes of the arena that are backed by blocks.
    pub arena_bytes: u64,
    /// Largest size that the arena may grow to, in bytes.
    pub max_size: u64,
    /// Log bytes that recovery would replay now.
    pub wal_bytes: u64,
    /// Log segments that recovery needs; those below are not among them.
    pub wal_segments: u64,
    /// Spare log segments.
    pub wal_spares: u64,
    /// Log segments that are kept for those who follow the changes, and for nothing else.
    pub wal_kept: u64,
    /// Syncs of the log since the logger's shared region was made.
    pub fsyncs: u64,
    /// Time spent in them, in nanoseconds.
    pub fsync_ns: u64,
    /// How commits shared those syncs, and whether their deadlines were met.
    pub deadlines: DeadlineStat,
    /// Checkpoints finished since then.
    pub checkpoints: u64,
    /// Times that the writer lock was taken over from a dead owner.
    pub lock_take_overs: u64,
    /// Processes and reader slots found dead and freed.
    pub reaped: u64,
    /// Loggers started.
    pub logger_starts: u64,
    /// Process id of the logger, in its own namespace, if one lives.
    pub logger_pid: Option<u32>,
    /// For how long it has served, in nanoseconds.
    pub logger_age_ns: Option<u64>,
    /// Who holds the writer lock.
    pub writer: Option<HolderStat>,
    /// The processes that have the store open.
    pub clients: Vec<ClientStat>,
    /// The pinned snapshots, oldest transaction first; those that are younger than the call are not
    /// among them.
    pub readers: Vec<ReaderStat>,
    /// Why the store takes no more writes, if it doesn't.
    pub needs_recovery: Option<String>,
    /// Cells and counters.
    pub cells: CellStat,
    /// How long things take.
    pub latencies: Latencies,
}

/// How long things take, in all processes of the store, since its shared region was made: it lives
/// while any process, the logger among them, has the store open, and no longer than the kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Latencies {
    /// How long callers waited until a commit was durable.
    pub acknowledgement: Acknowledgements,
    /// How long writers waited for the writer lock, other threads of their own process included.
    pub lock_wait: LatencyByClass,
    /// How long they held it.
    pub lock_hold: LatencyByClass,
    /// Flushes of the log: write and fsync of what they acknowledge.
    pub flush: Latency,
    /// Checkpoints that were finished, from noting what they cover.
    pub checkpoint: Latency,
    /// Rounds of sampling cells and counters.
    pub sample: Latency,
}

/// How long callers waited until a commit was durable. Each commit is counted once, and each wait
/// for a ticket.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Acknowledgements {
    /// Of commits that are [`Durable`](crate::Durability::Durable): from the publication until
    /// their caller knew.
    pub urgent: Latency,
    /// Of commits that have time ([`Within`](crate::Durability::Within)): from the publication
    /// until their caller knew. The logger puts their flush off, so this is near their times by
    /// intent; [`Stats::deadlines`] says how many were late.
    pub within: Latency,
    /// Of tickets: from the beginning of a wait ([`Ticket::wait`](crate::Ticket::wait), its first
    /// poll, [`Store::sync`](crate::Store::sync)) that found the commit not yet durable.
    pub bulk: Latency,
}

/// The same for commits whose callers wait, and for others.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LatencyByClass {
    /// Of commits that are durable when they return, and had less than 100 ms for it.
    pub urgent: Latency,
    /// Of commits that are only visible when they return, or had more time, and of what the logger
    /// does itself.
    pub bulk: Latency,
}

impl Latencies {
    fn gather(shared: &latencies::Latencies) -> Latencies {
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

/// How commits share flushes of the log, and what became of
/// [`Durability::Within`](crate::Durability::Within), since the logger's shared region was made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadlineStat {
    /// Commits that had a deadline. One whose caller still waits, or died, is neither met nor
    /// missed.
    pub commits: u64,
    /// Those whose caller was told before the deadline that they are durable.
    pub met: u64,
    /// Those whose caller was told after it.
    pub missed: u64,
    /// `met` as a share of `met` and `missed`; `None` without any.
    pub met_share: Option<f64>,
    /// Flushes that made the [`Stats::acknowledged`] commits durable, each with one fsync if it did
    /// not come to the end of a segment.
    pub flushes: u64,
    /// Fsyncs saved: how many more flushes there would have been with one for each commit that
    /// became durable, of whatever kind.
    pub flushes_saved: u64,
    /// How long the logger expects a flush to take at most, in nanoseconds: write, fsync, and
    /// telling who waits. It follows what is measured, by a smoothed mean and four times the
    /// smoothed deviation. 0 before the first flush.
    pub flush_estimate_ns: u64,
    /// How late it expects a sleeping thread to wake up, in nanoseconds, estimated likewise. A
    /// flush for a deadline begins by the first and twice the second ahead of it: once for the
    /// logger itself, once for whoever waits.
    pub wake_estimate_ns: u64,
    /// Whether the flush policy has commits without a time of their own flushed at once: it is
    /// `FlushPolicy::OnCommit`.
    pub policy_flushes_at_once: bool,
}

/// Cells and counters, and how they become durable.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CellStat {
    /// How many there are.
    pub in_use: u64,
    /// Transactions that sampled some, since the region was made.
    pub samples: u64,
    /// Values in those transactions.
    pub sampled_values: u64,
}

/// The holder of the writer lock.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HolderStat {
    /// Its process id, in its own namespace.
    pub pid: u32,
    /// For how long it has held the lock, in nanoseconds.
    pub age_ns: u64,
}

/// A process that has the store open.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClientStat {
    /// Its id; no other process, of any store, ever has the same.
    pub id: u64,
    /// Its process id, in its own namespace.
    pub pid: u32,
    /// For how long, in nanoseconds.
    pub age_ns: u64,
    /// Its commits.
    pub commits: u64,
    /// Snapshots that it has pinned.
    pub pins: u64,
    /// Whether it lives. The logger looks for the dead ten times a second, and they are gone then.
    pub is_alive: bool,
    /// Whether it holds the writer lock.
    pub holds_writer_lock: bool,
}

/// A pinned snapshot, and what it costs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReaderStat {
    /// Process id of its owner, in its own namespace.
    pub pid: u32,
    /// Not a reader's: the logger pins the newest durable transaction, for those who take a durable
    /// snapshot.
    pub is_loggers: bool,
    /// The transaction that it pins.
    pub txn: TxnId,
    /// Transactions committed since.
    pub txns_behind: u64,
    /// For how long it has been pinned, in nanoseconds, as the logger saw it: it looks ten times a
    /// second, so this may be a tenth of a second too little. Not known of the logger's own.
    pub age_ns: Option<u64>,
    /// Pages that were replaced and can't be reused while it lives (those that others pin as well
    /// are counted with each). `None` if they could not be counted.
    pub pages_held: Option<u64>,
}

impl Stats {
    pub(crate) fn gather(client: &Arc<DirectClient>) -> Result<Stats> {
        let engine = &client.engine;
        // Before the pin that the count of held pages takes.
        let mut stats = Stats::read(&engine.control, &engine.geometry, engine.tester().ok().as_ref())?;
        // A figure that can't be had must not keep the others back.
        let _ = count_held(client, &mut stats.readers);
        Ok(stats)
    }

    /// What stands in the shared region; it is only read. Without a `tester` everybody in its
    /// tables counts as alive.
    pub(crate) fn read(control: &Control, geometry: &Geometry, tester: Option<&Tester<'_>>) -> Result<Stats> {
        let fixed = control.fixed();
        let readers = readers(control)?;
        let image = control.newest()?;
        // While the words disagree, what is published last is as good for a figure.
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
            needs_recovery: control.refuse_poisoned().err().map(|error| error.to_string()),
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

/// Who pins what.
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

/// Counts the pages that each pin keeps from being reused: those that wait in the queues and that
/// the pinned transaction reaches (rule I3). Takes time in proportion to the queues' lengths.
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
