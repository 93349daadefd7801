//! The layout of `control`, the region that all processes of a store share while one of them lives.
//!
//! Everything in it is an atomic: any process may write it at any time, and a flipped bit or a mad
//! neighbour must lead to an error, never to undefined behaviour. What leads a reader to memory (page
//! numbers, positions) is checked before use; what acknowledges carries a check of its own.
//!
//! | part | offset | what |
//! |---|---|---|
//! | [`Fixed`] | 0 | identity, commit slots, locks, watermarks, statistics, histograms |
//! | clients | [`CLIENTS_AT`] | one [`ClientEntry`] per process; grows within its reserved range |
//! | ring | [`RING_AT`] | log records on their way to the logger; doubles within its reserved range, see [`RingWords`] |
//! | readers | after the ring | one [`ReaderSlot`] per pinned snapshot; grows within its reserved range, see [`crate::shared::readers`] |
//! | cells | after that range | see [`crate::shared::cells`]; grows as well |
//!
//! The offsets are those of the parts' greatest sizes. What a part does not use yet is a hole of the file, and nothing leads there but a
//! word that is stored after its blocks were written with zeros: so no store into the mapping ever needs a block.
#![allow(unsafe_code)]

use crate::files::descriptor;
use crate::files::descriptor::FileId;
use crate::files::dir;
use crate::files::geometry::Geometry;
use crate::files::slot::{SLOT_WORDS, SlotImage};
use crate::shared::cells;
use crate::shared::cells::CellsHead;
use crate::shared::latencies::Latencies;
use crate::shared::memory::arena::Arena;
use crate::shared::memory::mapping::{MAPPING_ALIGN, MapOptions};
use crate::shared::memory::spans::Spans;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::lock;
use crate::shared::protocols::pins::{LoggerPins, ReaderSlot};
use crate::shared::protocols::ring::Ring;
use crate::shared::protocols::slots::{CommitSlot, Slots};
use crate::shared::readers::ReaderWords;
use crate::{Error, LimitKind, Result, TxnId, limits};
use std::fs::File;
use std::mem::{offset_of, size_of};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use untorn_wal::Lsn;
use untorn_wal::segment::SegmentHeader;

/// Where the region has numbers that lead to memory, each with its complement, by what they count: who damages a region for a test
/// damages these above all.
pub const CHECKED_NUMBERS: &[(&str, u64)] = &[
    ("arena-pieces", offset_of!(Fixed, arena_bytes) as u64),
    ("ring-length", (offset_of!(Fixed, ring) + offset_of!(RingWords, len)) as u64),
    ("ring-reach", (offset_of!(Fixed, ring) + offset_of!(RingWords, reach)) as u64),
    ("client-entries", offset_of!(Fixed, clients_ready) as u64),
    // Of the second chunk: the first one is there for good.
    ("reader-chunk", (offset_of!(Fixed, readers) + offset_of!(ReaderWords, chunks) + 8) as u64),
];

/// The same of the cells, for a test that forges them.
pub const CHECKED_CELL_NUMBERS: &[(&str, u64)] = &[
    ("cell-entries", (offset_of!(Fixed, cells) + cells::CAPACITY_AT) as u64),
    ("cell-bodies", (offset_of!(Fixed, cells) + cells::BODIES_BACKED_AT) as u64),
];

/// What a region needs whose words are wrong. The next open makes another one from the other files.
pub(crate) const REMEDY: &str = "stop all processes that have the store open, and open it again";

/// "untornC", and the version of this layout. These, and whose region it is, stand where they do in every version.
const MAGIC: u64 = u64::from_le_bytes(*b"untornC\x0c");
/// The version of this layout.
pub(crate) const LAYOUT: u8 = MAGIC.to_le_bytes()[7];
/// Commit slots; the slot of a transaction is its sequence number modulo this.
pub(crate) const SLOTS: usize = 64;
/// Reader slots of a chunk: the table grows by this.
pub const READER_CHUNK: usize = 1024;

pub(crate) const CHUNK_BYTES: u64 = (READER_CHUNK * size_of::<ReaderSlot<Native>>()) as u64;

/// Bytes that are copied at a time when the region moves to another file.
const COPY_BYTES: u64 = 64 << 10;

/// Keeps neighbours out of each other's cache line.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct CacheLine<T>(pub(crate) T);

impl<T> std::ops::Deref for CacheLine<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Who and what this region belongs to; written once, before the file gets its name.
#[repr(C)]
pub(crate) struct RegionIdentity {
    magic: AtomicU64,
    store_id: [AtomicU64; 2],
    boot_id: [AtomicU64; 2],
    /// The file's own inode and device: a copied one has others.
    inode: AtomicU64,
    device: AtomicU64,
    page_size: AtomicU64,
    max_size: AtomicU64,
    ring_size: AtomicU64,
    segment_size: AtomicU64,
    /// Names the life of the store that this region belongs to: the headers of the log's segments repeat it.
    region: AtomicU64,
}

/// Where the region says which inode it is, and then on which device: who copies one for a test makes it the copy's own.
pub const REGION_INODE_AT: u64 = (offset_of!(Fixed, identity) + offset_of!(RegionIdentity, inode)) as u64;

/// Where the region counts the rounds of the flush thread, for a test that looks whether it rests.
pub const HEARTBEAT_AT: u64 = (offset_of!(Fixed, logger) + offset_of!(LoggerWords, heartbeat)) as u64;

/// Up to where the region says that the log is to be flushed at once, for a test that looks whether a waiter asked.
pub const FLUSH_REQUEST_AT: u64 = (offset_of!(Fixed, logger) + offset_of!(LoggerWords, flush_request)) as u64;

/// Where the region has the images of commits: the slots of the newest transactions, and then those of durable ones. A test
/// forges them.
pub const IMAGES_AT: [u64; 2] = [offset_of!(Fixed, slots) as u64, offset_of!(Fixed, durable_slots) as u64];

