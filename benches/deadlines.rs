//! Measures the effect of priorities and deadlines: `cargo bench --bench deadlines`.
//!
//! First, how long an urgent commit takes while other processes run a bulk load. There are three
//! cases:
//! - no bulk load;
//! - one class for all transactions, as if there were no priorities: the bulk load begins its
//!   transactions as urgent ones;
//! - separate classes.
//!
//! Response-time analysis computes a bound from the longest lock holds and flushes of the same run.
//! The measurement is compared with that bound. A bulk load without pauses has no bound. So a
//! second bulk load pauses between its transactions, which makes the comparison possible.
//!
//! Second, how many flushes commits with a deadline need, compared with commits without one.
//!
//! A first argument that is a number is the duration of each measurement in seconds (default 3).

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use untorn::{Durability, Stats, Store};
use untorn_wal::response::{Classes, Task};

const ROLE: &str = "UNTORN_BENCH_ROLE";
const STORE: &str = "UNTORN_BENCH_STORE";
const BULK_PROCESSES: usize = 3;
/// The records of one bulk transaction: 50 records of 1 KiB.
const BULK_RECORDS: u64 = 50;
/// The pause of each of the bulk processes, if it has one.
const BULK_PAUSE: Duration = Duration::from_millis(100);
const URGENT_EVERY: Duration = Duration::from_millis(5);
const THREADS: u64 = 8;
const PAUSE: Duration = Duration::from_millis(2);

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        let path = std::env::var_os(STORE).expect("the parent says where");
        return load(Path::new(&path), &role);
    }
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(3);
    let time = Duration::from_secs(seconds);
    println!(
        "An urgent commit every {URGENT_EVERY:?}, beside {BULK_PROCESSES} processes that commit 50 KiB each without a pause, for {time:?}:"
    );
    println!(
        "{:<28}{:>9}{:>9}{:>9}{:>9}{:>12}{:>10}{:>10}",
        "bulk load", "commits", "p50 ms", "p99 ms", "max ms", "bulk MiB/s", "bound ms", "max/bound"
    );
    for bulk in ["none", "begun as urgent (before)", "of its class (after)", "of its class, paced"] {
        urgent_beside(bulk, time);
    }
    println!();
    println!("{THREADS} threads that commit 100 bytes each, {PAUSE:?} after the last answer, for {time:?}:");
    println!(
        "{:<16}{:>11}{:>20}{:>9}{:>9}{:>10}",
        "durability", "commits/s", "flushes per commit", "p50 ms", "p99 ms", "met"
    );
    flushes(Durability::Durable, time);
    for ms in [1, 2, 5, 10, 20, 50] {
        flushes(Durability::Within(Duration::from_millis(ms)), time);
    }
}

struct StoreDir(tempfile::TempDir);

impl StoreDir {
    fn new() -> (StoreDir, Store) {
        let dir = StoreDir(tempfile::tempdir().expect("a directory"));
        let store = Store::open(dir.path()).expect("a store");
        store.keyspace("k").expect("a keyspace");
        (dir, store)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("store")
    }
}

impl Drop for StoreDir {
    fn drop(&mut self) {
        let _ = untorn::logger::stop_logger(self.path(), Duration::from_secs(30));
    }
}

