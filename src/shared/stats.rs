//! The types of a store's figures, which are the same for direct and for message-passing clients.

use crate::TxnId;
use crate::error::reason::RecoveryReason;
use crate::shared::protocols::histogram::Latency;
use serde::{Deserialize, Serialize};

/// The figures of a store at one instant, from [`Store::stats`](crate::Store::stats) or, over the
/// socket, from [`Client::stats`](crate::Client::stats).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// The newest visible transaction.
    pub committed: TxnId,
    /// The newest durable transaction.
    pub durable: TxnId,
    /// The newest transaction in a finished checkpoint; recovery replays later ones.
    pub checkpointed: TxnId,
    /// Transactions that are visible and not durable.
    pub lag_txns: u64,
    /// The age of the oldest of them in nanoseconds; 0 if there are none.
    ///
    /// This is the logger's estimate. The age counts from the time at which the logger saw the
    /// commit. For a commit that was published during a flush that did not cover it, it counts from
    /// the beginning of that flush. If the logger is stopped or dead, it counts from the last time
    /// at which the logger saw all commits durable. So the value may be too large by the duration
    /// of one flush, or by a minute if the logger does not run. It may be too small by the time
    /// that the logger takes to wake up. For a commit that has time
    /// ([`Durability::Within`](crate::Durability::Within)), which wakes no thread, it may be too
    /// small by 50 ms.
    pub lag_ns: u64,
    /// Commits that have become durable since the logger's shared region was made. Divided by
    /// [`Stats::fsyncs`], the number of commits that share one.
    pub acknowledged: u64,
    /// When that region was made, in seconds since 1970. When this changes, the counters of the
    /// region begin anew.
    pub region_start_seconds: u64,
    /// Transactions committed since the store was created.
    pub commits: u64,
    /// Records in all keyspaces.
    pub records: u64,
    /// Keyspaces.
    pub keyspaces: u64,
    /// Page size in bytes.
    pub page_size: u64,
    /// Pages handed out so far, including free ones.
    pub pages_total: u64,
    /// Pages that wait for reuse: free, or still protected by a pin or a checkpoint.
    pub pages_free: u64,
    /// Bytes of the arena that are backed by blocks.
    pub arena_bytes: u64,
    /// Largest size that the arena may grow to, in bytes.
    pub max_size: u64,
    /// Log bytes that recovery would replay now.
    pub wal_bytes: u64,
    /// Log segments that recovery needs, without the spare and the kept ones.
    pub wal_segments: u64,
    /// Spare log segments.
    pub wal_spares: u64,
    /// Log segments that are kept only for followers of the changes.
    pub wal_kept: u64,
    /// Syncs of the log since the logger's shared region was made.
    pub fsyncs: u64,
    /// Time spent in those syncs, in nanoseconds.
    pub fsync_ns: u64,
    /// How commits shared those syncs, and whether their deadlines were met.
    pub deadlines: DeadlineStat,
    /// Checkpoints finished since then.
    pub checkpoints: u64,
    /// How often the writer lock was taken over from a dead owner.
    pub lock_take_overs: u64,
    /// Processes and reader slots found dead and freed.
    pub reaped: u64,
    /// Loggers started.
    pub logger_starts: u64,
    /// Process id of the logger, in its own namespace, if one lives.
    pub logger_pid: Option<u32>,
    /// How long it has run, in nanoseconds.
    pub logger_age_ns: Option<u64>,
    /// The holder of the writer lock.
    pub writer: Option<HolderStat>,
    /// The processes that have the store open.
    pub clients: Vec<ClientStat>,
    /// The pinned snapshots, oldest transaction first. Snapshots taken after the call began are not
    /// included.
    pub readers: Vec<ReaderStat>,
    /// The reason why the store refuses writes, if it does.
    pub needs_recovery: Option<RecoveryReason>,
    /// Figures of the cells and counters.
    pub cells: CellStat,
    /// Latency distributions.
    pub latencies: Latencies,
}

/// Latency distributions of all processes of the store, since its shared region was made. The
/// region lives while any process, including the logger, has the store open, and no longer than the
/// running kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Latencies {
    /// How long callers waited until a commit was durable.
    pub acknowledgement: Acknowledgements,
    /// How long writers waited for the writer lock, including the wait for other threads of their
    /// own process.
    pub lock_wait: LatencyByClass,
    /// How long writers held the lock.
    pub lock_hold: LatencyByClass,
    /// Durations of the log's flushes: write and fsync of what they acknowledge.
    pub flush: Latency,
    /// Durations of finished checkpoints, from the start, when their transaction is recorded.
    pub checkpoint: Latency,
    /// Durations of the rounds that sample cells and counters.
    pub sample: Latency,
}

