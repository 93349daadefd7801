//! The words of a transaction that streams frames larger than the ring; see `txn::stream`. Written
//! by the owner of the writer lock.

use crate::KeyspaceId;
use crate::shared::protocols::atomic::Word64;
use std::sync::atomic::{AtomicU64, Ordering};
use untorn_wal::Lsn;

/// How far frames are published, and what they are charged.
#[repr(C)]
pub(crate) struct StreamWords {
    /// End of the readable frames; only grows, stored before they are readable.
    tail: AtomicU64,
    /// Log blocks charged up to `tail` or beyond. The next owner of the lock continues from here.
    reserved_blocks: AtomicU64,
    /// Log blocks charged up to `tail` or to a place before it. The logger grants by this.
    reserved_below: AtomicU64,
    /// Above all numbers that keyspaces were given, those of transactions that rolled back
    /// included.
    next_keyspace: AtomicU64,
}

impl StreamWords {
    /// By recovery: the stream begins at `lsn`. No other process has mapped the region.
    pub(super) fn begin_at(&self, lsn: Lsn) {
        self.tail.store(lsn.0, Ordering::Relaxed);
    }

    /// By recovery: the log ends at `lsn`.
    pub(crate) fn set_tail(&self, lsn: Lsn) {
        self.tail.store(lsn.0, Ordering::Release);
    }

    /// Publishes the frames up to `tail`, with which `reserved_blocks` are charged in all. Fenced,
    /// so that a notification may follow.
    ///
    /// | step | its owner dies after it |
    /// |---|---|
    /// | the charge is stored for the next owner | the next owner charges no less than is used |
    /// | the tail is stored | the logger grants too little until the next publication |
    /// | the charge is stored for the logger, which counts what lies below the tail as used up | done |
    pub(crate) fn append(&self, tail: Lsn, reserved_blocks: u64) {
        self.reserved_blocks.store(reserved_blocks, Ordering::Release);
        self.tail.store_fenced(tail.0);
        self.reserved_below.store(reserved_blocks, Ordering::Release);
    }

    /// The end of the published frames.
    #[inline]
    pub(crate) fn tail(&self) -> Lsn {
        Lsn(self.tail.load(Ordering::Acquire))
    }

    /// As [`StreamWords::tail`], by a thread that prepares its wait for it, or that has got a
    /// request. Sequentially consistent: the second half of Dekker's idiom, of which
    /// [`StreamWords::append`] is the first.
    pub(crate) fn tail_by_waiter(&self) -> Lsn {
        Lsn(self.tail.load(Ordering::SeqCst))
    }

    /// By the next owner of the writer lock: the end of the published frames, and what is charged
    /// up to there or beyond.
    #[inline]
    pub(crate) fn tail_and_reserved(&self) -> (Lsn, u64) {
        let tail = self.tail();
        (tail, self.reserved_blocks.load(Ordering::Acquire))
    }

    /// By the flush thread: what is charged up to the tail or to a place before it, and the tail.
    /// The charge is read first: if a stream moves in between, too little is granted, which the
    /// next round mends.
    pub(crate) fn reserved_and_tail(&self) -> (u64, Lsn) {
        let reserved_blocks = self.reserved_below.load(Ordering::Acquire);
        (reserved_blocks, self.tail())
    }

    /// By the owner of the writer lock: a number for a keyspace, at least `least`, that no other
    /// keyspace has been given. It is not given again after a roll-back: handles that were made
    /// there must not lead elsewhere. `None` if no number is left.
    pub(crate) fn take_keyspace_number(&self, least: u64) -> Option<KeyspaceId> {
        let number = least.max(self.next_keyspace.load(Ordering::Relaxed));
        self.next_keyspace.store(number.checked_add(1)?, Ordering::Relaxed);
        Some(KeyspaceId(number))
    }
}
