//! Wakes the tasks that await tickets: one thread per process, started with the first awaited ticket,
//! sleeps on the durable watermark and wakes whoever it covers.

use super::Client;
use crate::engine::Engine;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use untorn_wal::Lsn;

/// Tasks that wait for the log to become durable.
#[derive(Default)]
pub(crate) struct Wakers {
    waiting: Arc<Mutex<Vec<(Lsn, Waker)>>>,
    running: AtomicBool,
}

impl Client {
    /// Has `waker` woken once the log is durable up to `lsn`, or can no longer become so.
    pub(crate) fn wake_at(self: &Arc<Client>, lsn: Lsn, waker: &Waker) {
        let mut waiting = self.wakers.waiting.lock();
        waiting.push((lsn, waker.clone()));
        // Under the lock: the thread ends under it too, when nobody waits.
        if self.wakers.running.swap(true, Ordering::AcqRel) {
            return;
        }
        drop(waiting);
        let client = self.clone();
        let spawned = std::thread::Builder::new().name("untorn-waker".into()).spawn(move || client.run_wakers());
        if spawned.is_err() {
            // Without a thread the task is woken at once, and polls again: busy, but right.
            self.wakers.running.store(false, Ordering::Release);
            self.wakers.wake_all();
        }
    }

    fn run_wakers(self: Arc<Client>) {
        loop {
            let next = {
                let waiting = self.wakers.waiting.lock();
                match waiting.iter().map(|(lsn, _)| *lsn).min() {
                    Some(next) => next,
                    None => {
                        self.wakers.running.store(false, Ordering::Release);
                        return;
                    }
                }
            };
            let reached = self.engine.wait_durable(next, false, None);
            let durable = match (reached, self.engine.control.durable()) {
                (Ok(_), Some((_, durable))) => durable,
                (Ok(_), None) => continue,
                // Their next poll meets the error itself.
                (Err(_), _) => Lsn(u64::MAX),
            };
            let mut waiting = self.wakers.waiting.lock();
            let (ready, rest) = waiting.drain(..).partition(|(lsn, _)| *lsn <= durable);
            *waiting = rest;
            drop(waiting);
            let ready: Vec<(Lsn, Waker)> = ready;
            ready.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }
}

impl Wakers {
    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// The client is going: nobody can be waiting, since whoever waits holds it.
    pub(crate) fn stop(&self, _engine: &Engine) {
        self.wake_all();
    }
}
