//! Goal: what `fork()`, exec and threads may do with a store is as stated. A child of fork() can
//! use none of its copies, whatever its parent's threads were doing, and can open the store for
//! itself. Exec gives up at once what the process held. Threads share every handle.
//!
//! Method: real forks and execs in processes of their own. Each call of each kind of handle is made
//! once in a child (`every_call`). Other forks hit the middle of other threads' work; an observer
//! checks the lock, the pins and the latch. What a child's drops must leave alone, and what a dead
//! parent must not keep, is in `interleavings/lives.rs`.

#![allow(unsafe_code)]

mod every_call;

use crate::common::{HANGS, Role, TestStore, assert_clean, exists, limit, listen, say, spawn, wait_until};
use every_call::Wrong;
use rustix::process::Signal;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use untorn::{
    CasOutcome, Cell, Change, Changes, Client, Counter, Durability, Error, Key, Keyspace, Options, Range,
    RemoteChanges, Snapshot, Store, Ticket, Value,
};

/// Threads may share every handle, and pass it on. (A write transaction belongs to its thread; its
/// documentation has the proof, an example that must not compile.)
const fn shared_by_threads<T: Send + Sync + 'static>() {}
const _: () = {
    shared_by_threads::<Store>();
    shared_by_threads::<Options>();
    shared_by_threads::<Keyspace>();
    shared_by_threads::<Snapshot>();
    shared_by_threads::<Range>();
    shared_by_threads::<Value>();
    shared_by_threads::<Key>();
    shared_by_threads::<Ticket>();
    shared_by_threads::<Cell>();
    shared_by_threads::<Cell<u64>>();
    shared_by_threads::<Counter>();
    shared_by_threads::<Changes>();
    shared_by_threads::<Change>();
    shared_by_threads::<Client>();
    shared_by_threads::<RemoteChanges>();
    shared_by_threads::<Error>();
};

/// Runs something in a child of fork(), and returns its exit code.
fn in_child(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child calls this library, whose promise for children is what is tested, and ends
    // without its parent's exit handlers. It never returns from here. An alarm ends it if it hangs.
    unsafe {
        match libc::fork() {
            0 => {
                libc::alarm(30);
                let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
                libc::_exit(code)
            }
            child => {
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
                assert!(libc::WIFEXITED(status), "the child was killed by signal {}", libc::WTERMSIG(status));
                libc::WEXITSTATUS(status)
            }
        }
    }
}

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "every-call" => every_call::role(&role.store),
        "forks-while-busy" => forks_while_busy(&role.store),
        "generations" => generations(&role.store),
        "execs" => execs(&role.store),
        "starts-others" => starts_others(&role.store),
        other => panic!("no role {other}"),
    }
}

// ---- fork

#[test]
fn every_call_of_a_child_answers_forked() {
    let _limit = limit();
    let test = TestStore::new();
    let parent = spawn("processes::fork_exec::every-call", &test.path, &[]);
    assert_eq!(parent.finish(), ["done"]);
    assert_clean(&test.open());
}

