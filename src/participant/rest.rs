//! When the logger's threads poll, and when they rest until a notification.
//!
//! Each thread sleeps on an event count, and a notification precedes all its work. A notification
//! can be missing: its sender may die between its store and the notification, or an older version
//! of the library may not send one. While the store is used, the threads therefore poll every few
//! milliseconds, and so recover from that.
//!
//! If nothing has been published, stored or requested for [`REST_DELAY`], the threads rest. One
//! thread checks for dead clients and for a missing directory every few seconds
//! ([`DEAD_CLIENT_CHECK_INTERVAL`]), and the others wake once a minute. While no process has the
//! store open, the logger is *alone*: all threads sleep until a notification, and the main thread
//! until the logger exits. The thread that listens for message-passing clients learns from the
//! kernel when the directory has lost a file (`server/socket_path/watch.rs`), and notifies.
//!
//! Whatever wakes a resting thread wakes all of them ([`Rest::stir`]), so they poll again as soon
//! as the store is used.
//!
//! | missing notification | beside a client, the event is noticed | alone |
//! |---|---|---|
//! | of a publisher that died | by the check for dead clients, at most [`DEAD_CLIENT_CHECK_INTERVAL`] later; by a client that waits, within `EVENT_WAIT_MAX` | there is no publisher |
//! | of a client that leaves or is killed | by the check for dead clients | there is no client |
//! | of a client that joins, and dies before it notifies | by the check for dead clients | by the next process that joins, or when the logger is about to exit; until then it occupies an entry of the client table |
//! | of a client that joins, and is stopped before it notifies | as above | when it continues: it has published nothing yet |
//! | of `stop_logger`, which dies before it notifies | by the check for dead clients | when the logger exits by itself |
//! | of the directory's removal, where the kernel does not report it | by the check for dead clients | when the logger is about to exit |

use crate::participant::engine::Engine;
use crate::system::clock::now_ns;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Time between polls of a thread of the logger unless the logger rests, and the longest of its
/// waits for the writer lock.
pub(crate) const LOGGER_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The threads rest after this time without an event.
const REST_DELAY: Duration = Duration::from_secs(1);
/// Time between checks for dead clients, and for the directory, by a logger that rests.
pub(crate) const DEAD_CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// The longest sleep of the other threads while they rest.
const REST_WAIT_MAX: Duration = Duration::from_secs(60);
/// The sleep of a thread of a logger that is alone: in effect, until a notification.
pub(crate) const ALONE_LONGEST: Duration = Duration::from_secs(86_400);

/// The time until which the threads of a logger poll.
pub(crate) struct Rest {
    active_until_ns: AtomicU64,
    /// No process has the store open, as far as is known to the logger.
    is_alone: AtomicBool,
}

impl Rest {
    /// Returns the state of threads that have just started: they poll.
    pub(crate) fn new() -> Rest {
        let active_until_ns = AtomicU64::new(now_ns() + REST_DELAY.as_nanos() as u64);
        Rest { active_until_ns, is_alone: AtomicBool::new(false) }
    }

    /// Returns the sleep of a thread that polls every `nap` while the store is used.
    pub(crate) fn nap(&self, nap: Duration) -> Duration {
        self.nap_beside_clients(nap, REST_WAIT_MAX)
    }

    /// Sets whether no process has the store open. When that changes to false, all threads must be
    /// woken ([`Rest::stir`]), since they may have begun to sleep for [`ALONE_LONGEST`].
    pub(crate) fn set_alone(&self, is_alone: bool) {
        self.is_alone.store(is_alone, Ordering::SeqCst);
    }

    /// Returns whether no process has the store open, as far as is known to the logger.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::SeqCst)
    }

    /// Returns the sleep of a thread that polls every `nap` while the store is used, and every
    /// `resting` while it is only open.
    pub(crate) fn nap_beside_clients(&self, nap: Duration, resting: Duration) -> Duration {
        match self.is_resting() {
            false => nap,
            true if self.is_alone() => ALONE_LONGEST,
            true => resting,
        }
    }

    /// Returns whether the threads rest. Call it between `event_count::prepare_wait` and
    /// `event_count::wait`.
    pub(crate) fn is_resting(&self) -> bool {
        now_ns() >= self.active_until_ns.load(Ordering::SeqCst)
    }

    /// Ends the rest of all threads, because of an event.
    pub(crate) fn stir(&self, engine: &Engine) {
        let (now, active_ns) = (now_ns(), REST_DELAY.as_nanos() as u64);
        // The threads are awake, and will be for a while. The half is a margin for a thread that
        // read the clock earlier.
        if self.active_until_ns.load(Ordering::SeqCst) >= now + active_ns / 2 {
            return;
        }
        self.active_until_ns.store(now + active_ns, Ordering::SeqCst);
        let fixed = engine.control.fixed();
        fixed.logger.flusher.notify_always();
        fixed.logger.background.notify_always();
        engine.control.cells().sampler.notify_always();
    }
}
