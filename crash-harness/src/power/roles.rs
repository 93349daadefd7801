//! The roles of the processes on a recorder. After a call has returned, they write its
//! acknowledgement as a mark into the record.
//!
//! | mark | means |
//! |---|---|
//! | `D name n` | the writer's n-th transaction is durable |
//! | `L name n` | its large transaction after the n-th is durable |
//! | `S name n version` | its cell holds n under that version |
//! | `C name n` | its cell's value n is durable |
//! | `F name n`, `F.` | a recovery found the writer's n-th transaction as its last; the list is complete |
//! | `K<`, `K>` | a checkpoint was requested; was taken |
//! | `B name` | the log is about to receive two batches before one sync |

use super::judge::{self, PER_ROUND};
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::role::Role;
use crate::processes::sealed::sealed;
use crate::workload::oracle;
use crate::workload::{CELL, KEYS, Writer, durability, misbehaved, open_with, options};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;
use untorn::logger::LoggerOptions;
use untorn::{Batch, Client, CommitOutcome, Durability, FlushPolicy, Store};

/// Prefix of the names of this suite's roles.
pub const PREFIX: &str = "power-";

/// The argument that retains the log from its beginning on.
pub const KEEPS_ALL: &str = "all";
/// The argument that retains as little of the log as possible.
pub const KEEPS_LITTLE: &str = "little";

/// Plays a role. The first arguments are the file for marks and how much of the log is retained.
///
/// # Errors
/// The first violation.
pub fn play(role: &Role) -> Result<(), Finding> {
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    let number = |at: usize| argument(at).parse().unwrap_or(u64::MAX);
    let path = &role.store;
    match role.name.strip_prefix(PREFIX).unwrap_or_default() {
        "busy" => work(&open(path, argument(1))?, &mut Marks::open(argument(0))?, argument(2), number(3)),
        "second" => second(&open(path, argument(1))?, &mut Marks::open(argument(0))?, argument(2)),
        "recover" => recover(open(path, argument(1))?, &mut Marks::open(argument(0))?),
        "checkpoint" => checkpoint(&open(path, argument(1))?, &mut Marks::open(argument(0))?, argument(2)),
        "bulk" => bulk(path, &mut Marks::open(argument(0))?, argument(2)),
        // A direct client is needed to start the logger.
        "remote" => remote(&open(path, argument(1))?, path, &mut Marks::open(argument(0))?, &role.arguments[2..]),
        "supervised" => supervised(path),
        "press" => press(path),
        // The logger may have left already.
        "leave" => untorn::logger::stop_logger(path, HANGS).map(drop).map_err(misbehaved("stop_logger")),
        "judge" => judge::play(path, argument(0), argument(1)),
        other => Err(Finding::new(Kind::Misbehaved, format!("no role {other}"))),
    }
}

/// The file that adds acknowledgements to the record.
struct Marks(File);

impl Marks {
    fn open(path: &str) -> Result<Marks, Finding> {
        let opened = File::options().write(true).open(path);
        opened.map(Marks).map_err(|error| Finding::new(Kind::Misbehaved, format!("opening {path}: {error}")))
    }

    /// Writes a mark. The caller does so after the call that the mark reports has returned.
    fn say(&mut self, line: impl std::fmt::Display) {
        // One write call is one mark. After a power cut the write fails.
        let _ = self.0.write_all(line.to_string().as_bytes());
    }
}

/// Opens the store. Retention for feeds is unlimited, so that a state can be compared with its
/// whole history, or small, so that segments are reused often.
fn open(path: &Path, keeps: &str) -> Result<Store, Finding> {
    let mut options = options();
    if keeps == KEEPS_ALL {
        options.retain_changes(u64::MAX, Duration::MAX);
    }
    open_with(options.any_file_system(true), path)
}

/// Performs every kind of update, for `rounds` rounds, continuing where it left off.
fn work(store: &Store, marks: &mut Marks, name: &str, rounds: u64) -> Result<(), Finding> {
    let writer = Writer::open(store.clone(), name).map_err(misbehaved("opening keyspaces and cells"))?;
    let cell = store.cell(&format!("cell of {name}"), CELL).map_err(misbehaved("cell"))?;
    let mut n = writer.last()?;
    let mut large = writer.last_large()?;
    for round in 0..rounds {
        while n < large + PER_ROUND {
            n += 1;
            let version = cell.store(&sealed(n, CELL)).map_err(misbehaved("store"))?;
            marks.say(format_args!("S {name} {n} {}", version.as_u64()));
            if n.is_multiple_of(5) {
                let version = cell.store_durable(&sealed(n, CELL)).map_err(misbehaved("store_durable"))?;
                marks.say(format_args!("S {name} {n} {}", version.as_u64()));
                marks.say(format_args!("C {name} {n}"));
            }
            let durability = durability(n % 3 == 1, n / 3);
            let ticket = writer.commit_with_ticket(n, durability).map_err(misbehaved("commit"))?;
            if n % 3 == 2 {
                ticket.wait().map_err(misbehaved("waiting for durability"))?;
            }
            if n % 3 != 0 {
                marks.say(format_args!("D {name} {n}"));
            }
        }
        large = n;
        writer.large(large).map_err(misbehaved("a large transaction"))?;
        if round.is_multiple_of(2) {
            store.sync().map_err(misbehaved("sync"))?;
            marks.say(format_args!("L {name} {large}"));
        }
        if round % 3 == 1 {
            store.checkpoint().map_err(misbehaved("checkpoint"))?;
        }
    }
    Ok(())
}

