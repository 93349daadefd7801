//! Clocks, and sleeping.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant, SystemTime};

/// Returns the nanoseconds of the monotonic clock. It is the same in all processes of one boot and
/// one time namespace.
#[inline]
pub(crate) fn now_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Returns the time of [`now_ns`] from a clock that costs a few nanoseconds and lags by a few
/// milliseconds.
#[inline]
pub(crate) fn coarse_now_ns() -> u64 {
    nanoseconds(ClockId::MonotonicCoarse)
}

#[inline]
fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns the time of the monotonic clock, for use within this process.
#[inline]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns the time since `start`.
#[inline]
pub(crate) fn since(start: Instant) -> Duration {
    now().saturating_duration_since(start)
}

/// Returns the time since the beginning of 1970, by the system's clock.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Sleeps for this time.
pub(crate) fn sleep(time: Duration) {
    std::thread::sleep(time);
}
