//! The queue of the threads of one process for the writer lock. The lock is owned by a process, so
//! only one thread of a process may contend for it at a time. Urgent threads go first.
//!
//! The thread at the head of the queue may still wait for the lock. If it is a bulk thread, it
//! waits behind all urgent writers of other processes. An urgent thread that queues behind the head
//! would wait equally long. Therefore the head is *boosted*: from then on, it waits as an urgent
//! thread (priority inheritance; Sha, Rajkumar and Lehoczky, 1990). A bulk thread that has waited
//! for [`patience`] counts as urgent.

use crate::admission::LockWait;
use crate::error::reason::{LockHolder, LockKind};
use crate::shared::protocols::lock::CommitClass;
use crate::system::sync::{Condvar, Mutex};
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

/// The queue, and the thread at its head.
#[derive(Default)]
pub(crate) struct LocalQueue {
    /// The thread at the head: the only one that contends for the lock.
    holder: Mutex<Option<ThreadId>>,
    urgent: Condvar,
    bulk: Condvar,
    /// Urgent threads in the queue. Changed under the mutex of `holder`.
    urgent_count: AtomicUsize,
    /// Whether an urgent thread waits behind the head. If the head still waits for the lock, it
    /// waits as an urgent thread.
    is_boosted: AtomicBool,
}

impl LocalQueue {
    /// Waits until this thread is the head of the queue. If the present head still waits for the
    /// lock, `boost` makes it check its class again.
    ///
    /// # Errors
    /// [`Error::TransactionOpen`] if this thread is the head already; [`Error::LockTimeout`].
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
                // This thread may have consumed a wake-up that another one needs.
                self.wake_next(*holder);
                let holder = Some(LockHolder::Thread { pid: std::process::id() });
                return Err(Error::LockTimeout { lock: LockKind::Writer, waited: wait.waited(), holder });
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
        // Urgent threads that wait already boost this thread from the start. Otherwise, the next
        // urgent thread that queues boosts it.
        self.is_boosted.store(self.has_urgent(), Ordering::SeqCst);
        Ok(())
    }

    /// Returns whether an urgent thread is in the queue.
    pub(crate) fn has_urgent(&self) -> bool {
        self.urgent_count.load(Ordering::SeqCst) > 0
    }

    /// Returns whether the head of the queue waits as an urgent thread.
    pub(crate) fn boosts_holder(&self) -> bool {
        self.is_boosted.load(Ordering::SeqCst)
    }

    /// Leaves the head of the queue, after the lock was released, or could not be acquired.
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

    /// Returns whether this thread is the head of the queue.
    pub(crate) fn is_this_threads(&self) -> bool {
        *self.holder.lock() == Some(std::thread::current().id())
    }
}
