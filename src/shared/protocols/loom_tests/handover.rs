//! Goal: the logger gets the complete bytes that a writer publishes, and waiters see what the
//! logger publishes. No wake-up is lost; if its sender dies, it costs a time-out and no more.
//!
//! Method: loom runs writers and sleepers through every interleaving. Its futexes never time out if
//! no process dies, so that a lost wake-up is a deadlock, which loom reports. Planted bugs must be
//! found.

use super::model::{Hasty, Patient, Role, Word, explore, must_be_found, publish_watermark, role, wait_for};
use crate::shared::protocols::atomic::{Model, Word32, Word64};
use crate::shared::protocols::event_count::{self, EVENT_WAIT_MAX, Threshold};
use crate::shared::protocols::ring::Ring;
use std::convert::Infallible;
use std::sync::atomic::Ordering;

/// The ring holds one and a half records of 16 bytes, so that the second one wraps.
const RING_WORDS: usize = 3;
const RECORD: usize = 16;
const RECORDS: u64 = 2;

struct Region<M: Model> {
    /// The end of the published bytes.
    tail: M::U64,
    /// Notified when `tail` moves.
    tail_event: M::U32,
    /// The tail from which on `tail_event` is notified; see [`event_count::wait_from`].
    wake_from: M::U64,
    /// The end of the bytes whose space can be reused.
    durable: M::U64,
    durable_event: M::U32,
    ring: [M::U64; RING_WORDS],
}

fn record(number: u64) -> [u8; RECORD] {
    std::array::from_fn(|index| (number * 50 + index as u64) as u8)
}

impl<M: Model<U64 = Word>> Region<M> {
    fn new() -> Region<M> {
        let word = || Word::new(0);
        Region {
            tail: word(),
            tail_event: M::U32::new(0),
            wake_from: Word::new(u64::MAX),
            durable: word(),
            durable_event: M::U32::new(0),
            ring: std::array::from_fn(|_| word()),
        }
    }

    /// Writes record `number`, after waiting for space.
    fn write(&self, number: u64) {
        let end = (number + 1) * RECORD as u64;
        let room_from = end.saturating_sub((RING_WORDS * 8) as u64);
        let check = || Ok::<(), Infallible>(());
        wait_for::<M, _>(&self.durable, &self.durable_event, room_from, None, check).unwrap();
        Ring::<M>::new(&self.ring, 0).copy_in(number * RECORD as u64, &record(number)).unwrap();
    }

    fn wait_for_more(&self, taken: u64) -> u64 {
        let look = || Some(self.tail.load(Ordering::SeqCst)).filter(|&tail| tail > taken);
        let check = || Ok::<(), Infallible>(());
        event_count::wait_until::<M, _, _>(&self.tail_event, None, EVENT_WAIT_MAX, look, check).unwrap()
    }

    /// Takes `records` records, checks each, and publishes it as durable.
    fn log(&self, records: u64, wait: impl Fn(&Self, u64) -> u64) {
        let mut taken = 0;
        while taken < records * RECORD as u64 {
            let tail = wait(self, taken);
            while taken < tail {
                let mut bytes = [0; RECORD];
                Ring::<M>::new(&self.ring, 0).copy_out(taken, &mut bytes).unwrap();
                assert_eq!(bytes, record(taken / RECORD as u64), "a record changed on its way");
                taken += RECORD as u64;
            }
            publish_watermark::<M>(&self.durable, &self.durable_event, taken);
        }
    }
}

/// Writes and publishes records.
fn writer<M: Model<U64 = Word>>(
    records: u64,
    publish: impl Fn(&Region<M>, u64) + Send + Sync + 'static,
) -> Role<Region<M>> {
    role(move |region: &Region<M>| {
        for number in 0..records {
            region.write(number);
            publish(region, (number + 1) * RECORD as u64);
        }
    })
}

fn logger<M: Model<U64 = Word>>(records: u64) -> Role<Region<M>> {
    role(move |region: &Region<M>| region.log(records, Region::wait_for_more))
}

fn publish<M: Model>(region: &Region<M>, tail: u64) {
    publish_watermark::<M>(&region.tail, &region.tail_event, tail);
}

#[test]
fn nothing_is_lost_on_the_way_to_the_logger() {
    explore(None, Region::<Patient>::new, &[writer(1, publish), logger(1)], |_| {});
    explore(Some(2), Region::<Patient>::new, &[writer(RECORDS, publish), logger(RECORDS)], |_| {});
}

/// A logger that announces, before it sleeps, from which tail on it is to be woken, and is not
/// woken before.
fn dozing<M: Model<U64 = Word>>(region: &Region<M>, taken: u64) -> u64 {
    loop {
        let wait_key = event_count::prepare_wait::<M>(&region.tail_event);
        let tail = region.tail.load(Ordering::SeqCst);
        if tail > taken {
            return tail;
        }
        let reached = || region.tail.load(Ordering::SeqCst);
        let threshold = Threshold { word: &region.wake_from, at_least: taken + 1, current: &reached };
        event_count::wait_from::<M>(&region.tail_event, wait_key, &[threshold], EVENT_WAIT_MAX);
    }
}

