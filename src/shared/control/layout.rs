//! The layout of the words of `control`, and which process writes each.

use super::checkpoint::CheckpointWords;
use super::clients::ClientEntry;
use super::counters::Counters;
use super::deadlines::{DeadlineWords, FeedWords};
use super::durable::DurableWords;
use super::lock_word::LockWord;
use super::logger::LoggerWords;
use super::stream::StreamWords;
use crate::files::slot::SLOT_WORDS;
use crate::limits;
use crate::shared::cells;
use crate::shared::cells::CellsHead;
use crate::shared::latencies::LatencyHistograms;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::pins::{LoggerPins, ReaderSlot};
use crate::shared::protocols::slots::CommitSlot;
use crate::shared::readers::ReaderWords;
use std::mem::{offset_of, size_of};
use std::sync::atomic::AtomicU64;

/// The numbers of the region that lead to memory: the name and the offset of each. A number is
/// stored with its complement. For tests that damage a region.
pub const CHECKED_NUMBERS: &[(&str, u64)] = &[
    ("arena-pieces", offset_of!(Fixed, arena_bytes) as u64),
    ("ring-length", (offset_of!(Fixed, ring) + offset_of!(RingWords, len)) as u64),
    ("ring-reach", (offset_of!(Fixed, ring) + offset_of!(RingWords, reach)) as u64),
    ("client-entries", offset_of!(Fixed, clients_ready) as u64),
    // The word of the second chunk: the first chunk always exists.
    ("reader-chunk", (offset_of!(Fixed, readers) + offset_of!(ReaderWords, chunks) + 8) as u64),
];

/// The same numbers of the cells, for tests that forge them.
pub const CHECKED_CELL_NUMBERS: &[(&str, u64)] = &[
    ("cell-entries", (offset_of!(Fixed, cells) + cells::CAPACITY_AT) as u64),
    ("cell-bodies", (offset_of!(Fixed, cells) + cells::BODIES_BACKED_AT) as u64),
];

/// "untornC", and the version of this layout. This word and [`RegionIdentity`] are at the same
/// offsets in every version. In libraries of version 12 or older, a recovery does not remove the
/// memory mark ([`crate::files::memory_mark`]). Such a library must not recover a store whose
/// region a later logger would adopt.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"untornC\x0e");
/// The version of this layout.
pub(crate) const LAYOUT: u8 = MAGIC.to_le_bytes()[7];
/// The number of commit slots; the slot of a transaction is its sequence number modulo this.
pub(crate) const SLOTS: usize = 64;
/// The number of reader slots of a chunk: the table grows by this.
pub const READER_CHUNK: usize = 1024;

pub(crate) const CHUNK_BYTES: u64 = (READER_CHUNK * size_of::<ReaderSlot<Native>>()) as u64;

/// Keeps neighbours on separate cache lines.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct CacheLine<T>(pub(crate) T);

impl<T> std::ops::Deref for CacheLine<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// The store, the boot and the file that this region belongs to; written once, before the file gets
/// its name.
#[repr(C)]
pub(crate) struct RegionIdentity {
    pub(super) magic: AtomicU64,
    pub(super) store_id: [AtomicU64; 2],
    pub(super) boot_id: [AtomicU64; 2],
    /// The inode and device of the file itself: a copy of the file has others.
    pub(super) inode: AtomicU64,
    pub(super) device: AtomicU64,
    pub(super) page_size: AtomicU64,
    pub(super) max_size: AtomicU64,
    pub(super) ring_size: AtomicU64,
    pub(super) segment_size: AtomicU64,
    /// The random number of this region; the headers of the log's segments repeat it.
    pub(super) region: AtomicU64,
}

/// The offset of the region's inode, which its device follows. A test that copies a region stores
/// those of the copy.
pub const REGION_INODE_AT: u64 = (offset_of!(Fixed, identity) + offset_of!(RegionIdentity, inode)) as u64;

/// The offset of the flush thread's heartbeat, for a test that checks whether the thread rests.
pub const HEARTBEAT_AT: u64 = (offset_of!(Fixed, logger) + offset_of!(LoggerWords, heartbeat)) as u64;

/// The offset of the position up to which a flush is requested, for a test that checks whether a
/// waiter requested one.
pub const FLUSH_REQUEST_AT: u64 = (offset_of!(Fixed, logger) + offset_of!(LoggerWords, flush_request)) as u64;

/// The offsets of the images of commits: the slots of the newest transactions, and those of durable
/// ones. A test forges them.
pub const IMAGES_AT: [u64; 2] = [offset_of!(Fixed, slots) as u64, offset_of!(Fixed, durable_slots) as u64];

