//! Events of the region: words on which threads of all processes wait. Higher layers wait on the
//! region only through these events. The protocol is that of
//! [`crate::shared::protocols::event_count`].

use crate::Result;
use crate::shared::protocols::atomic::{Native, Woken};
use crate::shared::protocols::event_count;
use crate::shared::protocols::event_count::WaitError;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

/// An event count in the region. All zero at first.
#[repr(transparent)]
pub(crate) struct Event(pub(in crate::shared) AtomicU32);

impl Event {
    /// Wakes all waiters; costs one load if there are none. The caller has just stored its change
    /// fenced (each method of the region after which a caller notifies does so).
    #[inline]
    pub(crate) fn notify(&self) {
        event_count::notify::<Native>(&self.0);
    }

    /// Wakes all waiters, whatever the word holds. For changes that were not stored fenced, and
    /// after a death, since the dead process may not have notified.
    pub(crate) fn notify_always(&self) {
        event_count::notify_always::<Native>(&self.0);
    }

    /// Announces that this thread is about to wait. The caller then checks its condition, and
    /// passes the key to [`Event::wait`] if the condition does not hold.
    #[inline]
    pub(crate) fn prepare_wait(&self) -> u32 {
        event_count::prepare_wait::<Native>(&self.0)
    }

    /// Waits until a notification after [`Event::prepare_wait`] returned `key`, at most for
    /// `timeout`.
    #[inline]
    pub(crate) fn wait(&self, key: u32, timeout: Duration) -> Woken {
        event_count::wait::<Native>(&self.0, key, timeout)
    }

    /// Waits until `ready` returns a result, without a limit. Calls `on_tick` about once in each
    /// `check_interval`; its error ends the wait.
    pub(crate) fn wait_until<T>(
        &self,
        check_interval: Duration,
        ready: impl FnMut() -> Option<Result<T>>,
        on_tick: impl FnMut() -> Result<()>,
    ) -> Result<T> {
        let found = self.wait_until_by(None, check_interval, ready, on_tick)?;
        Ok(found.expect("a wait without a deadline does not time out"))
    }

    /// Waits as [`Event::wait_until`], at most until `deadline`; then returns `None`.
    pub(crate) fn wait_until_by<T>(
        &self,
        deadline: Option<Instant>,
        check_interval: Duration,
        ready: impl FnMut() -> Option<Result<T>>,
        on_tick: impl FnMut() -> Result<()>,
    ) -> Result<Option<T>> {
        match event_count::wait_until::<Native, _, _>(&self.0, deadline, check_interval, ready, on_tick) {
            Ok(found) => found.map(Some),
            Err(WaitError::TimedOut) => Ok(None),
            Err(WaitError::Stopped(error)) => Err(error),
        }
    }
}
