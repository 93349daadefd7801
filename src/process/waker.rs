//! Wakes the tasks that await tickets. An awaited ticket starts a thread, unless one runs in its
//! process already. The thread waits for the durable position to advance, and wakes the tasks whose
//! positions are durable. It ends when no task waits.

use crate::error::reason::NotDurableReason;
use crate::process::client::DirectClient;
use crate::shared::latencies::Acknowledged;
use crate::shared::protocols::event_count::EVENT_WAIT_MAX;
use crate::system::clock::now_ns;
use crate::system::sync::Mutex;
use crate::system::threads;
use crate::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use untorn_wal::Lsn;

/// Tasks that wait for the log to become durable.
#[derive(Default)]
pub(crate) struct Wakers {
    state: Mutex<WakerState>,
}

#[derive(Default)]
struct WakerState {
    waiting: Vec<AwaitedTicket>,
    is_running: bool,
}

struct AwaitedTicket {
    lsn: Lsn,
    /// The deadline for its durability; `None` if the flush policy decides.
    deadline_ns: Option<u64>,
    since_ns: u64,
    waker: Waker,
    failure: TicketFailure,
}

/// The reason why an awaited ticket can't become durable, passed from the thread to the next poll.
pub(crate) type TicketFailure = Arc<Mutex<Option<NotDurableReason>>>;

impl DirectClient {
    /// Wakes `waker` once the log is durable up to `lsn`, or when `failure` holds the reason why it
    /// can't be. When `deadline_ns` has passed, requests a flush.
    pub(crate) fn wake_at(
        self: &Arc<DirectClient>,
        lsn: Lsn,
        deadline_ns: Option<u64>,
        waker: &Waker,
        failure: &TicketFailure,
    ) {
        // Clone before the lock is taken, and drop the old waker after the lock is released: both
        // run code of the caller's runtime.
        let waker = waker.clone();
        let mut old = None;
        let mut state = self.wakers.state.lock();
        // A task that is polled again has one entry.
        match state.waiting.iter_mut().find(|waiting| Arc::ptr_eq(&waiting.failure, failure)) {
            Some(waiting) => old = Some(std::mem::replace(&mut waiting.waker, waker)),
            None => {
                let failure = failure.clone();
                state.waiting.push(AwaitedTicket { lsn, deadline_ns, since_ns: now_ns(), waker, failure });
            }
        }
        // Set under the lock, under which the thread also ends when no task waits.
        let is_running = std::mem::replace(&mut state.is_running, true);
        drop(state);
        if is_running {
            drop(old);
            return;
        }
        let client = self.clone();
        let spawned = threads::spawn("untorn-waker", move || client.run_wakers());
        if spawned.is_err() {
            // Without a thread the task is woken at once, and polls again: a busy loop, but
            // correct.
            self.wakers.wake_all();
        }
    }

    fn run_wakers(self: Arc<DirectClient>) {
        /// Handles a panic of the thread: its tasks poll again, and the first of them starts
        /// another thread.
        struct Restart<'w>(&'w Wakers);
        impl Drop for Restart<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.wake_all();
                }
            }
        }
        let _restart = Restart(&self.wakers);
        loop {
            let next = {
                let mut state = self.wakers.state.lock();
                // As in `Engine::wait_durable_by`.
                let now = now_ns();
                let is_late = |waiting: &&AwaitedTicket| waiting.deadline_ns.is_some_and(|by| by <= now);
                if let Some(late) = state.waiting.iter().filter(is_late).map(|waiting| waiting.lsn).max() {
                    self.engine.request_flush(late);
                }
                match state.waiting.iter().map(|waiting| waiting.lsn).min() {
                    Some(next) => next,
                    None => {
                        state.is_running = false;
                        return;
                    }
                }
            };
            // Wait at most `EVENT_WAIT_MAX`, since a task with an earlier position may be added
            // meanwhile.
            let reached = self.engine.wait_durable(next, false, Some(EVENT_WAIT_MAX));
            self.wake_covered(reached);
        }
    }

    fn wake_covered(&self, reached: Result<bool>) {
        let durable = self.engine.control.durable().map(|(_, durable)| durable);
        let failed = match reached {
            Ok(_) => None,
            // A stopped logger may continue.
            Err(Error::LoggerStalled { .. }) => None,
            Err(error) => Some(NotDurableReason::from(error)),
        };
        let mut state = self.wakers.state.lock();
        let is_covered = |lsn: Lsn| durable.is_some_and(|durable| lsn <= durable);
        let (ready, rest): (Vec<_>, Vec<_>) =
            state.waiting.drain(..).partition(|waiting| failed.is_some() || is_covered(waiting.lsn));
        state.waiting = rest;
        drop(state);
        for waiting in ready {
            if let Some(reason) = failed.as_ref().filter(|_| !is_covered(waiting.lsn)) {
                *waiting.failure.lock() = Some(reason.clone());
            } else {
                self.engine.note_acknowledgement(Acknowledged::Ticket, waiting.since_ns);
            }
            wake(waiting.waker);
        }
    }
}

impl Wakers {
    /// Wakes all tasks, which poll again, because the thread does not run.
    fn wake_all(&self) {
        let mut state = self.state.lock();
        state.is_running = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(|waiting| wake(waiting.waker));
    }
}

/// Wakes a task, and catches a panic of the caller's runtime, so that other tasks are still woken.
fn wake(waker: Waker) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        // The destructor of the payload may panic as well.
        std::mem::forget(payload);
        tracing::warn!("a waker of an awaited ticket panicked");
    }
}
