//! The role of a process that writes records under one setting and measures.
//!
//! The load is open: records arrive at random times (a Poisson process with the given rate),
//! whether earlier ones are acknowledged or not. Latency counts from the time at which a record was
//! due. A load that waits for answers would stall together with the store that it measures, and
//! would omit the slow cases: Gil Tene's "coordinated omission" (How NOT to Measure Latency, 2013).
//!
//! One thread writes. Under the schemes that wait, another thread waits for the oldest commit and
//! collects all that became durable with it. Any number of commits can thus be in progress, as from
//! that many writers, without a thread for each.

use super::baseline::{Baseline, RECORD};
use super::setting::{Scheme, Setting};
use crate::outcome::{Finding, Kind};
use crate::processes::role::{Role, say};
use crate::processes::sealed::sealed;
use crate::recorder::now;
use crate::workload::{misbehaved, open_with};
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use untorn::{Durability, FlushPolicy, Keyspace, Latency, Store, Ticket};

/// The keyspace of the records.
pub const KEYSPACE: &str = "records";
/// Prefix of the line with the measurements.
pub const MEASURED: &str = "M ";

/// The measurements of one run between the times `from` and `to`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Begin, by [`now`].
    pub from: Duration,
    /// End, by [`now`].
    pub to: Duration,
    /// Records that were due in that time.
    pub due: u64,
    /// Records that were acknowledged in that time.
    pub acknowledged: u64,
    /// Time from when a record was due to its acknowledgement: mean in milliseconds.
    pub ack_ms_mean: f64,
    /// The median.
    pub ack_ms_p50: f64,
    /// The 99th percentile.
    pub ack_ms_p99: f64,
    /// The 99.9th percentile.
    pub ack_ms_p999: f64,
    /// The maximum.
    pub ack_ms_max: f64,
    /// Mean delay of writing a record in milliseconds: the machine was busy, or the writer waited
    /// for a sync.
    pub put_late_ms: f64,
    /// Acknowledgements that came after the interval or deadline.
    pub late: u64,
    /// Syncs of the log or the file.
    pub syncs: u64,
    /// Durations of the syncs, including the writes before them.
    pub sync: SyncTimes,
    /// Flush lead time in seconds: how long before a deadline the logger began its flush. It is the
    /// logger's estimate of the flush and of its own wake-up.
    pub head_start: f64,
    /// Bytes of the records in the log; 0 if unknown.
    pub log_bytes: u64,
    /// Bytes that the processes caused to be written to the disk, as counted by the kernel. `None`
    /// if it does not count them.
    pub bytes_written: Option<u64>,
}

/// Durations of syncs in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncTimes {
    /// The mean.
    pub mean: f64,
    /// The maximum.
    pub max: f64,
    /// The midpoints of `PARTS` equal parts of the distribution, in order; empty if there were no
    /// syncs.
    pub parts: Vec<f64>,
}

/// Number of parts of a distribution.
const PARTS: u32 = 20;

impl SyncTimes {
    /// Creates the times from a mean, a maximum, and a function that returns a percentile.
    fn new(mean: f64, max: f64, of_percent: impl Fn(f64) -> f64) -> SyncTimes {
        let middles = (0..PARTS).map(|part| (f64::from(part) + 0.5) * 100.0 / f64::from(PARTS));
        let parts = if mean > 0.0 { middles.map(of_percent).collect() } else { Vec::new() };
        SyncTimes { mean, max, parts }
    }

    /// Returns the mean of the squares. A random instant falls into a sync with a probability
    /// proportional to its length.
    pub fn mean_square(&self) -> f64 {
        let count = self.parts.len().max(1) as f64;
        let mean = self.parts.iter().sum::<f64>() / count;
        let square = self.parts.iter().map(|part| part * part).sum::<f64>() / count;
        // The parts are accurate to an eighth; the mean is exact.
        if mean > 0.0 { square * (self.mean / mean).powi(2) } else { self.mean * self.mean }
    }
}

impl Measured {
    /// Returns the length of the window in seconds.
    pub fn seconds(&self) -> f64 {
        (self.to.saturating_sub(self.from)).as_secs_f64()
    }
}

