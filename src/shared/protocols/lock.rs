//! The writer lock: one 64-bit word of shared memory that holds its owner's client id, and who is to have it next.
//!
//! The word itself names the owner from the very instruction that takes the lock, so it is never held by nobody
//! nameable, and since ids are never reused, a slow reaper's compare-and-swap can't hit a later owner. Threads of one process
//! exclude each other by a mutex of that process before they come here.
//!
//! Waiters are of two classes. Bit 62 says that urgent ones may be waiting, bit 63 that others may be; each class has an event count that
//! it sleeps on. An owner that releases while urgent ones may wait leaves the word *reserved*: free for the urgent, held for the others,
//! so that no bulk load can come between. A reservation has a number, so that no two are taken for each other. If the kernel says that
//! nobody urgent slept, and nobody is on the way, whoever reserved takes it back.
//! *On the way* is who has counted itself in ([`Urgent`]) and not yet left, for [`RESERVATION_TIMEOUT`] after the last of them looked or was woken.
//! Locks with one class of waiters (growth, a cell's latch) never see bit 62.
//!
//! | word | meaning | its owner dies here | a waiter dies here |
//! |---|---|---|---|
//! | 0 | free | – | those still asleep time out within 5 ms and take it |
//! | id | held | the next acquirer waits 5 ms, finds the id's byte free, swaps it for its own id | – |
//! | id, bit 63 or 62 | held, somebody may wait | the same; the bits are kept | a superfluous wake-up at release |
//! | bit 62, number below 2^32 | reserved for the urgent | urgent sleepers time out within 5 ms and take it; a bulk waiter takes it once it has stood for 200 µs, which one that sleeps sees within 5 ms | it stands for 200 µs, once: whoever takes it then counts anew who is on the way |
//! | 0, event not yet advanced | just released | those asleep time out within 5 ms and take it | – |
//! | event advanced, nobody woken yet | just released | the same | – |
//!
//! Whoever acquires after having waited leaves its class's bit set, since it can't know whether others wait: the release wakes
//! one sleeper only. Taking over needs no repair here: what a dead owner left unpublished is overwritten (invariant I1
//! of the design). A word that names no possible client (damage) is taken over like a dead owner's, or like a reservation that nobody
//! comes for.
//!
//! So an urgent waiter, from its announcement on, waits for the bulk section that is under way, and for no other, provided that it runs
//! within [`RESERVATION_TIMEOUT`] of being woken. In the instant before its announcement another may begin: two at most. Within a class there is no
//! order: a later comer may pass one that has been woken and does not run yet.

use crate::shared::protocols::atomic::{Model, Woken, Word32, Word64};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The raw bits of a client id: between 2^32 and 2^62.
pub type ClientIdBits = u64;

/// Set in the lock's word while somebody may be waiting; of the urgent ones, and of all others.
const URGENT_WAITERS: u64 = 1 << 62;
const BULK_WAITERS: u64 = 1 << 63;
const FLAGS: u64 = URGENT_WAITERS | BULK_WAITERS;

/// In a reservation, which is [`URGENT_WAITERS`] and a number that no client id can be: nobody urgent of another process had announced itself.
const HANDED_OVER: u64 = 1 << 31;
const RESERVATION_MAX: u64 = u32::MAX as u64;

/// How long a reservation stands for somebody who has been woken, or has announced itself, and does not run.
pub const RESERVATION_TIMEOUT: Duration = Duration::from_micros(200);

/// How urgent a commit is: whether its caller waits until it is durable, and has less than 100 ms. Urgent ones are let in first, and their
/// latencies are counted apart. The logger's own transactions are bulk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitClass {
    /// Before all others.
    Urgent,
    /// When nobody urgent waits.
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

/// The urgent waiters of a lock, in shared memory. All zero at first.
#[repr(C)]
pub struct Urgent<M: Model> {
    /// What they sleep on.
    pub event: M::U32,
    /// How many have announced themselves and not left. Too large if one has died, until a reservation is taken back.
    waiting: M::U32,
    /// The number of the newest reservation. The lock's owner counts.
    reservations: M::U32,
    _reserved: M::U32,
    /// When one of them last announced itself, or was to be woken.
    seen_ns: M::U64,
}

impl<M: Model> Urgent<M> {
    /// Of a lock that nobody waits for.
    #[must_use]
    pub fn new() -> Urgent<M> {
        let word = || M::U32::new(0);
        Urgent { event: word(), waiting: word(), reservations: word(), _reserved: word(), seen_ns: M::U64::new(0) }
    }

