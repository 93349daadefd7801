//! Syncs that take as long as those of a disk. Each is answered, and becomes part of the record,
//! when its time has come; the server goes on meanwhile.

use super::{Event, Shared};
use fuser::ReplyEmpty;
use rand::seq::IndexedRandom;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Whoever answers them.
pub(super) struct Slow {
    takes: Vec<Duration>,
    queue: Sender<Waiting>,
}

/// A sync whose time has not come.
struct Waiting {
    due: Instant,
    file: u64,
    /// What was recorded before this position is durable afterwards.
    before: usize,
    reply: ReplyEmpty,
}

impl Slow {
    /// Starts a thread, which ends with the recorder: it must not keep alive what tells it of its
    /// end.
    pub(super) fn start(takes: Vec<Duration>, shared: Weak<Shared>) -> Slow {
        let (queue, waiting) = channel();
        std::thread::spawn(move || answer(&waiting, &shared));
        Slow { takes, queue }
    }

    /// Has a sync that has just been asked for succeed later.
    pub(super) fn answer_later(&self, file: u64, before: usize, reply: ReplyEmpty) {
        let takes = self.takes.choose(&mut rand::rng()).copied().unwrap_or_default();
        // If nobody takes it, dropping it answers with an error.
        let _ = self.queue.send(Waiting { due: Instant::now() + takes, file, before, reply });
    }
}

/// Answers in the order of asking, as a disk does that has one queue.
fn answer(waiting: &Receiver<Waiting>, shared: &Weak<Shared>) {
    while let Ok(Waiting { due, file, before, reply }) = waiting.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let Some(shared) = shared.upgrade() else { return };
        shared.lock().note(Event::Synced { file, before });
        drop(shared);
        reply.ok();
    }
}
