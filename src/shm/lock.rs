//! The writer lock: one 64-bit word of shared memory that holds its owner's client id, and who is to have it next.
//!
//! The word itself names the owner from the very instruction that takes the lock, so it is never held by nobody
//! nameable, and since ids are never reused, a slow reaper's compare-and-swap can't hit a later owner. Threads of one process
//! exclude each other by a mutex of that process before they come here.
//!
//! Waiters are of two classes. Bit 62 says that urgent ones may be waiting, bit 63 that others may be; each class has a bell that
//! it sleeps on. An owner that releases while urgent ones may wait leaves the word *reserved*: free for the urgent, held for the others,
//! so that no bulk load can come between. If the kernel then says that none of them slept, the reservation is taken back.
//! Locks with one class of waiters (growth, a cell's latch) never see bit 62.
//!
//! | word | meaning | its owner dies here | a waiter dies here |
//! |---|---|---|---|
//! | 0 | free | – | those still asleep time out within 5 ms and take it |
//! | id | held | the next acquirer waits 5 ms, finds the id's byte free, swaps it for its own id | – |
//! | id, bit 63 or 62 | held, somebody may wait | the same; the bits are kept | a superfluous wake-up at release |
//! | 0, bit 62 | reserved for the urgent | urgent sleepers time out within 5 ms and take it; a bulk waiter takes it after 5 ms in which the bell stood still | the same |
//! | 0, bell not yet advanced | just released | those asleep time out within 5 ms and take it | – |
//! | bell advanced, nobody woken yet | just released | the same | – |
//!
//! Whoever acquires after having waited leaves its class's bit set, since it can't know whether others wait: the release wakes
//! one sleeper only. Taking over needs no repair here: what a dead owner left unpublished is overwritten (invariant I1
//! of the design). A word that names no possible client (damage) is taken over like a dead owner's.
//!
//! An urgent waiter that has announced itself and does not sleep yet is awake, and takes part in the race for a word whose
//! reservation is taken back at that instant. It may lose that race once: so it waits for two bulk sections at most, nearly always for one.

use super::atomic::{Model, Woken, Word32, Word64};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The raw bits of a client id: between 2^32 and 2^62.
pub type ClientIdBits = u64;

/// Set in the lock's word while somebody may be waiting; of the urgent ones, and of all others.
const URGENT: u64 = 1 << 62;
const WAITERS: u64 = 1 << 63;
const FLAGS: u64 = URGENT | WAITERS;

/// Who is let in first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Before all others.
    Urgent,
    /// When nobody urgent waits.
    Bulk,
}

impl Class {
    fn flag(self) -> u64 {
        match self {
            Class::Urgent => URGENT,
            Class::Bulk => WAITERS,
        }
    }
}

/// What the sleepers of each class sleep on.
pub struct Bells<'a, M: Model> {
    /// The urgent ones.
    pub urgent: &'a M::U32,
    /// All others.
    pub bulk: &'a M::U32,
}

impl<'a, M: Model> Bells<'a, M> {
    /// Of a lock with one class of waiters.
    pub fn one(bell: &'a M::U32) -> Bells<'a, M> {
        Bells { urgent: bell, bulk: bell }
    }

    fn of(&self, class: Class) -> &'a M::U32 {
        match class {
            Class::Urgent => self.urgent,
            Class::Bulk => self.bulk,
        }
    }
}

/// The longest sleep before a waiter tests whether the owner is alive.
pub const NAP_MAX: Duration = Duration::from_millis(5);

/// What a held lock's word said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(u64);

impl Owner {
    /// The owner's id; 0 if it is free, or reserved.
    pub fn id(self) -> ClientIdBits {
        self.0 & !FLAGS
    }

    fn is_reserved(self) -> bool {
        self.id() == 0 && self.0 & URGENT != 0
    }

    fn is_free_for(self, class: Class) -> bool {
        self.id() == 0 && (class == Class::Urgent || !self.is_reserved())
    }
}

/// Who holds the lock now; for reports, and for reapers.
#[inline]
pub fn owner<M: Model>(word: &M::U64) -> Option<Owner> {
    Some(Owner(word.load(Ordering::Acquire))).filter(|owner| owner.id() != 0)
}

/// Takes the lock if it is free for all. Acquire pairs with [`release`]'s release: the section's writes are seen.
#[inline]
pub fn try_acquire<M: Model>(word: &M::U64, me: ClientIdBits) -> Result<(), Owner> {
    swap_in::<M>(word, 0, me)
}

