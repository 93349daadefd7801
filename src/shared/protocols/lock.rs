//! The writer lock: one 64-bit word of shared memory that contains its owner's client id, or a
//! reservation for the next one.
//!
//! The instruction that takes the lock stores the owner's id, so a held lock always names its
//! owner. Ids are never reused, so the compare-and-swap of a slow reaper can't hit a later owner.
//! Threads of one process exclude each other in the local queue of that process before they come
//! here.
//!
//! Waiters are of two classes. Bit 62 is set while urgent waiters may exist, bit 63 while bulk ones
//! may. Each class waits on an event count of its own. An owner that releases while urgent waiters
//! may exist leaves the word *reserved*: free for urgent waiters, held for bulk ones. So no bulk
//! critical section can come first. A reservation has a number, which distinguishes it from every
//! other one. If the kernel reports that no urgent waiter slept, and none is on the way, the
//! releaser takes the reservation back. A waiter is *on the way* from its announcement ([`Urgent`])
//! until it leaves, for [`RESERVATION_TIMEOUT`] after the last of them checked the lock or was
//! woken. Locks with one class of waiters (growth, a cell's latch) never see bit 62.
//!
//! | word | meaning | its owner dies here | a waiter dies here |
//! |---|---|---|---|
//! | 0 | free | – | the waiters still asleep time out within 5 ms and take it |
//! | id | held | the next acquirer waits 5 ms, finds the id's byte free, swaps it for its own id | – |
//! | id, bit 63 or 62 | held, a thread may wait | the same; the bits are kept | a superfluous wake-up at release |
//! | bit 62, number below 2^32 | reserved for an urgent waiter | urgent sleepers time out within 5 ms and take it; a bulk waiter takes it 200 µs after it first saw it, which a sleeping one does within 5 ms | the reservation delays the lock by 200 µs, once: the process that takes the lock then resets the count of waiters on the way |
//! | 0, event not yet advanced | just released | the waiters asleep time out within 5 ms and take it | – |
//! | event advanced, no waiter woken yet | just released | the same | – |
//!
//! A waiter that acquires the lock leaves the bit of its class set, since other waiters may remain:
//! a release wakes only one. A take-over needs no repair here: the next owner overwrites what a
//! dead owner left unpublished (invariant I1 of the design). If the word contains no possible
//! client id (damage), a waiter takes it over like the word of a dead owner, or like a reservation
//! that timed out.
//!
//! So from its announcement on, an urgent waiter waits for the current bulk section and for no
//! other, provided that it runs within [`RESERVATION_TIMEOUT`] of its wake-up. Another bulk section
//! may begin just before the announcement, so it waits for two at most. Within a class there is no
//! order: a later waiter may pass one that was woken and does not run yet.

mod urgent;
mod waiter;

use crate::shared::protocols::atomic::{Model, Word32, Word64};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
pub(crate) use urgent::Urgent;
use waiter::Waiter;

/// The raw bits of a client id: between 2^32 and 2^62.
pub(crate) type ClientIdBits = u64;

/// Set in the lock's word while urgent waiters may exist, and while bulk ones may.
const URGENT_WAITERS: u64 = 1 << 62;
const BULK_WAITERS: u64 = 1 << 63;
const FLAGS: u64 = URGENT_WAITERS | BULK_WAITERS;

/// Set in the number of a reservation if no urgent waiter of another process had announced itself.
/// (A reservation is [`URGENT_WAITERS`] and a number below all client ids.)
const HANDED_OVER: u64 = 1 << 31;
const RESERVATION_MAX: u64 = u32::MAX as u64;

/// How long the lock stays reserved for a waiter that was woken, or has announced itself, and does
/// not run.
pub(crate) const RESERVATION_TIMEOUT: Duration = Duration::from_micros(200);

/// The class of a commit. A commit is urgent if its caller waits until it is durable, and its
/// deadline is less than 100 ms away. Urgent commits get the lock first, and their latencies are
/// counted separately. The logger's own transactions are bulk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CommitClass {
    /// Gets the lock before all bulk waiters.
    Urgent,
    /// Gets the lock if no urgent waiter is there.
    Bulk,
}

