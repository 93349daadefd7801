//! `stat --prometheus`: the store's figures in Prometheus' text exposition format, version 0.0.4,
//! for scraping.
//!
//! The figures come from an observation from outside, so a scraper that polls every few seconds
//! starts no logger and keeps none. An unused store has the single figure `untorn_up 0`.
//!
//! It follows the conventions of Prometheus: base units (seconds, bytes), `_total` for counters,
//! one HELP and TYPE for each family. Counters begin at zero with each shared region;
//! `untorn_region_start_time_seconds` is the time of its creation.

use crate::outcome::{CommandFailure, Outcome};
use crate::target::options;
use std::fmt::{Display, Write};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;
use untorn::{Latency, LatencyByClass, Observation, Stats};

/// Upper bounds of the buckets, in seconds: from a lock held for a microsecond to a minute's
/// checkpoint. The store's own histograms are eight times as fine.
const BOUNDS: [f64; 16] =
    [1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3, 0.256, 1.0, 8.0, 60.0];

pub(crate) fn run(path: &Path) -> Outcome {
    let text = match options().observe(path)? {
        Observation::Live(stats) => Page::of(path, Some(&stats)),
        _ => Page::of(path, None),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CommandFailure::output)
}

/// The text under construction.
struct Page {
    text: String,
    /// The label `store="…"` of each sample.
    store: String,
}

impl Page {
    fn of(path: &Path, stats: Option<&Stats>) -> String {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut page = Page { text: String::new(), store: label("store", path.to_string_lossy()) };
        page.gauge("untorn_up", "Whether processes or a logger have the store open.", u8::from(stats.is_some()));
        if let Some(stats) = stats {
            page.progress(stats);
            page.space(stats);
            page.participants(stats);
            page.latencies(stats);
        }
        page.text
    }

    fn progress(&mut self, stats: &Stats) {
        let start = "When the shared region was made that counts; counters begin anew with it.";
        self.gauge("untorn_region_start_time_seconds", start, stats.region_start_seconds);
        self.counter("untorn_commits_total", "Commits since the store was created.", stats.commits);
        let acknowledged = "Commits that have become durable, since the region was made.";
        self.counter("untorn_acknowledged_commits_total", acknowledged, stats.acknowledged);
        self.counter("untorn_fsyncs_total", "Syncs of the log.", stats.fsyncs);
        let deadlines = &stats.deadlines;
        self.counter("untorn_deadlines_met_total", "Commits with a deadline that were durable by then.", deadlines.met);
        self.counter("untorn_deadlines_missed_total", "Commits with a deadline that were not.", deadlines.missed);
        self.counter("untorn_checkpoints_total", "Checkpoints finished.", stats.checkpoints);
        self.counter("untorn_logger_starts_total", "Loggers started.", stats.logger_starts);
        self.counter("untorn_lock_take_overs_total", "Locks taken over from the dead.", stats.lock_take_overs);
        self.counter("untorn_reaped_total", "Processes and snapshots found dead and freed.", stats.reaped);
        self.counter("untorn_cell_samples_total", "Transactions that sampled cells.", stats.cells.samples);
        self.counter("untorn_cell_sampled_values_total", "Values in those transactions.", stats.cells.sampled_values);
        self.gauge("untorn_lag_transactions", "Transactions that are visible and not durable.", stats.lag_txns);
        let lag = "Age of the oldest transaction that is visible and not durable.";
        self.gauge("untorn_lag_seconds", lag, seconds(stats.lag_ns));
        let needs = "Whether the store takes no more writes until all have closed it.";
        self.gauge("untorn_needs_recovery", needs, u8::from(stats.needs_recovery.is_some()));
    }

