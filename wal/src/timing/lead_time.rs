//! The lead time of a flush: how long before a deadline it begins. It is the duration of a flush
//! plus twice the delay of a wake-up: the flush thread wakes up before the flush, and the waiting
//! client after it.
//!
//! The delay of a wake-up can be measured only when a thread sleeps until a given time. A thread
//! that is always busy never sleeps. If the thread were busy *because* one wake-up was late, the
//! estimate would never improve. So a flush before which the thread did not sleep counts as a
//! wake-up with the guessed delay.

use crate::Estimate;
use std::time::Duration;

/// The initial estimates of the duration of a flush and of the delay of a wake-up.
const FLUSH_TIME_GUESS: Duration = Duration::from_millis(5);
const WAKE_DELAY_GUESS: Duration = Duration::from_micros(100);
/// The bound of a measured delay. A longer delay counts as this one, because its cause is a stopped
/// process or a suspended machine.
const WAKE_DELAY_MAX: Duration = Duration::from_millis(10);

/// The running estimates of the lead time.
///
/// ```
/// use std::time::Duration;
/// let mut lead = untorn_wal::LeadTime::default();
/// lead.woke(Duration::from_micros(60));
/// lead.flushed(Some(Duration::from_millis(2)));
/// assert!(lead.bound() > Duration::from_millis(2));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeadTime {
    flush: Estimate,
    wake: Estimate,
    /// Whether a wake-up was measured since the last flush.
    has_woken: bool,
}

impl Default for LeadTime {
    fn default() -> LeadTime {
        LeadTime {
            flush: Estimate::starting_at(FLUSH_TIME_GUESS),
            wake: Estimate::starting_at(WAKE_DELAY_GUESS),
            has_woken: false,
        }
    }
}

impl LeadTime {
    /// Adds a wake-up: the thread slept until a given time, and woke up `late` after it.
    pub fn woke(&mut self, late: Duration) {
        self.wake.add(late.min(WAKE_DELAY_MAX));
        self.has_woken = true;
    }

    /// Adds a flush that took `took`. `None` if it did extra work, so that its duration does not
    /// predict the next one's.
    pub fn flushed(&mut self, took: Option<Duration>) {
        if let Some(took) = took {
            self.flush.add(took);
        }
        if !std::mem::take(&mut self.has_woken) {
            self.wake.add(self.wake.mean().min(WAKE_DELAY_GUESS));
        }
    }

    /// Returns a bound that the next flush will hardly exceed.
    #[must_use]
    pub fn flush(&self) -> Duration {
        self.flush.bound()
    }

    /// Returns a bound that the delay of the next wake-up will hardly exceed.
    #[must_use]
    pub fn wake(&self) -> Duration {
        self.wake.bound()
    }

    /// Returns how long before a deadline a flush begins.
    #[must_use]
    pub fn bound(&self) -> Duration {
        self.flush() + 2 * self.wake()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// If every commit has less time than the estimated duration of a flush, each is flushed at
    /// once and the thread never sleeps: the estimate must recover from that.
    #[test]
    fn one_late_wake_up_is_forgotten_without_a_sleep() {
        let deadline = 20 * MS;
        let mut lead_time = LeadTime::default();
        lead_time.woke(100 * MS);
        assert!(lead_time.bound() > deadline, "{lead_time:?}");
        (0..50).for_each(|_| lead_time.flushed(Some(MS)));
        assert!(lead_time.bound() < deadline, "{lead_time:?}");
    }

    #[test]
    fn wake_ups_that_are_always_late_are_allowed_for() {
        let mut lead_time = LeadTime::default();
        for _ in 0..50 {
            lead_time.woke(4 * MS);
            lead_time.flushed(Some(MS));
        }
        assert!(lead_time.wake() >= 4 * MS - MS / 10, "{lead_time:?}");
    }

    #[test]
    fn a_flush_that_is_no_example_changes_no_expectation() {
        let mut lead_time = LeadTime::default();
        lead_time.flushed(Some(MS));
        let expected = lead_time.flush();
        lead_time.flushed(None);
        assert_eq!(lead_time.flush(), expected);
    }
}