impl CommitClass {
    fn flag(self) -> u64 {
        match self {
            CommitClass::Urgent => URGENT_WAITERS,
            CommitClass::Bulk => BULK_WAITERS,
        }
    }
}

/// The event counts on which the waiters of each class wait.
pub(crate) struct EventCounts<'a, M: Model> {
    /// The urgent waiters, if the lock has two classes.
    pub urgent: Option<&'a Urgent<M>>,
    /// The event count of bulk waiters.
    pub bulk: &'a M::U32,
}

impl<'a, M: Model> EventCounts<'a, M> {
    /// Returns the event count of a lock with one class of waiters.
    pub(crate) fn one(event: &'a M::U32) -> EventCounts<'a, M> {
        EventCounts { urgent: None, bulk: event }
    }

    /// Returns the event counts of a lock with two classes.
    pub(crate) fn two(urgent: &'a Urgent<M>, bulk: &'a M::U32) -> EventCounts<'a, M> {
        EventCounts { urgent: Some(urgent), bulk }
    }
}

/// How long a waiter waits before it tests whether the owner is alive.
pub(crate) const OWNER_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The word of a lock, as read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner(u64);

impl Owner {
    /// Returns the owner's id; 0 if the lock is free or reserved.
    pub(crate) fn id(self) -> ClientIdBits {
        if self.is_reserved() { 0 } else { self.0 & !FLAGS }
    }

    fn is_reserved(self) -> bool {
        self.0 & URGENT_WAITERS != 0 && self.0 & !FLAGS <= RESERVATION_MAX
    }

    fn is_free_for(self, class: CommitClass) -> bool {
        self.id() == 0 && (class == CommitClass::Urgent || !self.is_reserved())
    }

    /// Returns the flags that a new owner keeps if it takes the lock in this state.
    fn kept(self) -> u64 {
        let is_handed_over = self.is_reserved() && self.0 & HANDED_OVER != 0;
        self.0 & if is_handed_over { BULK_WAITERS } else { FLAGS }
    }

    /// Returns the owner or the reservation, without the bits that announce waiters.
    fn identity(self) -> u64 {
        if self.is_reserved() { self.0 & !BULK_WAITERS } else { self.id() }
    }
}

/// Returns the present owner; for reports and reapers.
#[inline]
pub(crate) fn owner<M: Model>(word: &M::U64) -> Option<Owner> {
    Some(Owner(word.load(Ordering::Acquire))).filter(|owner| owner.id() != 0)
}

/// Takes the lock if it is free for both classes. Acquire pairs with the release of [`release`]:
/// the new owner sees the writes of the last one.
#[inline]
pub(crate) fn try_acquire<M: Model>(word: &M::U64, me: ClientIdBits) -> Result<(), Owner> {
    swap_in::<M>(word, 0, me)
}

/// Takes the lock if it is free for `class`.
#[inline]
pub(crate) fn try_acquire_as<M: Model>(word: &M::U64, class: CommitClass, me: ClientIdBits) -> Result<(), Owner> {
    let seen = Owner(word.load(Ordering::Relaxed));
    if seen.is_free_for(class) { swap_in::<M>(word, seen.0, me | seen.kept()) } else { Err(seen) }
}

fn swap_in<M: Model>(word: &M::U64, current: u64, new: u64) -> Result<(), Owner> {
    word.compare_exchange(current, new, Ordering::Acquire, Ordering::Acquire).map(drop).map_err(Owner)
}

/// Announces a waiter of `class`, so that the owner `seen` will wake one at release. Returns false
/// if the word has changed.
pub(crate) fn announce_waiter<M: Model>(word: &M::U64, seen: Owner, class: CommitClass) -> bool {
    announce::<M>(word, seen, class.flag())
}

