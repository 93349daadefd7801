//! Goal: no sample is lost, neither of threads that record at the same time, nor of threads that
//! record one after another under a lock.
//!
//! Method: loom runs two recorders through all interleavings; then all samples must be there. In a
//! planted bug both record as if they were alone, which must be found.

use super::model::{Patient, Role, explore, role};
use crate::shared::protocols::atomic::{Model, Word64};
use crate::shared::protocols::histogram::Histogram;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A lock that is tried once.
struct Shared<M: Model> {
    histogram: Histogram<M>,
    is_locked: M::U64,
}

fn setup() -> Shared<Patient> {
    Shared { histogram: Histogram::default(), is_locked: Word64::new(0) }
}

/// Checks the histogram after all threads have recorded.
fn all_is_there(shared: &Shared<Patient>, count: u64) {
    let read = shared.histogram.read();
    assert_eq!(read.count(), count);
    assert_eq!(read.sum(), Duration::from_nanos(1000 * count));
    assert_eq!(read.max(), Duration::from_nanos(if count > 0 { 1000 } else { 0 }));
}

fn recorder() -> Role<Shared<Patient>> {
    role(|shared: &Shared<Patient>| shared.histogram.record(1000))
}

/// Records alone, and counts in the lock's word how often that was done.
fn lone_recorder() -> Role<Shared<Patient>> {
    role(|shared: &Shared<Patient>| {
        let seen = shared.is_locked.load(Ordering::Relaxed);
        if seen & 1 == 0
            && shared.is_locked.compare_exchange(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            shared.histogram.record_alone(1000);
            shared.is_locked.store(seen + 2, Ordering::Release);
        }
    })
}

#[test]
fn samples_of_two_recorders_are_all_there() {
    explore(None, setup, &[recorder(), recorder()], |shared| all_is_there(shared, 2));
}

#[test]
fn samples_under_a_lock_are_all_there() {
    let finally = |shared: &Shared<Patient>| all_is_there(shared, shared.is_locked.load(Ordering::Relaxed) / 2);
    explore(None, setup, &[lone_recorder(), lone_recorder()], finally);
}

#[test]
fn planted_recording_alone_without_being_alone() {
    let careless = || role(|shared: &Shared<Patient>| shared.histogram.record_alone(1000));
    let check = AssertUnwindSafe(|| explore(None, setup, &[careless(), careless()], |shared| all_is_there(shared, 2)));
    assert!(catch_unwind(check).is_err(), "the planted bug was not found");
}