/// A lock of [`crate::shared::protocols::lock`], and who holds it, for people to read.
#[repr(C)]
pub(crate) struct LockWord {
    pub(crate) word: AtomicU64,
    pub(crate) holder_since_ns: AtomicU64,
    pub(crate) event: AtomicU32,
    pub(crate) holder_pid: AtomicU32,
    /// Of the writer lock.
    pub(crate) urgent: lock::Urgent<Native>,
}

impl LockWord {
    /// The events of a lock whose waiters have classes: the writer lock.
    pub(crate) fn events(&self) -> lock::EventCounts<'_, Native> {
        lock::EventCounts::two(&self.urgent, &self.event)
    }
}

/// A transaction that streams frames larger than the ring; see `txn::stream`.
#[repr(C)]
pub(crate) struct StreamWords {
    /// End of the readable frames; only grows, stored before they are readable.
    pub(crate) tail: AtomicU64,
    /// Log blocks charged up to `tail` or beyond; stored before `tail`. The next owner of the lock goes on from here.
    pub(crate) reserved_blocks: AtomicU64,
    /// Log blocks charged up to `tail` or to a place before it; stored after `tail`. The logger grants by this.
    pub(crate) reserved_below: AtomicU64,
    /// Above all numbers that keyspaces were given, those of transactions that rolled back included.
    pub(crate) next_keyspace: AtomicU64,
}

/// How much of the ring's range is in use. The ring begins small. In its first lap it doubles, up to the ring size, before a
/// record would wrap around. No position moves then, so nothing needs to be flushed for it: see
/// [`crate::shared::protocols::ring`]. The owner of the writer lock grows the ring ([`Control::grow_ring`]):
///
/// | step | its owner dies here |
/// |---|---|
/// | zeros are written over the range that is added | nothing has changed; the next writer writes them again |
/// | `len` is stored | done |
///
/// If that fails, `reach` becomes `len` for good, before any record wraps around: a ring that has begun a second lap never
/// grows. The flush thread reads `len` after a tail that it acquired, so `len` covers every record below that tail.
#[repr(C)]
pub(crate) struct RingWords {
    /// The length in use, in pages of 4,096 bytes: a [`checked`] number.
    len: AtomicU64,
    /// The length up to which the ring can still grow, likewise.
    reach: AtomicU64,
    /// The position at which the first lap begins, and its complement.
    base: AtomicU64,
    base_check: AtomicU64,
}

/// The incarnation of the transactions to come. All are [`checked`] numbers, and none changes but to the current one.
#[repr(C)]
pub(crate) struct IncarnationWords {
    /// Stored by recovery, before any process can join.
    current: AtomicU64,
    /// The current one once the log states durably that it is used; stored by the logger.
    stated: AtomicU64,
    /// The current one once a process wants that; stored by any.
    wanted: AtomicU64,
}

/// By when what is published is to be durable. A commit stands in one of these, before its publication.
#[repr(C)]
pub(crate) struct DeadlineWords {
    /// The end of the newest commit of which the flush policy decides when it is flushed; stored by the owner of the writer lock.
    /// One that dies before its publication leaves it further than the log reaches; the next one that commits sets it right.
    pub(crate) policy_tail: AtomicU64,
    /// How urgent the most urgent of the others is that no flush has taken; see [`crate::shared::protocols::deadline`].
    pub(crate) urgency: AtomicU64,
    /// When an urgent commit last asked for the writer lock, on the monotonic clock. While that is not long ago, the others publish no more
    /// than a share ahead of what is durable.
    pub(crate) urgent_asked_ns: AtomicU64,
}

/// How far the log is durable. Written by the logger alone.
#[repr(C)]
pub(crate) struct DurableWords {
    pub(crate) txn: AtomicU64,
    /// The complement of `txn`: an acknowledgement needs both.
    pub(crate) txn_check: AtomicU64,
    pub(crate) lsn: AtomicU64,
    pub(crate) lsn_check: AtomicU64,
    /// Log blocks that may be charged before a writer has to wait.
    pub(crate) block_credit: AtomicU64,
    pub(crate) event: AtomicU32,
}

/// What clients ask of the logger, and what it says of itself.
#[repr(C)]
pub(crate) struct LoggerWords {
    /// The flush thread listens here.
    pub(crate) event: AtomicU32,
    /// The flush thread wants to be woken when the log's tail has come here; see [`crate::shared::protocols::event_count::notify_from`].
    pub(crate) wake_from: AtomicU64,
    /// The flush thread wants to be woken for a commit that is so urgent; see [`crate::shared::protocols::deadline`].
    pub(crate) wake_urgency: AtomicU64,
    /// The background, the checkpoint and the main thread listen here.
    pub(crate) background: AtomicU32,
    /// The log is to be flushed up to here at once.
    pub(crate) flush_request: AtomicU64,
    /// A checkpoint of at least this transaction is wanted.
    pub(crate) checkpoint_request: AtomicU64,
    /// Not 0: the logger is to leave.
    pub(crate) stop: AtomicU32,
    pub(crate) pid: AtomicU32,
    /// Kind of flush policy and its argument.
    pub(crate) policy: AtomicU64,
    pub(crate) policy_argument: AtomicU64,
    pub(crate) idle_ms: AtomicU64,
    pub(crate) checkpoint_bytes: AtomicU64,
    /// What of the log is kept for those who follow it.
    pub(crate) retain_bytes: AtomicU64,
    pub(crate) retain_ms: AtomicU64,
    /// Counts those who found the disk full and ask for what is kept, and up to whom that was done.
    pub(crate) yield_request: AtomicU64,
    pub(crate) yielded: AtomicU64,
    /// Blocks that a waiting writer needs to be granted.
    pub(crate) log_request: AtomicU64,
    /// The number of the segment that was started last; stored after its header is durable.
    pub(crate) segment: AtomicU64,
    /// Counts the flush thread's rounds: a living logger that doesn't move it is stalled.
    pub(crate) heartbeat: AtomicU64,
    /// When the logger started, on the monotonic clock.
    pub(crate) started_ns: AtomicU64,
    /// On the monotonic clock, a time such that what is visible now and not durable is younger, or not much older: see
    /// [`Stats::lag_ns`](crate::Stats::lag_ns).
    pub(crate) durable_as_of_ns: AtomicU64,
    /// Counts the times that the log could not grow, and the error number of the last one.
    pub(crate) log_failures: AtomicU32,
    pub(crate) log_errno: AtomicU32,
    /// Sticky: see [`Poison`].
    pub(crate) poison: AtomicU32,
    /// The error number behind `poison`.
    pub(crate) poison_errno: AtomicU32,
}

