//! How much of the log is kept for its followers.

use std::time::{Duration, SystemTime};

/// How much of the log is kept for followers beyond what recovery needs. Both limits apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// The kept segments take at most this many bytes on the disk.
    pub bytes: u64,
    /// Older segments are not kept. The age is measured on the system's clock, so that it includes
    /// restarts.
    pub age: Duration,
}

impl Retention {
    /// Keeps nothing beyond what recovery needs.
    pub const NOTHING: Retention = Retention { bytes: 0, age: Duration::ZERO };
}

/// Returns the milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
