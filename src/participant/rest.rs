//! When the logger's threads look by themselves, and when they rest until something wakes them.
//!
//! Each thread sleeps on an event count, and whatever it has to do is preceded by a ring. A ring can be missing: its sender may die
//! between its news and the ring, or an older version of the library may not send it. While the store is used, the threads therefore look again
//! every few milliseconds, and repair that. When nothing has been published, stored or asked for during [`REST_DELAY`], they rest:
//! one thread looks for the dead and for a missing directory every few seconds ([`DEAD_CLIENT_CHECK_INTERVAL`], [`UNUSED_CHECK_INTERVAL`]),
//! and the others wake once a minute.
//!
//! Whatever wakes a thread that rests wakes all of them ([`Rest::stir`]), so a store that is used again is looked after as before.
//!
//! | ring that is missing | who notices |
//! |---|---|
//! | of a publisher that died | the look for the dead, at most [`DEAD_CLIENT_CHECK_INTERVAL`] later; a client that waits, within `EVENT_WAIT_MAX` |
//! | of a client that leaves or is killed | the look for the dead |
//! | of `stop_logger`, by another version | the same look |

use crate::participant::engine::{Engine, now_ns};
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::event_count;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// After this time without an event, the threads rest.
const REST_DELAY: Duration = Duration::from_secs(1);
/// How often a logger that rests looks for dead clients, and for its directory.
pub(crate) const DEAD_CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// How often it looks for its directory, and for its socket, if no process has the store open.
pub(crate) const UNUSED_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How long the other threads rest.
const REST_WAIT_MAX: Duration = Duration::from_secs(60);

/// Until when the threads of a logger look by themselves.
pub(crate) struct Rest {
    active_until_ns: AtomicU64,
    /// No process has the store open, as far as the logger knows.
    is_alone: AtomicBool,
    /// How long the logger stays without clients, in milliseconds.
    idle_ms: AtomicU64,
}

impl Rest {
    /// Threads that have just started look by themselves.
    pub(crate) fn new() -> Rest {
        let active_until_ns = AtomicU64::new(now_ns() + REST_DELAY.as_nanos() as u64);
        Rest { active_until_ns, is_alone: AtomicBool::new(false), idle_ms: AtomicU64::new(0) }
    }

    /// How long a thread sleeps that looks every `nap` while the store is used.
    pub(crate) fn nap(&self, nap: Duration) -> Duration {
        if self.is_resting() { REST_WAIT_MAX } else { nap }
    }

    /// Notes whether a process has the store open, and for how long the logger stays without one.
    pub(crate) fn set_alone(&self, is_alone: bool, idle: Duration) {
        self.is_alone.store(is_alone, Ordering::Relaxed);
        self.idle_ms.store(idle.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long a thread sleeps that looks every `nap` while the store is used, every `resting` while it is only open. Of the
    /// time that the logger stays without clients, no more than the half: it looks before it leaves.
    pub(crate) fn nap_beside_clients(&self, nap: Duration, resting: Duration) -> Duration {
        let before_leaving = Duration::from_millis(self.idle_ms.load(Ordering::Relaxed) / 2);
        let longest = match self.is_resting() {
            false => nap,
            true if self.is_alone.load(Ordering::Relaxed) => UNUSED_CHECK_INTERVAL,
            true => resting,
        };
        longest.min(before_leaving).max(nap)
    }

    /// Whether the threads rest. To be asked between `event_count::prepare_wait` and `event_count::wait`.
    pub(crate) fn is_resting(&self) -> bool {
        now_ns() >= self.active_until_ns.load(Ordering::SeqCst)
    }

    /// Something happened: no thread rests from now on.
    pub(crate) fn stir(&self, engine: &Engine) {
        let (now, active_ns) = (now_ns(), REST_DELAY.as_nanos() as u64);
        // They are awake, and will be for a while. The half is room for a thread that asked the clock earlier.
        if self.active_until_ns.load(Ordering::SeqCst) >= now + active_ns / 2 {
            return;
        }
        self.active_until_ns.store(now + active_ns, Ordering::SeqCst);
        let fixed = engine.control.fixed();
        for event in [&fixed.logger.event, &fixed.logger.background, &engine.control.cells().event] {
            event_count::notify_always::<Native>(event);
        }
    }
}
