//! The checkpoint that a writer requests when it finds no page, or no log space, for its
//! transaction; and the pages that are reserved for deletes.
//!
//! The next checkpoint frees the pages and the log that only the newest checkpoint needs. The start
//! of a checkpoint needs the writer lock. The writer that lacks space owns it, and can't release it
//! in the middle of a transaction. So the writer itself starts a checkpoint of the commit that its
//! transaction began from, and waits until the logger has finished it ([`checkpoint`]). No other
//! process can start a checkpoint meanwhile, since that takes the writer lock.
//!
//! | the writer dies here | then |
//! |---|---|
//! | while it writes the image | no checkpoint has started; the next start writes the image again |
//! | after it has marked the checkpoint as started | the logger finishes it, without a writer |
//!
//! **I1, I3.** The checkpoint contains the published state and nothing of the running transaction.
//! The transaction has written only to pages that are free in that state, and after the published
//! end of queues. From the start of the checkpoint, such a queue page is sealed
//! ([`Workspace::refresh`](crate::pages::workspace::Workspace::refresh)), so that its bytes stay
//! those that the checkpoint sums.
//!
//! **The log.** Recovery from this checkpoint begins at the first record of the running
//! transaction, not at the log's tail. A transaction that streams has already published frames, and
//! recovery must apply them if it commits.
//!
//! **The reserve.** Only deletes free space in a store that is full of records, and a delete copies
//! pages before it frees any. So transactions that make the store larger leave some pages to other
//! transactions, which in turn leave a few to recovery ([`SpaceQuota`]).

use crate::error::reason::Space;
use crate::files::page::queue_capacity;
use crate::files::slot::{QueueKind, SlotImage};
use crate::pages::{extents, queue};
use crate::participant::engine::{Engine, LOGGER_RECHECK_INTERVAL};
use crate::shared::memory::arena::{Arena, Pages};
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::{Error, Result, TxnId};
use std::time::Duration;
use untorn_wal::Lsn;

/// The number of pages that are left to recovery. Recovery replays the same transactions, but
/// without pins and with another order of the queues' entries. So each of the four queues may need
/// a new page earlier than in the original run, and one more to follow that page.
const RECOVERY_PAGES: u64 = 8;
/// The number of pages that are left to deletes, in addition to those for the queues' entries. This
/// suffices for 32 deletes in one transaction whose keys share no page but the root. Each delete
/// takes six pages: two levels of the tree, a neighbour of each that is merged, and two more.
const DELETE_PAGES: u64 = 192;
/// The least number of pages left to deletes. In a small store deletes can copy no more than this,
/// and the store should stay small on the disk.
const DELETE_PAGES_MIN: u64 = 24;

/// The error for a full store describes a snapshot that pins at least this many pages, or at least
/// half of the free pages.
const PINNED_PAGES_MIN: u64 = 16;

/// How much of the store's space a transaction may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SpaceQuota {
    /// The transaction may make the store larger: it leaves pages for deletes.
    Growing,
    /// The transaction has only deleted so far: it leaves pages for recovery.
    Shrinking,
    /// The transaction overwrites records with others of the same length: it leaves pages for
    /// recovery, whatever else it does.
    Reserved,
    /// The transaction runs in recovery, which must not fail: it leaves none.
    All,
}

impl SpaceQuota {
    /// Returns how many pages a transaction leaves, in a store with `high_water` pages in use and
    /// at most `most` pages.
    ///
    /// For a growing transaction, this includes one queue page for each `queue_capacity` pages in
    /// use: dropping a keyspace that has all these pages needs the queue pages.
    pub(crate) fn reserved_pages(self, page_size: usize, high_water: u32, most: u64) -> u64 {
        let recovery = RECOVERY_PAGES.min(most / 16);
        let used = u64::from(high_water);
        match self {
            SpaceQuota::All => 0,
            SpaceQuota::Shrinking | SpaceQuota::Reserved => recovery,
            SpaceQuota::Growing => {
                let deletes = (used / 2).clamp(DELETE_PAGES_MIN, DELETE_PAGES).min(most / 16);
                recovery + deletes + used / u64::from(queue_capacity(page_size))
            }
        }
    }
}