fn swap_in<M: Model>(word: &M::U64, current: u64, new: u64) -> Result<(), Owner> {
    word.compare_exchange(current, new, Ordering::Acquire, Ordering::Acquire).map(drop).map_err(Owner)
}

/// Makes sure that `seen`, if it still holds the lock, will wake somebody of `class` at release. False if the word has changed.
pub fn announce_waiter<M: Model>(word: &M::U64, seen: Owner, class: Class) -> bool {
    announce::<M>(word, seen, class.flag())
}

fn announce<M: Model>(word: &M::U64, seen: Owner, flags: u64) -> bool {
    // If the bits stand already, a release since then has advanced the bell, whose value the waiter read before.
    let new = seen.0 | flags;
    new == seen.0 || word.compare_exchange(seen.0, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// Takes the lock from an owner that is dead. False if somebody else did, or if a waiter announced itself just now.
///
/// There is no release to pair with. What makes the dead owner's writes visible is that its byte of the `lock` file
/// was found free, which the kernel makes so after its last instruction.
pub fn take_over<M: Model>(word: &M::U64, dead: Owner, me: ClientIdBits) -> bool {
    swap_in::<M>(word, dead.0, me | (dead.0 & FLAGS)).is_ok()
}

/// Who is to be woken after a [`release`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Next {
    /// Nobody.
    Nobody,
    /// One of the bulk, if one sleeps.
    Bulk,
    /// One of the urgent, for whom the word is reserved.
    Urgent,
}

/// Lets go of the lock, and says who may sleep and must be woken: [`wake_next`].
///
/// A word that doesn't name `me` (damage, or a reaper that wrongly took us for dead) is left alone.
#[inline]
pub fn release<M: Model>(word: &M::U64, me: ClientIdBits) -> Next {
    match word.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed) {
        Ok(_) => Next::Nobody,
        Err(seen) => release_to_waiters::<M>(word, me, seen),
    }
}

#[cold]
fn release_to_waiters<M: Model>(word: &M::U64, me: ClientIdBits, mut seen: u64) -> Next {
    while seen & !FLAGS == me {
        let is_reserved = seen & URGENT != 0;
        let new = if is_reserved { seen & FLAGS } else { 0 };
        match word.compare_exchange(seen, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return if is_reserved { Next::Urgent } else { Next::Bulk },
            // Only the owner removes bits; another waiter has announced itself.
            Err(now) => seen = now,
        }
    }
    Next::Nobody
}

/// Wakes whom a [`release`] asked for. If none of the urgent slept, the word is free for all again.
pub fn wake_next<M: Model>(word: &M::U64, bells: &Bells<'_, M>, next: Next) {
    let is_woken = match next {
        Next::Nobody => true,
        Next::Bulk => wake_one::<M>(bells.bulk),
        Next::Urgent => wake_one::<M>(bells.urgent),
    };
    if !is_woken && next == Next::Urgent && take_back::<M>(word) {
        wake_one::<M>(bells.bulk);
    }
}

/// Takes a reservation back. True if bulk waiters may sleep beside it.
fn take_back<M: Model>(word: &M::U64) -> bool {
    let mut seen = word.load(Ordering::Relaxed);
    while Owner(seen).is_reserved() {
        match word.compare_exchange(seen, 0, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return seen & WAITERS != 0,
            Err(now) => seen = now,
        }
    }
    // Somebody urgent took it, and kept the bits.
    false
}

/// Whether somebody slept.
fn wake_one<M: Model>(bell: &M::U32) -> bool {
    bell.fetch_add(1, Ordering::Release);
    M::wake(bell, 1) > 0
}

/// Wakes all sleepers, so that they look again: after reaping.
pub fn wake_all<M: Model>(bell: &M::U32) {
    bell.fetch_add(1, Ordering::Release);
    M::wake(bell, u32::MAX);
}

/// How the lock was got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acquired {
    /// It was free, or was released to us.
    Released,
    /// Its owner was dead. The caller may want to reap what else that client held.
    TakenOver(ClientIdBits),
}