/// Plays the role. Its arguments are the setting, the seed, the seconds of warm-up, the seconds of
/// measurement, and a file for the times of the acknowledgements, or nothing.
///
/// # Errors
/// The first violation.
pub fn play(role: &Role) -> Result<(), Finding> {
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    let setting: Setting = argument(0).parse().map_err(|what: String| Finding::new(Kind::Misbehaved, what))?;
    let seconds = |at: usize| Duration::from_secs_f64(argument(at).parse().unwrap_or(1.0));
    // Makes sleeps end on time instead of up to 50 µs later.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let load = Load { setting, seed: argument(1).parse().unwrap_or(0), warm_up: seconds(2), length: seconds(3) };
    let (measured, acknowledged) = match setting.scheme {
        Scheme::MmapInterval => load.on_file(&role.store)?,
        _ => load.on_store(&role.store)?,
    };
    if !argument(4).is_empty() {
        let nanos: Vec<u64> = acknowledged.iter().map(|at| at.as_nanos() as u64).collect();
        let written = serde_json::to_vec(&nanos).map(|bytes| std::fs::write(argument(4), bytes));
        if !matches!(written, Ok(Ok(()))) {
            return Err(Finding::new(Kind::Misbehaved, "the times of the acknowledgements can't be written"));
        }
    }
    let line = serde_json::to_string(&measured).map_err(|error| Finding::new(Kind::Misbehaved, error.to_string()))?;
    say(format_args!("{MEASURED}{line}"));
    Ok(())
}

struct Load {
    setting: Setting,
    seed: u64,
    warm_up: Duration,
    length: Duration,
}

/// The times at which records are due.
struct Arrivals {
    random: StdRng,
    gap: f64,
    next: Duration,
    end: Duration,
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let exponential = -(1.0 - self.random.random::<f64>()).ln() * self.gap;
        self.next += Duration::from_secs_f64(exponential);
        (self.next < self.end).then_some(self.next)
    }
}

/// The acknowledgements of the records, in order.
struct Tally {
    from: Duration,
    to: Duration,
    limit: Duration,
    nanos: Histogram<u64>,
    acknowledged: Vec<Duration>,
    measured: Measured,
}

impl Tally {
    fn acknowledged(&mut self, due: Duration, at: Duration) {
        self.acknowledged.push(at);
        if (self.from..self.to).contains(&at) {
            self.measured.acknowledged += 1;
        }
        if (self.from..self.to).contains(&due) {
            let took = at.saturating_sub(due);
            // The histogram grows as needed, up to 64 bits.
            let _ = self.nanos.record(took.as_nanos() as u64);
            self.measured.late += u64::from(!self.limit.is_zero() && took > self.limit);
        }
    }

    fn finish(mut self) -> (Measured, Vec<Duration>) {
        let ms = |nanos: f64| nanos / 1e6;
        let at = |quantile: f64| ms(self.nanos.value_at_quantile(quantile) as f64);
        let of = &mut self.measured;
        (of.from, of.to) = (self.from, self.to);
        of.due = self.nanos.len();
        of.ack_ms_mean = ms(self.nanos.mean());
        (of.ack_ms_p50, of.ack_ms_p99, of.ack_ms_p999) = (at(0.5), at(0.99), at(0.999));
        of.ack_ms_max = ms(self.nanos.max() as f64);
        (self.measured, self.acknowledged)
    }
}

/// Counters of other components at one instant.
#[derive(Clone, Copy, Default)]
struct Counts {
    syncs: u64,
    head_start: f64,
    bytes: Option<u64>,
    /// Log bytes since the last checkpoint, and the number of checkpoints.
    log: (u64, u64),
}

impl Measured {
    fn take(&mut self, before: Counts, after: Counts) {
        self.syncs = after.syncs - before.syncs;
        self.head_start = (before.head_start + after.head_start) / 2.0;
        if before.log.1 == after.log.1 {
            self.log_bytes = after.log.0.saturating_sub(before.log.0);
        }
        self.bytes_written = before.bytes.zip(after.bytes).map(|(before, after)| after.saturating_sub(before));
    }
}

impl Load {
    /// Returns the arrivals from now on, and their tally.
    fn begin(&self) -> Result<(Arrivals, Tally), Finding> {
        let start = now();
        let from = start + self.warm_up;
        let to = from + self.length;
        let random = StdRng::seed_from_u64(self.seed);
        // The load continues a little longer, so that the last records meet the same load as the
        // others.
        let end = to + self.setting.interval().min(Duration::from_millis(50));
        let arrivals = Arrivals { random, gap: 1.0 / f64::from(self.setting.rate), next: start, end };
        let nanos = Histogram::new(3).map_err(|error| Finding::new(Kind::Misbehaved, error.to_string()))?;
        let limit = self.setting.interval();
        Ok((arrivals, Tally { from, to, limit, nanos, acknowledged: Vec::new(), measured: Measured::default() }))
    }

