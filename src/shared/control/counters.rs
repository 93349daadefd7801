//! The figures that `stats` reads. No decision about data depends on them, so nearly all accesses
//! are relaxed. The accesses that control a wait are methods of [`Counters`], which document their
//! orderings.

use std::sync::atomic::{AtomicU64, Ordering};
use untorn_wal::{Lsn, PoolStats};

/// A counter that only grows while the region lives.
#[repr(transparent)]
#[derive(Default)]
pub(crate) struct StatCounter(AtomicU64);

impl StatCounter {
    /// Adds `n`.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the present number.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge: a number that each new measurement replaces.
#[repr(transparent)]
#[derive(Default)]
pub(crate) struct StatGauge(AtomicU64);

impl StatGauge {
    /// Stores the number.
    pub(crate) fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// Returns the number that was stored last.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters for `stats`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) fsyncs: StatCounter,
    pub(crate) wal_bytes: StatCounter,
    _reserved: AtomicU64,
    pub(crate) checkpoints: StatCounter,
    pub(crate) checkpoint_pages: StatCounter,
    pub(crate) lock_take_overs: StatCounter,
    pub(crate) reaped_clients: StatCounter,
    pub(crate) reaped_readers: StatCounter,
    logger_starts: AtomicU64,
    pub(crate) wal_segments: StatGauge,
    pub(crate) wal_spares: StatGauge,
    wal_kept: AtomicU64,
    /// The oldest position of the log that is kept, for recovery or for followers; `u64::MAX` if
    /// none is.
    wal_oldest: AtomicU64,
    pub(crate) flush_ns: StatCounter,
    /// Commits that have become durable, and the flushes that made them so.
    pub(crate) acknowledged: StatCounter,
    pub(crate) flushes: StatCounter,
    /// When the region was made, on the wall clock, in seconds since 1970.
    pub(crate) began_unix_seconds: StatGauge,
    /// Commits with a deadline; those whose call returned before the deadline, and after it.
    pub(crate) deadline_commits: StatCounter,
    pub(crate) deadlines_met: StatCounter,
    pub(crate) deadlines_missed: StatCounter,
    /// How long the flush thread expects a flush and a wake-up to take.
    pub(crate) flush_estimate_ns: StatGauge,
    pub(crate) wake_estimate_ns: StatGauge,
}

impl Counters {
    /// Counts a logger that starts.
    pub(crate) fn count_logger_start(&self) {
        self.logger_starts.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of loggers that have started in this region. A process compares two
    /// values to detect that another logger has started since.
    pub(crate) fn logger_starts(&self) -> u64 {
        self.logger_starts.load(Ordering::Acquire)
    }

    /// Records the present log files. The oldest position is stored with release, since readers of
    /// the log rely on it.
    pub(crate) fn set_log_files(&self, stats: &PoolStats) {
        self.wal_segments.set(stats.segments as u64);
        self.wal_spares.set(stats.spares as u64);
        self.wal_kept.store(stats.kept as u64, Ordering::SeqCst);
        self.wal_oldest.store(stats.oldest.map_or(u64::MAX, |oldest| oldest.0), Ordering::Release);
    }

    /// Returns the number of segments that are kept for followers only. A writer that finds the
    /// device full requests that the logger frees them. Sequentially consistent with that request.
    pub(crate) fn wal_kept(&self) -> u64 {
        self.wal_kept.load(Ordering::SeqCst)
    }

    /// Returns the oldest position of the log that is kept; `u64::MAX` if none is.
    pub(crate) fn wal_oldest(&self) -> Lsn {
        Lsn(self.wal_oldest.load(Ordering::Acquire))
    }
}
