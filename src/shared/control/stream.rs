//! The words of a transaction that streams frames larger than the ring; see `txn::stream`. Written
//! by the owner of the writer lock.

use crate::KeyspaceId;
use crate::shared::protocols::atomic::Word64;
use std::sync::atomic::{AtomicU64, Ordering};
use untorn_wal::Lsn;

/// The position up to which frames are published, and the number of log blocks reserved for them.
#[repr(C)]
pub(crate) struct StreamWords {
    /// End of the readable frames. It only grows, and is stored before the frames are readable.
    tail: AtomicU64,
    /// Log blocks reserved up to `tail` or a later position. The next owner of the lock continues
    /// from here.
    reserved_blocks: AtomicU64,
    /// Log blocks reserved up to `tail` or an earlier position. The logger computes the credit from
    /// this number.
    reserved_below: AtomicU64,
    /// Above the numbers of all keyspaces created since the region began, including those of
    /// transactions that rolled back.
    next_keyspace: AtomicU64,
    /// The end of the newest record that refers to a logged extent. Stored before the record is
    /// published: the flush thread acquires the published tail and then loads this word, so it
    /// misses no such record. A writer that dies in between leaves a position beyond the tail,
    /// which makes the flush thread decode some records in vain.
    extents_end: AtomicU64,
    /// Bytes of values in logged extents so far, counted before their records are published; and
    /// the counts of those that are durable, and that a checkpoint contains.
    extent_bytes: AtomicU64,
    durable_extent_bytes: AtomicU64,
    checkpointed_extent_bytes: AtomicU64,
}

impl StreamWords {
    /// Begins the stream at `lsn`. Called by recovery; no other process has mapped the region.
    pub(super) fn begin_at(&self, lsn: Lsn) {
        self.tail.store(lsn.0, Ordering::Relaxed);
    }

    /// Records that the log ends at `lsn`. Called by recovery.
    pub(crate) fn set_tail(&self, lsn: Lsn) {
        self.tail.store(lsn.0, Ordering::Release);
    }

    /// Publishes the frames up to `tail`, with which `reserved_blocks` are reserved in total. The
    /// logger counts the log below the tail as used. Fenced, so that a notification may follow.
    ///
    /// | step | its owner dies after it |
    /// |---|---|
    /// | the next owner's reservation is stored | it reserves at least the used blocks |
    /// | the tail is stored | the logger grants too little until the next publication |
    /// | the logger's reservation is stored | done |
    pub(crate) fn append(&self, tail: Lsn, reserved_blocks: u64) {
        self.reserved_blocks.store(reserved_blocks, Ordering::Release);
        self.tail.store_fenced(tail.0);
        self.reserved_below.store(reserved_blocks, Ordering::Release);
    }

    /// Records that the record which ends at `end` and is to be published next refers to extents
    /// of `bytes` bytes. Called by the owner of the writer lock, and by recovery.
    pub(crate) fn note_extents(&self, end: Lsn, bytes: u64) {
        self.extents_end.store(end.0, Ordering::Release);
        self.extent_bytes.fetch_add(bytes, Ordering::Release);
    }

    /// Returns the end of the newest record that refers to a logged extent.
    pub(crate) fn extents_end(&self) -> Lsn {
        Lsn(self.extents_end.load(Ordering::Acquire))
    }

    /// Returns the bytes of values in logged extents, and how many of them are durable.
    pub(crate) fn extent_bytes(&self) -> (u64, u64) {
        let durable = self.durable_extent_bytes.load(Ordering::Acquire);
        (self.extent_bytes.load(Ordering::Acquire), durable)
    }

    /// Records how many bytes in extents are durable. Called by the flush thread.
    pub(crate) fn set_durable_extent_bytes(&self, bytes: u64) {
        self.durable_extent_bytes.store(bytes, Ordering::Release);
    }

    /// Returns the bytes of values in logged extents since the newest checkpoint.
    pub(crate) fn extent_bytes_since_checkpoint(&self) -> u64 {
        let checkpointed = self.checkpointed_extent_bytes.load(Ordering::Acquire);
        self.extent_bytes.load(Ordering::Acquire).saturating_sub(checkpointed)
    }

    /// Records how many bytes in extents the newest checkpoint contains, at least.
    pub(crate) fn set_checkpointed_extent_bytes(&self, bytes: u64) {
        self.checkpointed_extent_bytes.store(bytes, Ordering::Release);
    }

    /// Returns the end of the published frames.
    #[inline]
    pub(crate) fn tail(&self) -> Lsn {
        Lsn(self.tail.load(Ordering::Acquire))
    }

    /// Returns [`StreamWords::tail`] to a thread that has prepared its wait for it, or that has
    /// received a request. Sequentially consistent: the second half of Dekker's idiom, of which
    /// [`StreamWords::append`] is the first.
    pub(crate) fn tail_by_waiter(&self) -> Lsn {
        Lsn(self.tail.load(Ordering::SeqCst))
    }

    /// Returns the end of the published frames, and the blocks reserved up to there or beyond.
    /// Called by the next owner of the writer lock.
    #[inline]
    pub(crate) fn tail_and_reserved(&self) -> (Lsn, u64) {
        let tail = self.tail();
        (tail, self.reserved_blocks.load(Ordering::Acquire))
    }

    /// Returns the blocks reserved up to the tail or an earlier position, and the tail. Called by
    /// the flush thread. The reservation is read first: if a stream advances in between, the logger
    /// grants too little, which its next round corrects.
    pub(crate) fn reserved_and_tail(&self) -> (u64, Lsn) {
        let reserved_blocks = self.reserved_below.load(Ordering::Acquire);
        (reserved_blocks, self.tail())
    }

    /// Returns a number for a keyspace, at least `least`, that no other keyspace has been given.
    /// Called by the owner of the writer lock. The number is not given again after a roll-back,
    /// since a handle from the rolled-back transaction must not lead to another keyspace. Returns
    /// `None` if no number is left.
    pub(crate) fn take_keyspace_number(&self, least: u64) -> Option<KeyspaceId> {
        let number = least.max(self.next_keyspace.load(Ordering::Relaxed));
        self.next_keyspace.store(number.checked_add(1)?, Ordering::Relaxed);
        Some(KeyspaceId(number))
    }
}