    /// Returns space for twice the expected number of records.
    fn records_max(&self) -> usize {
        ((self.warm_up + self.length).as_secs_f64() * f64::from(self.setting.rate) * 2.0) as usize + 10_000
    }

    fn on_file(&self, directory: &Path) -> Result<(Measured, Vec<Duration>), Finding> {
        let mut file = Baseline::create(directory, self.records_max())?;
        let (arrivals, mut tally) = self.begin()?;
        let interval = self.setting.interval();
        let mut next_sync = now() + interval;
        let mut synced_at = Duration::ZERO;
        let mut counts = Counts { bytes: written_by("self"), ..Counts::default() };
        let mut before = None;
        let mut after = None;
        let mut synced = Histogram::<u64>::new(3).map_err(|error| Finding::new(Kind::Misbehaved, error.to_string()))?;
        let mut late = Duration::ZERO;
        for due in arrivals {
            // Records that arrived during a sync are written before the next one. Otherwise a slow
            // disk would leave no time for anything else.
            while next_sync <= due && due > synced_at {
                sleep_until(next_sync);
                let start = now();
                if file.sync()? {
                    counts.syncs += 1;
                    let _ = synced.record((now() - start).as_nanos() as u64);
                }
                synced_at = now();
                next_sync = (next_sync + interval).max(synced_at);
            }
            sleep_until(due);
            file.put()?;
            let at = now();
            tally.acknowledged(due, at);
            late += at - due;
            // This scheme has no other thread that could read the counters at the right time.
            if due >= tally.from && before.is_none() {
                before = Some(Counts { bytes: written_by("self"), ..counts });
            }
            if due >= tally.to && after.is_none() {
                after = Some(Counts { bytes: written_by("self"), ..counts });
            }
        }
        let count = tally.acknowledged.len().max(1);
        let last = Counts { bytes: written_by("self"), ..counts };
        tally.measured.take(before.unwrap_or_default(), after.unwrap_or(last));
        let of_percent = |percent| synced.value_at_percentile(percent) as f64 / 1e9;
        tally.measured.sync = SyncTimes::new(synced.mean() / 1e9, synced.max() as f64 / 1e9, of_percent);
        tally.measured.put_late_ms = late.as_secs_f64() * 1e3 / count as f64;
        Ok(tally.finish())
    }

    fn on_store(&self, directory: &Path) -> Result<(Measured, Vec<Duration>), Finding> {
        let mut options = Store::options();
        let policy = match (self.setting.scheme, self.setting.hz) {
            (Scheme::LoggerVisible | Scheme::LoggerDurable, Some(_)) => FlushPolicy::Every(self.setting.interval()),
            _ => FlushPolicy::OnCommit,
        };
        options.flush_policy(policy).any_file_system(true);
        let store = open_with(&options, directory)?;
        let records = store.keyspace(KEYSPACE).map_err(misbehaved("keyspace"))?;
        let logger = store.stats().map_err(misbehaved("stats"))?.logger_pid;
        let (arrivals, mut tally) = self.begin()?;
        let (from, to) = (tally.from, tally.to);
        let waits = self.setting.scheme.waits();
        let count = || -> Result<(Counts, Latency), Finding> {
            let stats = store.stats().map_err(misbehaved("stats"))?;
            let logger = logger.and_then(|pid| written_by(&pid.to_string()));
            let bytes = written_by("self").zip(logger).map(|(own, loggers)| own + loggers);
            let expected = &stats.deadlines;
            let head_start = (expected.flush_estimate_ns + 2 * expected.wake_estimate_ns) as f64 / 1e9;
            let counts = Counts { head_start, syncs: stats.fsyncs, bytes, log: (stats.wal_bytes, stats.checkpoints) };
            Ok((counts, stats.latencies.flush))
        };
        std::thread::scope(|scope| {
            let counter = scope.spawn(|| {
                sleep_until(from);
                let before = count();
                sleep_until(to);
                Ok::<_, Finding>((before?, count()?))
            });
            let (send, receive) = channel();
            let mut late = Duration::ZERO;
            let mut put = 0;
            let waiter = scope.spawn(move || {
                wait_for_all(&receive, &mut tally)?;
                Ok::<_, Finding>(tally)
            });
            for due in arrivals {
                sleep_until(due);
                late += now() - due;
                put += 1;
                let ticket = self.commit(&store, &records, put)?;
                let sent = if waits { Sent::Waits(due, ticket) } else { Sent::Acknowledged(due, now()) };
                if send.send(sent).is_err() {
                    break;
                }
            }
            drop(send);
            let gone = |_| Finding::new(Kind::Misbehaved, "a thread of the load panicked");
            let mut tally = waiter.join().map_err(gone)??;
            let (before, after) = counter.join().map_err(gone)??;
            tally.measured.take(before.0, after.0);
            // Includes the syncs for which the last records of the window waited.
            let flushes = count()?.1.since(&before.1);
            let of_percent = |percent| flushes.percentile(percent).as_secs_f64();
            let (mean, max) = (flushes.mean().as_secs_f64(), flushes.percentile(100.0).as_secs_f64());
            tally.measured.sync = SyncTimes::new(mean, max, of_percent);
            tally.measured.put_late_ms = late.as_secs_f64() * 1e3 / put.max(1) as f64;
            Ok(tally.finish())
        })
    }

