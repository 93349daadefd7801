//! The state that the threads of a logger share, and their requests to each other: turns under the
//! writer lock, a record of a checkpoint in the log, the block credit.

use crate::admission;
use crate::error::reason::{LockHolder, LockKind, RecoveryReason};
use crate::participant::engine::Engine;
use crate::participant::rest::Rest;
use crate::shared::liveness::Claim;
use crate::shared::presence;
use crate::system::clock::now_ns;
use crate::system::sync::{Condvar, Mutex};
use crate::{Error, Result, TxnId};
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
        fixed.logger.enter(std::process::id(), now_ns());
        fixed.counters.count_logger_start();
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
        self.check_present()?;
        let _admitted = admission::admit_logger(&self.engine, asked_ns, patience)?;
        work()
    }

    /// Makes the flush thread record a checkpoint in a block of the log, and returns when that is
    /// durable.
    pub(crate) fn state_checkpoint(&self, txn: TxnId, lsn: Lsn) -> Result<()> {
        let mut stating = self.stating.lock();
        stating.wanted = Some((txn, lsn));
        stating.done = None;
        stating.failed = false;
        self.engine.control.fixed().logger.flusher.notify_always();
        while stating.done != Some(txn) {
            if stating.failed || self.ending.load(Ordering::SeqCst) || self.engine.has_failed.load(Ordering::SeqCst) {
                self.engine.control.refuse_poisoned()?;
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

    /// Makes the flush thread publish the block credit anew, and returns when it has.
    pub(crate) fn grant_again(&self) {
        let mut stating = self.stating.lock();
        stating.grants = true;
        self.engine.control.fixed().logger.flusher.notify_always();
        while stating.grants && !self.ending.load(Ordering::SeqCst) {
            self.stated.wait_for(&mut stating, Duration::from_millis(20));
        }
    }

    /// Returns whether the flush thread must publish the block credit anew. It then calls
    /// [`Logger::granted_again`].
    pub(crate) fn wants_grant(&self) -> bool {
        self.stating.lock().grants
    }

    /// Reports that the block credit was published.
    pub(crate) fn granted_again(&self) {
        self.stating.lock().grants = false;
        self.stated.notify_all();
    }

    /// Publishes the numbers of the log's files, and the oldest position in them.
    pub(crate) fn count_segments(&self) {
        self.pool.publish(|stats| self.engine.control.fixed().counters.set_log_files(stats));
    }

    pub(super) fn end_sampler(&self) {
        self.sampler_ending.store(true, Ordering::SeqCst);
        self.engine.control.cells().sampler.notify_always();
    }

    pub(super) fn end_flush(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.engine.control.fixed().logger.flusher.notify_always();
    }

    pub(super) fn end_background(&self) {
        self.background_ending.store(true, Ordering::SeqCst);
        self.engine.control.fixed().logger.background.notify_always();
    }
}
