//! Pins: a reader publishes which transaction it reads, so that no writer reuses the pages of that
//! snapshot.
//!
//! **Readers** load `committed`, publish it in a slot, and load `committed` again. If it is
//! unchanged, the pin holds. The writer that reclaims pages fences before it scans. So either the
//! scan sees the pin, or the reader sees a `committed` at least as new as the scan's. In that case
//! the reader needs no page that the scan frees.
//!
//! **Durable readers** do the same with the published `durable` transaction, which may be older
//! than pages that are being reused. Until their own pin counts, the logger's pin protects that
//! transaction. The logger pins the next transaction before it publishes it, and drops the older
//! pin afterwards. The scan reads the logger's pins *before* the readers', with a fence between. If
//! a scan misses the logger's pin on t, it began after t was replaced. So it sees the pin of every
//! reader that still found t published.
//!
//! A pin word holds the transaction plus one, 0 meaning none, so that zeroed memory pins nothing.
//!
//! | slot: owner, pin, entered | meaning | its owner dies here |
//! |---|---|---|
//! | 0, 0, no | free | – |
//! | id, 0, no | claimed, about to be entered; or about to be free | reaped by a check of all slots |
//! | id, 0, yes | idle | reaped |
//! | id, t, yes | pinned, or about to be checked | reaped |
//!
//! *Entered* means that the occupancy map (`shared::protocols::occupancy`) leads every scan to the
//! slot.
//!
//! **Reaping** replaces the dead owner by the reaper with one compare-and-swap, and then releases
//! the slot as an owner does. A dead id never comes back, so the compare-and-swap of a slow reaper
//! fails once the slot has another owner. If a reaper dies in between, the slot's owner is dead
//! again, and another reaper reaps the slot in turn.

use crate::TxnId;
use crate::shared::protocols::atomic::{Model, Word64};
use crate::shared::protocols::lock::ClientIdBits;
use crate::shared::protocols::occupancy::Occupancy;
use std::ops::Range;
use std::sync::atomic::Ordering;

fn encode(txn: TxnId) -> u64 {
    txn.as_u64().wrapping_add(1)
}

fn decode(pin: u64) -> Option<TxnId> {
    pin.checked_sub(1).map(TxnId::from_u64)
}

/// A slot of the reader table; a cache line of its own.
#[repr(C, align(64))]
pub(crate) struct ReaderSlot<M: Model> {
    owner: M::U64,
    pin: M::U64,
    /// For statistics: the owner's process id, in its own namespace.
    pid: M::U64,
    /// For statistics, stored by an observer, so that pinning need not read a clock: the pin that
    /// was seen here last, and when it was first seen.
    seen_pin: M::U64,
    seen_since: M::U64,
    _reserved: [M::U64; 3],
}

impl<M: Model> Default for ReaderSlot<M> {
    fn default() -> Self {
        let word = || M::U64::new(0);
        ReaderSlot {
            owner: word(),
            pin: word(),
            pid: word(),
            seen_pin: word(),
            seen_since: word(),
            _reserved: std::array::from_fn(|_| word()),
        }
    }
}

impl<M: Model> ReaderSlot<M> {
    /// Takes the slot if it is free. Scans find its pins only after the slot is entered in the
    /// occupancy map.
    pub(crate) fn claim(&self, me: ClientIdBits) -> bool {
        // Acquire pairs with the release of the owner before.
        if self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        // No owner leaves a pin, but damage may.
        self.unpin();
        true
    }