    fn count_in(&self) {
        self.seen_ns.store(M::now_ns(), Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    fn count_out(&self) {
        let mut seen = self.waiting.load(Ordering::Relaxed);
        // Zero if it was found late, and counted anew without it.
        while seen > 0 {
            match self.waiting.compare_exchange(seen, seen - 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Forgets who is on the way: nobody, or somebody who does not run.
    fn count_anew(&self) {
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// The next reservation. By the owner of the lock.
    fn next_reservation(&self) -> u64 {
        let number = self.reservations.load(Ordering::Relaxed).wrapping_add(1);
        self.reservations.store(number, Ordering::Relaxed);
        URGENT_WAITERS | (u64::from(number) & (HANDED_OVER - 1))
    }

    /// Wakes one that sleeps. Whether the lock is to stay reserved: one has been woken, or is on the way.
    fn wake(&self) -> bool {
        let (now, seen_ns) = (M::now_ns(), self.seen_ns.load(Ordering::Relaxed));
        // Before the wake-up: who comes first and releases again must know of it.
        self.seen_ns.store(now, Ordering::Relaxed);
        // A time in the future is damage.
        let is_recent = now.checked_sub(seen_ns).is_some_and(|ago| u128::from(ago) < RESERVATION_TIMEOUT.as_nanos());
        wake_one::<M>(&self.event) || (is_recent && self.waiting.load(Ordering::Relaxed) > 0)
    }
}

impl<M: Model> Default for Urgent<M> {
    fn default() -> Urgent<M> {
        Urgent::new()
    }
}

/// What the sleepers of each class sleep on.
pub struct EventCounts<'a, M: Model> {
    /// The urgent ones, of a lock that has such.
    pub urgent: Option<&'a Urgent<M>>,
    /// All others.
    pub bulk: &'a M::U32,
}

impl<'a, M: Model> EventCounts<'a, M> {
    /// Of a lock with one class of waiters.
    pub fn one(event: &'a M::U32) -> EventCounts<'a, M> {
        EventCounts { urgent: None, bulk: event }
    }

    /// Of a lock with two.
    pub fn two(urgent: &'a Urgent<M>, bulk: &'a M::U32) -> EventCounts<'a, M> {
        EventCounts { urgent: Some(urgent), bulk }
    }
}

/// The longest sleep before a waiter tests whether the owner is alive.
pub const OWNER_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// What a held lock's word said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(u64);

impl Owner {
    /// The owner's id; 0 if it is free, or reserved.
    pub fn id(self) -> ClientIdBits {
        if self.is_reserved() { 0 } else { self.0 & !FLAGS }
    }

    fn is_reserved(self) -> bool {
        self.0 & URGENT_WAITERS != 0 && self.0 & !FLAGS <= RESERVATION_MAX
    }

    fn is_free_for(self, class: CommitClass) -> bool {
        self.id() == 0 && (class == CommitClass::Urgent || !self.is_reserved())
    }

    /// The bits that an owner keeps who takes the lock in this state.
    fn kept(self) -> u64 {
        let is_handed_over = self.is_reserved() && self.0 & HANDED_OVER != 0;
        self.0 & if is_handed_over { BULK_WAITERS } else { FLAGS }
    }

    /// Who owns it, or which reservation it is: what the classes' bits say of waiters apart.
    fn identity(self) -> u64 {
        if self.is_reserved() { self.0 & !BULK_WAITERS } else { self.id() }
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

/// Takes the lock if it is free for this class.
#[inline]
pub fn try_acquire_as<M: Model>(word: &M::U64, class: CommitClass, me: ClientIdBits) -> Result<(), Owner> {
    let seen = Owner(word.load(Ordering::Relaxed));
    if seen.is_free_for(class) { swap_in::<M>(word, seen.0, me | seen.kept()) } else { Err(seen) }
}

fn swap_in<M: Model>(word: &M::U64, current: u64, new: u64) -> Result<(), Owner> {
    word.compare_exchange(current, new, Ordering::Acquire, Ordering::Acquire).map(drop).map_err(Owner)
}

/// Makes sure that `seen`, if it still holds the lock, will wake somebody of `class` at release. False if the word has changed.
pub fn announce_waiter<M: Model>(word: &M::U64, seen: Owner, class: CommitClass) -> bool {
    announce::<M>(word, seen, class.flag())
}

fn announce<M: Model>(word: &M::U64, seen: Owner, flags: u64) -> bool {
    // If the bits stand already, a release since then has advanced the event, whose value the waiter read before.
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

/// For whom a lock is kept free, until somebody urgent takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation(u64);

impl Reservation {
    /// As a word, to be kept somewhere; never 0.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// What was kept.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Reservation> {
        (bits != 0).then_some(Reservation(bits))
    }
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
    Urgent(Reservation),
}

/// Lets go of the lock, and says who may sleep and must be woken: [`wake_next`].
///
/// A word that doesn't name `me` (damage, or a reaper that wrongly took us for dead) is left alone.
#[inline]
pub fn release<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, me: ClientIdBits) -> Next {
    match word.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed) {
        Ok(_) => Next::Nobody,
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
    Next::Nobody
}

/// Wakes whom a [`release`] asked for. If none of the urgent slept or is on the way, the word is free for all again.
pub fn wake_next<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, next: Next) {
    match (next, events.urgent) {
        (Next::Nobody, _) | (Next::Urgent(_), None) => {}
        (Next::Bulk, _) => drop(wake_one::<M>(events.bulk)),
        (Next::Urgent(reservation), Some(urgent)) => {
            if !urgent.wake() {
                take_back::<M>(word, events, reservation);
            }
        }
    }
}

/// Takes a reservation back, if it stands still, and wakes one of the bulk. Nobody else's is touched.
pub fn take_back<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, reservation: Reservation) {
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

/// Whether somebody slept.
fn wake_one<M: Model>(event: &M::U32) -> bool {
    event.fetch_add(1, Ordering::Release);
    M::wake(event, 1) > 0
}

/// Wakes all sleepers, so that they look again: after reaping.
pub fn wake_all<M: Model>(event: &M::U32) {
    event.fetch_add(1, Ordering::Release);
    M::wake(event, u32::MAX);
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
/// `event` is the word that sleepers sleep on. `is_alive` is asked only about an owner that outlasted a whole nap.
///
/// # Errors
/// The owner at the deadline.
pub fn acquire<M: Model>(
    word: &M::U64,
    event: &M::U32,
    me: ClientIdBits,
    is_alive: &dyn Fn(ClientIdBits) -> bool,
    deadline: Option<Instant>,
) -> Result<Acquired, Owner> {
    acquire_as::<M>(word, &EventCounts::one(event), &|| CommitClass::Bulk, me, is_alive, deadline)
}

/// [`acquire`] of a lock with two classes of waiters. Of which one the caller is, it says before each look: a bulk waiter may
/// become urgent, at the latest at the end of the nap that it is in, at once if its event is rung.
///
/// # Errors
/// As [`acquire`].
pub fn acquire_as<M: Model>(
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

/// Somebody who waits in [`acquire_as`].
struct Waiter<'a, M: Model> {
    word: &'a M::U64,
    events: &'a EventCounts<'a, M>,
    /// The bits of the classes that it has slept in: it may have used up a wake-up that was for others, too.
    slept: u64,
    /// Among the urgent.
    is_counted: bool,
}

impl<M: Model> Waiter<'_, M> {
    fn wait(
        &mut self,
        class: &dyn Fn() -> CommitClass,
        me: ClientIdBits,
        is_alive: &dyn Fn(ClientIdBits) -> bool,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Owner> {
        let (word, events) = (self.word, self.events);
        // What was seen last, since when, and whether a whole nap has passed since. The clock counts too, as signals
        // may end every nap early.
        let mut suspect: Option<(u64, u64)> = None;
        let mut timed_out = false;
        loop {
            // Before the look at the class, and at the lock: whoever changes one of them rings later, so the sleep ends at once.
            let ticket = events.bulk.load(Ordering::Acquire);
            let urgent = events.urgent.map(|urgent| (urgent, urgent.event.load(Ordering::Acquire)));
            let class = class();
            let (event, ticket) = match (class, urgent) {
                (CommitClass::Urgent, Some((urgent, ticket))) => (&urgent.event, ticket),
                _ => (events.bulk, ticket),
            };
            let seen = Owner(word.load(Ordering::Acquire));
            if seen.is_free_for(class) {
                if swap_in::<M>(word, seen.0, me | seen.kept() | self.slept).is_ok() {
                    return Ok(Acquired::Released);
                }
                continue;
            }
            let check_interval = if seen.is_reserved() { RESERVATION_TIMEOUT } else { OWNER_CHECK_INTERVAL };
            let (now_ns, known) = (M::now_ns(), seen.identity());
            let outlasted = suspect.is_some_and(|(before, since_ns)| {
                before == known
                    && (timed_out || u128::from(now_ns.saturating_sub(since_ns)) >= check_interval.as_nanos())
            });
            if outlasted && seen.is_reserved() {
                // Whoever it was reserved for is dead, has given up, or does not run.
                if swap_in::<M>(word, seen.0, me | (seen.0 & BULK_WAITERS) | self.slept).is_ok() {
                    if let Some(urgent) = events.urgent {
                        urgent.count_anew();
                    }
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
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => OWNER_CHECK_INTERVAL,
            };
            if left.is_zero() {
                return Err(seen);
            }
            if let (CommitClass::Urgent, Some((urgent, _)), false) = (class, urgent, self.is_counted) {
                self.is_counted = true;
                urgent.count_in();
            }
            if !announce_waiter::<M>(word, seen, class) {
                continue;
            }
            self.slept |= class.flag();
            if outlasted || suspect.is_none_or(|(before, _)| before != known) {
                suspect = Some((known, now_ns));
            }
            timed_out = M::wait(event, ticket, left.min(check_interval)) == Woken::TimedOut && left >= check_interval;
        }
    }

    /// Gives up: passes on what may have been a wake-up for others.
    fn pass_on(&self) {
        if self.slept == 0 {
            return;
        }
        loop {
            let seen = Owner(self.word.load(Ordering::Relaxed));
            if seen.is_reserved() {
                return wake_next::<M>(self.word, self.events, Next::Urgent(Reservation(seen.identity())));
            }
            if seen.id() == 0 {
                return wake_next::<M>(self.word, self.events, Next::Bulk);
            }
            if announce::<M>(self.word, seen, self.slept) {
                return;
            }
        }
    }
}

/// [`release`], and waking whom it asks for.
#[inline]
pub fn release_and_wake<M: Model>(word: &M::U64, event: &M::U32, me: ClientIdBits) {
    release_and_wake_next::<M>(word, &EventCounts::one(event), me);
}

/// [`release_and_wake`] of a lock with two classes of waiters.
#[inline]
pub fn release_and_wake_next<M: Model>(word: &M::U64, events: &EventCounts<'_, M>, me: ClientIdBits) {
    match release::<M>(word, events, me) {
        Next::Nobody => {}
        next => wake_next::<M>(word, events, next),
    }
}

/// As [`release_and_wake_next`], by a process that has an urgent waiter of its own on the way, who does not sleep here: the lock stays
/// reserved until that one, or another urgent one, takes it. Should it not come, the caller [takes it back](take_back).
pub fn release_to_urgent<M: Model>(
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
                // Whoever announced itself may be of another process, and sleep.
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
mod tests {
    use super::*;
    use crate::shared::protocols::atomic::Native;
    use std::sync::atomic::{AtomicU32, AtomicU64};

    const OWNER: u64 = (1 << 40) + 1;
    const OTHER: u64 = (1 << 40) + 2;

    struct Queue(Urgent<Native>, AtomicU32);

    impl Queue {
        fn new() -> Queue {
            Queue(Urgent::new(), AtomicU32::new(0))
        }

        fn events(&self) -> EventCounts<'_, Native> {
            EventCounts::two(&self.0, &self.1)
        }
    }

    fn reserved(word: &AtomicU64) -> bool {
        Owner(word.load(Ordering::Relaxed)).is_reserved()
    }

    fn try_as(word: &AtomicU64, class: CommitClass) -> Result<Acquired, Owner> {
        let queue = Queue::new();
        acquire_as::<Native>(word, &queue.events(), &|| class, OTHER, &|_| true, Some(Instant::now()))
    }

    /// Goal: while somebody urgent may wait, a release lets in nobody else.
    #[test]
    fn a_release_reserves_the_lock_for_the_urgent() {
        let (word, queue) = (AtomicU64::new(OWNER), Queue::new());
        assert!(announce_waiter::<Native>(&word, Owner(OWNER), CommitClass::Bulk));
        assert!(announce_waiter::<Native>(&word, Owner(OWNER | BULK_WAITERS), CommitClass::Urgent));
        assert!(matches!(release::<Native>(&word, &queue.events(), OWNER), Next::Urgent(_)));
        assert_eq!(owner::<Native>(&word), None);
        assert!(try_acquire::<Native>(&word, OTHER).is_err());
        assert!(try_as(&word, CommitClass::Bulk).is_err());
        assert_eq!(try_as(&word, CommitClass::Urgent), Ok(Acquired::Released));
        // Others may wait still, of both classes.
        assert_eq!(word.load(Ordering::Relaxed), OTHER | FLAGS);
    }

    /// Goal: a reservation for nobody does not stay.
    #[test]
    fn a_reservation_that_nobody_waits_for_is_taken_back() {
        let (word, queue) = (AtomicU64::new(OWNER | FLAGS), Queue::new());
        release_and_wake_next::<Native>(&word, &queue.events(), OWNER);
        assert_eq!(word.load(Ordering::Relaxed), 0);
        // Both were told: they may be about to fall asleep.
        assert_eq!((queue.0.event.load(Ordering::Relaxed), queue.1.load(Ordering::Relaxed)), (1, 1));
    }

    /// Goal: one for somebody who has been woken and does not run yet stays, though another urgent one came between: otherwise one bulk
    /// section after the other could pass it.
    #[test]
    fn a_reservation_for_somebody_on_the_way_stays() {
        let (word, queue) = (AtomicU64::new(OWNER | FLAGS), Queue::new());
        queue.0.count_in();
        // As if for a clock that stands still.
        queue.0.seen_ns.store(Native::now_ns() + 1_000_000_000, Ordering::Relaxed);
        release_and_wake_next::<Native>(&word, &queue.events(), OWNER);
        assert!(!reserved(&word), "a time in the future is damage");
        word.store(OWNER | FLAGS, Ordering::Relaxed);
        // It may happen that this thread does not run for long between the two: then there is nothing to see.
        let was_kept = (0..1000).any(|_| {
            word.store(OWNER | FLAGS, Ordering::Relaxed);
            queue.0.count_anew();
            queue.0.count_in();
            release_and_wake_next::<Native>(&word, &queue.events(), OWNER);
            reserved(&word)
        });
        assert!(was_kept);
        assert_eq!(try_as(&word, CommitClass::Urgent), Ok(Acquired::Released));
        queue.0.count_out();
        release_and_wake_next::<Native>(&word, &queue.events(), OTHER);
        assert_eq!(word.load(Ordering::Relaxed), 0);
    }

    /// Goal: whoever is slow to take its reservation back does not take back somebody else's.
    #[test]
    fn a_reservation_is_not_taken_for_another() {
        let (word, queue) = (AtomicU64::new(OWNER | URGENT_WAITERS), Queue::new());
        let Next::Urgent(first) = release::<Native>(&word, &queue.events(), OWNER) else { panic!("not reserved") };
        word.store(OTHER | URGENT_WAITERS, Ordering::Relaxed);
        let second = release::<Native>(&word, &queue.events(), OTHER);
        assert_ne!(second, Next::Urgent(first));
        take_back::<Native>(&word, &queue.events(), first);
        assert!(reserved(&word));
    }

    /// Goal: one for somebody who is on the way does not cost those a wake-up who take it in turn.
    #[test]
    fn a_reservation_for_an_own_waiter_stays() {
        let (word, queue) = (AtomicU64::new(OWNER), Queue::new());
        let reservation = release_to_urgent::<Native>(&word, &queue.events(), OWNER).unwrap();
        assert!(try_as(&word, CommitClass::Bulk).is_err());
        assert_eq!(try_as(&word, CommitClass::Urgent), Ok(Acquired::Released));
        assert_eq!(word.load(Ordering::Relaxed) & URGENT_WAITERS, 0);
        assert_eq!(queue.0.event.load(Ordering::Relaxed), 0);
        take_back::<Native>(&word, &queue.events(), reservation);
        assert_eq!(word.load(Ordering::Relaxed) & !FLAGS, OTHER);
    }

    /// Goal: one that was left by somebody who died heals.
    #[test]
    fn a_bulk_waiter_takes_a_reservation_that_stands_still() {
        let (word, queue) = (AtomicU64::new(URGENT_WAITERS | 7), Queue::new());
        let taken = acquire_as::<Native>(&word, &queue.events(), &|| CommitClass::Bulk, OTHER, &|_| true, None);
        assert_eq!(taken, Ok(Acquired::Released));
        assert_eq!(word.load(Ordering::Relaxed) & !FLAGS, OTHER);
    }

    /// Goal: who waits as bulk and becomes urgent is let in as such.
    #[test]
    fn a_waiter_can_be_lifted() {
        let (word, queue) = (AtomicU64::new(OWNER), Queue::new());
        let looks = AtomicU32::new(0);
        let class = || match looks.fetch_add(1, Ordering::Relaxed) {
            // Urgent as soon as it has slept once, when the lock becomes reserved.
            n if n <= Native::SPINS + 1 => CommitClass::Bulk,
            _ => {
                word.store(URGENT_WAITERS | 7, Ordering::Relaxed);
                CommitClass::Urgent
            }
        };
        let taken = acquire_as::<Native>(&word, &queue.events(), &class, OTHER, &|_| true, None);
        assert_eq!((taken, looks.load(Ordering::Relaxed)), (Ok(Acquired::Released), Native::SPINS + 3));
    }
}
