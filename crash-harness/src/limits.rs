//! The timeout after which a process counts as hanging.

use std::time::Duration;

/// Longest wait for an event that must happen: an answer, progress, or the end of a process.
/// Exceeding it is a violation. The limit is generous, since the harness also runs on busy
/// machines; benchmarks measure how long an operation takes. No process of the harness gives up a
/// call earlier, unless the store's timeout is under test.
pub const HANGS: Duration = Duration::from_secs(120);