/// Returns whether this error means that the store, or its device, is full.
pub(crate) fn is_full(error: &Error) -> bool {
    matches!(error, Error::DiskFull { .. } | Error::Limit { .. })
}

/// The resource that a writer lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shortage {
    Pages,
    Log,
}

/// Starts a checkpoint that releases the resource, and waits until the logger has finished it.
/// Returns false if no checkpoint can release it, since the newest one is already of the commit
/// that the transaction began from. `from` is the log position of the transaction's first record.
/// The caller owns the writer lock.
///
/// # Errors
/// The checkpoint's errors; [`Error::LoggerStalled`] if the logger makes no progress.
pub(crate) fn checkpoint(engine: &Engine, base: &SlotImage, from: Lsn, shortage: Shortage) -> Result<bool> {
    let words = &engine.control.fixed().checkpoint;
    let failures = words.failures();
    if !words.is_running() {
        let moved = from > words.finished_lsn();
        let is_new = base.txn != words.finished();
        let sets_free = is_new || (moved && shortage == Shortage::Log);
        if !sets_free {
            return Ok(false);
        }
        words.start(base, from);
    }
    let background = &engine.control.fixed().logger.background;
    background.notify_always();
    let start = clock::now();
    let mut watch = engine.watch_logger();
    let is_finished = || (!words.is_running()).then_some(true);
    engine.control.wait_for_checkpoint(failures, LOGGER_RECHECK_INTERVAL, is_finished, || {
        watch.check(engine, start)?;
        background.notify();
        Ok(())
    })
}

/// Counts the pages in the pinned queue of this image that these pins, in ascending order, protect.
pub(crate) fn count_pinned(pages: &Pages<'_>, arena: &Arena, image: &SlotImage, pins: &[TxnId]) -> Result<u64> {
    let mut pinned = 0;
    let state = image.queues[QueueKind::Pinned as usize];
    queue::walk(pages, arena, &state, &mut |_, _| Ok(()), &mut |entry| {
        let first = pins.partition_point(|pin| *pin < entry.created_txn);
        pinned += u64::from(pins.get(first).is_some_and(|pin| *pin < entry.freed_txn));
        Ok(())
    })?;
    Ok(pinned)
}

/// An open snapshot.
struct OpenSnapshot {
    txn: TxnId,
    pid: u32,
    age: Option<Duration>,
    pinned: u64,
}

/// Describes the snapshot that pins most of the free pages of this image, for an error; `None` if
/// no snapshot pins a large part of them. The caller holds the writer lock.
///
/// # Errors
/// [`Error::Corrupt`] for a damaged queue or table.
pub(crate) fn pinning_snapshot(engine: &Engine, image: &SlotImage) -> Result<Option<Space>> {
    let now = now_ns();
    let mut snapshots = Vec::new();
    engine.control.for_each_reader(|_, slot| {
        if let Some(txn) = slot.pinned() {
            let age = slot.pinned_since(txn).map(|since| Duration::from_nanos(now.saturating_sub(since)));
            snapshots.push(OpenSnapshot { txn, pid: slot.pid(), age, pinned: 0 });
        }
    });
    if snapshots.is_empty() {
        return Ok(None);
    }
    let pages = engine.arena.pages(image.high_water);
    for state in extents::all_queues(&pages, image)? {
        queue::walk(&pages, &engine.arena, &state, &mut |_, _| Ok(()), &mut |entry| {
            for snapshot in &mut snapshots {
                let holds = entry.created_txn <= snapshot.txn && snapshot.txn < entry.freed_txn;
                snapshot.pinned += if holds { u64::from(entry.pages) } else { 0 };
            }
            Ok(())
        })?;
    }
    let Some(most) = snapshots.iter().max_by_key(|snapshot| snapshot.pinned) else { return Ok(None) };
    // A few pinned pages are not the reason why a store is full.
    if most.pinned < PINNED_PAGES_MIN && most.pinned * 2 < image.free_pages.max(1) {
        return Ok(None);
    }
    Ok(Some(Space::Snapshot {
        txn: most.txn,
        pid: most.pid,
        open_for: most.age,
        pinned_pages: most.pinned,
        free_pages: image.free_pages,
        snapshots: snapshots.len() as u64,
    }))
}
