//! Goal: the writer lock excludes, every client gets it in the end, and no wake-up is lost,
//! whichever client dies at whichever step.
//!
//! Method: loom runs clients through `acquire` and `release`. What the lock protects is plain
//! memory, so that an overlap, or a hand-over without ordering, is found. Without deaths the
//! futexes never time out, and a lost wake-up is a deadlock; with deaths they time out at once, as
//! then only time-outs are left. Three clients are explored with a bound on preemptions, since all
//! their interleavings are too many; two, without.

use super::model::{Hasty, Patient, Plain, Role, Word, explore, must_be_found, role};
use crate::shared::protocols::atomic::{Model, Word32, Word64};
use crate::shared::protocols::lock::{self, CommitClass, EventCounts, Next};
use loom::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

struct Region<M: Model> {
    word: M::U64,
    urgent: lock::Urgent<M>,
    event: M::U32,
    protected: Plain,
    dead: [AtomicBool; 3],
    is_lifted: AtomicBool,
}

/// Where a client dies. It has done what the name says, and nothing after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Death {
    Never,
    Announced,
    Acquired,
    HalfWritten,
    Released,
    EventAdvanced,
}

use CommitClass::*;
use Death::*;

fn id(client: usize) -> u64 {
    (1 << 40) + client as u64
}

impl<M: Model<U64 = Word>> Region<M> {
    fn new() -> Region<M> {
        Region {
            word: Word::new(0),
            urgent: lock::Urgent::new(),
            event: M::U32::new(0),
            protected: Plain::new(0),
            dead: std::array::from_fn(|_| AtomicBool::new(false)),
            is_lifted: AtomicBool::new(false),
        }
    }

    fn is_alive(&self, owner: u64) -> bool {
        !self.dead[(owner - id(0)) as usize].load(Ordering::Acquire)
    }

    fn events(&self) -> EventCounts<'_, M> {
        EventCounts::two(&self.urgent, &self.event)
    }

    /// Runs one critical section of `client`, which may die in it. The kernel frees a dead client's
    /// byte after its last step.
    fn run(&self, client: usize, class: CommitClass, death: Death) {
        self.run_until(client, class, death);
        if death != Death::Never {
            self.dead[client].store(true, Ordering::Release);
        }
    }

    fn run_until(&self, client: usize, class: CommitClass, death: Death) {
        let me = id(client);
        if death == Death::Announced {
            if let Some(owner) = lock::owner::<M>(&self.word) {
                lock::announce_waiter::<M>(&self.word, owner, class);
            }
            return;
        }
        lock::acquire_as::<M>(&self.word, &self.events(), &|| class, me, &|owner| self.is_alive(owner), None).unwrap();
        if death == Death::Acquired {
            return;
        }
        let before = self.protected.read();
        if death == Death::HalfWritten {
            return;
        }
        self.protected.write(before + 1);
        match death {
            Death::Released => {
                let _ = lock::release::<M>(&self.word, &self.events(), me);
            }
            Death::EventAdvanced => match lock::release::<M>(&self.word, &self.events(), me) {
                Next::None => {}
                Next::Bulk => drop(self.event.fetch_add(1, Ordering::Release)),
                Next::Urgent(_) => drop(self.urgent.event.fetch_add(1, Ordering::Release)),
            },
            _ => lock::release_and_wake_next::<M>(&self.word, &self.events(), me),
        }
    }
}

fn client<M: Model<U64 = Word>>(client: usize, class: CommitClass, death: Death) -> Role<Region<M>> {
    role(move |region: &Region<M>| region.run(client, class, death))
}

/// Explores clients that die where `deaths` determines.
fn explore_clients<M: Model<U64 = Word>>(
    preemptions: Option<usize>,
    setup: fn() -> Region<M>,
    deaths: &'static [Death],
) {
    explore_classes(preemptions, setup, &[Bulk; 3], deaths);
}

/// Explores clients that die where `deaths` determines, each in its class.
fn explore_classes<M: Model<U64 = Word>>(
    preemptions: Option<usize>,
    setup: fn() -> Region<M>,
    classes: &'static [CommitClass],
    deaths: &'static [Death],
) {
    let one = |(index, (&death, &class))| client(index, class, death);
    let roles: Vec<_> = deaths.iter().zip(classes).enumerate().map(one).collect();
    explore(preemptions, setup, &roles, |region| {
        // Each client that completed its writes counts once.
        let wrote = |death: &&Death| !matches!(death, Announced | Acquired | HalfWritten);
        assert_eq!(region.protected.read(), deaths.iter().filter(wrote).count() as u64);
    });
}

#[test]
fn excludes_and_loses_no_wake_up() {
    explore_clients(None, Region::<Patient>::new, &[Never, Never]);
    explore_clients(Some(2), Region::<Patient>::new, &[Never, Never, Never]);
}