    /// Commits the n-th record and returns when it is visible.
    fn commit(&self, store: &Store, records: &Keyspace, n: u64) -> Result<Ticket, Finding> {
        let durability = match self.setting.scheme {
            Scheme::LoggerWithin => Durability::Within(self.setting.interval()),
            Scheme::LoggerDurable => Durability::Durable,
            _ => Durability::Visible,
        };
        let mut txn = store.begin_with(durability).map_err(misbehaved("begin"))?;
        txn.put(records, &n.to_be_bytes(), &sealed(n, RECORD - 8)).map_err(misbehaved("put"))?;
        txn.submit().map_err(misbehaved("commit"))
    }
}

/// A written record: when it was due, and its ticket or the time of its acknowledgement.
enum Sent {
    Acknowledged(Duration, Duration),
    Waits(Duration, Ticket),
}

/// Waits for each commit and records its acknowledgement. Commits become durable in order, so after
/// the oldest one the next ones are often durable, too.
fn wait_for_all(receive: &Receiver<Sent>, tally: &mut Tally) -> Result<(), Finding> {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    while let Ok(sent) = receive.recv() {
        match sent {
            Sent::Acknowledged(due, at) => tally.acknowledged(due, at),
            Sent::Waits(due, ticket) => {
                ticket.wait().map_err(misbehaved("waiting for durability"))?;
                tally.acknowledged(due, now());
            }
        }
    }
    Ok(())
}

fn sleep_until(due: Duration) {
    let left = due.saturating_sub(now());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
}

/// Returns the bytes that a process (its id or `self`) has caused to be written to disks.
fn written_by(process: &str) -> Option<u64> {
    let counters = std::fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    counters.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: records arrive at the requested rate, at random times.
    #[test]
    fn arrivals_keep_the_rate() {
        let arrivals = |seed| {
            let random = StdRng::seed_from_u64(seed);
            let end = Duration::from_secs(100);
            Arrivals { random, gap: 0.001, next: Duration::ZERO, end }.collect::<Vec<_>>()
        };
        let times = arrivals(1);
        // 100,000 are expected; the standard deviation is 316.
        assert!((98_000..102_000).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted() && times != arrivals(2));
    }

    /// Goal: latency counts from the time at which a record was due, and only records that were due
    /// within the window count.
    #[test]
    fn latency_counts_from_when_a_record_was_due() {
        let ms = Duration::from_millis;
        let limit = ms(3);
        let nanos = Histogram::new(3).unwrap();
        let (acknowledged, measured) = (Vec::new(), Measured::default());
        let mut tally = Tally { from: ms(10), to: ms(20), limit, nanos, acknowledged, measured };
        for (due, at) in [(9, 11), (10, 12), (18, 22), (20, 22)] {
            tally.acknowledged(ms(due), ms(at));
        }
        let (measured, acknowledged) = tally.finish();
        assert_eq!((measured.due, measured.acknowledged, measured.late), (2, 2, 1));
        assert_eq!(acknowledged.len(), 4);
        assert!((measured.ack_ms_mean - 3.0).abs() < 0.01 && (measured.ack_ms_max - 4.0).abs() < 0.01);
    }
}
