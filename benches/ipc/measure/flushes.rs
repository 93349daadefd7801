//! Measures the cost of many records per fsync in the store: as one durable transaction, and as
//! many visible ones before one sync.
//!
//! An fsync costs F, however many records it covers: c(N) = F / N + p. The only disadvantage of a
//! large batch is that its first record waits for its last. So there is no best N. There is only an
//! N beyond which a larger batch saves too little to justify the wait.

use super::super::arguments::Arguments;
use super::super::fit::{self, Row};
use std::io;
use std::time::{Duration, Instant};
use untorn::{Durability, FlushPolicy, Keyspace, Store};

/// Bytes of a value; keys have 8.
pub(crate) const VALUE_BYTES: usize = 100;

/// The way in which records share a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    /// All are one durable transaction.
    OneTransaction,
    /// Each is a visible transaction of its own; a sync follows.
    ManyTransactions,
}

impl Sharing {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sharing::OneTransaction => "one durable transaction",
            Sharing::ManyTransactions => "visible transactions, then a sync",
        }
    }
}

/// The costs of a record, by records per flush.
pub(crate) struct Flushes {
    pub(crate) sharing: Sharing,
    /// Records, and nanoseconds for each.
    pub(crate) costs: Vec<(usize, f64)>,
    /// F and p, in nanoseconds.
    pub(crate) found: [f64; 2],
    pub(crate) error: f64,
}

impl Flushes {
    fn of(sharing: Sharing, costs: Vec<(usize, f64)>) -> Flushes {
        let rows: Vec<_> =
            costs.iter().map(|(count, cost)| Row { factors: [1.0 / *count as f64, 1.0], found: *cost }).collect();
        let found = fit::coefficients(&rows);
        let error = fit::error(&rows, &found);
        Flushes { sharing, costs, found, error }
    }

    pub(crate) fn at(&self, count: f64) -> f64 {
        self.found[0] / count + self.found[1]
    }

    /// Returns the smallest number of records at which the fsync is at most a tenth of the cost
    /// of a record.
    pub(crate) fn enough(&self) -> f64 {
        9.0 * self.found[0] / self.found[1]
    }
}

/// Measures both ways of sharing, in the system's directory for temporary files.
pub(crate) fn all(arguments: &Arguments) -> io::Result<Vec<Flushes>> {
    if !"flushes".starts_with(&*arguments.only) {
        return Ok(Vec::new());
    }
    [Sharing::OneTransaction, Sharing::ManyTransactions]
        .map(|sharing| measure(sharing, arguments))
        .into_iter()
        .collect()
}

fn measure(sharing: Sharing, arguments: &Arguments) -> io::Result<Flushes> {
    eprintln!("records to an fsync: {}", sharing.name());
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("store");
    // The store flushes only on request.
    let policy = match sharing {
        Sharing::OneTransaction => FlushPolicy::OnCommit,
        Sharing::ManyTransactions => FlushPolicy::Every(Duration::from_secs(3600)),
    };
    // The store flushes only on request, so the creation of the keyspace must not wait for a flush.
    let mut options = Store::options();
    options.flush_policy(policy).durability(Durability::Visible);
    let store = options.open(&path).map_err(io::Error::other)?;
    let keys = store.keyspace("keys").map_err(io::Error::other)?;
    let step = if arguments.quick { 3 } else { 1 };
    let mut next = 0;
    let mut costs = Vec::new();
    for count in (0..=14).step_by(step).map(|doubling| 1 << doubling) {
        let start = Instant::now();
        let mut rounds = 0;
        let mut total = 0.0;
        while rounds < 3 || start.elapsed() < 4 * arguments.time_of_a_point() {
            let begun = Instant::now();
            flush(sharing, &store, &keys, count, &mut next).map_err(io::Error::other)?;
            let took = begun.elapsed().as_nanos() as f64;
            total += took;
            rounds += 1;
        }
        // This is the mean, not the median: the time of a sync varies, and a caller that waits for
        // many syncs waits for the slow ones as well.
        costs.push((count, total / f64::from(rounds) / count as f64));
    }
    drop((keys, store));
    untorn::logger::stop_logger(&path, Duration::from_secs(20)).map_err(io::Error::other)?;
    Ok(Flushes::of(sharing, costs))
}

fn flush(sharing: Sharing, store: &Store, keys: &Keyspace, count: usize, next: &mut u64) -> untorn::Result<()> {
    // Keys recur, in no particular order.
    let mut key = || {
        *next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((*next >> 33) % 100_000).to_be_bytes()
    };
    match sharing {
        Sharing::OneTransaction => {
            let mut txn = store.begin_with(Durability::Durable)?;
            for _ in 0..count {
                txn.put(keys, &key(), &[7; VALUE_BYTES])?;
            }
            txn.commit()?.wait()
        }
        Sharing::ManyTransactions => {
            for _ in 0..count {
                let mut txn = store.begin_with(Durability::Visible)?;
                txn.put(keys, &key(), &[7; VALUE_BYTES])?;
                txn.commit()?;
            }
            store.sync()
        }
    }
}
