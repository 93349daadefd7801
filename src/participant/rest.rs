//! When the logger's threads look by themselves, and when they rest until something wakes them.
//!
//! Each thread sleeps on an event count, and whatever it has to do is preceded by a ring. A ring
//! can be missing: its sender may die between its news and the ring, or an older version of the
//! library may not send it. While the store is used, the threads therefore look again every few
//! milliseconds, and repair that. When nothing has been published, stored or asked for during
//! [`REST_DELAY`], they rest: one thread looks for the dead and for a missing directory every few
//! seconds ([`DEAD_CLIENT_CHECK_INTERVAL`]), and the others wake once a minute. While no process
//! has the store open, the logger is *alone*: all threads sleep until a ring, and the main thread
//! until it is time to leave. The thread that listens for message-passing clients is told by the
//! kernel when the directory has lost a file (`server/socket_path/watch.rs`), and rings.
//!
//! Whatever wakes a thread that rests wakes all of them ([`Rest::stir`]), so a store that is used
//! again is looked after as before.
//!
//! | ring that is missing | beside a client, the event is noticed | alone |
//! |---|---|---|
//! | of a publisher that died | by the look for the dead, at most [`DEAD_CLIENT_CHECK_INTERVAL`] later; by a client that waits, within `EVENT_WAIT_MAX` | there is no publisher |
//! | of a client that leaves or is killed | by the look for the dead | there is no client |
//! | of a client that joins, and dies before it rings | by the look for the dead | by the next process that joins, or when the logger is to leave; until then it costs an entry of the client table |
//! | of a client that joins, and is stopped before it rings | as above | when it goes on: it has published nothing yet |
//! | of `stop_logger`, which dies before it rings | by the look for the dead | when the logger leaves by itself |
//! | of the directory's removal, where the kernel does not report it | by the look for the dead | when the logger is to leave |

use crate::participant::engine::Engine;
use crate::system::clock::now_ns;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often a thread of the logger looks by itself unless the logger rests, and how long it waits
/// for the writer lock at a time.
pub(crate) const LOGGER_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// After this time without an event, the threads rest.
const REST_DELAY: Duration = Duration::from_secs(1);
/// How often a logger that rests looks for dead clients, and for its directory.
pub(crate) const DEAD_CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// How long the other threads rest.
const REST_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a thread of a logger that is alone sleeps: until a ring, in effect.
pub(crate) const ALONE_LONGEST: Duration = Duration::from_secs(86_400);

/// Until when the threads of a logger look by themselves.
pub(crate) struct Rest {
    active_until_ns: AtomicU64,
    /// No process has the store open, as far as the logger knows.
    is_alone: AtomicBool,
}

impl Rest {
    /// Threads that have just started look by themselves.
    pub(crate) fn new() -> Rest {
        let active_until_ns = AtomicU64::new(now_ns() + REST_DELAY.as_nanos() as u64);
        Rest { active_until_ns, is_alone: AtomicBool::new(false) }
    }

    /// How long a thread sleeps that looks every `nap` while the store is used.
    pub(crate) fn nap(&self, nap: Duration) -> Duration {
        self.nap_beside_clients(nap, REST_WAIT_MAX)
    }

    /// Notes whether no process has the store open. When that ends, all threads are to be woken
    /// ([`Rest::stir`]), since they may have begun to sleep for [`ALONE_LONGEST`].
    pub(crate) fn set_alone(&self, is_alone: bool) {
        self.is_alone.store(is_alone, Ordering::SeqCst);
    }

    /// Whether no process has the store open, as far as the logger knows.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::SeqCst)
    }

    /// How long a thread sleeps that looks every `nap` while the store is used, every `resting`
    /// while it is only open.
    pub(crate) fn nap_beside_clients(&self, nap: Duration, resting: Duration) -> Duration {
        match self.is_resting() {
            false => nap,
            true if self.is_alone() => ALONE_LONGEST,
            true => resting,
        }
    }

    /// Whether the threads rest. To be asked between `event_count::prepare_wait` and
    /// `event_count::wait`.
    pub(crate) fn is_resting(&self) -> bool {
        now_ns() >= self.active_until_ns.load(Ordering::SeqCst)
    }

    /// Something happened: no thread rests from now on.
    pub(crate) fn stir(&self, engine: &Engine) {
        let (now, active_ns) = (now_ns(), REST_DELAY.as_nanos() as u64);
        // They are awake, and will be for a while. The half is room for a thread that asked the
        // clock earlier.
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
