//! The turns of long requests.
//!
//! A request may ask for tens of thousands of records. Many such requests at once could take all
//! processors from the flush thread, for which direct clients wait, and use hundreds of megabytes
//! for a moment. Therefore only a few are served at once. When one is done, the next turn goes to
//! the user that has not had one for longest. Every second turn goes to the owner, if it waits. A
//! turn ends before any wait, except the wait for the writer lock, which has its own turns.

use crate::server::buffers::User;
use crate::system::clock;
use crate::system::sync::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between checks whether the logger is to exit.
const CLOSING_CHECK_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct Turns {
    at_once: usize,
    state: Mutex<TurnState>,
}

#[derive(Default)]
struct TurnState {
    at_work: usize,
    waiting: Vec<QueuedRequest>,
    next: u64,
    /// The last turn of each user, counted in turns.
    last: HashMap<u32, u64>,
    was_owners: bool,
}

struct QueuedRequest {
    number: u64,
    user: User,
    event: Arc<Condvar>,
}

/// A turn; dropping it passes it on.
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    pub(super) fn new(at_once: usize) -> Turns {
        Turns { at_once, state: Mutex::default() }
    }

    /// Waits for a turn until `deadline`, or until `is_closing`. Returns `None` in both cases.
    pub(super) fn take(&self, user: User, deadline: Instant, is_closing: impl Fn() -> bool) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let event = Arc::new(Condvar::new());
        state.waiting.push(QueuedRequest { number, user, event: event.clone() });
        self.grant(&mut state);
        loop {
            let Some(at) = state.waiting.iter().position(|waiting| waiting.number == number) else {
                return Some(Turn(self));
            };
            let now = clock::now();
            if now >= deadline || is_closing() {
                state.waiting.remove(at);
                return None;
            }
            event.wait_until(&mut state, deadline.min(now + CLOSING_CHECK_INTERVAL));
        }
    }

    /// Gives free turns to the users that wait.
    fn grant(&self, state: &mut TurnState) {
        while state.at_work < self.at_once && !state.waiting.is_empty() {
            let TurnState { waiting, last, was_owners, .. } = &*state;
            let order = |waiting: &QueuedRequest| {
                let is_first = waiting.user.is_owner && !was_owners;
                (!is_first, last.get(&waiting.user.uid).map_or(0, |turn| turn + 1), waiting.number)
            };
            let at = (0..waiting.len()).min_by_key(|at| order(&waiting[*at])).expect("one waits");
            let chosen = state.waiting.remove(at);
            state.at_work += 1;
            state.was_owners = chosen.user.is_owner;
            state.next += 1;
            state.last.insert(chosen.user.uid, state.next);
            chosen.event.notify_one();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.at_work -= 1;
        self.0.grant(&mut state);
        if state.at_work == 0 {
            state.last.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    //! A user with many requests does not delay the requests of others for long.

    use super::*;

    #[test]
    fn users_take_turns() {
        let turns = Turns::new(1);
        let user = |uid| User { uid, is_owner: uid == 0 };
        let never = || false;
        let far = Instant::now() + Duration::from_secs(60);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let first = turns.take(user(1), far, never).unwrap();
            let queue = [1, 1, 1, 1, 2, 3, 0, 0, 2];
            for (index, uid) in queue.into_iter().enumerate() {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take(user(uid), far, never).unwrap();
                    order.lock().push(uid);
                });
                while turns.state.lock().waiting.len() <= index {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock(), [0, 2, 0, 3, 1, 2, 1, 1, 1]);
        // A wait that times out leaves nothing behind.
        let _turn = turns.take(user(1), far, never).unwrap();
        assert!(turns.take(user(2), Instant::now(), never).is_none());
        assert!(turns.take(user(2), far, || true).is_none());
        assert!(turns.state.lock().waiting.is_empty());
    }
}