    fn space(&mut self, stats: &Stats) {
        self.gauge("untorn_records", "Records in all keyspaces.", stats.records);
        self.gauge("untorn_keyspaces", "Keyspaces.", stats.keyspaces);
        self.gauge("untorn_cells", "Cells and counters.", stats.cells.in_use);
        let used = "Bytes of pages handed out, free ones included.";
        self.gauge("untorn_arena_used_bytes", used, stats.pages_total.saturating_mul(stats.page_size));
        let free = "Bytes of pages that wait for reuse: free, or held by snapshots or a checkpoint.";
        self.gauge("untorn_arena_free_bytes", free, stats.pages_free.saturating_mul(stats.page_size));
        self.gauge("untorn_arena_bytes", "Bytes of the arena that are backed by blocks.", stats.arena_bytes);
        self.gauge("untorn_arena_max_bytes", "Bytes that the arena may grow to.", stats.max_size);
        self.gauge("untorn_log_replay_bytes", "Bytes of the log that recovery would replay now.", stats.wal_bytes);
        self.family("untorn_log_segments", "gauge", "Files of the log.");
        for (kind, count) in [("used", stats.wal_segments), ("spare", stats.wal_spares), ("kept", stats.wal_kept)] {
            self.sample("untorn_log_segments", &label("kind", kind), count);
        }
    }

    fn participants(&mut self, stats: &Stats) {
        self.gauge("untorn_logger_up", "Whether a logger lives.", u8::from(stats.logger_pid.is_some()));
        self.gauge("untorn_processes", "Processes that have the store open.", stats.clients.len());
        let readers = || stats.readers.iter().filter(|reader| !reader.is_loggers);
        self.gauge("untorn_readers", "Snapshots that are pinned.", readers().count());
        let behind = "Transactions since the oldest pinned snapshot.";
        let oldest = readers().map(|reader| reader.txns_behind).max().unwrap_or(0);
        self.gauge("untorn_oldest_reader_transactions", behind, oldest);
        let age = "For how long the longest pinned snapshot has been pinned, to a tenth of a second.";
        let longest = readers().filter_map(|reader| reader.age_ns).max().unwrap_or(0);
        self.gauge("untorn_oldest_reader_age_seconds", age, seconds(longest));
        let held = "For how long its holder has held the writer lock; 0 if it is free.";
        let writer_ns = stats.writer.as_ref().map_or(0, |writer| writer.age_ns);
        self.gauge("untorn_writer_lock_age_seconds", held, seconds(writer_ns));
    }

    fn latencies(&mut self, stats: &Stats) {
        let latencies = &stats.latencies;
        let (name, told) = ("untorn_acknowledgement_seconds", &latencies.acknowledgement);
        self.family(name, "histogram", "How long callers waited until a commit was durable.");
        for (class, latency) in [("urgent", &told.urgent), ("within", &told.within), ("bulk", &told.bulk)] {
            self.histogram(name, &label("class", class), latency);
        }
        self.by_class("untorn_lock_wait_seconds", "How long writers waited for the writer lock.", &latencies.lock_wait);
        self.by_class("untorn_lock_hold_seconds", "How long writers held the writer lock.", &latencies.lock_hold);
        for (name, help, latency) in [
            ("untorn_flush_seconds", "Flushes of the log: write and fsync.", &latencies.flush),
            ("untorn_checkpoint_seconds", "Checkpoints.", &latencies.checkpoint),
            ("untorn_sample_seconds", "Rounds of sampling cells.", &latencies.sample),
        ] {
            self.family(name, "histogram", help);
            self.histogram(name, "", latency);
        }
    }

    fn by_class(&mut self, name: &str, help: &str, latencies: &LatencyByClass) {
        self.family(name, "histogram", help);
        self.histogram(name, &label("class", "urgent"), &latencies.urgent);
        self.histogram(name, &label("class", "bulk"), &latencies.bulk);
    }

    fn histogram(&mut self, name: &str, labels: &str, latency: &Latency) {
        let bounds = BOUNDS.map(Duration::from_secs_f64);
        let (bucket, count) = (format!("{name}_bucket"), latency.count());
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, below) in BOUNDS.iter().zip(latency.counts_up_to(&bounds)) {
            self.sample(&bucket, &format!("{labels}{comma}{}", label("le", bound)), below);
        }
        self.sample(&bucket, &format!("{labels}{comma}{}", label("le", "+Inf")), count);
        self.sample(&format!("{name}_sum"), labels, latency.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), labels, count);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let comma = if labels.is_empty() { "" } else { "," };
        let line = format!("{name}{{{}{comma}{labels}}} {value}", self.store);
        self.line(format_args!("{line}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes all that is written");
    }
}

/// Formats `name="value"`, escaped as the format requires.
fn label(name: &str, value: impl Display) -> String {
    let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}
