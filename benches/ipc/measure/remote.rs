//! Measures puts and gets of a value by `untorn::Client` and by a direct client. The difference is
//! the cost of the messages.

use super::super::arguments::Arguments;
use super::super::clock::{median, now_ns};
use super::super::log_chart::{Unit, label};
use std::fmt::Write;
use std::io;
use std::time::{Duration, Instant};
use untorn::{Client, Durability, FlushPolicy, Store};

const KEYSPACE: &str = "keys";

/// Medians in nanoseconds at one size.
pub(crate) struct Call {
    bytes: usize,
    put: f64,
    direct_put: f64,
    get: f64,
    direct_get: f64,
}

/// Measures all sizes, from 4 KiB on.
pub(crate) fn all(arguments: &Arguments) -> io::Result<Vec<Call>> {
    if !"client".starts_with(&*arguments.only) {
        return Ok(Vec::new());
    }
    eprintln!("client: values by message and directly");
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("store");
    let found = measure(&path, arguments).map_err(io::Error::other);
    untorn::logger::stop_logger(&path, Duration::from_secs(20)).map_err(io::Error::other)?;
    found
}

fn measure(path: &std::path::Path, arguments: &Arguments) -> untorn::Result<Vec<Call>> {
    let mut options = Store::options();
    options.durability(Durability::Visible).flush_policy(FlushPolicy::OnCommit);
    let store = options.open(path)?;
    let keys = store.keyspace(KEYSPACE)?;
    let client = Client::connect(path.join("logger.sock"))?;
    let mut calls = Vec::new();
    for bytes in arguments.sizes().into_iter().filter(|bytes| *bytes >= 4096) {
        let value = vec![7; bytes];
        // Each put is flushed before the next is measured: the disk is not part of this
        // measurement.
        let put =
            repeat(arguments, || timed(|| client.put_with(KEYSPACE, b"key", &value, Durability::Visible), &store))?;
        let direct_put = repeat(arguments, || timed(|| keys.put(b"key", &value), &store))?;
        let get = repeat(arguments, || timed_alone(|| client.get(KEYSPACE, b"key")))?;
        let direct_get = repeat(arguments, || timed_alone(|| Ok(keys.get(b"key")?.map(|value| value.to_vec()))))?;
        calls.push(Call { bytes, put, direct_put, get, direct_get });
    }
    Ok(calls)
}

fn timed<T>(call: impl FnOnce() -> untorn::Result<T>, store: &Store) -> untorn::Result<f64> {
    let took = timed_alone(call)?;
    store.sync()?;
    Ok(took)
}

fn timed_alone<T>(call: impl FnOnce() -> untorn::Result<T>) -> untorn::Result<f64> {
    let start = now_ns();
    call()?;
    Ok((now_ns() - start) as f64)
}

fn repeat(arguments: &Arguments, mut call: impl FnMut() -> untorn::Result<f64>) -> untorn::Result<f64> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < 7 || begun.elapsed() < arguments.time_of_a_point() {
        times.push(call()?);
    }
    Ok(median(&mut times))
}

/// Returns the calls as a table.
pub(crate) fn table(calls: &[Call]) -> String {
    let mut out = String::new();
    if !calls.is_empty() {
        let _ =
            writeln!(out, "\nvalues by message, and directly (visible puts; a direct get with a copy of the value)");
        let _ = writeln!(out, "      size         put  direct put         get  direct get");
    }
    for call in calls {
        let _ = writeln!(
            out,
            "{:>10}  {:>10}  {:>10}  {:>10}  {:>10}",
            label(Unit::Bytes, call.bytes as f64),
            label(Unit::Nanoseconds, call.put),
            label(Unit::Nanoseconds, call.direct_put),
            label(Unit::Nanoseconds, call.get),
            label(Unit::Nanoseconds, call.direct_get)
        );
    }
    out
}
