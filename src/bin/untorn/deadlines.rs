//! `deadlines`: how long a commit of each class can take, computed from what the store's histograms have seen, beside what was
//! measured.
//!
//! It looks from outside, twice, and takes the rates from what happened in between; the longest lock holds and flushes are those since
//! the shared region was made. `docs/durability.md` explains the analysis.

use crate::arguments::Format;
use crate::outcome::{Failure, Outcome};
use crate::stat;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Error, Latency, LatencyByClass, Observation, Stats, limits};
use untorn_wal::response::{Bound, Classes, Task};

/// The bounds hold if this does.
const ASSUMED: &str = "no lock hold and no flush is longer than the longest so far, commits come no more often than in the \
    seconds looked at, and urgent ones are flushed at once (policy on-commit, or a deadline that is due)";

#[derive(Serialize)]
struct Report {
    assumed: &'static str,
    looked_for_seconds: f64,
    urgent: Class,
    bulk: Class,
    flush_p50_us: f64,
    flush_p999_us: f64,
    flush_longest_us: f64,
    /// Commits with a deadline of their own.
    with_deadline: u64,
    deadlines_met: u64,
    deadlines_missed: u64,
    deadlines_met_share: Option<f64>,
    flushes_saved: u64,
}

#[derive(Serialize)]
struct Class {
    commits: u64,
    commits_per_second: f64,
    /// How many may commit at the same instant.
    callers: u64,
    lock_hold_p999_us: f64,
    lock_hold_longest_us: f64,
    lock_wait_longest_us: f64,
    /// Of all lock time, what this class takes.
    utilisation: f64,
    /// The longest time for which others of lower priority keep the lock from it; and until it is visible, and durable.
    blocked_at_most_us: Option<f64>,
    visible_within_us: Option<f64>,
    durable_within_us: Option<f64>,
    no_bound_because: Option<&'static str>,
    acknowledged: u64,
    acknowledged_p50_us: f64,
    acknowledged_p99_us: f64,
    acknowledged_longest_us: f64,
}

pub(crate) fn run(path: &Path, seconds: f64, callers: Option<u64>, format: Format) -> Outcome {
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| Failure::Usage(error.to_string()))?;
    let (start, before) = (Instant::now(), look(path)?);
    std::thread::sleep(time);
    let after = look(path)?;
    stat::print(&report(&before, &after, start.elapsed(), callers), format)
}

fn look(path: &Path) -> Result<Box<Stats>, Failure> {
    match untorn::observe(path)? {
        Observation::Live(stats) => Ok(stats),
        _ => {
            Err(Error::LoggerUnavailable { reason: "nobody has the store open: there is nothing to measure".into() }
                .into())
        }
    }
}

fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn report(before: &Stats, after: &Stats, took: Duration, callers: Option<u64>) -> Report {
    let callers = callers.unwrap_or(after.clients.len() as u64).max(1);
    let per_second = |then: &Latency, now: &Latency| now.since(then).count() as f64 / took.as_secs_f64();
    let (then, now) = (&before.latencies, &after.latencies);
    let urgent_rate = per_second(&then.lock_hold.urgent, &now.lock_hold.urgent);
    let bulk_rate = per_second(&then.lock_hold.bulk, &now.lock_hold.bulk);
    let task = |rate, hold: &Latency| Task::of_callers(callers, rate, hold.max().as_nanos() as u64);
    let classes = Classes {
        urgent: task(urgent_rate, &now.lock_hold.urgent),
        bulk: task(bulk_rate, &now.lock_hold.bulk),
        bulk_patience_ns: limits::BULK_PATIENCE.as_nanos() as u64,
        flush_ns: now.flush.max().as_nanos() as u64,
        wake_ns: after.deadlines.wake_estimate_ns,
    };
    let class = |of: fn(&LatencyByClass) -> &Latency, rate: f64, bound: Option<Bound>| {
        let (hold, wait, told) = (of(&now.lock_hold), of(&now.lock_wait), of(&now.acknowledgement));
        let bounded = |part: fn(&Bound) -> u64| bound.map(|bound| part(&bound) as f64 / 1e3);
        Class {
            commits: hold.count(),
            commits_per_second: rate,
            callers,
            lock_hold_p999_us: us(hold.percentile(99.9)),
            lock_hold_longest_us: us(hold.max()),
            lock_wait_longest_us: us(wait.max()),
            utilisation: rate * hold.max().as_secs_f64(),
            blocked_at_most_us: bounded(|bound| bound.blocking_ns),
            visible_within_us: bounded(|bound| bound.visible_ns),
            durable_within_us: bounded(|bound| bound.durable_ns),
            no_bound_because: bound
                .is_none()
                .then_some("by their longest holds, commits ask for more of the lock than there is"),
            acknowledged: told.count(),
            acknowledged_p50_us: us(told.percentile(50.0)),
            acknowledged_p99_us: us(told.percentile(99.0)),
            acknowledged_longest_us: us(told.max()),
        }
    };
    let deadlines = &after.deadlines;
    Report {
        assumed: ASSUMED,
        looked_for_seconds: took.as_secs_f64(),
        urgent: class(|by| &by.urgent, urgent_rate, classes.urgent()),
        bulk: class(|by| &by.bulk, bulk_rate, classes.bulk()),
        flush_p50_us: us(now.flush.percentile(50.0)),
        flush_p999_us: us(now.flush.percentile(99.9)),
        flush_longest_us: us(now.flush.max()),
        with_deadline: deadlines.commits,
        deadlines_met: deadlines.met,
        deadlines_missed: deadlines.missed,
        deadlines_met_share: deadlines.met_share,
        flushes_saved: deadlines.flushes_saved,
    }
}
