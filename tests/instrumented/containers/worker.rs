//! A process that uses a store by one command at a time: see [`answer`].

use crate::common::{Role, listen, say};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use untorn::{Cell, Durability, Error, Keyspace, Options, Snapshot, Store, WriteTxn};

/// Bytes of the cell `storm`: so many that a process that stores all the time is nearly always in
/// the middle of it.
pub(crate) const STORM: usize = 4096;

static STORED: AtomicU64 = AtomicU64::new(0);

struct Worker {
    /// For ever, since a transaction refers to it.
    store: &'static Store,
    keys: Keyspace,
    cell: Cell,
    txn: Option<WriteTxn<'static>>,
    snapshots: Vec<Snapshot>,
}

pub(crate) fn options() -> Options {
    let mut options = Store::options();
    options.max_size(1 << 30).lock_timeout(Duration::from_millis(300));
    options
}

/// The role `worker`: opens the store, then obeys.
pub(crate) fn work(role: &Role) {
    say(format_args!("process {}", std::process::id()));
    let store: &Store = match options().open(&role.store) {
        Ok(store) => Box::leak(Box::new(store)),
        Err(error) => {
            say(format_args!("refused: {error}"));
            listen();
            return;
        }
    };
    let keys = patiently(|| store.keyspace("keys"));
    let cell = patiently(|| store.cell("storm", STORM));
    let mut worker = Worker { store, keys, cell, txn: None, snapshots: Vec::new() };
    say("open");
    while let Some(line) = listen() {
        let words: Vec<&str> = line.split(' ').collect();
        match worker.answer(&words) {
            Ok(answer) => say(answer),
            Err(Error::LockTimeout { holder, .. }) => say(format_args!("timeout: {holder:?}")),
            Err(error) => say(format_args!("error: {error}")),
        }
    }
}

/// Others may be at it as well.
fn patiently<T>(open: impl Fn() -> untorn::Result<T>) -> T {
    loop {
        match open() {
            Err(Error::LockTimeout { .. }) => {}
            other => return other.unwrap(),
        }
    }
}

impl Worker {
    fn answer(&mut self, words: &[&str]) -> untorn::Result<String> {
        Ok(match words {
            ["begin"] => {
                let mut txn = self.store.begin()?;
                txn.put(&self.keys, b"k", b"unfinished")?;
                self.txn = Some(txn);
                "begun".into()
            }
            ["end"] => format!("{}", self.txn.take().expect("begun").commit().is_ok()),
            // Without a limit, so that the answer shows how long a take-over takes.
            ["wait"] => {
                let start = Instant::now();
                let txn = loop {
                    match self.store.begin() {
                        Err(Error::LockTimeout { .. }) => {}
                        other => break other?,
                    }
                };
                let waited = start.elapsed().as_millis();
                txn.rollback();
                format!("{waited}")
            }
            ["put", key, value] => {
                self.keys.put(key.as_bytes(), value.as_bytes())?;
                "put".into()
            }
            ["get", key] => text(self.keys.get(key.as_bytes())?.as_deref()),
            ["pin"] => {
                self.snapshots.push(self.store.snapshot()?);
                "pinned".into()
            }
            ["look", key] => text(self.snapshots[0].get(&self.keys, key.as_bytes())?),
            // Stores into the cell for ever, by another thread.
            ["storm"] => {
                let cell = self.cell.clone();
                std::thread::spawn(move || {
                    for number in 1.. {
                        match cell.store(&[number as u8; STORM]) {
                            Ok(_) => STORED.store(number, Ordering::Relaxed),
                            Err(Error::LockTimeout { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
                "storming".into()
            }
            ["stored"] => STORED.load(Ordering::Relaxed).to_string(),
            ["store"] => {
                self.cell.store(&[7; STORM])?;
                "stored".into()
            }
            ["load"] => {
                let mut value = [0; STORM];
                self.cell.load(&mut value)?;
                if value.iter().all(|byte| *byte == value[0]) { "whole".into() } else { "torn".into() }
            }
            // Commits numbers for ever, the odd ones visibly, and prints each when it is
            // acknowledged.
            ["count", name] => {
                for number in 1u64.. {
                    let durability = if number % 2 == 0 { Durability::Durable } else { Durability::Visible };
                    let Ok(mut txn) = self.store.begin_with(durability) else { continue };
                    txn.put(&self.keys, name.as_bytes(), number.to_string().as_bytes())?;
                    txn.commit()?;
                    say(number);
                }
                unreachable!("it counts for ever")
            }
            ["exists", pid] => std::path::Path::new("/proc").join(pid).exists().to_string(),
            ["pids"] => {
                let stats = self.store.stats()?;
                let mut pids: Vec<u32> = stats.clients.iter().map(|client| client.pid).collect();
                pids.sort_unstable();
                format!("{pids:?}")
            }
            ["ids"] => format!("{} {}", rustix::process::getuid().as_raw(), rustix::process::getpid().as_raw_nonzero()),
            other => panic!("no command {other:?}"),
        })
    }
}

fn text(value: Option<&[u8]>) -> String {
    value.map_or("nothing".into(), |value| String::from_utf8_lossy(value).into_owned())
}
