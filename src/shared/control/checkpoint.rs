//! The words of the checkpoints: C is the newest started one, K the newest finished one.
//!
//! C and its image are stored under the writer lock, everything else by the checkpoint thread of
//! the logger or by recovery. C never changes while K ≠ C: see [`crate::logger::checkpoint`].

use super::{Control, Event};
use crate::error::reason::Space;
use crate::files::dir;
use crate::files::slot::{SLOT_WORDS, SlotImage};
use crate::shared::protocols::atomic::Word64;
use crate::{Error, Result, TxnId};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;
use untorn_wal::Lsn;

/// The words of C and K.
#[repr(C)]
pub(crate) struct CheckpointWords {
    started: AtomicU64,
    finished: AtomicU64,
    finished_lsn: AtomicU64,
    /// The position from which the log is replayed after `started`.
    started_lsn: AtomicU64,
    /// The serial of the newest header whose writing has succeeded.
    serial: AtomicU64,
    /// Notified when `finished` moves, and when an attempt fails.
    pub(crate) event: Event,
    /// Not 0 if a checkpoint of the transaction `finished` has been started again, for a new
    /// header.
    again: AtomicU32,
    /// A copy of the image of `started`, so that the next logger writes the same header.
    image: [AtomicU64; SLOT_WORDS],
    /// The number of failed attempts, and the cause of the last one: an error number, or 0 for
    /// damage and its offset.
    failures: AtomicU64,
    failure_errno: AtomicU64,
    failure_offset: AtomicU64,
}

impl CheckpointWords {
    /// Begins with `txn`, whose log is replayed from `lsn`, as both C and K. Called by recovery; no
    /// other process has mapped the region.
    pub(crate) fn begin_at(&self, txn: TxnId, lsn: Lsn) {
        self.started.store(txn.as_u64(), Ordering::Relaxed);
        self.finished.store(txn.as_u64(), Ordering::Relaxed);
        self.finished_lsn.store(lsn.0, Ordering::Relaxed);
        self.started_lsn.store(lsn.0, Ordering::Relaxed);
    }

    /// Records a further checkpoint: a header of `txn` and `lsn` was written. Called by recovery.
    pub(crate) fn note_replayed(&self, txn: TxnId, lsn: Lsn) {
        self.finished_lsn.store(lsn.0, Ordering::Release);
        self.started_lsn.store(lsn.0, Ordering::Release);
        self.started.store(txn.as_u64(), Ordering::Release);
        self.finished.store_fenced(txn.as_u64());
    }

    /// Returns C and K.
    ///
    /// K is read first: if both move in between, the older K protects too much, never too little.
    pub(crate) fn started_and_finished(&self) -> (TxnId, TxnId) {
        let finished = self.finished.load(Ordering::Acquire);
        let started = self.started.load(Ordering::Acquire);
        (TxnId::from_u64(started.max(finished)), TxnId::from_u64(finished))
    }

    /// Returns whether a checkpoint has started and is not finished: C and its image must not
    /// change.
    pub(crate) fn is_running(&self) -> bool {
        let (started, finished) = self.started_and_finished();
        started != finished || self.again.load(Ordering::SeqCst) != 0
    }

    /// Returns K.
    pub(crate) fn finished(&self) -> TxnId {
        TxnId::from_u64(self.finished.load(Ordering::Acquire))
    }

    /// Returns K to a thread that waits for it. Sequentially consistent: the load after
    /// `prepare_wait` is the second half of Dekker's idiom, of which [`CheckpointWords::finish`] is
    /// the first.
    pub(crate) fn finished_by_waiter(&self) -> TxnId {
        TxnId::from_u64(self.finished.load(Ordering::SeqCst))
    }

    /// Returns the position from which the log is replayed after K.
    pub(crate) fn finished_lsn(&self) -> Lsn {
        Lsn(self.finished_lsn.load(Ordering::Acquire))
    }

    /// Records C, its image, and from where the log is replayed after it, and marks the checkpoint
    /// as started. The caller owns the writer lock, and no checkpoint is running.
    ///
    /// The mark is stored last: [`Control::started_checkpoint`] reads the image after it has seen
    /// the mark. If the owner dies before the mark, the next start overwrites the image.
    pub(crate) fn start(&self, image: &SlotImage, lsn: Lsn) {
        for (word, value) in self.image.iter().zip(image.encode()) {
            word.store(value, Ordering::Relaxed);
        }
        self.started_lsn.store(lsn.0, Ordering::Release);
        match image.txn == self.finished() {
            // Only the log has moved, or the store shuts down in order: the same transaction, a new
            // header.
            true => self.again.store(1, Ordering::SeqCst),
            false => self.started.store_fenced(image.txn.as_u64()),
        }
    }