/// Notifies only if the tail has reached the logger's threshold.
fn publish_from<M: Model<U64 = Word>>(region: &Region<M>, tail: u64) {
    region.tail.store_fenced(tail);
    event_count::notify_from::<M>(&region.tail_event, &region.wake_from, tail);
}

#[test]
fn a_dozing_logger_is_woken_by_what_it_wants_to_hear_of() {
    let logger = |records| role(move |region: &Region<Patient>| region.log(records, dozing));
    explore(None, Region::new, &[writer(1, publish_from), logger(1)], |_| {});
    explore(Some(2), Region::new, &[writer(RECORDS, publish_from), logger(RECORDS)], |_| {});
}

#[test]
fn planted_a_dozing_logger_that_does_not_look_again() {
    let wait = |region: &Region<Patient>, taken| {
        loop {
            let wait_key = event_count::prepare_wait::<Patient>(&region.tail_event);
            let tail = region.tail.load(Ordering::SeqCst);
            if tail > taken {
                return tail;
            }
            let threshold = Threshold { word: &region.wake_from, at_least: taken + 1, current: &|| 0 };
            event_count::wait_from::<Patient>(&region.tail_event, wait_key, &[threshold], EVENT_WAIT_MAX);
        }
    };
    let logger = role(move |region: &Region<Patient>| region.log(1, wait));
    must_be_found(None, Region::new, &[writer(1, publish_from), logger]);
}

#[test]
fn a_waker_that_dies_costs_a_time_out() {
    // The publisher died before it loaded the event.
    let publish = |region: &Region<Hasty>, tail| region.tail.store(tail, Ordering::Release);
    explore(Some(3), Region::new, &[writer(1, publish), logger(1)], |_| {});
    // The publisher died between advancing the event and the wake-up: later publishers see an even
    // event and do not notify.
    let publish = |region: &Region<Hasty>, tail| {
        region.tail.store(tail, Ordering::Release);
        let seen = region.tail_event.load(Ordering::Acquire);
        if seen & 1 == 1 {
            let _ = region.tail_event.compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Acquire);
        }
    };
    explore(Some(3), Region::new, &[writer(1, publish), logger(1)], |_| {});
    explore(Some(1), Region::new, &[writer(RECORDS, publish), logger(RECORDS)], |_| {});
}

#[test]
fn planted_a_sleeper_that_does_not_look_again() {
    let wait = |region: &Region<Patient>, taken| {
        loop {
            let tail = region.tail.load(Ordering::Acquire);
            if tail > taken {
                return tail;
            }
            let wait_key = event_count::prepare_wait::<Patient>(&region.tail_event);
            event_count::wait::<Patient>(&region.tail_event, wait_key, EVENT_WAIT_MAX);
        }
    };
    let logger = role(move |region: &Region<Patient>| region.log(1, wait));
    must_be_found(None, Region::new, &[writer(1, publish), logger]);
}

#[test]
fn planted_a_publisher_that_does_not_fence() {
    let publish = |region: &Region<Patient>, tail| {
        region.tail.store(tail, Ordering::Release);
        event_count::notify::<Patient>(&region.tail_event);
    };
    must_be_found(None, Region::new, &[writer(1, publish), logger(1)]);
}

#[test]
fn planted_a_tail_that_does_not_publish_its_bytes() {
    // Without a release the bytes may come after the tail.
    let publish = |region: &Region<Hasty>, tail| region.tail.store(tail, Ordering::Relaxed);
    let write = role(move |region: &Region<Hasty>| {
        for (index, word) in region.ring.iter().take(RECORD / 8).enumerate() {
            let bytes = record(0)[index * 8..][..8].try_into().unwrap();
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        publish(region, RECORD as u64);
    });
    must_be_found(Some(3), Region::new, &[write, logger(1)]);
}

/// One publisher, two waiters for different values: each gets its own.
#[test]
fn every_waiter_is_woken() {
    let waiter = |value| {
        role(move |region: &Region<Patient>| {
            let check = || Ok::<(), Infallible>(());
            let (durable, event) = (&region.durable, &region.durable_event);
            let found = wait_for::<Patient, _>(durable, event, value, None, check).unwrap();
            assert!(found >= value);
        })
    };
    let publisher = role(|region: &Region<Patient>| {
        for value in [1, 2] {
            publish_watermark::<Patient>(&region.durable, &region.durable_event, value);
        }
    });
    explore(Some(2), Region::new, &[waiter(1), waiter(2), publisher], |_| {});
}