/// Why a store refuses writes until it is opened anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Poison {
    /// The log can be written no more.
    Log = 1,
    /// A sync of the arena failed; what the page cache says of it can't be trusted.
    Arena = 2,
    /// The checkpoint's header could not be written.
    Header = 3,
}

/// The checkpoints: C the newest started, K the newest finished.
#[repr(C)]
pub(crate) struct CheckpointWords {
    pub(crate) started: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) finished_lsn: AtomicU64,
    /// From where the log is replayed after `started`.
    pub(crate) started_lsn: AtomicU64,
    pub(crate) serial: AtomicU64,
    /// Bumped when `finished` moves, and when an attempt fails.
    pub(crate) event: AtomicU32,
    /// Not 0: a checkpoint of the transaction `finished` has started once more, for a new header.
    pub(crate) again: AtomicU32,
    /// Copy of the image that `started` names, so that a successor writes that very header.
    pub(crate) image: [AtomicU64; SLOT_WORDS],
    /// Attempts that failed, and what the last of them met: an error number, or 0 for damage, and its place.
    pub(crate) failures: AtomicU64,
    pub(crate) failure_errno: AtomicU64,
    pub(crate) failure_offset: AtomicU64,
}

/// Those who follow the log. Writers look at nothing here: the flush thread rings for them.
#[repr(C)]
pub(crate) struct FeedWords {
    /// Followers listen here.
    pub(crate) event: AtomicU32,
    _reserved: AtomicU32,
    /// Until then, on the monotonic clock, somebody follows what is visible and wants to hear of each commit, also of those
    /// that need no flush yet: the flush thread looks for them more often, and no writer does anything for it. A follower
    /// renews it at each nap, so it ends with the last of them.
    pub(crate) visible_until_ns: AtomicU64,
}

/// Counters for `stats`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) fsyncs: AtomicU64,
    pub(crate) wal_bytes: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) checkpoint_pages: AtomicU64,
    pub(crate) lock_take_overs: AtomicU64,
    pub(crate) reaped_clients: AtomicU64,
    pub(crate) reaped_readers: AtomicU64,
    pub(crate) logger_starts: AtomicU64,
    pub(crate) wal_segments: AtomicU64,
    pub(crate) wal_spares: AtomicU64,
    pub(crate) wal_kept: AtomicU64,
    /// The oldest position of the log that is kept, for recovery or for followers. `u64::MAX`: none
    /// is.
    pub(crate) wal_oldest: AtomicU64,
    pub(crate) flush_ns: AtomicU64,
    /// Commits that have become durable, and the flushes that made them so.
    pub(crate) acknowledged: AtomicU64,
    pub(crate) flushes: AtomicU64,
    /// When the region was made, by the clock on the wall, in seconds since 1970.
    pub(crate) began_unix_seconds: AtomicU64,
    /// Commits with a deadline, and those whose caller was told before it, and after it.
    pub(crate) deadline_commits: AtomicU64,
    pub(crate) deadlines_met: AtomicU64,
    pub(crate) deadlines_missed: AtomicU64,
    /// What the flush thread expects of a flush, and of being woken.
    pub(crate) flush_estimate_ns: AtomicU64,
    pub(crate) wake_estimate_ns: AtomicU64,
}

/// Everything of fixed size.
#[repr(C)]
pub(crate) struct Fixed {
    pub(crate) identity: CacheLine<RegionIdentity>,
    /// THE word: the id of the newest visible transaction. Storing it is the publication.
    pub(crate) committed: CacheLine<AtomicU64>,
    pub(crate) writer: CacheLine<LockWord>,
    pub(crate) growth: CacheLine<LockWord>,
    pub(crate) stream: CacheLine<StreamWords>,
    pub(crate) ring: CacheLine<RingWords>,
    incarnation: CacheLine<IncarnationWords>,
    pub(crate) deadlines: CacheLine<DeadlineWords>,
    pub(crate) durable: CacheLine<DurableWords>,
    pub(crate) logger: CacheLine<LoggerWords>,
    pub(crate) checkpoint: CacheLine<CheckpointWords>,
    pub(crate) feed: CacheLine<FeedWords>,
    /// How much of the arena has been written with zeros, in units of [`limits::ARENA_SIZE_INITIAL`]: its blocks are there. A
    /// [`checked`] number.
    pub(crate) arena_bytes: CacheLine<AtomicU64>,
    /// Entries of the client table whose blocks are there. A [`checked`] number.
    clients_ready: CacheLine<AtomicU64>,
    /// What tells where reader slots are, and which are used.
    pub(crate) readers: ReaderWords,
    pub(crate) counters: CacheLine<Counters>,
    pub(crate) cells: CellsHead,
    /// Transactions that the logger pins for durable readers.
    pub(crate) logger_pins: LoggerPins<Native>,
    pub(crate) slots: CacheLine<[CommitSlot<Native, SLOT_WORDS>; SLOTS]>,
    /// Copies of the images of durable transactions, in the places of the logger's pins.
    pub(crate) durable_slots: CacheLine<[CommitSlot<Native, SLOT_WORDS>; 2]>,
    /// How long things take.
    pub(crate) latencies: Latencies,
}

/// One process.
#[repr(C, align(64))]
pub(crate) struct ClientEntry {
    /// Its client id; 0 is a free entry.
    pub(crate) owner: AtomicU64,
    pub(crate) pid: AtomicU64,
    pub(crate) since_ns: AtomicU64,
    pub(crate) commits: AtomicU64,
    /// The newest transaction when it joined, so it has no handle to what was dropped before that.
    pub(crate) since_txn: AtomicU64,
}

/// Offset of the client table.
pub(crate) const CLIENTS_AT: usize = size_of::<Fixed>().next_multiple_of(4096);
/// Offset of the ring.
pub(crate) const RING_AT: usize = CLIENTS_AT + limits::CLIENTS_MAX * size_of::<ClientEntry>();