/// A process forks again and again while its threads commit, store into cells, add and read. Each
/// child finds its copies dead, opens the store for itself and does the same things once; half of
/// them leave, half just end.
fn forks_while_busy(path: &Path) {
    const CHILDREN: u64 = 60;
    let mut options = Store::options();
    options.lock_timeout(HANGS).durability(Durability::Visible);
    let store = options.open(path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let cell = store.cell("cell", 4096).unwrap();
    let counter = store.counter("counter").unwrap();
    let (ended, added) = (AtomicBool::new(false), AtomicU64::new(0));
    let busy = |mut work: Box<dyn FnMut(u64) + Send>| {
        let ended = &ended;
        move || (1..).take_while(|_| !ended.load(Ordering::Relaxed)).for_each(&mut work)
    };
    std::thread::scope(|scope| {
        let (of_txns, of_cell, of_counter, of_reads) = (keys.clone(), cell.clone(), counter.clone(), store.clone());
        scope.spawn(busy(Box::new(move |n| assert!(of_txns.put(b"busy", &n.to_le_bytes()).is_ok()))));
        scope.spawn(busy(Box::new(move |n| assert!(of_cell.store(&[n as u8; 4096]).is_ok()))));
        scope.spawn(busy(Box::new(move |_| drop(of_reads.snapshot().unwrap().keyspaces().unwrap()))));
        let added = &added;
        scope.spawn(busy(Box::new(move |_| {
            of_counter.add(1).unwrap();
            added.fetch_add(1, Ordering::Relaxed);
        })));
        for n in 0..CHILDREN {
            let code = in_child(|| {
                let mut wrong = Wrong::default();
                wrong.check("Keyspace::put", keys.put(b"k", b"x"));
                wrong.check("Keyspace::get", keys.get(b"k"));
                wrong.check("Cell::store", cell.store(&[0; 4096]));
                wrong.check("Counter::add", counter.add(1));
                assert!(wrong.0.is_empty(), "{:?}", wrong.0);
                let store = options.open(path).unwrap();
                let keys = store.keyspace("keys").unwrap();
                keys.put(&n.to_le_bytes(), b"by child").unwrap();
                store.cell("cell", 4096).unwrap().store(&[n as u8; 4096]).unwrap();
                store.counter("counter").unwrap().add(1).unwrap();
                assert_eq!(store.snapshot().unwrap().get(&keys, &n.to_le_bytes()).unwrap().unwrap(), b"by child");
                if n % 2 == 0 {
                    // As the child of a child does, for which this process's copies are as dead as
                    // its own.
                    return in_child(|| {
                        let mut wrong = Wrong::default();
                        wrong.check("Keyspace::get", keys.get(b"k"));
                        i32::from(!wrong.0.is_empty())
                    });
                }
                drop((keys, store));
                0
            });
            assert_eq!(code, 0, "child {n}");
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert_eq!(counter.get().unwrap(), added.load(Ordering::Relaxed) + CHILDREN);
    assert_eq!(keys.len().unwrap(), CHILDREN + 1);
    let mut bytes = [0; 4096];
    cell.load(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn value");
    wait_until(|| store.stats().unwrap().clients.len() == 1);
    assert_eq!(store.stats().unwrap().lock_take_overs, 0, "a child died with a lock");
    say("done");
}

#[test]
fn forks_in_the_middle_of_other_threads_work() {
    let _limit = limit();
    let test = TestStore::new();
    let parent = spawn("processes::fork_exec::forks-while-busy", &test.path, &[]);
    assert_eq!(parent.finish(), ["done"]);
    assert_clean(&test.open());
}

/// A child's own handles are as dead in its child as its parent's are, and so on.
fn generations(path: &Path) {
    fn descend(path: &Path, handles: &mut Vec<(Store, Keyspace)>, depth: u64) -> i32 {
        for (at, (store, keys)) in handles.iter().enumerate() {
            let forked = [keys.get(b"k").map(drop), keys.put(b"k", b"x").map(drop), store.stats().map(drop)];
            if !forked.iter().all(|answer| matches!(answer, Err(Error::Forked))) {
                say(format_args!("generation {depth} can use what {at} opened"));
                return 1;
            }
        }
        let store = Store::open(path).unwrap();
        let keys = store.keyspace("keys").unwrap();
        keys.put(&depth.to_le_bytes(), b"v").unwrap();
        handles.push((store, keys));
        let code = if depth < 4 { in_child(|| descend(path, handles, depth + 1)) } else { 0 };
        // The parent works as before its forks.
        let (store, keys) = handles.pop().unwrap();
        keys.put(b"after", &depth.to_le_bytes()).unwrap();
        i32::from(code != 0 || store.stats().unwrap().records < 4)
    }
    assert_eq!(descend(path, &mut Vec::new(), 0), 0);
    say("done");
}

#[test]
fn children_of_children() {
    let _limit = limit();
    let test = TestStore::new();
    let parent = spawn("processes::fork_exec::generations", &test.path, &[]);
    assert_eq!(parent.finish(), ["done"]);
    let store = test.open();
    assert_eq!(store.keyspace("keys").unwrap().len().unwrap(), 6);
    assert_clean(&store);
}

// ---- exec

/// Holds the lock, a pin and, by another thread, now and then a cell's latch; then becomes another
/// program.
fn execs(path: &Path) {
    let store = Store::open(path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let cell = store.cell("cell", 4096).unwrap();
    std::thread::spawn(move || {
        loop {
            cell.store(&[1; 4096]).unwrap();
        }
    });
    let _snapshot = store.snapshot().unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(&keys, b"k", b"unfinished").unwrap();
    say("held");
    listen();
    panic!("{}", Command::new("sleep").arg("3600").exec());
}

#[test]
fn exec_lets_go_of_everything() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.lock_timeout(Duration::from_millis(50));
    });
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"k", b"old").unwrap();
    let cell = store.cell("cell", 4096).unwrap();
    for _ in 0..10 {
        let mut child = spawn("processes::fork_exec::execs", &test.path, &[]);
        child.expect("held");
        assert!(matches!(store.begin(), Err(Error::LockTimeout { .. })));
        let is_pinned = || store.stats().unwrap().readers.iter().any(|reader| reader.pid == child.pid());
        let is_client = || store.stats().unwrap().clients.iter().any(|client| client.pid == child.pid());
        assert!(is_pinned() && is_client());
        let asked = Instant::now();
        child.tell("exec");
        wait_until(|| store.begin().is_ok());
        wait_until(|| cell.store(&[2; 4096]).is_ok());
        eprintln!("lock and latch were free {:?} after exec was asked for", asked.elapsed());
        assert!(asked.elapsed() < HANGS, "{:?}", asked.elapsed());
        assert_eq!(keys.get(b"k").unwrap().unwrap(), b"old");
        let command = std::fs::read_to_string(format!("/proc/{}/comm", child.pid())).unwrap();
        assert_eq!(command.trim_end(), "sleep", "the process lives on");
        wait_until(|| {
            let stats = store.stats().unwrap();
            stats.clients.len() == 1 && stats.readers.iter().all(|reader| reader.pid != child.pid())
        });
        child.kill();
    }
    assert_clean(&store);
}

/// Starts programs in the middle of a transaction, which outlive it.
fn starts_others(path: &Path) {
    let store = Store::open(path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let _snapshot = store.snapshot().unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(&keys, b"k", b"unfinished").unwrap();
    let mut other = Command::new("sleep").arg("3600").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    say(other.id());
    listen();
    other.kill().and_then(|()| other.wait()).unwrap();
}

/// A program that a process starts inherits nothing of the store: when its parent is killed, lock
/// and pins are free.
#[test]
fn a_program_started_by_a_client_keeps_nothing() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let mut client = spawn("processes::fork_exec::starts-others", &test.path, &[]);
    let other: u32 = client.hear().parse().unwrap();
    assert!(matches!(store.begin_timeout(Duration::from_millis(20)), Err(Error::LockTimeout { .. })));
    let killed = Instant::now();
    client.kill();
    store.begin().unwrap().rollback();
    assert!(killed.elapsed() < HANGS, "{:?}", killed.elapsed());
    assert!(exists(other));
    let open = std::fs::read_dir(format!("/proc/{other}/fd")).unwrap().flatten();
    let of_store = open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&test.path)));
    assert_eq!(of_store.count(), 0, "it inherited a descriptor");
    wait_until(|| store.stats().unwrap().clients.len() == 1);
    crate::common::send(other, Signal::KILL);
}

