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

/// Goal: while an urgent waiter may exist, a release admits no bulk waiter.
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
    // Other waiters of both classes may remain.
    assert_eq!(word.load(Ordering::Relaxed), OTHER | FLAGS);
}

/// Goal: a reservation without a waiter does not stay.
#[test]
fn a_reservation_without_a_waiter_is_taken_back() {
    let (word, queue) = (AtomicU64::new(OWNER | FLAGS), Queue::new());
    release_and_wake_next::<Native>(&word, &queue.events(), OWNER);
    assert_eq!(word.load(Ordering::Relaxed), 0);
    // Both event counts advanced: a waiter may be about to sleep.
    assert_eq!((queue.0.event.load(Ordering::Relaxed), queue.1.load(Ordering::Relaxed)), (1, 1));
}

/// Goal: a reservation for a waiter that was woken and does not run yet stays, even if another
/// urgent waiter comes first. Otherwise one bulk section after the other could pass it.
#[test]
fn a_reservation_for_a_waiter_on_the_way_stays() {
    let (word, queue) = (AtomicU64::new(OWNER | FLAGS), Queue::new());
    queue.0.count_in();
    // The clock does not advance.
    queue.0.seen_ns.store(Native::now_ns() + 1_000_000_000, Ordering::Relaxed);
    release_and_wake_next::<Native>(&word, &queue.events(), OWNER);
    assert!(!reserved(&word), "a time in the future is damage");
    word.store(OWNER | FLAGS, Ordering::Relaxed);
    // This thread may be preempted for long between the two; then there is nothing to check.
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

/// Goal: a process that is slow to take its reservation back does not take back a later one.
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

/// Goal: a reservation for a waiter on the way does not cost the other waiters a wake-up when they
/// take it in turn.
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

/// Goal: the lock recovers from a reservation whose waiter died.
#[test]
fn a_bulk_waiter_takes_a_reservation_that_stands_still() {
    let (word, queue) = (AtomicU64::new(URGENT_WAITERS | 7), Queue::new());
    let taken = acquire_as::<Native>(&word, &queue.events(), &|| CommitClass::Bulk, OTHER, &|_| true, None);
    assert_eq!(taken, Ok(Acquired::Released));
    assert_eq!(word.load(Ordering::Relaxed) & !FLAGS, OTHER);
}

/// Goal: a bulk waiter that becomes urgent is admitted as urgent.
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
