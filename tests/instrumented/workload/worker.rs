//! A worker: a process that executes one command of the test after another. It overwrites a few
//! keys again and again, so that pages are freed and reused with each commit.
//!
//! Each answer is one line. The keys' values follow from the number of the last commit, so one
//! snapshot shows whether it is whole.
#![allow(dead_code, unreachable_pub)]

use crate::common::{Process, listen, say};
use std::path::Path;
use std::time::Duration;
use untorn::{Durability, Keyspace, Options, Snapshot, Stats, Store, Ticket, WriteTxn};
use untorn_test_kit::sealed::{expect_sealed, sealed};

const KEYS: u64 = 8;
/// Bytes of one value of a stream.
pub(crate) const STREAM_VALUE: usize = 1000;

/// A small ring, a log that holds some hundred commits without a logger, checkpoints only by
/// request.
pub(crate) fn options() -> Options {
    let mut options = Store::options();
    options.ring_size(64 << 10).segment_size(1 << 20).checkpoint_bytes(1 << 40);
    options.logger_idle(Duration::from_secs(3)).logger_timeout(Duration::from_secs(60));
    options
}

/// The few keys.
pub(crate) struct Few {
    pub(crate) store: Store,
    pub(crate) keys: Keyspace,
}

impl Few {
    pub(crate) fn open(store: Store) -> untorn::Result<Few> {
        let keys = store.keyspace("few")?;
        Ok(Few { store, keys })
    }

    pub(crate) fn commit(&self, n: u64, durability: Durability) -> untorn::Result<Ticket> {
        let mut txn = self.store.begin_with(durability)?;
        txn.put(&self.keys, b"last", &sealed(n, 30))?;
        txn.put(&self.keys, &(n % KEYS).to_be_bytes(), &sealed(n, 60 + 40 * (n % 5) as usize))?;
        txn.commit()
    }

    /// Lets the log's files grow to their full size, by a transaction that is rolled back: no page
    /// changes.
    pub(crate) fn grow_log(&self) {
        let mut txn = self.store.begin().unwrap();
        // Larger values are not in the log.
        for n in 0..80_u64 {
            txn.put(&self.keys, &n.to_be_bytes(), &[1; 50_000]).unwrap();
        }
        txn.rollback();
    }

    /// So many commits, all visible, the last one durable if that is wanted; the number of the
    /// last.
    pub(crate) fn commits(&self, count: u64, durable: bool) -> untorn::Result<u64> {
        let last = number(&self.store, &self.store.snapshot()?);
        for n in last + 1..=last + count {
            let durable = durable && n == last + count;
            let _ticket = self.commit(n, if durable { Durability::Durable } else { Durability::Visible })?;
        }
        Ok(last + count)
    }
}

/// Checks that a snapshot is whole; the number of its last commit.
pub(crate) fn number(store: &Store, snapshot: &Snapshot) -> u64 {
    let Some(keys) = store.find_keyspace("few").unwrap() else { return 0 };
    let value = |key: &[u8]| snapshot.get(&keys, key).unwrap().map(expect_sealed);
    let last = value(b"last").unwrap_or(0);
    for n in last.saturating_sub(KEYS - 1).max(1)..=last {
        assert_eq!(value(&(n % KEYS).to_be_bytes()), Some(n), "after {last}, at {}", snapshot.txn_id());
    }
    assert_eq!(snapshot.len(&keys).unwrap(), if last == 0 { 0 } else { last.min(KEYS) + 1 });
    last
}

/// Figures of a store as a worker sees them, or the test itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Figures {
    pub(crate) committed: u64,
    pub(crate) durable: u64,
    pub(crate) checkpointed: u64,
    pub(crate) pages_total: u64,
    pub(crate) pages_free: u64,
    pub(crate) logger_pid: u64,
}

impl Figures {
    pub(crate) fn of(stats: &Stats) -> Figures {
        Figures {
            committed: stats.committed.as_u64(),
            durable: stats.durable.as_u64(),
            checkpointed: stats.checkpointed.as_u64(),
            pages_total: stats.pages_total,
            pages_free: stats.pages_free,
            logger_pid: stats.logger_pid.map_or(0, u64::from),
        }
    }

    fn to_line(self) -> String {
        let Figures { committed, durable, checkpointed, pages_total, pages_free, logger_pid } = self;
        format!("{committed} {durable} {checkpointed} {pages_total} {pages_free} {logger_pid}")
    }

    pub(crate) fn ask(worker: &mut Process) -> Figures {
        let line = worker.ask("stats");
        let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let [committed, durable, checkpointed, pages_total, pages_free, logger_pid] = words[..] else {
            panic!("{line:?} is no answer")
        };
        Figures { committed, durable, checkpointed, pages_total, pages_free, logger_pid }
    }
}

/// The role.
pub(crate) fn work(path: &Path) {
    let few = Few::open(options().open(path).unwrap()).unwrap();
    let store = few.store.clone();
    let mut snapshot: Option<Snapshot> = None;
    let mut stream: Option<WriteTxn<'_>> = None;
    say("ready");
    while let Some(line) = listen() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["grow-log"] => {
                few.grow_log();
                say("grown");
            }
            ["commit", count, durability] => {
                say(few.commits(count.parse().unwrap(), durability == "durable").unwrap());
            }
            ["commit-within", micros] => {
                let last = number(&store, &store.snapshot().unwrap());
                let time = Duration::from_micros(micros.parse().unwrap());
                let _ticket = few.commit(last + 1, Durability::Within(time)).unwrap();
                say(last + 1);
            }
            ["checkpoint"] => say(store.checkpoint().unwrap()),
            // Answers when the checkpoint is requested, not when it is done.
            ["begin-checkpoint"] => {
                let store = store.clone();
                std::thread::spawn(move || store.checkpoint());
                say("begun");
            }
            ["snapshot"] => {
                let taken = snapshot.insert(store.snapshot().unwrap());
                say(format_args!("{} {}", number(&store, taken), taken.txn_id().as_u64()));
            }
            ["durable"] => {
                let taken = snapshot.insert(store.durable_snapshot().unwrap());
                say(format_args!("{} {}", number(&store, taken), taken.txn_id().as_u64()));
            }
            // The kept snapshot again.
            ["look"] => say(number(&store, snapshot.as_ref().expect("taken before"))),
            // A transaction that outgrows the ring, or a frame at least, and stays open.
            ["stream", name, count] => {
                let mut txn = store.begin().unwrap();
                let keys = txn.keyspace(name).unwrap();
                for i in 0..count.parse().unwrap() {
                    txn.put(&keys, &stream_key(name, i), &sealed(i, STREAM_VALUE)).unwrap();
                }
                stream = Some(txn);
                say("streamed");
            }
            ["rollback"] => {
                stream.take().expect("begun before").rollback();
                say("rolled back");
            }
            ["commit-stream"] => say(stream.take().expect("begun before").commit().unwrap().txn_id()),
            ["stats"] => say(Figures::of(&store.stats().unwrap()).to_line()),
            ["verify"] => {
                super::assert_verified(&store);
                say("clean");
            }
            _ => panic!("no command {line:?}"),
        }
    }
}

/// The keys of a stream; a test finds them in the log's files.
pub(crate) fn stream_key(name: &str, i: u64) -> Vec<u8> {
    format!("{name}-stream-{i:06}").into_bytes()
}
