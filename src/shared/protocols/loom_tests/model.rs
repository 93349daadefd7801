//! Loom's atomics behind the interface of the protocols, and futexes built from loom's parking.
//!
//! Loom has no time. [`Patient`] futexes never time out, so that a lost wake-up is found as a
//! deadlock. [`Hasty`] ones always time out at once, so that states that are reached only by
//! time-outs can be explored.
//!
//! Loom gives sequential consistency to fences only, and treats such loads and stores as acquire
//! and release. So `store_fenced` is a store and a fence here. Loom may then report errors that
//! can't happen, but misses none.
#![allow(unreachable_pub)]
// Each test file uses a part.
#![allow(dead_code)]

use crate::shared::protocols::atomic::{Model, Woken, Word32, Word64};
use crate::shared::protocols::event_count;
use crate::shared::protocols::event_count::EVENT_WAIT_MAX;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use std::collections::VecDeque;
use std::io::Write;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One thread's part in a model.
pub type Role<S> = Arc<dyn Fn(&S) + Send + Sync>;

/// Returns a part that runs `role`.
pub fn role<S>(part: impl Fn(&S) + Send + Sync + 'static) -> Role<S> {
    Arc::new(part)
}

/// Runs `roles` on the result of `setup`, in all interleavings with at most `preemptions`
/// involuntary switches (`None`: any number), then `finally`.
///
/// Loom derives the points for a switch from the last access to each word only, so a thread's own
/// load in between can hide another thread's access. It begins with the main thread. So each role
/// is the main thread once: an order that is hidden from one beginning is found from another.
pub fn explore<S: Send + Sync + 'static>(
    preemptions: Option<usize>,
    setup: fn() -> S,
    roles: &[Role<S>],
    finally: impl Fn(&S) + Clone + Send + Sync + 'static,
) {
    let _reported = report_while_exploring();
    for main_role in 0..roles.len() {
        let roles = roles.to_vec();
        let finally = finally.clone();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || {
            // Not a loom type: after a deadlock it is dropped where loom can't run any more.
            let shared = Arc::new(setup());
            let others: Vec<_> = (1..roles.len())
                .map(|after| {
                    let shared = shared.clone();
                    let role = roles[(main_role + after) % roles.len()].clone();
                    loom::thread::spawn(move || role(&shared))
                })
                .collect();
            roles[main_role](&shared);
            for other in others {
                other.join().unwrap();
            }
            finally(&shared);
        });
    }
}

/// How often a model that takes long is reported.
const MODEL_REPORT_INTERVAL: Duration = Duration::from_secs(20);

/// Writes the name of the running test to the standard error while the result lives, if that takes
/// long.
fn report_while_exploring() -> mpsc::Sender<()> {
    let name = std::thread::current().name().unwrap_or("a model").to_string();
    let start = Instant::now();
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        while end.recv_timeout(MODEL_REPORT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            // The test harness captures what `eprintln!` prints, but not this.
            let seconds = start.elapsed().as_secs();
            let _ = writeln!(std::io::stderr(), "{name}: exploring interleavings for {seconds} s");
        }
    });
    ended
}

/// Asserts that the model checker finds an error in the model. If it missed a planted bug, it would
/// check nothing.
pub fn must_be_found<S: Send + Sync + 'static>(preemptions: Option<usize>, setup: fn() -> S, roles: &[Role<S>]) {
    let check = std::panic::AssertUnwindSafe(|| explore(preemptions, setup, roles, |_| {}));
    let outcome = std::panic::catch_unwind(check);
    assert!(outcome.is_err(), "the planted bug was not found");
}

pub struct Loom<Time, Fences>(PhantomData<(Time, Fences)>);

/// Futexes that never time out.
pub enum Never {}
/// Futexes that time out at once.
pub enum AtOnce {}

pub type Patient = Loom<Never, Kept>;
pub type Hasty = Loom<AtOnce, Kept>;
/// A planted bug: the protocols' fences do nothing (those of `store_fenced` are kept).
pub type Unfenced = Loom<Never, Forgotten>;

pub trait Clock: 'static {
    const TIMES_OUT: bool;
}

impl Clock for Never {
    const TIMES_OUT: bool = false;
}

impl Clock for AtOnce {
    const TIMES_OUT: bool = true;
}

/// Whether fences have an effect.
pub trait Fencing: 'static {
    const KEPT: bool;
}
pub enum Kept {}
pub enum Forgotten {}
impl Fencing for Kept {
    const KEPT: bool = true;
}
impl Fencing for Forgotten {
    const KEPT: bool = false;
}