/// Takes the lock, waiting until `deadline` at most (`None`: as long as its owners live; in the past: not at all).
///
/// `bell` is the word that sleepers sleep on. `is_alive` is asked only about an owner that outlasted a whole nap.
///
/// # Errors
/// The owner at the deadline.
pub fn acquire<M: Model>(
    word: &M::U64,
    bell: &M::U32,
    me: ClientIdBits,
    is_alive: &dyn Fn(ClientIdBits) -> bool,
    deadline: Option<Instant>,
) -> Result<Acquired, Owner> {
    acquire_as::<M>(word, &Bells::one(bell), &|| Class::Bulk, me, is_alive, deadline)
}

/// [`acquire`] of a lock with two classes of waiters. Of which one the caller is, it says before each look: a bulk waiter may
/// become urgent, at the latest at the end of the nap that it is in, at once if its bell is rung.
///
/// # Errors
/// As [`acquire`].
pub fn acquire_as<M: Model>(
    word: &M::U64,
    bells: &Bells<'_, M>,
    class: &dyn Fn() -> Class,
    me: ClientIdBits,
    is_alive: &dyn Fn(ClientIdBits) -> bool,
    deadline: Option<Instant>,
) -> Result<Acquired, Owner> {
    if try_acquire::<M>(word, me).is_ok() {
        return Ok(Acquired::Released);
    }
    for _ in 0..M::SPINS {
        if word.load(Ordering::Relaxed) == 0 && try_acquire::<M>(word, me).is_ok() {
            return Ok(Acquired::Released);
        }
        M::spin_hint();
    }
    // The bits of the classes that this one has slept in: it may have used up a wake-up that was for others, too.
    let mut slept = 0;
    // What was seen last, since when, and whether a whole nap has passed since. The clock counts too, as signals
    // may end every nap early. A reservation is known by the urgent bell, which each one rings.
    let mut suspect: Option<((ClientIdBits, u32), Instant)> = None;
    let mut napped = false;
    loop {
        let class = class();
        let bell = bells.of(class);
        // Before the look at the lock: a release after that look changes the bell, so the sleep ends at once.
        let ticket = bell.load(Ordering::Acquire);
        let seen = Owner(word.load(Ordering::Acquire));
        if seen.is_free_for(class) {
            if swap_in::<M>(word, seen.0, me | (seen.0 & FLAGS) | slept).is_ok() {
                return Ok(Acquired::Released);
            }
            continue;
        }
        let now = Instant::now();
        let known = (seen.id(), if seen.is_reserved() { bells.urgent.load(Ordering::Acquire) } else { 0 });
        let outlasted = match suspect {
            Some((before, since)) if before == known => napped || now - since >= NAP_MAX,
            _ => false,
        };
        if outlasted && seen.is_reserved() {
            // Whoever it was reserved for is dead, or has given up.
            if swap_in::<M>(word, seen.0, me | (seen.0 & WAITERS) | slept).is_ok() {
                return Ok(Acquired::Released);
            }
            continue;
        }
        if outlasted && !planted_bug!("lock-without-takeover") && !is_alive(seen.id()) {
            if take_over::<M>(word, seen, me) {
                return Ok(Acquired::TakenOver(seen.id()));
            }
            continue;
        }
        let left = match deadline {
            Some(deadline) => deadline.saturating_duration_since(now),
            None => NAP_MAX,
        };
        if left.is_zero() {
            announce::<M>(word, seen, slept);
            return Err(seen);
        }
        if !announce_waiter::<M>(word, seen, class) {
            continue;
        }
        slept |= class.flag();
        if outlasted || suspect.is_none_or(|(before, _)| before != known) {
            suspect = Some((known, now));
        }
        napped = M::wait(bell, ticket, left.min(NAP_MAX)) == Woken::TimedOut;
    }
}

/// [`release`], and waking whom it asks for.
#[inline]
pub fn release_and_wake<M: Model>(word: &M::U64, bell: &M::U32, me: ClientIdBits) {
    release_and_wake_next::<M>(word, &Bells::one(bell), me);
}

/// [`release_and_wake`] of a lock with two classes of waiters.
#[inline]
pub fn release_and_wake_next<M: Model>(word: &M::U64, bells: &Bells<'_, M>, me: ClientIdBits) {
    match release::<M>(word, me) {
        Next::Nobody => {}
        next => wake_next::<M>(word, bells, next),
    }
}

/// As [`release_and_wake_next`], by a process that has an urgent waiter of its own on the way, who does not sleep here: the lock stays
/// reserved until that one, or another urgent one, takes it. Should it not come, it is as if it had died.
pub fn release_to_urgent<M: Model>(word: &M::U64, bells: &Bells<'_, M>, me: ClientIdBits) {
    while let Some(seen) = owner::<M>(word).filter(|owner| owner.id() == me) {
        if announce_waiter::<M>(word, seen, Class::Urgent) {
            break;
        }
    }
    if release::<M>(word, me) == Next::Urgent {
        wake_one::<M>(bells.urgent);
    }
}

