//! An estimate of a duration from earlier ones: a smoothed mean and a smoothed deviation.
//!
//! Jacobson's estimator, as TCP uses it for its retransmission timer: V. Jacobson and M. Karels,
//! *Congestion Avoidance and Control* (SIGCOMM 1988); RFC 6298. It follows a device that becomes
//! slower within about ten samples, allows for a device whose times vary, and costs a few additions
//! per sample.

use std::time::Duration;

/// A running estimate of a duration.
///
/// ```
/// use std::time::Duration;
/// let mut estimate = untorn_wal::Estimate::starting_at(Duration::from_millis(10));
/// for _ in 0..200 {
///     estimate.add(Duration::from_millis(2));
/// }
/// assert!(estimate.bound() < Duration::from_micros(2_100));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Estimate {
    mean_ns: u64,
    deviation_ns: u64,
    is_first: bool,
}

impl Estimate {
    /// Returns an estimate without samples. The first sample replaces the guess.
    #[must_use]
    pub fn starting_at(guess: Duration) -> Estimate {
        Estimate { mean_ns: nanos(guess), deviation_ns: 0, is_first: true }
    }

    /// Adds a sample, with a weight of an eighth in the mean and a quarter in the deviation.
    pub fn add(&mut self, sample: Duration) {
        let sample = nanos(sample);
        if std::mem::take(&mut self.is_first) {
            (self.mean_ns, self.deviation_ns) = (sample, sample / 2);
            return;
        }
        self.deviation_ns = self.deviation_ns - self.deviation_ns / 4 + self.mean_ns.abs_diff(sample) / 4;
        self.mean_ns = self.mean_ns - self.mean_ns / 8 + sample / 8;
    }

    /// Returns the smoothed mean.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.mean_ns)
    }

    /// Returns a bound that the next sample will hardly exceed: the mean plus four times the
    /// deviation.
    #[must_use]
    pub fn bound(&self) -> Duration {
        Duration::from_nanos(self.mean_ns.saturating_add(self.deviation_ns.saturating_mul(4)))
    }
}

/// Returns a time in nanoseconds, at most an hour, so that no sum overflows.
fn nanos(time: Duration) -> u64 {
    time.min(Duration::from_secs(3600)).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn the_first_sample_replaces_the_guess() {
        let mut estimate = Estimate::starting_at(5000 * US);
        assert_eq!(estimate.bound(), 5000 * US);
        estimate.add(100 * US);
        assert_eq!((estimate.mean(), estimate.bound()), (100 * US, 300 * US));
    }

    #[test]
    fn it_follows_a_device_that_becomes_slower_and_faster() {
        let mut estimate = Estimate::starting_at(US);
        (0..100).for_each(|_| estimate.add(1000 * US));
        assert!(estimate.bound() < 1010 * US, "{estimate:?}");
        (0..10).for_each(|_| estimate.add(4000 * US));
        assert!(estimate.bound() >= 4000 * US, "{estimate:?}");
        (0..100).for_each(|_| estimate.add(1000 * US));
        assert!(estimate.bound() < 1010 * US, "{estimate:?}");
    }

    #[test]
    fn times_that_vary_are_allowed_for() {
        let mut estimate = Estimate::starting_at(US);
        let times = [800 * US, 1200 * US];
        (0..100).for_each(|n| estimate.add(times[n % 2]));
        assert!(estimate.bound() > 1200 * US && estimate.bound() < 2200 * US, "{estimate:?}");
    }

    #[test]
    fn no_sample_overflows() {
        let mut estimate = Estimate::starting_at(Duration::MAX);
        (0..100).for_each(|n| estimate.add(if n % 2 == 0 { Duration::MAX } else { Duration::ZERO }));
        assert!(estimate.bound() >= estimate.mean());
    }
}
