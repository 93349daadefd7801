//! The state that the threads of a logger share, and what they ask of each other: turns under the
//! writer lock, a record of a checkpoint in the log, the block credit.

use crate::error::reason::{LockHolder, LockKind, RecoveryReason};
use crate::participant::engine::{Engine, now_ns};
use crate::participant::rest::Rest;
use crate::shared::liveness::Claim;
use crate::shared::presence;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::event_count;
use crate::shared::protocols::lock::CommitClass;
use crate::{Error, Result, TxnId, limits};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use untorn_wal::{Lsn, RealDisk, SegmentPool};

/// The state that the threads of a logger share.
pub(crate) struct Logger {
    pub(crate) engine: Engine,
    pub(crate) pool: Arc<SegmentPool<RealDisk>>,
    /// The logger's byte of `lock`, while this logger holds it.
    pub(super) byte: Weak<Claim>,
    /// Excludes the threads of the logger from each other before they take the writer lock.
    pub(crate) writing: Mutex<()>,
    /// The checkpoint that a block of the log must record, and the newest one recorded.
    pub(super) stating: Mutex<Stating>,
    pub(super) stated: Condvar,
    pub(crate) rest: Arc<Rest>,
    /// The device was too full for another log segment at the last attempt.
    pub(crate) is_starved: AtomicBool,
    /// The sampler must end, then the background and the checkpoint thread, and then the flush
    /// thread.
    pub(crate) sampler_ending: AtomicBool,
    pub(crate) background_ending: AtomicBool,
    pub(crate) ending: AtomicBool,
}

#[derive(Default)]
pub(super) struct Stating {
    wanted: Option<(TxnId, Lsn)>,
    done: Option<TxnId>,
    failed: bool,
    /// The flush thread must publish the block credit anew.
    grants: bool,
}

impl Logger {
    /// Records this logger in `control`, and clears a stop request that its predecessor got.
    pub(super) fn enter_control(&self) {
        let fixed = self.engine.control.fixed();
        fixed.logger.pid.store(std::process::id(), Ordering::Relaxed);
        fixed.logger.started_ns.store(now_ns(), Ordering::Relaxed);
        fixed.logger.stop.store(0, Ordering::Relaxed);
        fixed.counters.logger_starts.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns an error if other processes take this logger for dead. They may have another one, so
    /// this one must write nothing more.
    pub(crate) fn check_present(&self) -> Result<()> {
        match self.byte.upgrade() {
            Some(byte) if !byte.is_lost() => self.engine.presence.check(),
            _ => Err(presence::lost_descriptor()),
        }
    }

    /// Runs `work` under the writer lock, for which it waits at most `patience`. The lock is owned
    /// by a process, so the threads of the logger exclude each other first.
    pub(crate) fn with_writer_lock<T>(&self, patience: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let asked_ns = now_ns();
        let Some(_turn) = self.writing.try_lock_for(patience) else {
            let holder = Some(LockHolder::Thread { pid: std::process::id() });
            return Err(Error::LockTimeout { lock: LockKind::Writer, waited: patience, holder });
        };
        // A short timeout must not end each wait before the logger's turn comes.
        let patient_ns = limits::BULK_PATIENCE.min(patience / 2).as_nanos();
        let class = || match u128::from(now_ns().saturating_sub(asked_ns)) < patient_ns {
            true => CommitClass::Bulk,
            false => CommitClass::Urgent,
        };
        self.check_present()?;
        self.engine.acquire_writer(&class, Some(patience))?;
        self.engine.note_lock_wait(CommitClass::Bulk, asked_ns);
        /// Releases the lock, also if the work panics: this process stays alive, so no other would
        /// take the lock over.
        struct Release<'e>(&'e Engine);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.note_lock_hold(CommitClass::Bulk);
                self.0.release(&self.0.control.fixed().writer);
            }
        }
        let _release = Release(&self.engine);
        work()
    }

    /// Has the flush thread record a checkpoint in a block of the log, and returns when that is
    /// durable.
    pub(crate) fn state_checkpoint(&self, txn: TxnId, lsn: Lsn) -> Result<()> {
        let mut stating = self.stating.lock();
        stating.wanted = Some((txn, lsn));
        stating.done = None;
        stating.failed = false;
        event_count::notify_always::<Native>(&self.engine.control.fixed().logger.event);
        while stating.done != Some(txn) {
            if stating.failed || self.ending.load(Ordering::SeqCst) || self.engine.has_failed.load(Ordering::SeqCst) {
                self.engine.refuse_poisoned()?;
                return Err(Error::NeedsRecovery { reason: RecoveryReason::CheckpointNotRecorded });
            }
            self.stated.wait_for(&mut stating, Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns the checkpoint that the next block must record.
    pub(crate) fn checkpoint_to_state(&self) -> Option<(TxnId, Lsn)> {
        self.stating.lock().wanted
    }

    /// Reports that the checkpoint was recorded durably, or can't be.
    pub(crate) fn checkpoint_stated(&self, txn: TxnId, durable: bool) {
        let mut stating = self.stating.lock();
        stating.wanted = None;
        stating.done = durable.then_some(txn);
        stating.failed = !durable;
        drop(stating);
        self.stated.notify_all();
    }

    /// Has the flush thread publish the block credit anew, and returns when it has.
    pub(crate) fn grant_again(&self) {
        let mut stating = self.stating.lock();
        stating.grants = true;
        event_count::notify_always::<Native>(&self.engine.control.fixed().logger.event);
        while stating.grants && !self.ending.load(Ordering::SeqCst) {
            self.stated.wait_for(&mut stating, Duration::from_millis(20));
        }
    }

    /// Whether the flush thread must publish the block credit anew. It then calls
    /// [`Logger::granted_again`].
    pub(crate) fn wants_grant(&self) -> bool {
        self.stating.lock().grants
    }

    /// Reports that the block credit was published.
    pub(crate) fn granted_again(&self) {
        self.stating.lock().grants = false;
        self.stated.notify_all();
    }

    /// Counts the log files, for `stats`.
    pub(crate) fn count_segments(&self) {
        let stats = self.pool.stats();
        let counters = &self.engine.control.fixed().counters;
        counters.wal_segments.store(stats.segments as u64, Ordering::Relaxed);
        counters.wal_spares.store(stats.spares as u64, Ordering::Relaxed);
        counters.wal_kept.store(stats.kept as u64, Ordering::SeqCst);
        counters.wal_oldest.store(stats.oldest.map_or(u64::MAX, |oldest| oldest.0), Ordering::Release);
    }

    pub(super) fn end_sampler(&self) {
        self.sampler_ending.store(true, Ordering::SeqCst);
        event_count::notify_always::<Native>(&self.engine.control.cells().event);
    }

    pub(super) fn end_flush(&self) {
        self.ending.store(true, Ordering::SeqCst);
        event_count::notify_always::<Native>(&self.engine.control.fixed().logger.event);
    }

    pub(super) fn end_background(&self) {
        self.background_ending.store(true, Ordering::SeqCst);
        event_count::notify_always::<Native>(&self.engine.control.fixed().logger.background);
    }
}