/// Commits as [`Writer`] does, but by message. Each commit is acknowledged as durable.
fn remote(_: &Store, path: &Path, marks: &mut Marks, names: &[String]) -> Result<(), Finding> {
    let client = Client::connect(path.join("logger.sock")).map_err(misbehaved("connecting"))?;
    for name in names {
        for n in 1..=PER_ROUND {
            let mut batch = Batch::new();
            batch.put("data", name.as_bytes(), &sealed(n, 30)).put("data", &oracle::key(name, n), &sealed(n, 60));
            batch.delete("data", &oracle::key(name, n + KEYS / 2)).put("marks", name.as_bytes(), &sealed(n, 30));
            match client.commit(&batch).map_err(misbehaved("a batch by message"))? {
                CommitOutcome::Committed(_) => marks.say(format_args!("D {name} {n}")),
                other => return Err(Finding::new(Kind::Misbehaved, format!("a batch by message: {other:?}"))),
            }
        }
    }
    Ok(())
}

/// Serves the store as under a supervisor: runs a logger that stays, and a new one whenever it has
/// left.
fn supervised(path: &Path) -> Result<(), Finding> {
    loop {
        LoggerOptions::default().idle(Duration::MAX).run(path).map_err(misbehaved("a logger in the foreground"))?;
    }
}

/// Makes the kernel write back the arena's dirty pages again and again, as it may at any time.
fn press(path: &Path) -> Result<(), Finding> {
    let arena = loop {
        match File::open(path.join("arena")) {
            Ok(file) => break file,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    loop {
        // SAFETY: the descriptor is open; the call reads no memory of this process.
        #[allow(unsafe_code)]
        let begun = unsafe { libc::sync_file_range(arena.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
        if begun != 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Writes marks for everything that the store contains.
fn say_found(store: &Store, marks: &mut Marks) -> Result<(), Finding> {
    for (name, n) in oracle::check(&store.snapshot().map_err(misbehaved("snapshot"))?)? {
        marks.say(format_args!("F {name} {n}"));
    }
    marks.say("F.");
    Ok(())
}

/// The life after a power cut. It first writes marks for everything that the store contains. Then
/// it works like the earlier lives, with records of the same lengths.
fn second(store: &Store, marks: &mut Marks, name: &str) -> Result<(), Finding> {
    say_found(store, marks)?;
    work(store, marks, name, 2)
}

/// Opens the store, which recovers it, and writes marks for everything that the store contains.
fn recover(store: Store, marks: &mut Marks) -> Result<(), Finding> {
    say_found(&store, marks)?;
    store.close().map_err(misbehaved("close"))
}

/// Takes one checkpoint after the other, with some transactions in between.
fn checkpoint(store: &Store, marks: &mut Marks, name: &str) -> Result<(), Finding> {
    let writer = Writer::open(store.clone(), name).map_err(misbehaved("opening keyspaces and cells"))?;
    for n in writer.last()? + 1..=PER_ROUND {
        writer.commit(n, Durability::Durable).map_err(misbehaved("commit"))?;
        marks.say(format_args!("D {name} {n}"));
        marks.say("K<");
        store.checkpoint().map_err(misbehaved("checkpoint"))?;
        marks.say("K>");
    }
    Ok(())
}

/// Length in bytes of each value that fills the log.
const BULK: usize = 120_000;

/// Commits so much at once that the log writes two batches before one sync. Writes a mark when they
/// are durable.
fn bulk(path: &Path, marks: &mut Marks, name: &str) -> Result<(), Finding> {
    let mut options = Store::options();
    options.any_file_system(true).ring_size(2 << 20).segment_size(8 << 20);
    let store = open_with(&options, path)?;
    say_found(&store, marks)?;
    let writer = Writer::open(store.clone(), name).map_err(misbehaved("opening keyspaces and cells"))?;
    let values = store.keyspace("bulk").map_err(misbehaved("keyspace"))?;
    let policy = FlushPolicy::Every(Duration::from_secs(3600));
    store.set_flush_policy(policy).map_err(misbehaved("set_flush_policy"))?;
    // The logger reads the policy when it wakes.
    std::thread::sleep(Duration::from_millis(120));
    marks.say(format_args!("B {name}"));
    for n in writer.last()? + 1..PER_ROUND {
        let mut txn = store.begin_with(Durability::Visible).map_err(misbehaved("begin"))?;
        txn.put(&values, name.as_bytes(), &sealed(n, BULK)).map_err(misbehaved("put"))?;
        txn.commit().map_err(misbehaved("commit"))?;
        writer.commit(n, Durability::Visible).map_err(misbehaved("commit"))?;
    }
    store.sync().map_err(misbehaved("sync"))?;
    marks.say(format_args!("D {name} {}", PER_ROUND - 1));
    Ok(())
}
