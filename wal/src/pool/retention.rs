//! What is kept of the log for those who follow it.

use std::time::{Duration, SystemTime};

/// How much of the log is kept beyond what recovery needs, for those who follow it. Both bounds
/// hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// The segments that are kept take no more than this many bytes on the disk.
    pub bytes: u64,
    /// What is older is not kept. By the system's clock, since it counts across restarts.
    pub age: Duration,
}

impl Retention {
    /// Nothing beyond what recovery needs.
    pub const NOTHING: Retention = Retention { bytes: 0, age: Duration::ZERO };
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
