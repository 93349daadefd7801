//! The rates between two observations of a store.

use crate::target::options;
use std::time::{Duration, Instant};
use untorn::{Latency, Observation, Stats};

/// An observation and its time.
pub(crate) struct Look {
    pub(crate) at: Instant,
    pub(crate) found: untorn::Result<Observation>,
}

impl Look {
    pub(crate) fn at(path: &std::path::Path) -> Look {
        Look { found: options().observe(path), at: Instant::now() }
    }

    fn stats(&self) -> Option<&Stats> {
        match &self.found {
            Ok(Observation::Live(stats)) => Some(stats),
            _ => None,
        }
    }
}

/// The figures of now, and those of the time since an earlier observation.
pub(crate) struct Moment<'l> {
    pub(crate) now: &'l Stats,
    /// `None` if there was no earlier observation of this region.
    since: Option<(&'l Stats, Duration)>,
}

impl<'l> Moment<'l> {
    pub(crate) fn new(earlier: Option<&'l Look>, now: &'l Look) -> Option<Moment<'l>> {
        let stats = now.stats()?;
        let since = earlier.and_then(|look| Some((look.stats()?, now.at.saturating_duration_since(look.at))));
        // In a new region, all counters begin at zero.
        let since = since.filter(|(then, _)| then.region_start_seconds == stats.region_start_seconds);
        Some(Moment { now: stats, since })
    }

    /// Returns the rate per second of a counter.
    pub(crate) fn rate(&self, count: impl Fn(&Stats) -> u64) -> Option<f64> {
        let (then, passed) = self.since?;
        Some(count(self.now).saturating_sub(count(then)) as f64 / passed.as_secs_f64().max(1e-9))
    }

    /// Returns the commits that became durable per sync.
    pub(crate) fn commits_per_fsync(&self) -> Option<f64> {
        let (then, _) = self.since?;
        let fsyncs = self.now.fsyncs.saturating_sub(then.fsyncs);
        let commits = self.now.acknowledged.saturating_sub(then.acknowledged);
        (fsyncs > 0).then(|| commits as f64 / fsyncs as f64)
    }

    /// Returns a latency since the earlier observation.
    pub(crate) fn latency(&self, of: impl Fn(&Stats) -> &Latency) -> Option<(Latency, Duration)> {
        let (then, passed) = self.since?;
        Some((of(self.now).since(of(then)), passed))
    }

    /// Returns the commits per second of a process.
    pub(crate) fn process_rate(&self, id: u64) -> Option<f64> {
        let commits =
            |stats: &Stats| stats.clients.iter().find(|client| client.id == id).map_or(0, |client| client.commits);
        self.rate(commits)
    }
}