fn announce<M: Model>(word: &M::U64, seen: Owner, flags: u64) -> bool {
    // If the bits are set already, no store is needed. A release that clears them advances the
    // event, which the waiter read before this word: its wait ends at once.
    let new = seen.0 | flags;
    new == seen.0 || word.compare_exchange(seen.0, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// Takes the lock from a dead owner. Returns false if another process did, or if a waiter announced
/// itself meanwhile.
///
/// There is no release to pair with. The dead owner's writes are visible because its byte of the
/// `lock` file was found free: the kernel frees the byte after the owner's last instruction.
pub(crate) fn take_over<M: Model>(word: &M::U64, dead: Owner, me: ClientIdBits) -> bool {
    swap_in::<M>(word, dead.0, me | (dead.0 & FLAGS)).is_ok()
}

/// A reservation of the lock for urgent waiters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reservation(u64);

impl Reservation {
    /// Returns the reservation as a word, which is never 0.
    #[must_use]
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns the reservation of a word from [`Reservation::to_bits`]; `None` for 0.
    #[must_use]
    pub(crate) fn from_bits(bits: u64) -> Option<Reservation> {
        (bits != 0).then_some(Reservation(bits))
    }
}

/// The waiters to wake after a [`release`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Next {
    /// No waiter.
    None,
    /// One bulk waiter, if one sleeps.
    Bulk,
    /// One urgent waiter; the lock is reserved for it.
    Urgent(Reservation),
}

/// Releases the lock, and returns the waiters that the caller must wake with [`wake_next`].
///
/// If the word does not contain `me` (damage, or a reaper that wrongly took this process for dead),
/// it stays unchanged.
#[inline]
pub(crate) fn release<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, me: ClientIdBits) -> Next {
    match word.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed) {
        Ok(_) => Next::None,
        Err(seen) => release_to_waiters::<M>(word, events, me, seen),
    }
}

#[cold]
fn release_to_waiters<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, me: ClientIdBits, mut seen: u64) -> Next {
    let mut reserved = None;
    while seen & !FLAGS == me {
        let reservation = match events.urgent {
            Some(urgent) if seen & URGENT_WAITERS != 0 => {
                Some(*reserved.get_or_insert_with(|| urgent.next_reservation()))
            }
            _ => None,
        };
        let new = reservation.map_or(0, |reservation| reservation | (seen & BULK_WAITERS));
        match word.compare_exchange(seen, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return reservation.map_or(Next::Bulk, |reservation| Next::Urgent(Reservation(reservation))),
            // Only the owner removes bits; another waiter has announced itself.
            Err(now) => seen = now,
        }
    }
    Next::None
}

/// Wakes the waiters that a [`release`] returned. If no urgent waiter slept or is on the way, the
/// lock becomes free for all.
pub(crate) fn wake_next<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, next: Next) {
    match (next, events.urgent) {
        (Next::None, _) | (Next::Urgent(_), None) => {}
        (Next::Bulk, _) => drop(wake_one::<M>(events.bulk)),
        (Next::Urgent(reservation), Some(urgent)) => {
            if !urgent.wake() {
                take_back::<M>(word, events, reservation);
            }
        }
    }
}

/// Takes a reservation back, if the word still contains it, and wakes one bulk waiter. Other
/// reservations stay.
pub(crate) fn take_back<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, reservation: Reservation) {
    let mut seen = word.load(Ordering::Relaxed);
    while seen & !BULK_WAITERS == reservation.0 {
        match word.compare_exchange(seen, 0, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => {
                if let Some(urgent) = events.urgent {
                    urgent.count_anew();
                }
                if seen & BULK_WAITERS != 0 {
                    wake_one::<M>(events.bulk);
                }
                return;
            }
            Err(now) => seen = now,
        }
    }
}

/// Wakes one waiter. Returns whether one slept.
fn wake_one<M: Model>(event: &M::U32) -> bool {
    event.fetch_add(1, Ordering::Release);
    M::wake(event, 1) > 0
}