/// How much of the ring's range is in use. The ring begins small. In its first lap it doubles, up
/// to the ring size, before a record would wrap around. The growth moves no position, so nothing
/// needs to be flushed for it: see [`crate::shared::protocols::ring`]. The owner of the writer lock
/// grows the ring ([`super::Control::grow_ring`]):
///
/// | step | its owner dies here |
/// |---|---|
/// | zeros are written over the new range | nothing has changed; the next writer repeats it |
/// | `len` is stored | done |
///
/// If growing fails, `reach` becomes `len` for good, before any record wraps around: a ring that
/// has begun a second lap never grows. The flush thread reads `len` after a tail that it acquired,
/// so `len` covers every record below that tail.
#[repr(C)]
pub(crate) struct RingWords {
    /// The length in use, in pages of 4,096 bytes: a [`checked`] number.
    pub(super) len: AtomicU64,
    /// The length up to which the ring can still grow, in the same form.
    pub(super) reach: AtomicU64,
    /// The position at which the first lap begins, and its complement.
    pub(super) base: AtomicU64,
    pub(super) base_check: AtomicU64,
}

/// The incarnation of the next transactions. Each word is 0 or a [`checked`] number, and changes
/// only to the current incarnation.
#[repr(C)]
pub(crate) struct IncarnationWords {
    /// Stored by recovery. 0 until a logger has begun the region.
    pub(super) current: AtomicU64,
    /// The current incarnation, once the log durably records that it is used; stored by the logger.
    pub(super) stated: AtomicU64,
    /// The current incarnation, once a process requests that; stored by any process.
    pub(super) wanted: AtomicU64,
}

/// The part of fixed size.
#[repr(C)]
pub(crate) struct Fixed {
    pub(crate) identity: CacheLine<RegionIdentity>,
    /// The id of the newest visible transaction. Storing it is the publication of a commit.
    pub(in crate::shared) committed: CacheLine<AtomicU64>,
    pub(crate) writer: CacheLine<LockWord>,
    pub(crate) growth: CacheLine<LockWord>,
    pub(crate) stream: CacheLine<StreamWords>,
    pub(crate) ring: CacheLine<RingWords>,
    pub(super) incarnation: CacheLine<IncarnationWords>,
    pub(crate) deadlines: CacheLine<DeadlineWords>,
    pub(crate) durable: CacheLine<DurableWords>,
    pub(crate) logger: CacheLine<LoggerWords>,
    pub(crate) checkpoint: CacheLine<CheckpointWords>,
    pub(crate) feed: CacheLine<FeedWords>,
    /// The length of the arena's part that has blocks, since zeros were written to it, in units of
    /// [`limits::ARENA_SIZE_INITIAL`]. A [`checked`] number.
    pub(super) arena_bytes: CacheLine<AtomicU64>,
    /// The number of entries of the client table that have blocks. A [`checked`] number.
    pub(super) clients_ready: CacheLine<AtomicU64>,
    /// The words that locate the reader slots and record which are used.
    pub(crate) readers: ReaderWords,
    pub(crate) counters: CacheLine<Counters>,
    pub(crate) cells: CellsHead,
    /// Transactions that the logger pins for durable readers.
    pub(crate) logger_pins: LoggerPins<Native>,
    pub(super) slots: CacheLine<[CommitSlot<Native, SLOT_WORDS>; SLOTS]>,
    /// Copies of the images of durable transactions, at the indices of the logger's pins.
    pub(super) durable_slots: CacheLine<[CommitSlot<Native, SLOT_WORDS>; 2]>,
    /// Histograms of latencies.
    pub(crate) latencies: LatencyHistograms,
}

/// The offset of the client table.
pub(crate) const CLIENTS_AT: usize = size_of::<Fixed>().next_multiple_of(4096);
/// The offset of the ring.
pub(crate) const RING_AT: usize = CLIENTS_AT + limits::CLIENTS_MAX * size_of::<ClientEntry>();

/// The client table grows by this many entries: a page.
pub(super) const CLIENT_CHUNK: usize = 4096 / size_of::<ClientEntry>();
/// The unit of the ring's length.
pub(super) const RING_UNIT: u64 = 4096;

const _: () = {
    assert!(limits::CLIENTS_MAX.is_multiple_of(CLIENT_CHUNK));
    assert!(limits::RING_SIZE_MAX / RING_UNIT <= u32::MAX as u64 && limits::RING_SIZE_MIN.is_multiple_of(RING_UNIT));
    assert!(size_of::<ReaderSlot<Native>>() == 64);
    assert!(size_of::<ClientEntry>() == 64);
    assert!(size_of::<CommitSlot<Native, SLOT_WORDS>>() == SLOT_WORDS * 8 && SLOT_WORDS.is_multiple_of(8));
    assert!(offset_of!(Fixed, committed) == 128);
    assert!(RING_AT.is_multiple_of(4096));
    assert!((READER_CHUNK * size_of::<ReaderSlot<Native>>()).is_multiple_of(4096));
};

/// Returns a number that leads to memory, with its complement in the upper half, so that a flipped
/// bit is detected.
pub(crate) fn checked(number: u32) -> u64 {
    u64::from(number) | u64::from(!number) << 32
}

pub(crate) fn unchecked(word: u64) -> Option<u32> {
    let number = word as u32;
    (word == checked(number) || planted_bug!("number-without-complement")).then_some(number)
}
