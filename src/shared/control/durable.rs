//! The words of the durable position. Written by the logger alone, and before it by recovery.
//!
//! **I4**: an acknowledgement derives from these words. Each of the two numbers has a complement
//! next to it. If a number and its complement disagree, [`DurableWords::position`] is `None`: a
//! logger is between two stores or died there. The next logger publishes again.

use super::{Control, Event};
use crate::TxnId;
use crate::files::slot::SlotImage;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::pins::{LoggerPins, NextDurable};
use crate::shared::readers::StoreReader;
use std::sync::atomic::{AtomicU64, Ordering};
use untorn_wal::Lsn;

/// How far the log is durable, and how many log blocks are granted.
#[repr(C)]
pub(crate) struct DurableWords {
    txn: AtomicU64,
    /// The complement of `txn`.
    txn_check: AtomicU64,
    lsn: AtomicU64,
    /// The complement of `lsn`.
    lsn_check: AtomicU64,
    /// The number of log blocks that may be reserved before a writer has to wait.
    block_credit: AtomicU64,
    /// Notified when any of these words has changed for a waiter.
    pub(crate) event: Event,
}

impl DurableWords {
    /// Returns the durable transaction and the position where its record ends; `None` while the
    /// words and their complements disagree.
    ///
    /// `txn` is loaded sequentially consistent: the load after `prepare_wait` is the second half of
    /// Dekker's idiom, of which [`Control::publish_durable`] is the first. The other loads acquire:
    /// `publish_durable` stores `txn` last, so a thread that loads a new `txn` then loads the other
    /// three words of the same publication or of a later one. A mixture fails one of the
    /// comparisons.
    #[inline]
    pub(crate) fn position(&self) -> Option<(TxnId, Lsn)> {
        let txn = self.txn.load(Ordering::SeqCst);
        let lsn = self.lsn.load(Ordering::Acquire);
        let agree = self.txn_check.load(Ordering::Acquire) == !txn && self.lsn_check.load(Ordering::Acquire) == !lsn;
        agree.then_some((TxnId::from_u64(txn), Lsn(lsn)))
    }

    /// Returns the transaction that was published last, unchecked: for statistics, not for
    /// acknowledgements.
    pub(crate) fn last_txn(&self) -> TxnId {
        TxnId::from_u64(self.txn.load(Ordering::Acquire))
    }

    /// Returns the position alone, unchecked: for a writer that decides whether to wake the flush
    /// thread. The writer has announced its commit before, fenced, so this load is sequentially
    /// consistent.
    #[inline]
    pub(crate) fn last_lsn(&self) -> Lsn {
        Lsn(self.lsn.load(Ordering::SeqCst))
    }

    /// Returns a position that is durable, and certain to be in the ring. Called by a logger that
    /// takes over. If the previous logger died between the two stores, the word and its complement
    /// differ. Both positions are durable then, and this is the lower one.
    pub(crate) fn inherited_lsn(&self) -> Lsn {
        Lsn(self.lsn.load(Ordering::Acquire).min(!self.lsn_check.load(Ordering::Acquire)))
    }

    /// Returns the transaction that the previous logger was about to publish, or the published one.
    /// Called by a logger that takes over. [`Control::publish_durable`] stores the complement
    /// first.
    pub(crate) fn half_published_txn(&self) -> TxnId {
        TxnId::from_u64(!self.txn_check.load(Ordering::Acquire))
    }

    /// Begins with everything up to `txn` and `lsn` durable. Called by recovery; no other process
    /// has mapped the region.
    pub(crate) fn begin_at(&self, pins: &LoggerPins<Native>, txn: TxnId, lsn: Lsn) {
        self.txn_check.store(!txn.as_u64(), Ordering::Relaxed);
        self.lsn.store(lsn.0, Ordering::Relaxed);
        self.lsn_check.store(!lsn.0, Ordering::Relaxed);
        pins.start(&self.txn, txn);
    }

    /// Records that the log ends at `lsn`, and that everything before is durable. Called by
    /// recovery. The first flush then publishes this position together with its transaction.
    pub(crate) fn set_lsn(&self, lsn: Lsn) {
        self.lsn.store(lsn.0, Ordering::Release);
        self.lsn_check.store(!lsn.0, Ordering::Release);
    }