    /// Takes the slot over from `dead`, a client whose byte was found free. Its pin stays until the
    /// slot is released.
    pub(crate) fn take_over(&self, dead: ClientIdBits, me: ClientIdBits) -> bool {
        self.owner.compare_exchange(dead, me, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the slot's owner.
    pub(crate) fn owner(&self) -> Option<ClientIdBits> {
        Some(self.owner.load(Ordering::Acquire)).filter(|&owner| owner != 0)
    }

    /// Pins the newest transaction that `watermark` names: `committed`, or the published durable
    /// one. Only the slot's owner may call this, and it replaces the slot's pin.
    ///
    /// Never waits. It repeats while transactions are published faster than it reads one word.
    #[inline]
    pub(crate) fn pin(&self, watermark: &M::U64) -> TxnId {
        pin_newest::<M>(&self.pin, watermark, || {})
    }

    /// Pins as [`ReaderSlot::pin`]. Calls `unpinned` whenever it has loaded a transaction and not
    /// pinned it yet: a test stops the reader there.
    #[inline]
    pub(crate) fn pin_by(&self, watermark: &M::U64, unpinned: impl FnMut()) -> TxnId {
        pin_newest::<M>(&self.pin, watermark, unpinned)
    }

    /// Ends the pin. Release: the reader's reads of the pages come before the reuse by a writer
    /// that sees this.
    #[inline]
    pub(crate) fn unpin(&self) {
        self.pin.store(0, Ordering::Release);
    }

    /// Records the owner's process id, for display. Called by the owner.
    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(u64::from(pid), Ordering::Relaxed);
    }

    /// Returns the process id of the slot's owner, in the owner's namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed) as u32
    }

    /// Records since when the slot has held its pin; `now` is on a clock that all processes share.
    /// Only one observer may call this at a time.
    pub(crate) fn observe(&self, now: u64) {
        let pin = self.pin.load(Ordering::Relaxed);
        if self.seen_pin.load(Ordering::Relaxed) != pin {
            self.seen_since.store(now, Ordering::Relaxed);
            self.seen_pin.store(pin, Ordering::Relaxed);
        }
    }

    /// Returns since when the pin of `txn` has been seen here; `None` if it is younger than the
    /// last [`ReaderSlot::observe`].
    pub(crate) fn pinned_since(&self, txn: TxnId) -> Option<u64> {
        (self.seen_pin.load(Ordering::Relaxed) == encode(txn)).then(|| self.seen_since.load(Ordering::Relaxed))
    }

    /// Returns the transaction that the slot protects, as a scan sees it.
    #[inline]
    pub(crate) fn pinned(&self) -> Option<TxnId> {
        // Acquire pairs with `unpin`.
        decode(self.pin.load(Ordering::Acquire))
    }
}

/// Claims the lowest free slot in `range`, which covers whole words of the occupancy map, and
/// enters it. Takes no lock.
pub(crate) fn claim_lowest<'a, M: Model, const S: usize, const A: usize, const W: usize>(
    occupancy: &Occupancy<M, S, A, W>,
    range: Range<usize>,
    slot: impl Fn(usize) -> &'a ReaderSlot<M>,
    me: ClientIdBits,
) -> Option<usize> {
    let index = occupancy.claim_vacant(range, |index| slot(index).claim(me).then_some(index))?;
    crash_point!("readers.claimed");
    occupancy.enter(index);
    Some(index)
}

/// Frees a slot. Called by its owner only.
pub(crate) fn release<M: Model, const S: usize, const A: usize, const W: usize>(
    occupancy: &Occupancy<M, S, A, W>,
    index: usize,
    slot: &ReaderSlot<M>,
) {
    slot.unpin();
    // Before another owner can enter it.
    occupancy.leave(index);
    slot.owner.store(0, Ordering::Release);
}

/// Frees the slot if it belongs to `dead`, a client whose byte was found free. `me` is the id of
/// the living reaper.
pub(crate) fn reap<M: Model, const S: usize, const A: usize, const W: usize>(
    occupancy: &Occupancy<M, S, A, W>,
    index: usize,
    slot: &ReaderSlot<M>,
    dead: ClientIdBits,
    me: ClientIdBits,
) -> bool {
    let is_taken = slot.take_over(dead, me);
    if is_taken {
        release(occupancy, index, slot);
    }
    is_taken
}

#[inline]
fn pin_newest<M: Model>(pin: &M::U64, watermark: &M::U64, mut unpinned: impl FnMut()) -> TxnId {
    let mut seen = watermark.load(Ordering::Acquire);
    loop {
        unpinned();
        pin.store_fenced(encode(TxnId::from_u64(seen)));
        // Pairs with the fence of `scan`.
        let now = watermark.load(Ordering::SeqCst);
        if now == seen || planted_bug!("skip-reader-reread") {
            return TxnId::from_u64(seen);
        }
        seen = now;
    }
}

