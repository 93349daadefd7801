//! Goal: no deadline is lost. If no flush has covered a commit, its deadline is in the word. A
//! flush thread that sleeps is woken for a deadline that is earlier than its planned wake-up.
//!
//! Method: loom runs writers that announce, publish and announce again, and a logger that takes the
//! word and flushes only while something is due by the word. Its futexes never time out, so a
//! deadline that is lost, or a wake-up, leaves a commit that is never flushed, which loom reports
//! as a deadlock. Planted bugs must be found.

use super::model::{Hasty, Patient, Role, Word, explore, must_be_found, publish_watermark, role, wait_for};
use crate::shared::protocols::atomic::{Model, Word32, Word64};
use crate::shared::protocols::deadline;
use crate::shared::protocols::event_count::{self, EVENT_WAIT_MAX, Threshold};
use std::convert::Infallible;
use std::sync::atomic::Ordering;

struct Region<M: Model> {
    /// The end of the published bytes.
    tail: M::U64,
    /// The urgency of the most urgent commit.
    urgency: M::U64,
    /// The urgency from which on the logger is to be woken.
    wake_urgency: M::U64,
    /// The end of the newest commit without a deadline.
    policy_tail: M::U64,
    /// The tail from which on the logger is to be woken.
    wake_from: M::U64,
    event: M::U32,
    durable: M::U64,
    durable_event: M::U32,
}

impl<M: Model<U64 = Word>> Region<M> {
    fn new() -> Region<M> {
        Region {
            tail: Word::new(0),
            urgency: Word::new(0),
            wake_urgency: Word::new(u64::MAX),
            policy_tail: Word::new(0),
            wake_from: Word::new(u64::MAX),
            event: M::U32::new(0),
            durable: Word::new(0),
            durable_event: M::U32::new(0),
        }
    }

    /// Makes a commit of `urgency` that ends at `tail`, as `txn::commit` and the client do.
    fn commit(&self, tail: u64, urgency: u64) {
        deadline::announce::<M>(&self.urgency, urgency);
        self.tail.store_fenced(tail);
        deadline::announce::<M>(&self.urgency, urgency);
        event_count::notify_from::<M>(&self.event, &self.wake_urgency, urgency);
    }

    fn wait(&self, tail: u64) {
        let check = || Ok::<(), Infallible>(());
        wait_for::<M, _>(&self.durable, &self.durable_event, tail, None, check).unwrap();
    }

    /// Flushes commits that are at least as urgent as `due`, until everything up to `end` is
    /// durable. It takes the word and loads the tail in the order of `flush`.
    fn log(&self, end: u64, due: u64, flush: impl Fn(&Self) -> u64) {
        let mut durable = 0;
        while durable < end {
            let wait_key = event_count::prepare_wait::<M>(&self.event);
            if deadline::peek::<M>(&self.urgency) >= due {
                let tail = flush(self);
                assert!(tail >= durable, "the tail went back");
                durable = tail;
                publish_watermark::<M>(&self.durable, &self.durable_event, durable);
                continue;
            }
            let reached = || deadline::peek::<M>(&self.urgency);
            let threshold = Threshold { word: &self.wake_urgency, at_least: due, current: &reached };
            event_count::wait_from::<M>(&self.event, wait_key, &[threshold], EVENT_WAIT_MAX);
        }
    }
}

/// Takes the deadlines, then loads the tail that they belong to.
fn flush<M: Model<U64 = Word>>(region: &Region<M>) -> u64 {
    deadline::take::<M>(&region.urgency);
    region.tail.load(Ordering::SeqCst)
}

fn logger(end: u64, flush: impl Fn(&Region<Patient>) -> u64 + Send + Sync + 'static) -> Role<Region<Patient>> {
    role(move |region: &Region<Patient>| region.log(end, 1, &flush))
}

#[test]
fn a_commit_with_a_deadline_is_flushed() {
    let writer = role(|region: &Region<Patient>| {
        region.commit(1, 5);
        region.wait(1);
    });
    explore(Some(4), Region::new, &[writer, logger(1, flush)], |_| {});
}

/// The second commit comes while the first is being flushed, or is covered by that flush, or comes
/// after it.
#[test]
fn commits_beside_a_flush_keep_their_deadlines() {
    let writer = role(|region: &Region<Patient>| {
        region.commit(1, 5);
        region.commit(2, 7);
        region.wait(2);
    });
    explore(Some(3), Region::new, &[writer, logger(2, flush)], |_| {});
}

/// A commit that has time does not wake the logger; the urgent one after it does, and its flush
/// covers both.
#[test]
fn one_that_is_not_urgent_enough_is_left_to_the_next() {
    let writer = role(|region: &Region<Patient>| {
        region.commit(1, 2);
        region.commit(2, 7);
        region.wait(2);
    });
    let logger = role(|region: &Region<Patient>| region.log(2, 6, flush));
    explore(Some(3), Region::new, &[writer, logger], |_| {});
}

