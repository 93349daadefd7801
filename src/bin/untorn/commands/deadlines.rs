//! `deadlines`: the longest time that a commit of each class can take, computed from the store's
//! histograms, beside the measured one.
//!
//! It observes the store twice from outside, and computes the rates from the difference. The
//! longest lock holds and flushes are those since the shared region was made. `docs/durability.md`
//! explains the analysis.

use super::stat;
use crate::arguments::Format;
use crate::outcome::{CommandFailure, Outcome};
use crate::target::options;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Latency, LatencyByClass, Observation, Stats, limits};
use untorn_wal::response::{Classes, ResponseBound, Task};

/// The assumption of the bounds.
const ASSUMED: &str = "no lock hold and no flush is longer than the longest so far, and no thread that may run waits longer for a processor \
    than the wake-up estimate, nor than 200 us; commits come no more often than on average in the seconds looked at, from as many \
    callers at once as stated (one for each process that has the store open, and one for the logger: --callers for threads and message connections); \
    each process commits in one class only, and with no lock time-out shorter than 100 ms; bulk transactions don't stream; a durable bound is that of \
    Durable commits, or of deadlines that are due";

/// The number of callers that the logger counts as: its checkpoints and samples are bulk commits.
const LOGGER_CALLERS: u64 = 1;

#[derive(Serialize)]
struct DeadlineReport {
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
    /// The number of callers that may commit at the same instant.
    callers: u64,
    lock_hold_p999_us: f64,
    lock_hold_longest_us: f64,
    lock_wait_longest_us: f64,
    /// The share of all lock time that this class uses.
    utilisation: f64,
    /// The longest time for which callers of lower priority hold the lock; the two bounds that
    /// follow are until the commit is visible, and until it is durable.
    blocked_at_most_us: Option<f64>,
    visible_within_us: Option<f64>,
    durable_within_us: Option<f64>,
    no_bound_because: Option<&'static str>,
    no_durable_bound_because: Option<&'static str>,
    /// The measured value for the bound until visible: the longest wait plus the longest hold, not
    /// necessarily of one commit.
    visible_took_at_most_us: f64,
    /// From the publication until the caller had the acknowledgement: the part after the bound
    /// until visible.
    acknowledged: u64,
    acknowledged_p50_us: f64,
    acknowledged_p99_us: f64,
    acknowledged_longest_us: f64,
}

pub(crate) fn run(path: &Path, seconds: f64, callers: Option<u64>, format: Format) -> Outcome {
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| CommandFailure::Usage(error.to_string()))?;
    let (start, before) = (Instant::now(), look(path)?);
    std::thread::sleep(time);
    let after = look(path)?;
    stat::print(&report(&before, &after, start.elapsed(), callers), format)
}

fn look(path: &Path) -> Result<Box<Stats>, CommandFailure> {
    match options().observe(path)? {
        Observation::Live(stats) => Ok(stats),
        _ => Err(CommandFailure::System("no process has the store open: there is nothing to measure".into())),
    }
}

fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn report(before: &Stats, after: &Stats, took: Duration, callers: Option<u64>) -> DeadlineReport {
    let callers = callers.unwrap_or(after.clients.len() as u64).max(1);
    let per_second = |then: &Latency, now: &Latency| now.since(then).count() as f64 / took.as_secs_f64();
    let (then, now) = (&before.latencies, &after.latencies);
    let urgent_rate = per_second(&then.lock_hold.urgent, &now.lock_hold.urgent);
    let bulk_rate = per_second(&then.lock_hold.bulk, &now.lock_hold.bulk);
    let task = |callers, rate, hold: &Latency| Task::of_callers(callers, rate, hold.max().as_nanos() as u64);
    let patience_ns = limits::BULK_PATIENCE.as_nanos() as u64;
    let classes = Classes {
        urgent: task(callers, urgent_rate, &now.lock_hold.urgent),
        bulk: task(callers + LOGGER_CALLERS, bulk_rate, &now.lock_hold.bulk),
        // The logger's patience is half as long.
        bulk_patience_ns: patience_ns / 2,
        share_wait_ns: patience_ns,
        flush_ns: now.flush.max().as_nanos() as u64,
        wake_ns: after.deadlines.wake_estimate_ns,
    };
    let class =
        |of: fn(&LatencyByClass) -> &Latency, told: &Latency, callers: u64, rate: f64, bound: Option<ResponseBound>| {
            let (hold, wait) = (of(&now.lock_hold), of(&now.lock_wait));
            let is_seen = hold.count() > 0;
            let bound = bound.filter(|_| is_seen);
            let is_flushed_at_once = after.deadlines.policy_flushes_at_once;
            let bounded = |part: fn(&ResponseBound) -> u64| bound.map(|bound| part(&bound) as f64 / 1e3);
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
                durable_within_us: bounded(|bound| bound.durable_ns).filter(|_| is_flushed_at_once),
                no_bound_because: match (is_seen, bound) {
                    (false, _) => Some("there have been no commits of this class"),
                    (true, None) => {
                        Some("by their longest holds, commits ask for more of the lock than there is, or all but that")
                    }
                    (true, Some(_)) => None,
                },
                no_durable_bound_because: (!is_flushed_at_once)
                    .then_some("the flush policy lets commits wait for an interval, or for others"),
                visible_took_at_most_us: us(wait.max() + hold.max()),
                acknowledged: told.count(),
                acknowledged_p50_us: us(told.percentile(50.0)),
                acknowledged_p99_us: us(told.percentile(99.0)),
                acknowledged_longest_us: us(told.max()),
            }
        };
    let deadlines = &after.deadlines;
    DeadlineReport {
        assumed: ASSUMED,
        looked_for_seconds: took.as_secs_f64(),
        urgent: class(|by| &by.urgent, &now.acknowledgement.urgent, callers, urgent_rate, classes.urgent()),
        bulk: class(|by| &by.bulk, &now.acknowledgement.bulk, callers + LOGGER_CALLERS, bulk_rate, classes.bulk()),
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
