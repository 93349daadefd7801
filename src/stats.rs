//! Figures of a store: what is visible, durable and checkpointed, where the space goes, and who holds it.

use crate::engine::{Engine, now_ns};
use crate::{Result, TxnId};
use serde::Serialize;
use std::sync::atomic::Ordering;

/// Figures of a store at one instant; made by [`crate::Store::stats`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The newest visible transaction.
    pub committed: TxnId,
    /// The newest durable transaction.
    pub durable: TxnId,
    /// The newest transaction in a finished checkpoint; recovery replays what is younger.
    pub checkpointed: TxnId,
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
    /// Log segments in use, and spare.
    pub wal_segments: u64,
    /// Spare log segments.
    pub wal_spares: u64,
    /// Syncs of the log since the logger's shared region was made.
    pub fsyncs: u64,
    /// Time spent in them, in nanoseconds.
    pub fsync_ns: u64,
    /// Checkpoints finished since then.
    pub checkpoints: u64,
    /// Times that the writer lock was taken over from a dead owner.
    pub lock_take_overs: u64,
    /// Processes and reader slots found dead and freed.
    pub reaped: u64,
    /// Loggers started.
    pub logger_starts: u64,
    /// Process id of the logger, in its own namespace.
    pub logger_pid: Option<u32>,
    /// Who holds the writer lock.
    pub writer: Option<HolderStat>,
    /// The processes that have the store open.
    pub clients: Vec<ClientStat>,
    /// The pinned snapshots, oldest transaction first.
    pub readers: Vec<ReaderStat>,
    /// Why the store takes no more writes, if it doesn't.
    pub needs_recovery: Option<String>,
}

/// The holder of the writer lock.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HolderStat {
    /// Its process id, in its own namespace.
    pub pid: u32,
    /// For how long it has held the lock, in nanoseconds.
    pub age_ns: u64,
}

/// A process that has the store open.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ClientStat {
    /// Its process id, in its own namespace.
    pub pid: u32,
    /// For how long, in nanoseconds.
    pub age_ns: u64,
    /// Its commits.
    pub commits: u64,
}

/// A pinned snapshot.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ReaderStat {
    /// Process id of its owner, in its own namespace.
    pub pid: u32,
    /// The transaction that it pins.
    pub txn: TxnId,
    /// Transactions committed since.
    pub txns_behind: u64,
}

impl Stats {
    pub(crate) fn gather(engine: &Engine) -> Result<Stats> {
        let control = &engine.control;
        let fixed = control.fixed();
        let image = control.newest()?;
        // While the words disagree, what is published last is as good for a figure.
        let durable = control
            .durable()
            .map_or_else(|| TxnId::from_u64(fixed.durable.txn.load(Ordering::Acquire)), |(durable, _)| durable);
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &fixed.counters;
        let now = now_ns();
        let mut readers = Vec::new();
        for slot in control.readers().iter().take(count(&fixed.reader_bound) as usize) {
            if let Some(txn) = slot.pinned() {
                let pid = slot.pid.load(Ordering::Relaxed) as u32;
                let txns_behind = image.txn.sequence().saturating_sub(txn.sequence());
                readers.push(ReaderStat { pid, txn, txns_behind });
            }
        }
        readers.sort_by_key(|reader| reader.txn);
        let clients = control.clients().iter().filter(|entry| count(&entry.owner) != 0);
        let clients = clients.map(|entry| ClientStat {
            pid: count(&entry.pid) as u32,
            age_ns: now.saturating_sub(count(&entry.since_ns)),
            commits: count(&entry.commits),
        });
        let writer = (count(&fixed.writer.word) != 0).then(|| HolderStat {
            pid: fixed.writer.holder_pid.load(Ordering::Relaxed),
            age_ns: now.saturating_sub(count(&fixed.writer.holder_since_ns)),
        });
        let logger_pid = fixed.logger.pid.load(Ordering::Relaxed);
        let tail = image.log_tail.0.max(count(&fixed.stream.tail));
        Ok(Stats {
            committed: image.txn,
            durable,
            checkpointed: TxnId::from_u64(count(&fixed.checkpoint.finished)),
            commits: image.commits,
            records: image.records,
            keyspaces: image.keyspaces,
            page_size: engine.geometry.page_size as u64,
            pages_total: u64::from(image.high_water),
            pages_free: image.free_pages,
            arena_bytes: control.arena_bytes().unwrap_or(0),
            max_size: engine.geometry.max_size,
            wal_bytes: tail.saturating_sub(count(&fixed.checkpoint.finished_lsn)),
            wal_segments: count(&counters.wal_segments),
            wal_spares: count(&counters.wal_spares),
            fsyncs: count(&counters.fsyncs),
            fsync_ns: count(&counters.flush_ns),
            checkpoints: count(&counters.checkpoints),
            lock_take_overs: count(&counters.lock_take_overs),
            reaped: count(&counters.reaped_clients) + count(&counters.reaped_readers),
            logger_starts: count(&counters.logger_starts),
            logger_pid: (logger_pid != 0).then_some(logger_pid),
            writer,
            clients: clients.collect(),
            readers,
            needs_recovery: engine.refuse_poisoned().err().map(|error| error.to_string()),
        })
    }
}