    /// Records that a header holds `lsn`. Must be called before the segments below `lsn` are
    /// recycled: a reader of the log that misses a segment checks whether this position has moved.
    pub(crate) fn set_finished_lsn(&self, lsn: Lsn) {
        self.finished_lsn.store(lsn.0, Ordering::Release);
    }

    /// Publishes K = C, and wakes the waiters. Must be called after the segments were recycled, so
    /// that a writer that waits for K to get log space then finds that space.
    pub(crate) fn finish(&self, txn: TxnId) {
        self.finished.store_fenced(txn.as_u64());
        self.again.store(0, Ordering::SeqCst);
        self.event.notify_always();
    }

    /// Records that an attempt failed, with its error number, or 0 for damage at `offset` of the
    /// arena, and wakes the waiters. Another attempt follows soon.
    ///
    /// The count is stored last, and fenced: a waiter that sees it move reads the cause of that
    /// failure.
    pub(crate) fn note_failure(&self, errno: i32, offset: u64) {
        self.failure_errno.store(errno as u64, Ordering::Relaxed);
        self.failure_offset.store(offset, Ordering::Relaxed);
        self.failures.store_fenced(self.failures.load(Ordering::Relaxed) + 1);
        self.event.notify();
    }

    /// Returns the number of failed attempts. A waiter compares it before and after its wait.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Returns the error of the last failed attempt.
    pub(crate) fn last_failure(&self) -> Error {
        match self.failure_errno.load(Ordering::Relaxed) as i32 {
            0 => {
                let offset = self.failure_offset.load(Ordering::Relaxed);
                Error::corrupt(dir::ARENA, offset, "a checkpoint found damage here; run `untorn verify` for details")
            }
            libc::ENOSPC => Error::DiskFull { what: Space::Checkpoint },
            errno => Error::Io { what: "checkpoint".into(), source: std::io::Error::from_raw_os_error(errno) },
        }
    }

    /// Returns the serial of the newest header whose writing has succeeded.
    pub(crate) fn serial(&self) -> u64 {
        self.serial.load(Ordering::Acquire)
    }

    /// Records the serial of a header whose writing has succeeded.
    pub(crate) fn set_serial(&self, serial: u64) {
        self.serial.store(serial, Ordering::Release);
    }
}

impl Control {
    /// Returns the image of C, and the position from which the log is replayed after it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the image is damaged or of another transaction than C.
    pub(crate) fn started_checkpoint(&self) -> Result<(SlotImage, Lsn)> {
        let words = &self.fixed().checkpoint;
        let lsn = Lsn(words.started_lsn.load(Ordering::Acquire));
        let image = std::array::from_fn(|i| words.image[i].load(Ordering::Relaxed));
        // Orders the check of the arena's length after the copy of the image: the writer that
        // started the checkpoint had stored that length before.
        fence(Ordering::Acquire);
        let image = self.decode_image(&image)?;
        let started = words.started.load(Ordering::Acquire);
        if image.txn.as_u64() != started {
            let what = format!("the image of the started checkpoint is of {}, not of {started:016x}", image.txn);
            return Err(Error::corrupt(dir::CONTROL, 0, what));
        }
        Ok((image, lsn))
    }

    /// Waits until `done` returns a value. Ends with an error if the store refuses writes, or if
    /// more attempts have failed than `failures`, which the caller read before it made its request.
    ///
    /// # Errors
    /// Those, and those of `on_tick`.
    pub(crate) fn wait_for_checkpoint<T>(
        &self,
        failures: u64,
        check_interval: Duration,
        mut done: impl FnMut() -> Option<T>,
        on_tick: impl FnMut() -> Result<()>,
    ) -> Result<T> {
        let words = &self.fixed().checkpoint;
        let ready = || {
            if let Some(found) = done() {
                return Some(Ok(found));
            }
            let has_failed = words.failures() != failures;
            match self.refuse_poisoned() {
                Err(error) => Some(Err(error)),
                Ok(()) => has_failed.then(|| Err(words.last_failure())),
            }
        };
        words.event.wait_until(check_interval, ready, on_tick)
    }
}