/// The client table grows by this many entries: a page.
const CLIENT_CHUNK: usize = 4096 / size_of::<ClientEntry>();
/// The unit of the ring's length.
const RING_UNIT: u64 = 4096;

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

/// A number that leads to memory, with its complement in the upper half: where a file's blocks end must not be
/// a flipped bit's word.
pub(crate) fn checked(number: u32) -> u64 {
    u64::from(number) | u64::from(!number) << 32
}

pub(crate) fn unchecked(word: u64) -> Option<u32> {
    let number = word as u32;
    (word == checked(number) || planted_bug!("number-without-complement")).then_some(number)
}

/// The mapped region.
pub(crate) struct Control {
    /// The first span has all but the cells' copies.
    spans: Spans,
    ring_size: usize,
    page_size: u64,
    /// The mapped arena, which knows how long its file is.
    arena: OnceLock<Arc<Arena>>,
    /// Bytes of the arena's file that this process has found to be there. The file never shrinks while a process maps it.
    arena_known: AtomicU64,
    /// Where the parts of this file end that this process has found to be there: entries of cells, and their copies.
    pub(crate) cell_table_known: AtomicU64,
    pub(crate) cell_bodies_known: AtomicU64,
    /// The chunks of reader slots that this process has found ready, a bit for each: they are so for ever.
    pub(crate) readers_known: AtomicU64,
    /// Entries of the client table that this process has found ready: they are so for ever.
    clients_known: AtomicUsize,
}

impl Control {
    fn readers_at(ring_size: usize) -> usize {
        RING_AT + ring_size
    }

    /// Where the reader slots begin.
    #[inline]
    pub(crate) fn readers_begin(&self) -> usize {
        Self::readers_at(self.ring_size)
    }

    /// Where the range that is reserved for readers ends.
    pub(crate) fn readers_end(&self) -> usize {
        Self::file_len(self.ring_size, limits::READERS_MAX)
    }

    pub(crate) fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Where the region lies, but for the cells' copies.
    #[inline]
    pub(crate) fn base(&self) -> *const u8 {
        self.spans.first().as_ptr()
    }

    /// Least length of the file while it has `capacity` reader slots.
    fn file_len(ring_size: usize, capacity: usize) -> usize {
        Self::readers_at(ring_size) + capacity * size_of::<ReaderSlot<Native>>()
    }

    /// Fills a new file with a region that nobody uses yet.
    pub(crate) fn format(file: &File, store_id: [u8; 16], geometry: &Geometry, boot_id: [u64; 2]) -> Result<Control> {
        let first_clients_end = CLIENTS_AT + CLIENT_CHUNK * size_of::<ClientEntry>();
        let ring_end = RING_AT as u64 + limits::RING_SIZE_MIN;
        let readers_at = Self::readers_at(geometry.ring_size as usize) as u64;
        for range in [0..first_clients_end as u64, RING_AT as u64..ring_end, readers_at..readers_at + CHUNK_BYTES] {
            write_zeros(file, range.start, range.end - range.start, dir::CONTROL)?;
        }
        let control = Self::map(file, geometry, true)?;
        let identity = &control.fixed().identity;
        let id = [0, 8].map(|at| u64::from_le_bytes(store_id[at..at + 8].try_into().expect("8")));
        for i in 0..2 {
            identity.store_id[i].store(id[i], Ordering::Relaxed);
            identity.boot_id[i].store(boot_id[i], Ordering::Relaxed);
        }
        let (device, inode) = file_id(file)?;
        identity.inode.store(inode, Ordering::Relaxed);
        identity.device.store(device, Ordering::Relaxed);
        identity.page_size.store(geometry.page_size as u64, Ordering::Relaxed);
        identity.max_size.store(geometry.max_size, Ordering::Relaxed);
        identity.ring_size.store(geometry.ring_size, Ordering::Relaxed);
        identity.segment_size.store(geometry.segment_size, Ordering::Relaxed);
        control.begin_region()?;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        control.fixed().counters.began_unix_seconds.store(began.as_secs(), Ordering::Relaxed);
        identity.magic.store(MAGIC, Ordering::Relaxed);
        control.fixed().ring.len.store(checked((limits::RING_SIZE_MIN / RING_UNIT) as u32), Ordering::Relaxed);
        control.fixed().ring.reach.store(checked((geometry.ring_size / RING_UNIT) as u32), Ordering::Relaxed);
        control.begin_ring(Lsn::ZERO);
        control.fixed().clients_ready.store(checked(CLIENT_CHUNK as u32), Ordering::Release);
        control.format_readers();
        control.format_cells();
        Ok(control)
    }

    /// The incarnation of the transactions to come: that of the newest one, or a later one after a loss.
    #[inline]
    pub(crate) fn incarnation(&self) -> Result<u32> {
        let word = unchecked(self.fixed().incarnation.current.load(Ordering::Relaxed));
        // One before that of the newest transaction would give ids that go backwards.
        word.filter(|incarnation| *incarnation >= self.committed().incarnation()).ok_or_else(|| {
            let what = format!("the incarnation of the store is damaged; {REMEDY}");
            Error::corrupt(dir::CONTROL, offset_of!(Fixed, incarnation) as u64, what)
        })
    }

    /// By recovery: begins with this incarnation. `is_stated`: the log states that it is used.
    pub(crate) fn begin_incarnation(&self, incarnation: u32, is_stated: bool) {
        let words = &self.fixed().incarnation;
        words.current.store(checked(incarnation), Ordering::Release);
        words.stated.store(if is_stated { checked(incarnation) } else { 0 }, Ordering::Release);
    }

    /// Whether the log states that the current incarnation is used. A flipped bit in either word means no.
    pub(crate) fn is_incarnation_stated(&self) -> bool {
        let words = &self.fixed().incarnation;
        words.stated.load(Ordering::Acquire) == words.current.load(Ordering::Acquire)
    }