    /// Publishes again the position that the flush thread has acknowledged, if another process has
    /// damaged these words.
    pub(crate) fn mend(&self, txn: TxnId, lsn: Lsn) {
        if self.position() != Some((txn, lsn)) {
            self.txn.store(txn.as_u64(), Ordering::SeqCst);
            self.txn_check.store(!txn.as_u64(), Ordering::Release);
            self.lsn_check.store(!lsn.0, Ordering::Release);
            self.lsn.store(lsn.0, Ordering::Release);
            self.event.notify_always();
        }
    }

    /// Publishes the total number of log blocks that may be reserved. Sequentially consistent, so
    /// that a notification may follow.
    pub(crate) fn set_credit(&self, blocks: u64) {
        self.block_credit.store(blocks, Ordering::SeqCst);
    }

    /// Returns the total number of log blocks that may be reserved.
    #[inline]
    pub(crate) fn credit(&self) -> u64 {
        self.block_credit.load(Ordering::Acquire)
    }

    /// Returns [`DurableWords::credit`] to a thread that has announced itself before: a writer that
    /// has requested blocks or is about to wait, and the thread that serves such a request.
    /// Sequentially consistent: the second half of Dekker's idiom.
    pub(crate) fn credit_by_waiter(&self) -> u64 {
        self.block_credit.load(Ordering::SeqCst)
    }
}

impl Control {
    /// Returns how far the log is durable: see [`DurableWords::position`].
    #[inline]
    pub(crate) fn durable(&self) -> Option<(TxnId, Lsn)> {
        self.fixed().durable.position()
    }

    /// Pins the transaction that the flush thread will publish as durable next, for durable
    /// readers, and returns it. See [`crate::shared::protocols::pins`].
    pub(crate) fn pin_next_durable(&self) -> NextDurable {
        let fixed = self.fixed();
        fixed.logger_pins.pin_next(&fixed.committed, &fixed.durable.txn)
    }

    /// Stores the image of `next` for durable readers. Called by the flush thread before it
    /// publishes `next`.
    pub(crate) fn fill_next_durable(&self, next: NextDurable, image: &SlotImage) {
        self.fixed().durable_slots[next.slot].fill(&image.encode());
    }

    /// Acknowledges everything up to `next` and `lsn`, after the sync (**I4**). The caller then
    /// notifies the waiters.
    ///
    /// `txn` is stored last, and fenced: durable readers check their pins against it, and waiters
    /// wait for it to change. If a logger dies before this store, the words disagree with their
    /// complements.
    pub(crate) fn publish_durable(&self, next: NextDurable, lsn: Lsn) {
        let fixed = self.fixed();
        let words = &fixed.durable;
        words.txn_check.store(!next.txn.as_u64(), Ordering::Release);
        words.lsn_check.store(!lsn.0, Ordering::Release);
        words.lsn.store(lsn.0, Ordering::Release);
        crash_point!("flush.half_published");
        fixed.logger_pins.publish(&words.txn, next);
    }

    /// Returns the image of the durable transaction. Unlike the durable position, its tail is never
    /// within a transaction that still streams. Returns `None` while the logger publishes another
    /// one.
    pub(crate) fn durable_image(&self) -> Option<SlotImage> {
        let (txn, _) = self.durable()?;
        let images = self.fixed().durable_slots.iter().map(|slot| self.decode_image(&slot.copy()));
        images.flatten().find(|image| image.txn == txn)
    }

    /// Pins the published durable transaction in `slot`, which the caller owns, and finds its
    /// image. Returns `None` if the logger has published another one meanwhile, or if the words are
    /// damaged until the logger mends them.
    #[inline]
    pub(crate) fn pin_durable(&self, slot: &StoreReader) -> Option<SlotImage> {
        let fixed = self.fixed();
        // Pins the published t, fences, and checks that t is still published
        // (`shared::protocols::pins`).
        let txn = slot.pin_by(&fixed.durable.txn, || {
            crash_point!("reader.durable_read");
        });
        crash_point!("reader.durable_pinned");
        fixed.durable_slots.iter().find_map(|slot| {
            let words = slot.copy();
            // The two slots are filled in turn: if t is still published, its slot was not refilled
            // while it was copied. If t was published twice, the other slot may contain t as well,
            // and may be refilled during the copy. Then the checksum of that copy fails, and the
            // other copy is valid.
            let unmoved = fixed.durable.txn.load(Ordering::SeqCst) == txn.as_u64();
            let is_t = unmoved && words[0] == txn.as_u64();
            is_t.then(|| self.decode_image(&words).ok()).flatten()
        })
    }
}
