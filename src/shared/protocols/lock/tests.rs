//! The lock in one process. `loom_tests/lock.rs` explores its interleavings.

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

/// Goal: one for somebody who has been woken and does not run yet stays, though another urgent one
/// came between: otherwise one bulk section after the other could pass it.
#[test]
fn a_reservation_for_somebody_on_the_way_stays() {
    let (word, queue) = (AtomicU64::new(OWNER | FLAGS), Queue::new());
    queue.0.count_in();
    // As if for a clock that stands still.
    queue.0.seen_ns.store(Native::now_ns() + 1_000_000_000, Ordering::Relaxed);
    release_and_wake_next::<Native>(&word, &queue.events(), OWNER);
    assert!(!reserved(&word), "a time in the future is damage");
    word.store(OWNER | FLAGS, Ordering::Relaxed);
    // It may happen that this thread does not run for long between the two: then there is nothing
    // to see.
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
fn a_waiter_can_be_boosted() {
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