impl<Time: Clock, Fences: Fencing> Model for Loom<Time, Fences> {
    type U64 = Word;
    type U32 = Futex;
    const SPINS: u32 = 0;

    fn fence(order: Ordering) {
        if Fences::KEPT {
            loom::sync::atomic::fence(order);
        }
    }

    fn wait(word: &Futex, expected: u32, _: Duration) -> Woken {
        if Time::TIMES_OUT {
            // Lets the other threads run first; otherwise the model would not terminate.
            loom::thread::yield_now();
            return Woken::TimedOut;
        }
        // As in the kernel, comparing with the newest value and joining the sleepers is one step,
        // since loom switches threads only at its own operations.
        if word.value.fetch_add(0, Ordering::Relaxed) == expected {
            word.sleepers.lock().unwrap().push_back(loom::thread::current());
            loom::thread::park();
        }
        Woken::Perhaps
    }

    fn wake(word: &Futex, count: u32) -> u32 {
        // An operation of loom's, so that it tries to wake before and after a thread goes to sleep.
        word.value.fetch_add(0, Ordering::Relaxed);
        let mut woken = 0;
        while woken < count
            && let Some(sleeper) = { word.sleepers.lock().unwrap().pop_front() }
        {
            sleeper.unpark();
            woken += 1;
        }
        woken
    }

    fn spin_hint() {}

    fn now_ns() -> u64 {
        0
    }
}

/// A 32-bit word that can be waited on.
pub struct Futex {
    value: AtomicU32,
    /// Not a loom type: this is the kernel's own list, which orders nothing for the program.
    sleepers: Mutex<VecDeque<loom::thread::Thread>>,
}

impl Word32 for Futex {
    fn new(value: u32) -> Futex {
        Futex { value: AtomicU32::new(value), sleepers: Mutex::default() }
    }
    fn load(&self, order: Ordering) -> u32 {
        self.value.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.value.store(value, order);
    }
    fn compare_exchange(&self, current: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32> {
        self.value.compare_exchange(current, new, success, failure)
    }
    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.value.fetch_add(value, order)
    }
}

/// A 64-bit word.
pub struct Word(AtomicU64);

impl Word64 for Word {
    fn new(value: u64) -> Word {
        Word(AtomicU64::new(value))
    }
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }
    fn store_fenced(&self, value: u64) {
        self.0.store(value, Ordering::Release);
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.0.swap(value, order)
    }
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.0.compare_exchange(current, new, success, failure)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(value, order)
    }
    fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_max(value, order)
    }
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_or(value, order)
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_and(value, order)
    }
}

/// Plain memory. The checker panics if two accesses, one of them a write, are not ordered by the
/// protocol.
pub struct Plain(UnsafeCell<u64>);

// SAFETY: the checker verifies that no accesses race, before it permits any.
#[allow(unsafe_code)]
unsafe impl Sync for Plain {}
// SAFETY: a number.
#[allow(unsafe_code)]
unsafe impl Send for Plain {}

#[allow(unsafe_code)]
impl Plain {
    pub fn new(value: u64) -> Plain {
        Plain(UnsafeCell::new(value))
    }

    pub fn read(&self) -> u64 {
        // SAFETY: the checker has verified that no write races with this.
        self.0.with(|value| unsafe { *value })
    }

    pub fn write(&self, new: u64) {
        // SAFETY: the checker has verified that nothing races with this.
        self.0.with_mut(|value| unsafe { *value = new });
    }
}

/// Moves `watermark` to `value` and notifies its waiters, as the product's words do.
pub fn publish_watermark<M: Model>(watermark: &M::U64, event: &M::U32, value: u64) {
    watermark.store_fenced(value);
    event_count::notify::<M>(event);
}

/// Waits until `watermark` is at least `at_least`, and returns its value. See [`event_count::wait_until`].
pub fn wait_for<M: Model, E>(
    watermark: &M::U64,
    event: &M::U32,
    at_least: u64,
    deadline: Option<Instant>,
    on_tick: impl FnMut() -> Result<(), E>,
) -> Result<u64, event_count::WaitError<E>> {
    // Sequentially consistent: the load after `prepare_wait` is the second half of Dekker's idiom.
    let look = || Some(watermark.load(Ordering::SeqCst)).filter(|&value| value >= at_least);
    event_count::wait_until::<M, _, _>(event, deadline, EVENT_WAIT_MAX, look, on_tick)
}