/// How long callers waited until a commit was durable. Each commit is counted once, and each wait
/// for a ticket.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Acknowledgements {
    /// For [`Durable`](crate::Durability::Durable) commits: from the publication until the caller's
    /// wait returned.
    pub urgent: Latency,
    /// For commits that have time ([`Within`](crate::Durability::Within)): from the publication
    /// until the caller's wait returned. The logger delays their flush on purpose, so this is close
    /// to their deadlines; [`Stats::deadlines`] counts how many were late.
    pub within: Latency,
    /// For tickets: from the beginning of a wait ([`Ticket::wait`](crate::Ticket::wait), its first
    /// poll, [`Store::sync`](crate::Store::sync)) that found the commit not yet durable.
    pub bulk: Latency,
}

/// Latencies of commits whose callers wait, and of other commits.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LatencyByClass {
    /// For commits that are durable when they return, with a deadline less than 100 ms away.
    pub urgent: Latency,
    /// For commits that are only visible when they return, or had more time, and for the logger's
    /// own transactions.
    pub bulk: Latency,
}

/// How commits share flushes of the log, and how many deadlines of
/// [`Durability::Within`](crate::Durability::Within) were met, since the logger's shared region was
/// made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadlineStat {
    /// Commits that had a deadline. A commit whose caller still waits, or died, is neither met nor
    /// missed.
    pub commits: u64,
    /// Commits whose caller returned before the deadline.
    pub met: u64,
    /// Commits whose caller returned after the deadline.
    pub missed: u64,
    /// `met` as a share of `met` and `missed`; `None` without any.
    pub met_share: Option<f64>,
    /// Flushes that made the [`Stats::acknowledged`] commits durable. Each needs one fsync, or more
    /// if it reaches the end of a segment.
    pub flushes: u64,
    /// Flushes saved: how many more there would have been with one for each commit that became
    /// durable, of any kind.
    pub flushes_saved: u64,
    /// The logger's estimate of the longest duration of a flush, in nanoseconds: write, fsync, and
    /// notifying the waiters. It is the smoothed mean of the measurements plus four times their
    /// smoothed deviation. 0 before the first flush.
    pub flush_estimate_ns: u64,
    /// The logger's estimate of how late a sleeping thread wakes up, in nanoseconds, estimated
    /// likewise. A flush for a deadline begins `flush_estimate_ns` and twice `wake_estimate_ns`
    /// before it: once for the logger itself, once for the waiter.
    pub wake_estimate_ns: u64,
    /// Whether commits without a deadline are flushed at once: the flush policy is
    /// `FlushPolicy::OnCommit`.
    pub policy_flushes_at_once: bool,
}

/// Cells and counters, and how they become durable.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CellStat {
    /// Cells and counters that exist.
    pub in_use: u64,
    /// Transactions that sampled cells or counters since the region was made.
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
    /// How long it has had the store open, in nanoseconds.
    pub age_ns: u64,
    /// The commits that it has made.
    pub commits: u64,
    /// Snapshots that it has pinned.
    pub pins: u64,
    /// Whether it is alive. The logger removes dead processes ten times a second.
    pub is_alive: bool,
    /// Whether it holds the writer lock.
    pub holds_writer_lock: bool,
}

/// A pinned snapshot, and the pages that it protects.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReaderStat {
    /// Process id of its owner, in its own namespace.
    pub pid: u32,
    /// Whether this is the logger's own pin on the newest durable transaction, which exists for
    /// readers that take a durable snapshot.
    pub is_loggers: bool,
    /// The transaction that it pins.
    pub txn: TxnId,
    /// The number of transactions committed since.
    pub txns_behind: u64,
    /// How long it has been pinned, in nanoseconds, as the logger observed it. The logger checks
    /// ten times a second, so this may be 100 ms too small. `None` for the logger's own pins.
    pub age_ns: Option<u64>,
    /// Pages that were replaced and can't be reused while it lives. A page that several snapshots
    /// protect is counted with each. `None` if the pages could not be counted.
    pub pages_held: Option<u64>,
}