    /// Asks the logger to state that the current incarnation is used.
    pub(crate) fn want_incarnation_stated(&self) {
        let words = &self.fixed().incarnation;
        words.wanted.store(words.current.load(Ordering::Acquire), Ordering::SeqCst);
    }

    /// By the logger: the incarnation to state.
    pub(crate) fn incarnation_to_state(&self) -> Option<u32> {
        let words = &self.fixed().incarnation;
        let current = words.current.load(Ordering::Acquire);
        let is_wanted = words.wanted.load(Ordering::SeqCst) == current && !self.is_incarnation_stated();
        unchecked(current).filter(|_| is_wanted)
    }

    /// By the logger: it is stated, durably.
    pub(crate) fn incarnation_stated(&self, incarnation: u32) {
        self.fixed().incarnation.stated.store(checked(incarnation), Ordering::SeqCst);
    }

    /// Moves this region, which `from` holds, to the blocks of another file: `to` is the region's file afterwards.
    ///
    /// Recovery does this with a region that no other process has mapped, and from its only thread.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if `to` lacks blocks, and there is no room for them; the region is as it was.
    pub(crate) fn move_to(&self, from: &File, to: &File) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let (device, inode) = file_id(to)?;
        self.fixed().identity.inode.store(inode, Ordering::Relaxed);
        self.fixed().identity.device.store(device, Ordering::Relaxed);
        let readers_end = self.ready_readers_end() as u64;
        let clients_end = (CLIENTS_AT + std::mem::size_of_val(self.clients())) as u64;
        let ring_end = RING_AT as u64 + self.ring_len()?;
        let parts = [0..clients_end, RING_AT as u64..ring_end, self.readers_begin() as u64..readers_end];
        let mut piece = vec![0; COPY_BYTES as usize];
        for range in parts.into_iter().chain(self.cells_ranges()?) {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(COPY_BYTES) as usize;
                from.read_exact_at(&mut piece[..len], at).map_err(Error::io("read of the new control"))?;
                write_blocks(to, at, &piece[..len], dir::CONTROL, range.end - at)?;
                at += len as u64;
            }
        }
        self.spans.replace(to.as_fd())
    }

    fn map(file: &File, geometry: &Geometry, writable: bool) -> Result<Control> {
        let ring_size = geometry.ring_size as usize;
        let cells_at = Self::file_len(ring_size, limits::READERS_MAX) as u64;
        let [reserve, max_len] =
            [cells::TABLE_BYTES, cells::RESERVED_BYTES].map(|len| (cells_at + len).next_multiple_of(MAPPING_ALIGN));
        let options = MapOptions { reserve, writable, in_core_dumps: false };
        // No less than all of the first span: what lies in it is found without a check.
        let spans = Spans::new(file.as_fd(), dir::CONTROL, options, reserve, max_len)?;
        Ok(Control {
            spans,
            ring_size,
            page_size: geometry.page_size as u64,
            arena: OnceLock::new(),
            arena_known: AtomicU64::new(0),
            cell_table_known: AtomicU64::new(0),
            cell_bodies_known: AtomicU64::new(0),
            readers_known: AtomicU64::new(1),
            clients_known: AtomicUsize::new(CLIENT_CHUNK),
        })
    }

    /// Maps an existing region; `None` if it is one of the past, of another store or another file.
    pub(crate) fn attach(
        file: &File,
        store_id: [u8; 16],
        geometry: &Geometry,
        boot_id: [u64; 2],
    ) -> Result<Option<Control>> {
        Self::map_if_it_fits(file, store_id, geometry, boot_id, true)
    }

    /// As [`Control::attach`], to read from only: a store into it would end the process, so nothing may be called on it but
    /// what loads.
    ///
    /// Of memory that is mapped for reading only, the language promises no more than relaxed loads of up to a pointer's size, since a stronger
    /// one could be a compare-and-exchange on some target. On those that this library is for (x86-64, AArch64, 64-bit RISC-V) every atomic
    /// load of 8 bytes or fewer is a load, with barriers if need be, whatever its ordering. A port to another one has to look at this.
    pub(crate) fn look_into(
        file: &File,
        store_id: [u8; 16],
        geometry: &Geometry,
        boot_id: [u64; 2],
    ) -> Result<Option<Control>> {
        Self::map_if_it_fits(file, store_id, geometry, boot_id, false)
    }

    /// The version of the layout of a region of this store and this boot, if it is another than this library's.
    pub(crate) fn foreign_layout(file: &File, store_id: [u8; 16], boot_id: [u64; 2]) -> Result<Option<u8>> {
        use std::os::unix::fs::FileExt;
        let mut found = [0; offset_of!(RegionIdentity, inode)];
        match file.read_exact_at(&mut found, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(Error::io("read of control"))?,
        }
        let (magic, rest) = found.split_at(offset_of!(RegionIdentity, store_id));
        let boot_id = boot_id.map(u64::to_ne_bytes);
        let is_foreign = magic[..7] == MAGIC.to_le_bytes()[..7] && magic[7] != LAYOUT;
        let is_this_stores = rest[..16] == store_id && rest[16..] == *boot_id.as_flattened();
        Ok((is_foreign && is_this_stores).then_some(magic[7]))
    }

    fn map_if_it_fits(
        file: &File,
        store_id: [u8; 16],
        geometry: &Geometry,
        boot_id: [u64; 2],
        writable: bool,
    ) -> Result<Option<Control>> {
        let len = file.metadata().map_err(Error::io("stat of control"))?.len();
        if len < Self::file_len(geometry.ring_size as usize, READER_CHUNK) as u64 {
            return Ok(None);
        }
        let control = Self::map(file, geometry, writable)?;
        let identity = &control.fixed().identity;
        let id = [0, 8].map(|at| u64::from_le_bytes(store_id[at..at + 8].try_into().expect("8")));
        let fits = identity.magic.load(Ordering::Relaxed) == MAGIC
            && (0..2).all(|i| {
                identity.store_id[i].load(Ordering::Relaxed) == id[i]
                    && identity.boot_id[i].load(Ordering::Relaxed) == boot_id[i]
            })
            && identity.is_of(file)?
            && identity.page_size.load(Ordering::Relaxed) == geometry.page_size as u64
            && identity.max_size.load(Ordering::Relaxed) == geometry.max_size
            && identity.ring_size.load(Ordering::Relaxed) == geometry.ring_size
            && identity.segment_size.load(Ordering::Relaxed) == geometry.segment_size
            && control.is_covered_by(file)?;
        Ok(fits.then_some(control))
    }

    /// Whether the file has all that the region's words say it has. Its length is asked for last: others may be
    /// growing it, and say so when they have.
    fn is_covered_by(&self, file: &File) -> Result<bool> {
        let readers_end = self.ready_readers_end() as u64;
        let Ok(cells_end) = self.cells_end() else { return Ok(false) };
        let len = file.metadata().map_err(Error::io("stat of control"))?.len();
        Ok(readers_end.max(cells_end) <= len)
    }

    /// The part of fixed size.
    #[inline]
    pub(crate) fn fixed(&self) -> &Fixed {
        // SAFETY: the mapping is longer than `Fixed`, page-aligned, and lives as long as `self`; the file
        // was checked to cover it. `Fixed` consists of atomics alone, for which every bit pattern is
        // valid and which other processes may change at will.
        unsafe { &*self.base().cast::<Fixed>() }
    }

    /// The table of processes, as far as it has grown. If the word that tells is damaged: as far as this process has seen.
    pub(crate) fn clients(&self) -> &[ClientEntry] {
        let known = self.clients_known.load(Ordering::Relaxed);
        let ready = unchecked(self.fixed().clients_ready.load(Ordering::Acquire)).map_or(0, |ready| ready as usize);
        let is_sound = ready.is_multiple_of(CLIENT_CHUNK) && ready <= limits::CLIENTS_MAX;
        let ready = if is_sound { ready.max(known) } else { known };
        if ready > known {
            self.clients_known.fetch_max(ready, Ordering::Relaxed);
        }
        // SAFETY: as in `fixed`; the table lies within the file, which has at least `RING_AT` bytes, and the blocks of these
        // entries were written before the word said so.
        unsafe {
            let first = self.base().add(CLIENTS_AT).cast::<ClientEntry>();
            std::slice::from_raw_parts(first, ready)
        }
    }

    /// Makes the client table larger than `entries`: false if it can't be. By the holder of the initialisation lock. One that dies
    /// in it leaves the table as it was.
    ///
    /// # Errors
    /// [`Error::DiskFull`].
    pub(crate) fn grow_clients(&self, entries: usize, file: &File) -> Result<bool> {
        if entries != self.clients().len() {
            return Ok(true);
        }
        if entries >= limits::CLIENTS_MAX {
            return Ok(false);
        }
        let from = (CLIENTS_AT + entries * size_of::<ClientEntry>()) as u64;
        write_zeros(file, from, (CLIENT_CHUNK * size_of::<ClientEntry>()) as u64, dir::CONTROL)?;
        crash_point!("clients.zeroed");
        // Release: a process that sees the entries finds them in the file.
        self.fixed().clients_ready.store(checked((entries + CLIENT_CHUNK) as u32), Ordering::Release);
        Ok(true)
    }

    /// Lets the ring's first lap begin at `base`. Before any record is put into it.
    pub(crate) fn begin_ring(&self, base: Lsn) {
        let words = &self.fixed().ring;
        words.base.store(base.0, Ordering::Release);
        words.base_check.store(!base.0, Ordering::Release);
    }

    /// The ring's length in use, in bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the word is damaged: records would be put in the wrong place.
    #[inline]
    pub(crate) fn ring_len(&self) -> Result<u64> {
        self.ring_bytes(&self.fixed().ring.len)
    }

    /// The length to which the ring can grow, in bytes: its length in use, once it can't.
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    #[inline]
    pub(crate) fn ring_reach(&self) -> Result<u64> {
        self.ring_bytes(&self.fixed().ring.reach)
    }

    #[inline]
    fn ring_bytes(&self, pages: &AtomicU64) -> Result<u64> {
        let pages = unchecked(pages.load(Ordering::Acquire));
        let len = pages.map_or(0, |pages| u64::from(pages) * RING_UNIT);
        if len.is_power_of_two() && len >= limits::RING_SIZE_MIN && len <= self.ring_size as u64 {
            return Ok(len);
        }
        Err(damaged_ring())
    }

    /// The part of the ring that is in use.
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    #[inline]
    pub(crate) fn ring(&self) -> Result<Ring<'_, Native>> {
        let len = self.ring_len()? as usize;
        let base = self.ring_base()?;
        // SAFETY: as in `fixed`; the file was checked to hold the whole ring, and the blocks of the part in use were written
        // before the word said so.
        let words = unsafe {
            let first = self.base().add(RING_AT).cast::<AtomicU64>();
            std::slice::from_raw_parts(first, len / 8)
        };
        Ok(Ring::new(words, base.0))
    }

    /// The first position that the ring has held.
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    #[inline]
    pub(crate) fn ring_base(&self) -> Result<Lsn> {
        let words = &self.fixed().ring;
        let base = words.base.load(Ordering::Acquire);
        if words.base_check.load(Ordering::Acquire) == !base { Ok(Lsn(base)) } else { Err(damaged_ring()) }
    }

    /// Doubles the ring until it reaches position `end` in its first lap. Returns the length in use. If the device or the process
    /// lacks what this takes, the ring keeps its length for good. By the owner of the writer lock, see [`RingWords`].
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    pub(crate) fn grow_ring(&self, end: Lsn, open_file: impl FnOnce() -> Result<File>) -> Result<u64> {
        let (len, reach) = (self.ring_len()?, self.ring_reach()?);
        let needed = end.bytes_since(self.ring_base()?);
        if needed <= len || len >= reach {
            return Ok(len);
        }
        let target = needed.checked_next_power_of_two().unwrap_or(reach).min(reach);
        let words = &self.fixed().ring;
        let zeroed = open_file().and_then(|file| write_zeros(&file, RING_AT as u64 + len, target - len, dir::CONTROL));
        if let Err(error) = zeroed {
            tracing::warn!(%error, len, "the log's ring keeps its length until the store is opened anew");
            words.reach.store(checked((len / RING_UNIT) as u32), Ordering::Release);
            return Ok(len);
        }
        crash_point!("ring.zeroed");
        words.len.store(checked((target / RING_UNIT) as u32), Ordering::Release);
        crash_point!("ring.grown");
        Ok(target)
    }

    /// Notes the arena's mapping, whose file the region's words are held against from now on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the region counts more bytes of the arena than its file has.
    pub(crate) fn set_arena(&self, arena: Arc<Arena>) -> Result<()> {
        let _ = self.arena.set(arena);
        // A damaged word is written anew by the next process that makes the arena grow.
        self.arena_bytes().map_or(Ok(()), |backed| self.check_arena_file(backed))
    }

    /// As [`Control::arena_bytes`], held against the length of the arena's file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the word is damaged, or counts more than the file has: a store there would be a SIGBUS.
    pub(crate) fn checked_arena_bytes(&self) -> Result<u64> {
        let Some(backed) = self.arena_bytes() else {
            return Err(Error::corrupt(
                dir::CONTROL,
                offset_of!(Fixed, arena_bytes) as u64,
                format!("the length of the arena is damaged; {REMEDY}"),
            ));
        };
        self.check_arena_file(backed)?;
        Ok(backed)
    }

    /// An error if the arena's file is shorter than `backed` bytes. A number that fits its complement may still be wrong.
    #[inline]
    fn check_arena_file(&self, backed: u64) -> Result<()> {
        if backed <= self.arena_known.load(Ordering::Relaxed) { Ok(()) } else { self.check_arena_file_anew(backed) }
    }

    #[cold]
    fn check_arena_file_anew(&self, backed: u64) -> Result<()> {
        // Without the arena's mapping, its opening compares the lengths.
        let Some(arena) = self.arena.get() else { return Ok(()) };
        if !arena.reaches(backed)? {
            let what = format!("the region counts {backed} bytes of the arena, whose file is shorter; {REMEDY}");
            return Err(Error::corrupt(dir::CONTROL, offset_of!(Fixed, arena_bytes) as u64, what));
        }
        self.know_arena(backed);
        Ok(())
    }

    /// An error unless this region's file has the byte before `end`, where the words say that its part called `what` ends.
    /// `known` is the greatest end that this process has found to be right.
    #[inline]
    pub(crate) fn check_own_file(&self, known: &AtomicU64, end: u64, what: &str) -> Result<()> {
        if end <= known.load(Ordering::Relaxed) { Ok(()) } else { self.check_own_file_anew(known, end, what) }
    }

    #[cold]
    fn check_own_file_anew(&self, known: &AtomicU64, end: u64, what: &str) -> Result<()> {
        if !self.spans.reaches(end)? {
            let what = format!("the region counts bytes up to {end} for the {what}, and its file is shorter; {REMEDY}");
            return Err(Error::corrupt(dir::CONTROL, end, what));
        }
        // Relaxed: the number leads to no other memory of this process.
        known.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes of the arena whose blocks are there; `None` if the word is damaged.
    pub(crate) fn arena_bytes(&self) -> Option<u64> {
        let pieces = unchecked(self.fixed().arena_bytes.load(Ordering::Acquire))?;
        Some(u64::from(pieces) * limits::ARENA_SIZE_INITIAL)
    }

    /// Says that the arena's blocks are there up to `bytes`, a size that [`limits::arena_size_for`] gives. By the owner of the growth lock.
    pub(crate) fn set_arena_bytes(&self, bytes: u64) {
        let pieces = (bytes / limits::ARENA_SIZE_INITIAL) as u32;
        self.fixed().arena_bytes.store(checked(pieces), Ordering::Release);
    }

    /// Records that the arena's file has `bytes` bytes, which the caller has found out from the file itself.
    pub(crate) fn know_arena(&self, bytes: u64) {
        // Relaxed: the number leads to no other memory of this process, and the mapping is of the same file.
        self.arena_known.fetch_max(bytes, Ordering::Relaxed);
    }

    /// The image that `words`, copied from the region, describe.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the checksum does not match, or if the high-water mark lies beyond the arena's file: a load from
    /// a page there would be a SIGBUS.
    #[inline]
    pub(crate) fn decode_image(&self, words: &[u64; SLOT_WORDS]) -> Result<SlotImage> {
        let image = SlotImage::decode(words, dir::CONTROL)?;
        let used = u64::from(image.high_water) * self.page_size;
        if used > self.arena_known.load(Ordering::Relaxed) {
            self.check_backed(used)?;
        }
        Ok(image)
    }

    /// An error if the arena's file is not known to have `used` bytes. Called after the words of an image were copied: a writer
    /// backs pages with blocks before it publishes an image that counts them.
    #[cold]
    fn check_backed(&self, used: u64) -> Result<()> {
        // The copy of the words ends with an acquire fence, so this load finds what the image's writer had stored before.
        let backed = self.checked_arena_bytes()?;
        if used <= backed {
            return Ok(());
        }
        let what =
            format!("the high-water mark of a commit is byte {used} of the arena, which has {backed} bytes; {REMEDY}");
        Err(Error::corrupt(dir::CONTROL, 0, what))
    }

    /// What the headers of the log's segments repeat.
    pub(crate) fn region(&self) -> u64 {
        self.fixed().identity.region.load(Ordering::Relaxed)
    }

    /// Makes this the region of a new life, whose log no earlier region belongs to.
    pub(crate) fn begin_region(&self) -> Result<()> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(Error::sys("random number for the shared region"))?;
        // Not 0, which a segment has that was started without a region.
        self.fixed().identity.region.store(u64::from_le_bytes(random) | 1, Ordering::Relaxed);
        self.fixed().logger.segment.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Makes this the region of the same life as `old`: a recovery that dies has lost nothing that `old` holds.
    pub(crate) fn continue_region(&self, old: &Control) {
        self.fixed().identity.region.store(old.region(), Ordering::Relaxed);
        self.fixed().logger.segment.store(old.fixed().logger.segment.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether the newest segment of the log is one that was started in this region's life, and no older than the last
    /// one that the region knows. If not, the files are of another time than the region, which must not be believed then:
    /// a backup was copied over them, say. A newer one is as good: its logger died before it could store the number.
    pub(crate) fn is_of_log(&self, newest: Option<&SegmentHeader>) -> bool {
        let number = self.fixed().logger.segment.load(Ordering::Relaxed);
        newest.is_some_and(|newest| newest.region == self.region() && newest.number.0 >= number)
    }

    /// By the last process of a store that it leaves in order: no open accepts this region any more, or its copy. The file
    /// stays, so that the next open has its blocks on a full disk.
    pub(crate) fn invalidate(&self) {
        self.fixed().identity.magic.store(0, Ordering::Release);
    }

    /// An error if the file is not this region.
    pub(crate) fn refuse_other_file(&self, file: &File) -> Result<()> {
        if self.fixed().identity.is_of(file)? {
            return Ok(());
        }
        Err(Error::Mismatch { file: dir::CONTROL.into(), what: "it was replaced".into() })
    }

    /// The newest visible transaction.
    #[inline]
    pub(crate) fn committed(&self) -> TxnId {
        TxnId::from_u64(self.fixed().committed.load(Ordering::Acquire))
    }

    /// The commit slots.
    #[inline]
    pub(crate) fn slots(&self) -> Slots<'_, Native, SLOT_WORDS> {
        Slots::new(&*self.fixed().slots)
    }

    /// The image of the newest visible transaction, as of the call.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `committed` names a transaction that its slot does not hold.
    pub(crate) fn newest(&self) -> Result<SlotImage> {
        loop {
            let committed = self.committed();
            if let Some(image) = self.image(committed)? {
                return Ok(image);
            }
        }
    }

    /// The image of `txn`, or `None` if its slot is about to be used again.
    #[inline]
    pub(crate) fn image(&self, txn: TxnId) -> Result<Option<SlotImage>> {
        match self.slots().read(&self.fixed().committed, txn) {
            Some(words) => self.decode_image(&words).map(Some),
            // The slot of the newest transaction is not used again before 62 others: it, or the word that
            // names it, is damaged, and looking again would never end.
            None if self.committed() == txn => {
                Err(Error::corrupt(dir::CONTROL, 0, format!("the slot of transaction {txn} names another")))
            }
            None => Ok(None),
        }
    }

    /// How far the log is durable: the transaction and where its record ends.
    ///
    /// `None` while the words and their checks disagree: a logger is between two stores, or died there
    /// and its successor will mend it. Nothing is acknowledged from such words.
    #[inline]
    pub(crate) fn durable(&self) -> Option<(TxnId, Lsn)> {
        let words = &self.fixed().durable;
        let txn = words.txn.load(Ordering::SeqCst);
        let lsn = words.lsn.load(Ordering::Acquire);
        let agree = words.txn_check.load(Ordering::Acquire) == !txn && words.lsn_check.load(Ordering::Acquire) == !lsn;
        agree.then_some((TxnId::from_u64(txn), Lsn(lsn)))
    }

    /// The image of the durable transaction: unlike the durable position, its tail is no place within a transaction that
    /// still streams. `None` while the logger moves on.
    pub(crate) fn durable_image(&self) -> Option<SlotImage> {
        let (txn, _) = self.durable()?;
        let images = self.fixed().durable_slots.iter().map(|slot| self.decode_image(&slot.copy()));
        images.flatten().find(|image| image.txn == txn)
    }

    pub(crate) fn poison(&self) -> u32 {
        self.fixed().logger.poison.load(Ordering::Acquire)
    }

    /// An error if the store refuses writes.
    pub(crate) fn refuse_poisoned(&self) -> Result<()> {
        let poison = self.poison();
        if poison == 0 {
            return Ok(());
        }
        let errno = self.fixed().logger.poison_errno.load(Ordering::Relaxed);
        let cause = std::io::Error::from_raw_os_error(errno as i32);
        let what = match poison {
            1 => "the log could not be written",
            2 => "a sync of the arena failed",
            3 => "the checkpoint's header could not be written",
            _ => "a mark of unknown meaning stands in control",
        };
        Err(Error::NeedsRecovery { reason: format!("{what} ({cause})") })
    }
}

fn damaged_ring() -> Error {
    let what = "the length or the base of the log's ring is damaged; stop all processes that have the store open, and open it again";
    Error::corrupt(dir::CONTROL, offset_of!(Fixed, ring) as u64, what)
}

fn file_id(file: &File) -> Result<FileId> {
    descriptor::file_id(file).map_err(Error::io("stat of control"))
}

impl RegionIdentity {
    /// Whether the region is this very file, and not a copy of it.
    fn is_of(&self, file: &File) -> Result<bool> {
        Ok(file_id(file)? == (self.device.load(Ordering::Relaxed), self.inode.load(Ordering::Relaxed)))
    }
}

/// Writes zeros, so that the blocks are there and no later store can meet a full disk.
pub(crate) fn write_zeros(file: &File, from: u64, len: u64, name: &str) -> Result<()> {
    // Beyond the limit the kernel would end the whole process by SIGXFSZ, whose disposition is the host's.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX);
    if from + len > limit {
        return Err(Error::Limit { what: LimitKind::FileSize, found: from + len, limit });
    }
    if planted_bug!("mapped-without-blocks") && name == dir::ARENA {
        return file.set_len(from + len).map_err(Error::io("extending the arena"));
    }
    static ZEROS: [u8; limits::GROWTH_PIECE as usize] = [0; limits::GROWTH_PIECE as usize];
    let mut at = from;
    while at < from + len {
        let piece = (from + len - at).min(ZEROS.len() as u64) as usize;
        write_blocks(file, at, &ZEROS[..piece], name, from + len - at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Writes `bytes` at `at`. The error of a full disk names the file and the bytes that are still `wanted` with these.
fn write_blocks(file: &File, at: u64, bytes: &[u8], name: &str, wanted: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.write_all_at(bytes, at).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Error::disk_full(name, wanted),
        _ => Error::Io { what: format!("write to {name} at byte {at}"), source: error },
    })
}