/// Wakes all waiters, so that they check again; used after reaping.
pub(crate) fn wake_all<M: Model>(event: &M::U32) {
    event.fetch_add(1, Ordering::Release);
    M::wake(event, u32::MAX);
}

/// How the lock was acquired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Acquired {
    /// It was free, or its owner released it.
    Released,
    /// Its owner was dead. The caller may reap what else that client held.
    TakenOver(ClientIdBits),
}

/// Takes the lock, waiting until `deadline` at most. With `None` it waits as long as the owners
/// live; with a deadline in the past it does not wait.
///
/// Waiters wait on `event`. `is_alive` is called only for an owner that has held the lock for
/// [`OWNER_CHECK_INTERVAL`].
///
/// # Errors
/// The owner at the deadline.
pub(crate) fn acquire<M: Model>(
    word: &M::U64,
    event: &M::U32,
    me: ClientIdBits,
    is_alive: &dyn Fn(ClientIdBits) -> bool,
    deadline: Option<Instant>,
) -> Result<Acquired, Owner> {
    acquire_as::<M>(word, &EventCounts::one(event), &|| CommitClass::Bulk, me, is_alive, deadline)
}

/// Takes a lock with two classes of waiters, as [`acquire`]. `class` is called before each check,
/// so a bulk waiter may become urgent: at once if its event count is notified, at the latest when
/// its present wait times out.
///
/// # Errors
/// As [`acquire`].
pub(crate) fn acquire_as<M: Model>(
    word: &M::U64,
    events: &EventCounts<'_, M>,
    class: &dyn Fn() -> CommitClass,
    me: ClientIdBits,
    is_alive: &dyn Fn(ClientIdBits) -> bool,
    deadline: Option<Instant>,
) -> Result<Acquired, Owner> {
    for _ in 0..=M::SPINS {
        if try_acquire_as::<M>(word, class(), me).is_ok() {
            return Ok(Acquired::Released);
        }
        M::spin_hint();
    }
    let mut waiter = Waiter { word, events, slept: 0, is_counted: false };
    let acquired = waiter.wait(class, me, is_alive, deadline);
    if waiter.is_counted
        && let Some(urgent) = events.urgent
    {
        urgent.count_out();
    }
    if acquired.is_err() {
        waiter.pass_on();
    }
    acquired
}

/// Releases the lock, as [`release`], and wakes the next waiter.
#[inline]
pub(crate) fn release_and_wake<M: Model>(word: &M::U64, event: &M::U32, me: ClientIdBits) {
    release_and_wake_next::<M>(word, &EventCounts::one(event), me);
}

/// Releases a lock with two classes of waiters, and wakes the next waiter.
#[inline]
pub(crate) fn release_and_wake_next<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, me: ClientIdBits) {
    match release::<M>(word, events, me) {
        Next::None => {}
        next => wake_next::<M>(word, events, next),
    }
}

/// Releases the lock for an urgent waiter in the local queue of the caller's process, which does
/// not sleep on the lock. The lock stays reserved until that waiter, or another urgent one, takes
/// it. If none does, the caller [takes the reservation back](take_back). Returns `None` if the
/// caller does not own the lock.
pub(crate) fn release_to_urgent<M: Model>(
    word: &M::U64,
    events: &EventCounts<'_, M>,
    me: ClientIdBits,
) -> Option<Reservation> {
    let urgent = events.urgent?;
    let reserved = urgent.next_reservation();
    let mut seen = word.load(Ordering::Relaxed);
    while seen & !FLAGS == me {
        let is_announced = seen & URGENT_WAITERS != 0;
        let reservation = if is_announced { reserved } else { reserved | HANDED_OVER };
        match word.compare_exchange(seen, reservation | (seen & BULK_WAITERS), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => {
                // The waiter that announced itself may be of another process, and asleep.
                if is_announced {
                    urgent.wake();
                }
                return Some(Reservation(reservation));
            }
            Err(now) => seen = now,
        }
    }
    None
}

#[cfg(test)]
mod tests;