/// Kills the child process at the end of the benchmark.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a bulk load until the process is killed.
fn load(path: &Path, role: &str) {
    let store = Store::open(path).expect("the store");
    let keyspace = store.keyspace("k").expect("the keyspace");
    let class = if role == "urgent" { Durability::Durable } else { Durability::Visible };
    let mut n = u64::from(std::process::id()) << 32;
    loop {
        let mut txn = store.begin_with(class).expect("begun");
        for _ in 0..BULK_RECORDS {
            n += 1;
            // The keys repeat, so the store stays small.
            txn.put(&keyspace, &(n % 20_000).to_be_bytes(), &[7; 1024]).expect("put");
        }
        txn.submit().expect("committed");
        if role == "paced" {
            std::thread::sleep(BULK_PAUSE);
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn urgent_beside(bulk: &str, time: Duration) {
    let (dir, store) = StoreDir::new();
    let keyspace = store.keyspace("k").expect("the keyspace");
    let processes = if bulk == "none" { 0 } else { BULK_PROCESSES };
    let as_urgent = bulk.contains("urgent");
    let program = std::env::current_exe().expect("known");
    let loads: Vec<Load> = (0..processes)
        .map(|_| {
            let mut command = Command::new(&program);
            let role = match bulk {
                "of its class, paced" => "paced",
                _ if as_urgent => "urgent",
                _ => "bulk",
            };
            command.env(ROLE, role).env(STORE, dir.path());
            Load(command.spawn().expect("started"))
        })
        .collect();
    let commits = || store.stats().expect("stats").commits;
    let begun = commits();
    while processes > 0 && commits() < begun + 20 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = store.stats().expect("stats");
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < time {
        let asked = Instant::now();
        let mut txn = store.begin_with(Durability::Durable).expect("begun");
        txn.put(&keyspace, b"urgent", &[1; 100]).expect("put");
        txn.commit().expect("committed");
        times.push(asked.elapsed());
        std::thread::sleep(URGENT_EVERY.saturating_sub(asked.elapsed()));
    }
    let took = start.elapsed();
    let after = store.stats().expect("stats");
    drop(loads);
    times.sort_unstable();
    let others = (after.commits - before.commits).saturating_sub(times.len() as u64);
    let mib = (others * BULK_RECORDS) as f64 / 1024.0 / took.as_secs_f64();
    let bound = bound(&before, &after, took, processes as u64, as_urgent);
    let max = *times.last().expect("some");
    let (bound, ratio) = match bound {
        Some(bound) => (format!("{:.2}", ms(bound)), format!("{:.2}", max.as_secs_f64() / bound.as_secs_f64())),
        None => ("none".into(), "–".into()),
    };
    println!(
        "{bulk:<28}{:>9}{:>9.2}{:>9.2}{:>9.2}{mib:>12.1}{bound:>10}{ratio:>10}",
        times.len(),
        ms(percentile(&times, 50)),
        ms(percentile(&times, 99)),
        ms(max),
    );
}

/// Returns the bound on the time of an urgent commit. It follows from the rates of this run and
/// from the longest lock holds and flushes of this store.
fn bound(before: &Stats, after: &Stats, took: Duration, bulk_processes: u64, as_urgent: bool) -> Option<Duration> {
    let task = |callers: u64, before: &untorn::Latency, after: &untorn::Latency| {
        let per_second = after.since(before).count() as f64 / took.as_secs_f64();
        Task::of_callers(callers, per_second, after.max().as_nanos() as u64)
    };
    let (then, now) = (&before.latencies.lock_hold, &after.latencies.lock_hold);
    let urgent_callers = if as_urgent { bulk_processes + 1 } else { 1 };
    let classes = Classes {
        urgent: task(urgent_callers, &then.urgent, &now.urgent),
        // The logger's checkpoints and samples are bulk transactions as well.
        bulk: task(if as_urgent { 1 } else { bulk_processes + 1 }, &then.bulk, &now.bulk),
        // The logger's patience is half that of other bulk writers.
        bulk_patience_ns: untorn::limits::BULK_PATIENCE.as_nanos() as u64 / 2,
        share_wait_ns: untorn::limits::BULK_PATIENCE.as_nanos() as u64,
        flush_ns: after.latencies.flush.max().as_nanos() as u64,
        wake_ns: after.deadlines.wake_estimate_ns,
    };
    classes.urgent().map(|bound| Duration::from_nanos(bound.durable_ns))
}

fn flushes(durability: Durability, time: Duration) {
    let (_dir, store) = StoreDir::new();
    let keyspace = store.keyspace("k").expect("the keyspace");
    let before = store.stats().expect("stats");
    let (is_over, times) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, keyspace, is_over, times) = (&store, &keyspace, &is_over, &times);
            scope.spawn(move || {
                let mut own = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let mut txn = store.begin_with(durability).expect("begun");
                    txn.put(keyspace, &thread.to_be_bytes(), &[1; 100]).expect("put");
                    txn.commit().expect("committed");
                    own.push(asked.elapsed());
                    std::thread::sleep(PAUSE);
                }
                times.lock().expect("not poisoned").extend(own);
            });
        }
        std::thread::sleep(time);
        is_over.store(true, Ordering::Relaxed);
    });
    let after = store.stats().expect("stats");
    let mut times = times.into_inner().expect("not poisoned");
    times.sort_unstable();
    let commits = (after.acknowledged - before.acknowledged) as f64;
    let flushes = (after.deadlines.flushes - before.deadlines.flushes) as f64;
    let met = after.deadlines.met_share.map_or("–".to_string(), |share| format!("{:.2} %", share * 100.0));
    let name = match durability {
        Durability::Within(time) => format!("Within({time:?})"),
        other => format!("{other:?}"),
    };
    println!(
        "{name:<16}{:>11.0}{:>20.3}{:>9.2}{:>9.2}{met:>10}",
        commits / time.as_secs_f64(),
        flushes / commits,
        ms(percentile(&times, 50)),
        ms(percentile(&times, 99)),
    );
}
