//! The one limit that means "it hangs".

use std::time::Duration;

/// Longest wait for an event that must happen: an answer, progress, or the end of a process. What
/// takes longer is a violation. The limit is generous, since the harness also runs on machines that
/// are busy with other work; how long an operation takes is measured in benchmarks. No process of
/// the harness gives up a call by itself in less than this, but where the time-out of the store is
/// under test.
pub const HANGS: Duration = Duration::from_secs(120);
