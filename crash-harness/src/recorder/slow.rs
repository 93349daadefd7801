//! Syncs that take as long as those of a disk. Each is answered, and added to the record, when its
//! time has passed. The server continues in the meantime.

use super::{Event, Shared};
use fuser::ReplyEmpty;
use rand::seq::IndexedRandom;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// The thread that answers delayed syncs.
pub(super) struct Slow {
    takes: Vec<Duration>,
    queue: Sender<Waiting>,
}

/// A sync that is delayed.
struct Waiting {
    due: Instant,
    file: u64,
    /// Everything recorded before this position is durable afterwards.
    before: usize,
    reply: ReplyEmpty,
}

impl Slow {
    /// Starts a thread that ends with the recorder. It holds a weak reference, so that it does not
    /// keep the recorder alive.
    pub(super) fn start(takes: Vec<Duration>, shared: Weak<Shared>) -> Slow {
        let (queue, waiting) = channel();
        std::thread::spawn(move || answer(&waiting, &shared));
        Slow { takes, queue }
    }

    /// Makes a sync succeed later.
    pub(super) fn answer_later(&self, file: u64, before: usize, reply: ReplyEmpty) {
        let takes = self.takes.choose(&mut rand::rng()).copied().unwrap_or_default();
        // If the thread has ended, dropping the request answers it with an error.
        let _ = self.queue.send(Waiting { due: Instant::now() + takes, file, before, reply });
    }
}

/// Answers in the order of the requests, like a disk with one queue.
fn answer(waiting: &Receiver<Waiting>, shared: &Weak<Shared>) {
    while let Ok(Waiting { due, file, before, reply }) = waiting.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let Some(shared) = shared.upgrade() else { return };
        shared.lock().note(Event::Synced { file, before });
        drop(shared);
        reply.ok();
    }
}