// ---- threads

/// Threads use the same handles at once: nothing is lost, torn or mixed up, and what one opened
/// another may drop.
#[test]
fn threads_share_handles() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 400;
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    let cell = store.cell("cell", 256).unwrap();
    let counter = store.counter("counter").unwrap();
    let snapshot = store.snapshot().unwrap();
    keys.put(b"sum", &0u64.to_le_bytes()).unwrap();
    let number = |value: &[u8]| u64::from_le_bytes(value.try_into().unwrap());
    let (give, take) = std::sync::mpsc::channel::<(Snapshot, u64, Value, u64)>();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let give = give.clone();
            let (store, keys, cell, counter, snapshot) = (&store, &keys, &cell, &counter, &snapshot);
            scope.spawn(move || {
                let mut bytes = [0; 256];
                for round in 0..ROUNDS {
                    loop {
                        let (value, version) = keys.get_versioned(b"sum").unwrap().unwrap();
                        let sum = number(&value) + 1;
                        match keys.compare_and_swap(b"sum", Some(version), &sum.to_le_bytes()).unwrap() {
                            CasOutcome::Swapped(_) => break,
                            CasOutcome::Mismatch { current } => assert!(current.unwrap() > version),
                        }
                    }
                    counter.add(thread + 1).unwrap();
                    cell.store(&[(thread * 50 + round % 50) as u8; 256]).unwrap();
                    cell.load(&mut bytes).unwrap();
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn value");
                    // Of all threads the same snapshot.
                    assert!(snapshot.get(keys, b"sum").unwrap().is_none());
                    let mine = store.snapshot().unwrap();
                    let sum = number(mine.get(keys, b"sum").unwrap().unwrap());
                    let value = keys.get(b"sum").unwrap().unwrap();
                    let newest = number(&value);
                    give.send((mine, sum, value, newest)).unwrap();
                }
            });
        }
        drop(give);
        let keys = &keys;
        scope.spawn(move || {
            for (snapshot, sum, value, newest) in take {
                assert_eq!(number(&value), newest);
                drop(snapshot.clone());
                assert_eq!(number(snapshot.get(keys, b"sum").unwrap().unwrap()), sum);
            }
        });
    });
    assert_eq!(number(&keys.get(b"sum").unwrap().unwrap()), THREADS * ROUNDS);
    assert_eq!(counter.get().unwrap(), ROUNDS * THREADS * (THREADS + 1) / 2);
    let tickets: Vec<Ticket> = (0..20u8)
        .map(|n| {
            let mut txn = store.begin_with(Durability::Visible).unwrap();
            txn.put(&keys, &[n], b"v").unwrap();
            txn.commit().unwrap()
        })
        .collect();
    std::thread::scope(|scope| tickets.iter().for_each(|ticket| drop(scope.spawn(|| ticket.wait().unwrap()))));
    drop(snapshot);
    assert_clean(&store);
}