/// A writer that dies between its publication and its second announcement. With `has_orphan_rule`,
/// the logger gives commits without a deadline one of its own.
fn a_dying_writer(has_orphan_rule: bool) -> [Role<Region<Hasty>>; 2] {
    let writer = role(|region: &Region<Hasty>| {
        deadline::announce::<Hasty>(&region.urgency, 5);
        region.tail.store_fenced(1);
    });
    let logger = role(move |region: &Region<Hasty>| {
        let mut durable = 0;
        while durable < 1 {
            let wait_key = event_count::prepare_wait::<Hasty>(&region.event);
            let is_pending = region.tail.load(Ordering::SeqCst) > durable;
            if has_orphan_rule && is_pending && deadline::peek::<Hasty>(&region.urgency) == 0 {
                deadline::announce::<Hasty>(&region.urgency, 1);
            }
            if deadline::peek::<Hasty>(&region.urgency) >= 1 {
                durable = flush(region);
                continue;
            }
            event_count::wait::<Hasty>(&region.event, wait_key, EVENT_WAIT_MAX);
        }
    });
    [writer, logger]
}

#[test]
fn a_writer_that_dies_after_its_publication() {
    explore(Some(3), Region::new, &a_dying_writer(true), |_| {});
}

#[test]
fn planted_no_deadline_for_orphans() {
    must_be_found(Some(3), Region::new, &a_dying_writer(false));
}

/// A commit that has time, then one for which the policy decides, by a writer that stores
/// `policy_tail` before its publication, or after it. The logger sleeps with both thresholds.
fn both_kinds(is_stored_before: bool) -> [Role<Region<Patient>>; 2] {
    let writer = role(move |region: &Region<Patient>| {
        region.commit(1, 2);
        if is_stored_before {
            region.policy_tail.store(2, Ordering::Release);
        }
        region.tail.store_fenced(2);
        event_count::notify_from::<Patient>(&region.event, &region.wake_from, 2);
        if !is_stored_before {
            region.policy_tail.store(2, Ordering::Release);
        }
        region.wait(2);
    });
    let logger = role(|region: &Region<Patient>| {
        let mut durable = 0;
        while durable < 2 {
            let wait_key = event_count::prepare_wait::<Patient>(&region.event);
            // Load the tail first: if a publication is visible there, its `policy_tail` is too.
            let policy = || {
                let tail = region.tail.load(Ordering::SeqCst);
                region.policy_tail.load(Ordering::Acquire).min(tail)
            };
            let urgency = || deadline::peek::<Patient>(&region.urgency);
            if policy() > durable || urgency() >= 6 {
                durable = flush(region);
                publish_watermark::<Patient>(&region.durable, &region.durable_event, durable);
                continue;
            }
            let thresholds = [
                Threshold { word: &region.wake_from, at_least: durable + 1, current: &policy },
                Threshold { word: &region.wake_urgency, at_least: 6, current: &urgency },
            ];
            event_count::wait_from::<Patient>(&region.event, wait_key, &thresholds, EVENT_WAIT_MAX);
        }
    });
    [writer, logger]
}

#[test]
fn a_commit_of_the_policy_after_one_that_has_time() {
    explore(Some(2), Region::new, &both_kinds(true), |_| {});
}

#[test]
fn planted_a_writer_that_tells_the_policy_after_its_publication() {
    must_be_found(Some(2), Region::new, &both_kinds(false));
}

#[test]
fn planted_a_writer_that_announces_only_before_its_publication() {
    let writer = role(|region: &Region<Patient>| {
        deadline::announce::<Patient>(&region.urgency, 5);
        region.tail.store_fenced(1);
        event_count::notify_from::<Patient>(&region.event, &region.wake_urgency, 5);
        region.wait(1);
    });
    must_be_found(None, Region::new, &[writer, logger(1, flush)]);
}

#[test]
fn planted_a_logger_that_looks_before_it_takes() {
    let writer = role(|region: &Region<Patient>| {
        region.commit(1, 5);
        region.wait(1);
    });
    let flush = |region: &Region<Patient>| {
        let tail = region.tail.load(Ordering::SeqCst);
        deadline::take::<Patient>(&region.urgency);
        tail
    };
    must_be_found(None, Region::new, &[writer, logger(1, flush)]);
}

#[test]
fn planted_an_announcement_without_a_fence() {
    let writer = role(|region: &Region<Patient>| {
        region.urgency.fetch_max(5, Ordering::SeqCst);
        region.tail.store(1, Ordering::Release);
        region.urgency.fetch_max(5, Ordering::SeqCst);
        event_count::notify_from::<Patient>(&region.event, &region.wake_urgency, 5);
        region.wait(1);
    });
    must_be_found(None, Region::new, &[writer, logger(1, flush)]);
}