#[cfg(test)]
mod tests {
    use super::super::atomic::Native;
    use super::*;
    use std::sync::atomic::{AtomicU32, AtomicU64};

    const OWNER: u64 = (1 << 40) + 1;
    const OTHER: u64 = (1 << 40) + 2;

    fn try_as(word: &AtomicU64, class: Class) -> Result<Acquired, Owner> {
        let (urgent, bulk) = (AtomicU32::new(0), AtomicU32::new(0));
        let bells = Bells { urgent: &urgent, bulk: &bulk };
        acquire_as::<Native>(word, &bells, &|| class, OTHER, &|_| true, Some(Instant::now()))
    }

    /// Goal: while somebody urgent may wait, a release lets in nobody else.
    #[test]
    fn a_release_reserves_the_lock_for_the_urgent() {
        let word = AtomicU64::new(OWNER);
        assert!(announce_waiter::<Native>(&word, Owner(OWNER), Class::Bulk));
        assert!(announce_waiter::<Native>(&word, Owner(OWNER | WAITERS), Class::Urgent));
        assert_eq!(release::<Native>(&word, OWNER), Next::Urgent);
        assert_eq!(owner::<Native>(&word), None);
        assert!(try_acquire::<Native>(&word, OTHER).is_err());
        assert!(try_as(&word, Class::Bulk).is_err());
        assert_eq!(try_as(&word, Class::Urgent), Ok(Acquired::Released));
        // Others may wait still, of both classes.
        assert_eq!(word.load(Ordering::Relaxed), OTHER | FLAGS);
    }

    /// Goal: a reservation for nobody does not stay.
    #[test]
    fn a_reservation_that_nobody_waits_for_is_taken_back() {
        let (urgent, bulk) = (AtomicU32::new(0), AtomicU32::new(0));
        let word = AtomicU64::new(OWNER | FLAGS);
        release_and_wake_next::<Native>(&word, &Bells { urgent: &urgent, bulk: &bulk }, OWNER);
        assert_eq!(word.load(Ordering::Relaxed), 0);
        // Both were told: they may be about to fall asleep.
        assert_eq!((urgent.load(Ordering::Relaxed), bulk.load(Ordering::Relaxed)), (1, 1));
    }

    /// Goal: one for somebody who is on the way does.
    #[test]
    fn a_reservation_for_an_own_waiter_stays() {
        let (urgent, bulk) = (AtomicU32::new(0), AtomicU32::new(0));
        let word = AtomicU64::new(OWNER);
        release_to_urgent::<Native>(&word, &Bells { urgent: &urgent, bulk: &bulk }, OWNER);
        assert!(try_as(&word, Class::Bulk).is_err());
        assert_eq!(try_as(&word, Class::Urgent), Ok(Acquired::Released));
    }

    /// Goal: one that was left by somebody who died heals.
    #[test]
    fn a_bulk_waiter_takes_a_reservation_that_stands_still() {
        let (urgent, bulk) = (AtomicU32::new(0), AtomicU32::new(0));
        let word = AtomicU64::new(URGENT);
        let bells = Bells { urgent: &urgent, bulk: &bulk };
        let taken = acquire_as::<Native>(&word, &bells, &|| Class::Bulk, OTHER, &|_| true, None);
        assert_eq!(taken, Ok(Acquired::Released));
        assert_eq!(word.load(Ordering::Relaxed) & !FLAGS, OTHER);
    }

    /// Goal: who waits as bulk and becomes urgent is let in as such.
    #[test]
    fn a_waiter_can_be_lifted() {
        let (urgent, bulk) = (AtomicU32::new(0), AtomicU32::new(0));
        let word = AtomicU64::new(URGENT);
        let looks = AtomicU32::new(0);
        let class = || if looks.fetch_add(1, Ordering::Relaxed) == 0 { Class::Bulk } else { Class::Urgent };
        let bells = Bells { urgent: &urgent, bulk: &bulk };
        let taken = acquire_as::<Native>(&word, &bells, &class, OTHER, &|_| true, None);
        assert_eq!((taken, looks.load(Ordering::Relaxed)), (Ok(Acquired::Released), 2));
    }
}
