//! What the processes on a recorder do. They say what they were told by marks in the record, after the call returned.

use crate::judge::PER_ROUND;
use crate::recorder::MARK;
use crate::workload::{CellWriter, Writer, check, sealed, small_options, unsealed};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;
use untorn::{Client, CommitOutcome, Durability, FlushPolicy, LoggerOptions, Store};

/// The file that puts acknowledgements into the record.
struct Marks(File);

impl Marks {
    fn open(store: &Path) -> Marks {
        Marks(File::options().write(true).open(store.with_file_name(MARK)).unwrap())
    }

    /// Says something after the call that it is about has returned.
    fn say(&mut self, line: impl std::fmt::Display) {
        // One write call, which is one mark.
        self.0.write_all(line.to_string().as_bytes()).unwrap();
    }
}

fn open_recorded(path: &Path) -> Store {
    small_options().any_file_system(true).open(path).unwrap()
}

/// Does everything that a store can do, for so many rounds, going on where it left off.
pub(crate) fn busy(path: &Path, arguments: &[String]) {
    let (name, rounds) = (&arguments[0], arguments[1].parse::<u64>().unwrap());
    work(&open_recorded(path), &mut Marks::open(path), name, rounds);
}

fn work(store: &Store, marks: &mut Marks, name: &str, rounds: u64) {
    let writer = Writer::open(store.clone(), name).unwrap();
    let extra = store.keyspace(&format!("extra-{name}")).unwrap();
    let cells = CellWriter::open(store, name).unwrap();
    let mut n = writer.last().unwrap();
    let mut round = extra.get(b"large").unwrap().map_or(0, |value| unsealed(&value));
    for _ in 0..rounds {
        while n < PER_ROUND * (round + 1) {
            n += 1;
            let version = cells.store(n).unwrap();
            marks.say(format_args!("S {name} {n} {}", version.as_u64()));
            if n.is_multiple_of(5) {
                let version = cells.store_durable(n).unwrap();
                marks.say(format_args!("S {name} {n} {}", version.as_u64()));
                marks.say(format_args!("C {name} {n}"));
            }
            match n % 3 {
                0 => {
                    let _ticket = writer.commit(n, Durability::Visible).unwrap();
                    continue;
                }
                1 => drop(writer.commit(n, Durability::Durable).unwrap()),
                _ => writer.commit(n, Durability::Visible).unwrap().wait().unwrap(),
            }
            marks.say(format_args!("D {name} {n}"));
        }
        // A transaction larger than the ring, a large value, deletes that merge, a keyspace that comes and goes.
        round += 1;
        let durability = if round.is_multiple_of(2) { Durability::Durable } else { Durability::Visible };
        let mut txn = store.begin().unwrap();
        for i in 0..60u64 {
            txn.put(&extra, &i.to_be_bytes(), &sealed(round, 1500)).unwrap();
        }
        txn.put(&extra, b"large", &sealed(round, 60_000)).unwrap();
        let _ticket = txn.commit_with(durability).unwrap();
        if durability == Durability::Durable {
            marks.say(format_args!("R {name} {round}"));
        }
        let mut txn = store.begin().unwrap();
        for i in 5..60u64 {
            txn.delete(&extra, &i.to_be_bytes()).unwrap();
        }
        let short_lived = format!("short-{name}");
        let short = txn.keyspace(&short_lived).unwrap();
        txn.put(&short, b"k", &sealed(round, 50)).unwrap();
        let _ticket = txn.commit_with(Durability::Visible).unwrap();
        let mut txn = store.begin().unwrap();
        for i in 100..160u64 {
            txn.put(&extra, &i.to_be_bytes(), &sealed(round, 1500)).unwrap();
        }
        txn.rollback();
        store.drop_keyspace(&short_lived).unwrap();
        if round % 3 == 2 {
            store.checkpoint().unwrap();
        }
    }
}

/// Works by message: what [`Writer`] does, each commit acknowledged as durable. `arguments` names the writers.
pub(crate) fn remote(path: &Path, arguments: &[String]) {
    // A direct client, so that somebody starts the logger.
    let _store = open_recorded(path);
    let client = Client::connect(path.join("logger.sock")).unwrap();
    let mut marks = Marks::open(path);
    for name in arguments {
        for n in 1..=PER_ROUND {
            let batch = Writer::batch(name, n);
            let outcome = client.commit(&batch).unwrap();
            assert!(matches!(outcome, CommitOutcome::Committed(_)));
            marks.say(format_args!("D {name} {n}"));
        }
    }
}

/// Serves as a supervisor would have it: a logger that stays, and another one when that has left.
pub(crate) fn supervised(path: &Path) {
    loop {
        LoggerOptions::default().idle(Duration::MAX).run(path).unwrap();
    }
}

/// Has the kernel write back the arena's dirty pages, again and again, as it may at any time.
pub(crate) fn press(path: &Path) {
    let arena = loop {
        match File::open(path.join("arena")) {
            Ok(file) => break file,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    loop {
        // SAFETY: the descriptor is open; the call reads no memory of ours.
        #[allow(unsafe_code)]
        let begun = unsafe { libc::sync_file_range(arena.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
        if begun != 0 {
            return;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// The life after a power cut: says what is there, then works like those before, with records of the same lengths.
pub(crate) fn second(path: &Path, arguments: &[String]) {
    let store = open_recorded(path);
    let mut marks = Marks::open(path);
    for (name, n) in check(&store, &store.snapshot().unwrap()) {
        marks.say(format_args!("F {name} {n}"));
    }
    marks.say("F.");
    work(&store, &mut marks, &arguments[0], 2);
}

/// Bytes of each value that fills the log.
const BULK: usize = 120_000;

/// Commits so much at once that the log takes it in two batches, which one sync is to make durable. Says when it is.
pub(crate) fn bulk(path: &Path, arguments: &[String]) {
    let mut options = Store::options();
    options.any_file_system(true).ring_size(2 << 20).segment_size(8 << 20);
    let store = options.open(path).unwrap();
    let mut marks = Marks::open(path);
    for (name, n) in check(&store, &store.snapshot().unwrap()) {
        marks.say(format_args!("F {name} {n}"));
    }
    marks.say("F.");
    let name = &arguments[0];
    let writer = Writer::open(store.clone(), name).unwrap();
    let values = store.keyspace("bulk").unwrap();
    store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
    // The logger looks at the policy when it wakes.
    std::thread::sleep(Duration::from_millis(120));
    marks.say(format_args!("B {name}"));
    let mut last = None;
    for n in writer.last().unwrap() + 1..PER_ROUND {
        let mut txn = store.begin().unwrap();
        txn.put(&values, name.as_bytes(), &sealed(n, BULK)).unwrap();
        let _ticket = txn.commit_with(Durability::Visible).unwrap();
        last = Some(writer.commit(n, Durability::Visible).unwrap());
    }
    store.sync().unwrap();
    assert!(last.is_none_or(|ticket| ticket.is_durable()));
    marks.say(format_args!("D {name} {}", PER_ROUND - 1));
}
