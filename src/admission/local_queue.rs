//! Lets one thread of the process at a time go for the writer lock, which knows processes, not threads: urgent ones first.
//!
//! A thread that has passed the gate may still wait for the lock, as a bulk one behind all that are urgent elsewhere. If an urgent
//! thread comes to the gate then, it would wait as long: the one before it is *lifted* to wait as urgently (priority
//! inheritance, as of Sha, Rajkumar and Lehoczky, 1990). A bulk thread that has waited here for as long as bulk commits have patience
//! counts as urgent.

use crate::limits;
use crate::participant::engine::now_ns;
use crate::shared::protocols::lock::CommitClass;
use crate::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

/// A wait for the writer lock, the gate before it included.
pub(crate) struct LockWait {
    class: CommitClass,
    since_ns: u64,
    timeout: Option<Duration>,
    patience: Duration,
}

impl LockWait {
    /// One that begins at `since_ns`, and ends `timeout` after that at the latest.
    pub(crate) fn new(class: CommitClass, since_ns: u64, timeout: Option<Duration>) -> LockWait {
        // Who doesn't wait does not age either.
        let patience = patience(timeout.filter(|timeout| !timeout.is_zero()));
        LockWait { class, since_ns, timeout, patience }
    }

    fn waited(&self) -> Duration {
        Duration::from_nanos(now_ns().saturating_sub(self.since_ns))
    }

    /// What is left of the time-out.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.saturating_sub(self.waited()))
    }

    /// As what it waits now: a bulk one loses its patience.
    pub(crate) fn class(&self) -> CommitClass {
        if self.class == CommitClass::Urgent || self.waited() >= self.patience {
            CommitClass::Urgent
        } else {
            CommitClass::Bulk
        }
    }
}

/// For how long a bulk commit lets others go first. Who gives up early ages early, or it would never get its turn.
pub(crate) fn patience(timeout: Option<Duration>) -> Duration {
    timeout.map_or(limits::BULK_PATIENCE, |timeout| limits::BULK_PATIENCE.min(timeout / 2))
}

#[derive(Default)]
pub(crate) struct LocalQueue {
    /// The thread that has passed.
    holder: Mutex<Option<ThreadId>>,
    urgent: Condvar,
    bulk: Condvar,
    /// Urgent threads before the gate; changed under the lock.
    urgent_count: AtomicUsize,
    /// The thread that has passed waits for the lock, and somebody urgent for it.
    is_boosted: AtomicBool,
}

impl LocalQueue {
    /// Waits until this thread may go for the lock. `boost` has the one that has passed look again how urgent it is, if it still waits.
    ///
    /// # Errors
    /// [`Error::TransactionOpen`] if this thread has passed already; [`Error::LockTimeout`].
    pub(crate) fn enter(&self, wait: &LockWait, boost: impl Fn()) -> Result<()> {
        let this = std::thread::current().id();
        let mut holder = self.holder.lock();
        if *holder == Some(this) {
            return Err(Error::TransactionOpen);
        }
        let mut is_urgent = wait.class == CommitClass::Urgent;
        let mut is_counted = false;
        while holder.is_some() || (!is_urgent && self.has_urgent()) {
            is_urgent |= wait.class() == CommitClass::Urgent;
            if is_urgent && !std::mem::replace(&mut is_counted, true) {
                self.urgent_count.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            if is_urgent && !self.is_boosted.swap(true, Ordering::SeqCst) {
                boost();
            }
            let left = wait.left();
            if left == Some(Duration::ZERO) {
                self.urgent_count.fetch_sub(usize::from(is_counted), Ordering::SeqCst);
                // A wake-up may have come to this one that was for another.
                self.wake_next(*holder);
                return Err(Error::LockTimeout {
                    waited: wait.waited(),
                    holder: "another thread of this process".into(),
                });
            }
            match (is_urgent, left) {
                (true, None) => self.urgent.wait(&mut holder),
                (true, Some(left)) => {
                    let _ = self.urgent.wait_for(&mut holder, left);
                }
                (false, left) => {
                    let patience = wait.patience.saturating_sub(wait.waited());
                    let _ = self.bulk.wait_for(&mut holder, left.map_or(patience, |left| left.min(patience)));
                }
            }
        }
        self.urgent_count.fetch_sub(usize::from(is_counted), Ordering::SeqCst);
        *holder = Some(this);
        // Whoever is urgent and comes from here on lifts this one anew; those who wait already have to be counted in.
        self.is_boosted.store(self.has_urgent(), Ordering::SeqCst);
        Ok(())
    }

    /// Whether an urgent thread stands before the gate.
    pub(crate) fn has_urgent(&self) -> bool {
        self.urgent_count.load(Ordering::SeqCst) > 0
    }

    /// Whether the thread that has passed is to wait as an urgent one.
    pub(crate) fn boosts_holder(&self) -> bool {
        self.is_boosted.load(Ordering::SeqCst)
    }

    /// The thread that has passed has let go of the lock, or did not get it.
    pub(crate) fn leave(&self) {
        let mut holder = self.holder.lock();
        *holder = None;
        self.wake_next(*holder);
    }

    fn wake_next(&self, holder: Option<ThreadId>) {
        if holder.is_none() {
            let next = if self.has_urgent() { &self.urgent } else { &self.bulk };
            next.notify_one();
        }
    }

    pub(crate) fn is_this_threads(&self) -> bool {
        *self.holder.lock() == Some(std::thread::current().id())
    }
}