#[test]
fn an_owner_or_waker_dies_at_any_step() {
    explore_clients(Some(3), Region::<Hasty>::new, &[Never, Announced]);
    explore_clients(Some(3), Region::<Hasty>::new, &[Never, Acquired]);
    explore_clients(Some(3), Region::<Hasty>::new, &[Never, HalfWritten]);
    explore_clients(Some(3), Region::<Hasty>::new, &[Never, Released]);
    explore_clients(Some(3), Region::<Hasty>::new, &[Never, EventAdvanced]);
}

#[test]
fn two_survivors_of_a_death() {
    explore_clients(Some(1), Region::<Hasty>::new, &[Never, Never, HalfWritten]);
    explore_clients(Some(1), Region::<Hasty>::new, &[Never, Never, Released]);
    explore_clients(Some(1), Region::<Hasty>::new, &[Never, Never, Announced]);
}

/// Client 2 has died as the owner. The client that takes over may die there as well.
#[test]
fn the_one_that_takes_over_dies_too() {
    fn with_dead_owner() -> Region<Hasty> {
        let region = Region::new();
        region.run(2, Bulk, Acquired);
        region
    }
    explore_clients(Some(3), with_dead_owner, &[Never, Never]);
    explore_clients(Some(3), with_dead_owner, &[Never, Acquired]);
    explore_clients(Some(3), with_dead_owner, &[Never, HalfWritten]);
    explore_clients(Some(3), with_dead_owner, &[Never, Released]);
}

#[test]
fn planted_a_release_that_wakes_no_waiter() {
    let forgetful = role(|region: &Region<Patient>| region.run_until(1, Bulk, Released));
    must_be_found(None, Region::new, &[client(0, Bulk, Never), forgetful]);
}

#[test]
fn planted_a_take_over_of_the_living() {
    let robber = role(|region: &Region<Hasty>| {
        lock::acquire::<Hasty>(&region.word, &region.event, id(0), &|_| false, None).unwrap();
        region.protected.write(100);
        lock::release_and_wake::<Hasty>(&region.word, &region.event, id(0));
    });
    must_be_found(None, Region::new, &[robber, client(1, Bulk, Never)]);
}

#[test]
fn two_classes_lose_no_wake_up() {
    explore_classes(None, Region::<Patient>::new, &[Urgent, Bulk], &[Never, Never]);
    explore_classes(Some(1), Region::<Patient>::new, &[Urgent, Bulk, Bulk], &[Never, Never, Never]);
    explore_classes(Some(1), Region::<Patient>::new, &[Urgent, Urgent, Bulk], &[Never, Never, Never]);
}

#[test]
fn one_of_two_classes_dies_at_any_step() {
    for classes in [&[Bulk, Urgent], &[Urgent, Bulk], &[Urgent, Urgent]] {
        for deaths in [&[Never, Announced], &[Never, Acquired], &[Never, Released], &[Never, EventAdvanced]] {
            explore_classes(Some(2), Region::<Hasty>::new, classes, deaths);
        }
    }
    explore_classes(Some(1), Region::<Hasty>::new, &[Bulk, Urgent, Urgent], &[Never, Never, Released]);
    explore_classes(Some(1), Region::<Hasty>::new, &[Bulk, Urgent, Bulk], &[Never, Announced, HalfWritten]);
}

/// A reservation without a waiter, and that is not taken back: the others sleep although no client
/// holds the lock.
#[test]
fn planted_a_reservation_that_is_not_taken_back() {
    let forgetful = role(|region: &Region<Patient>| {
        let me = id(0);
        lock::acquire_as::<Patient>(&region.word, &region.events(), &|| Urgent, me, &|_| true, None).unwrap();
        match lock::release::<Patient>(&region.word, &region.events(), me) {
            Next::Urgent(_) => {
                region.urgent.event.fetch_add(1, Ordering::Release);
                Patient::wake(&region.urgent.event, 1);
            }
            next => lock::wake_next::<Patient>(&region.word, &region.events(), next),
        }
    });
    must_be_found(Some(2), Region::new, &[forgetful, client(1, Bulk, Never), client(2, Bulk, Never)]);
}

/// A bulk waiter becomes urgent while the lock is reserved, and its event count is notified. No
/// wait times out.
#[test]
fn a_lift_is_not_lost() {
    fn reserved() -> Region<Patient> {
        let region = Region::new();
        region.run(2, Bulk, Acquired);
        // No waiter comes for the reservation.
        lock::release_to_urgent::<Patient>(&region.word, &region.events(), id(2)).unwrap();
        region
    }
    let lifted = role(|region: &Region<Patient>| {
        let class = || if region.is_lifted.load(Ordering::SeqCst) { Urgent } else { Bulk };
        lock::acquire_as::<Patient>(&region.word, &region.events(), &class, id(0), &|_| true, None).unwrap();
    });
    let lifting = role(|region: &Region<Patient>| {
        region.is_lifted.store(true, Ordering::SeqCst);
        lock::wake_all::<Patient>(&region.event);
    });
    let forgetful = role(|region: &Region<Patient>| region.is_lifted.store(true, Ordering::SeqCst));
    explore(None, reserved, &[lifted.clone(), lifting], |_| {});
    must_be_found(None, reserved, &[lifted, forgetful]);
}
