//! The writer lock: one 64-bit word of shared memory that holds its owner's client id.
//!
//! The word itself names the owner from the very instruction that takes the lock, so it is never held by nobody
//! nameable, and since ids are never reused, a slow reaper's compare-and-swap can't hit a later owner. Bit 63 says that
//! somebody may be waiting. Threads of one process exclude each other by a mutex of that process before they come here.
//!
//! | word | meaning | its owner dies here | a waiter dies here |
//! |---|---|---|---|
//! | 0 | free | – | those still asleep time out within 5 ms and take it |
//! | id | held | the next acquirer waits 5 ms, finds the id's byte free, swaps it for its own id | – |
//! | id, bit 63 | held, somebody may wait | the same; the bit is kept | a superfluous wake-up at release |
//! | 0, bell not yet advanced | just released | those asleep time out within 5 ms and take it | – |
//! | bell advanced, nobody woken yet | just released | the same | – |
//!
//! Whoever acquires after having waited leaves bit 63 set, since it can't know whether others wait: the release wakes
//! one sleeper only. Taking over needs no repair here: what a dead owner left unpublished is overwritten (invariant I1
//! of the design). A word that names no possible client (damage) is taken over like a dead owner's.

use super::atomic::{Model, Woken, Word32, Word64};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The raw bits of a client id: between 2^32 and 2^62.
pub type ClientIdBits = u64;

/// Set in the lock's word while somebody may be waiting.
const WAITERS: u64 = 1 << 63;

/// The longest sleep before a waiter tests whether the owner is alive.
pub const NAP_MAX: Duration = Duration::from_millis(5);

/// What a held lock's word said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(u64);

impl Owner {
    /// The owner's id.
    pub fn id(self) -> ClientIdBits {
        self.0 & !WAITERS
    }

    fn has_waiters(self) -> bool {
        self.0 & WAITERS != 0
    }
}

/// Who holds the lock now; for reports, and for reapers.
#[inline]
pub fn owner<M: Model>(word: &M::U64) -> Option<Owner> {
    match word.load(Ordering::Acquire) {
        0 => None,
        held => Some(Owner(held)),
    }
}

/// Takes the lock if it is free. Acquire pairs with [`release`]'s release: the section's writes are seen.
#[inline]
pub fn try_acquire<M: Model>(word: &M::U64, me: ClientIdBits) -> Result<(), Owner> {
    swap_in::<M>(word, 0, me)
}

/// [`try_acquire`] by somebody who has waited: leaves the waiters bit set.
pub fn try_acquire_after_waiting<M: Model>(word: &M::U64, me: ClientIdBits) -> Result<(), Owner> {
    swap_in::<M>(word, 0, me | WAITERS)
}

fn swap_in<M: Model>(word: &M::U64, current: u64, new: u64) -> Result<(), Owner> {
    word.compare_exchange(current, new, Ordering::Acquire, Ordering::Acquire).map(drop).map_err(Owner)
}

/// Makes sure that `seen`, if it still holds the lock, will wake somebody at release. False if the word has changed.
pub fn announce_waiter<M: Model>(word: &M::U64, seen: Owner) -> bool {
    // If the bit stands already, a release since then has advanced the bell, whose value the waiter read before.
    seen.has_waiters() || word.compare_exchange(seen.0, seen.0 | WAITERS, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// Takes the lock from an owner that is dead. False if somebody else did, or if a waiter announced itself just now.
///
/// There is no release to pair with. What makes the dead owner's writes visible is that its byte of the `lock` file
/// was found free, which the kernel makes so after its last instruction.
pub fn take_over<M: Model>(word: &M::U64, dead: Owner, me: ClientIdBits) -> bool {
    swap_in::<M>(word, dead.0, me | (dead.0 & WAITERS)).is_ok()
}

/// Lets go of the lock. True if somebody may sleep, and must be woken: [`wake_one`].
///
/// A word that doesn't name `me` (damage, or a reaper that wrongly took us for dead) is left alone.
#[inline]
pub fn release<M: Model>(word: &M::U64, me: ClientIdBits) -> bool {
    match word.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed) {
        Ok(_) => false,
        // Only the owner removes the waiters bit, so this can't fail for any good reason.
        Err(_) => word.compare_exchange(me | WAITERS, 0, Ordering::Release, Ordering::Relaxed).is_ok(),
    }
}

/// Wakes one sleeper after a [`release`] that asked for it.
pub fn wake_one<M: Model>(bell: &M::U32) {
    bell.fetch_add(1, Ordering::Release);
    M::wake(bell, 1);
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
    if try_acquire::<M>(word, me).is_ok() {
        return Ok(Acquired::Released);
    }
    for _ in 0..M::SPINS {
        if word.load(Ordering::Relaxed) == 0 && try_acquire::<M>(word, me).is_ok() {
            return Ok(Acquired::Released);
        }
        M::spin_hint();
    }
    let mut has_waited = false;
    // The owner seen last, since when, and whether a whole nap has passed since. The clock counts too, as signals
    // may end every nap early.
    let mut suspect: Option<(ClientIdBits, Instant)> = None;
    let mut napped = false;
    loop {
        // Before the look at the lock: a release after that look changes the bell, so the sleep ends at once.
        let ticket = bell.load(Ordering::Acquire);
        let attempt = if has_waited { try_acquire_after_waiting::<M>(word, me) } else { try_acquire::<M>(word, me) };
        let Err(owner) = attempt else {
            return Ok(Acquired::Released);
        };
        let now = Instant::now();
        let outlasted = match suspect {
            Some((id, since)) if id == owner.id() => napped || now - since >= NAP_MAX,
            _ => false,
        };
        if owner.id() == 0 || (outlasted && !planted_bug!("lock-without-takeover") && !is_alive(owner.id())) {
            if take_over::<M>(word, owner, me) {
                return Ok(Acquired::TakenOver(owner.id()));
            }
            continue;
        }
        let left = match deadline {
            Some(deadline) => deadline.saturating_duration_since(now),
            None => NAP_MAX,
        };
        if left.is_zero() {
            // The wake-up that we may have used up was for whoever still sleeps, too.
            if has_waited {
                announce_waiter::<M>(word, owner);
            }
            return Err(owner);
        }
        if !announce_waiter::<M>(word, owner) {
            continue;
        }
        has_waited = true;
        if outlasted || suspect.is_none_or(|(id, _)| id != owner.id()) {
            suspect = Some((owner.id(), now));
        }
        napped = M::wait(bell, ticket, left.min(NAP_MAX)) == Woken::TimedOut;
    }
}

/// [`release`] and, if it asks for that, [`wake_one`].
#[inline]
pub fn release_and_wake<M: Model>(word: &M::U64, bell: &M::U32, me: ClientIdBits) {
    if release::<M>(word, me) {
        wake_one::<M>(bell);
    }
}
