//! Sleeping until something in shared memory has moved: a bell beside a watermark.
//!
//! One 32-bit word, the bell, is even while nobody listens and odd while somebody may. A listener makes it odd,
//! fences, looks at what it waits for, and sleeps while the bell keeps that odd value. A publisher stores its news
//! with [`Word64::store_fenced`], then looks at the bell: even, and it is done without a system call; odd, and it
//! advances the bell by one and wakes all. Either the publisher sees the listener's odd value or the listener sees the news.
//!
//! The logger sleeping on the ring, writers waiting for `durable`, and followers of the change feed all wait here.
//!
//! | state | bell | who dies here | then |
//! |---|---|---|---|
//! | idle | even | – | – |
//! | listening | odd | a listener | one superfluous wake-up |
//! | news stored, bell not looked at | odd | the publisher | the listeners' time-out |
//! | bell advanced, nobody woken yet | even | the publisher | the listeners' time-out |
//!
//! The time-out of a client is [`NAP_MAX`] at most. The logger's threads have 50 ms while the store is used, and a minute while it is
//! not, or a day if no process has it open: then the logger looks for dead clients every 3 s, and wakes all listeners when it finds one (`logger/rest.rs`). A client
//! that waits for the logger wakes it at its own time-out.

use crate::shared::protocols::atomic::{Model, Woken, Word32, Word64};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest sleep before a waiter looks again by itself.
pub const NAP_MAX: Duration = Duration::from_millis(100);

/// Says that this thread is about to sleep. The caller then looks at what it waits for, and only if that has not come
/// does it [`sleep`] with the ticket that this returns.
#[inline]
pub fn listen<M: Model>(bell: &M::U32) -> u32 {
    let mut seen = bell.load(Ordering::Acquire);
    while seen & 1 == 0 {
        match bell.compare_exchange(seen, seen | 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => seen |= 1,
            Err(now) => seen = now,
        }
    }
    // Pairs with the fence in the publisher's `store_fenced`.
    M::fence(Ordering::SeqCst);
    seen
}

/// Sleeps until the bell rings after the `ticket` was taken, at most for `timeout`.
#[inline]
pub fn sleep<M: Model>(bell: &M::U32, ticket: u32, timeout: Duration) -> Woken {
    M::wait(bell, ticket, timeout)
}

/// Wakes all listeners; costs one load if there are none. The caller has just stored its news with
/// [`Word64::store_fenced`]; without that, a listener could be missed.
#[inline]
pub fn ring<M: Model>(bell: &M::U32) {
    let seen = bell.load(Ordering::SeqCst);
    if seen & 1 == 1 {
        ring_odd::<M>(bell, seen);
    }
}

/// As [`ring`], if the listener wants to hear of a watermark that has come to `reached`: it has said in `from` from where on
/// it does. A listener that is awake wants to hear of nothing (`u64::MAX`), as it looks before it sleeps; see [`doze`].
#[inline]
pub fn ring_from<M: Model>(bell: &M::U32, from: &M::U64, reached: u64) {
    if reached >= from.load(Ordering::SeqCst) {
        ring::<M>(bell);
    }
}

/// What a sleeper wants to hear of; see [`doze`].
pub struct Wish<'a, M: Model> {
    /// Where it says so: what [`ring_from`] looks at.
    pub from: &'a M::U64,
    /// From where on it wants to hear of the watermark.
    pub wanted: u64,
    /// Where the watermark is now.
    pub reached: &'a dyn Fn() -> u64,
}

/// Sleeps as [`sleep`] does, and is woken by those [`ring_from`] whose watermark comes to what is `wanted` of it; not at all if
/// one of them, when asked last, has come there.
///
/// The same idiom as with the bell: the publisher stores its watermark fenced, then looks at `from`; this stores `from` fenced,
/// then looks at the watermark.
#[inline]
pub fn doze<M: Model>(bell: &M::U32, ticket: u32, wishes: &[Wish<'_, M>], timeout: Duration) -> Woken {
    for wish in wishes {
        wish.from.store_fenced(wish.wanted);
    }
    // For a `reached` that is no sequentially consistent load.
    M::fence(Ordering::SeqCst);
    let has_come = wishes.iter().any(|wish| (wish.reached)() >= wish.wanted);
    let woken = if has_come { Woken::Perhaps } else { sleep::<M>(bell, ticket, timeout) };
    for wish in wishes {
        wish.from.store(u64::MAX, Ordering::Relaxed);
    }
    woken
}

/// Wakes everybody whatever the bell says: after reaping the dead, who may have died between store and wake.
pub fn ring_always<M: Model>(bell: &M::U32) {
    M::fence(Ordering::SeqCst);
    ring::<M>(bell);
    M::wake(bell, u32::MAX);
}

#[cold]
fn ring_odd<M: Model>(bell: &M::U32, seen: u32) {
    // If another publisher has advanced the bell meanwhile, it wakes the listeners that we saw; and later ones took
    // their tickets after our store, so they see our news.
    if bell.compare_exchange(seen, seen.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire).is_ok() {
        M::wake(bell, u32::MAX);
    }
}

/// Why a wait ended without what it waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended<E> {
    /// The deadline came.
    DeadlinePassed,
    /// The caller's own check said so.
    Stopped(E),
}

/// Waits until `ready` answers something, until `deadline`, or until `on_tick`, called about once in each `nap` (at most
/// [`NAP_MAX`]), returns an error.
pub fn wait_until<M: Model, T, E>(
    bell: &M::U32,
    deadline: Option<Instant>,
    nap: Duration,
    mut ready: impl FnMut() -> Option<T>,
    mut on_tick: impl FnMut() -> Result<(), E>,
) -> Result<T, Ended<E>> {
    for _ in 0..M::SPINS {
        if let Some(found) = ready() {
            return Ok(found);
        }
        M::spin_hint();
    }
    let nap = nap.min(NAP_MAX);
    let mut ticked = Instant::now();
    loop {
        let ticket = listen::<M>(bell);
        if let Some(found) = ready() {
            return Ok(found);
        }
        let now = Instant::now();
        let left = deadline.map_or(nap, |deadline| deadline.saturating_duration_since(now));
        if left.is_zero() {
            return Err(Ended::DeadlinePassed);
        }
        // By the clock, too: signals, or news for others, may end every nap early. Not when the deadline did.
        let slept = sleep::<M>(bell, ticket, left.min(nap));
        if (slept == Woken::TimedOut && left >= nap) || ticked.elapsed() >= nap {
            ticked = Instant::now();
            on_tick().map_err(Ended::Stopped)?;
        }
    }
}

/// Moves `watermark` to `value` and wakes whoever waits for it. One publisher at a time; `value` never falls.
#[inline]
pub fn publish<M: Model>(watermark: &M::U64, bell: &M::U32, value: u64) {
    watermark.store_fenced(value);
    ring::<M>(bell);
}

/// Waits until `watermark` is at least `at_least`; the value found. See [`wait_until`].
pub fn wait_for<M: Model, E>(
    watermark: &M::U64,
    bell: &M::U32,
    at_least: u64,
    deadline: Option<Instant>,
    on_tick: impl FnMut() -> Result<(), E>,
) -> Result<u64, Ended<E>> {
    // Sequentially consistent: the look after `listen` is the second half of Dekker's idiom.
    let look = || Some(watermark.load(Ordering::SeqCst)).filter(|&value| value >= at_least);
    wait_until::<M, _, _>(bell, deadline, NAP_MAX, look, on_tick)
}