/// The logger's two pins: the published durable transaction, and the one that the next flush will
/// cover.
///
/// The pins belong to the role of logger, not to one process: they are never reaped, and the next
/// logger continues to use them. Wherever a logger dies, one of the two pins holds the published
/// transaction.
#[repr(C, align(64))]
pub(crate) struct LoggerPins<M: Model> {
    pins: [M::U64; 2],
    _reserved: [M::U64; 6],
}

/// A transaction that the logger has pinned and will publish once it is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "publish it once it is durable"]
pub(crate) struct NextDurable {
    /// The transaction.
    pub txn: TxnId,
    /// The index of its pin; the copy of its commit slot has the same index.
    pub slot: usize,
}

impl<M: Model> Default for LoggerPins<M> {
    fn default() -> Self {
        LoggerPins { pins: std::array::from_fn(|_| M::U64::new(0)), _reserved: std::array::from_fn(|_| M::U64::new(0)) }
    }
}

impl<M: Model> LoggerPins<M> {
    /// Begins with `txn` published, before any other process maps the region.
    pub(crate) fn start(&self, published: &M::U64, txn: TxnId) {
        self.pins[0].store(encode(txn), Ordering::Relaxed);
        self.pins[1].store(0, Ordering::Relaxed);
        published.store(txn.as_u64(), Ordering::Release);
    }

    /// Pins the newest committed transaction, as a reader does, and keeps the pin of the published
    /// one. This replaces a pin of an earlier call whose transaction was never published, by this
    /// logger or a dead one.
    pub(crate) fn pin_next(&self, committed: &M::U64, published: &M::U64) -> NextDurable {
        let slot = 1 - self.slot_of(published);
        NextDurable { txn: pin_newest::<M>(&self.pins[slot], committed, || {}), slot }
    }

    /// Publishes `next` as durable, and only then drops the older pin. The caller has made it
    /// durable, and written the copy of its slot.
    pub(crate) fn publish(&self, published: &M::U64, next: NextDurable) {
        published.store_fenced(next.txn.as_u64());
        // Release: a scan that sees this zero sees the new `published` too.
        self.pins[1 - next.slot].store(0, Ordering::Release);
    }

    /// Returns the transactions that the two pins protect.
    pub(crate) fn pinned(&self) -> impl Iterator<Item = TxnId> {
        self.pins.iter().filter_map(|pin| decode(pin.load(Ordering::Acquire)))
    }

    /// Returns the index of the pin that protects the published transaction.
    pub(crate) fn slot_of(&self, published: &M::U64) -> usize {
        let published = encode(TxnId::from_u64(published.load(Ordering::Acquire)));
        usize::from(self.pins[0].load(Ordering::Acquire) != published)
    }
}

/// Calls `protect` with every pinned transaction, possibly more than once with the same one. Called
/// by the owner of the writer lock.
///
/// Returns the `committed` for which the result holds, the scan's horizon. A page may be reused,
/// now and later, if that transaction or an earlier one freed it and none of the pins protects it.
/// A pin that is taken after the scan does not need it, since it is on `committed` or on a later
/// transaction. A page that is freed later needs a new scan.
///
/// `slot` returns the slot of a number. `None` is damage, and counts as no pin.
pub(crate) fn scan<'a, M: Model, const S: usize, const A: usize, const W: usize>(
    committed: &M::U64,
    logger: &LoggerPins<M>,
    occupancy: &Occupancy<M, S, A, W>,
    mut slot: impl FnMut(usize) -> Option<&'a ReaderSlot<M>>,
    mut protect: impl FnMut(TxnId),
) -> TxnId {
    let horizon = TxnId::from_u64(committed.load(Ordering::Acquire));
    // The caller's own publication was fenced, but the lock may come from an owner that died
    // between publication and fence.
    M::fence(Ordering::SeqCst);
    logger.pinned().for_each(&mut protect);
    // Pairs with the fence in a durable reader's pin: a reader that pinned the transaction which
    // the logger has just unpinned is seen. The logger's own fence is not enough: the logger may
    // die before it, and the next logger may then remove the pin.
    M::fence(Ordering::SeqCst);
    occupancy.for_each(|index| {
        if let Some(pinned) = slot(index).and_then(ReaderSlot::pinned) {
            protect(pinned);
        }
    });
    horizon
}
