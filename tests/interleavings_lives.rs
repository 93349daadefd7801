//! Goal: who comes, leaves, forks, dies or looks in from elsewhere at the worst moment harms nobody: no lock is kept by
//! the dead, no client is without a logger, no copy of a store or of a handle takes itself for the original.
//!
//! Method: openers and loggers are held at gates (victims: this executable with crash points) while others come or
//! go; real forks, whose children outlive their parents; copies of a store's files beside the store.

#![allow(unsafe_code)]

mod common;
mod workload;

use common::{HANGS, exists, limit, wait_until};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Durability, Error, FlushPolicy, Store};
use workload::victim::{Scene, kernel_crash, kill_loggers, signal};
use workload::worker::{self, Few, Figures, number};
use workload::{Role, assert_verified, listen, my_role, say};

#[test]
fn role() {
    let Some((name, path, arguments)) = my_role() else { return };
    match name.as_str() {
        "worker" => worker::work(&path),
        "brief" => drop(worker::options().logger_idle(Duration::from_millis(50)).open(&path).unwrap()),
        "stranger" => stranger(&path),
        "forks-in-transaction" => forks_in_transaction(&path),
        "forks-while-opening" => forks_while_opening(&path),
        "child-drops" => child_drops(&path),
        "closes" => closes_descriptors(&path),
        other => panic!("no role {other} {arguments:?}"),
    }
}

fn victim() -> &'static Path {
    workload::victim::build("interleavings_lives")
}

/// The limit of a test that begins once its victim is built.
fn limit_with_victim() -> common::Limit {
    victim();
    limit()
}

// ---- other boots, other copies

/// Tries to open, and says what came of it.
fn stranger(path: &Path) {
    let opened = worker::options().open(path);
    match &opened {
        Ok(store) => say(format_args!("opened {}", number(store, &store.snapshot().unwrap()))),
        Err(Error::Mismatch { file, .. }) => say(format_args!("mismatch {file}")),
        Err(error) => say(format_args!("{error:?}")),
    }
    listen();
}

/// Interleaving 6: a process of another boot (a container on another kernel, a directory shared by two machines) opens the store while
/// the first lives. It must not join a region that its memory doesn't share, nor recover beneath the living; when they
/// are gone it gets in, by recovery.
#[test]
fn a_process_of_another_boot_is_refused_while_the_first_lives() {
    let _limit = limit_with_victim();
    let scene = Scene::new();
    let few = Few::open(worker::options().open(&scene.path).unwrap()).unwrap();
    few.commits(10, true).unwrap();
    let logger = few.store.stats().unwrap().logger_pid;
    let other_boot = [("UNTORN_BOOT_ID", "b007")];
    for _ in 0..3 {
        let mut stranger = Role::start(victim(), "stranger", &scene.path, "", &other_boot);
        assert_eq!(stranger.hear(0), "mismatch control");
        few.commits(10, true).unwrap();
        drop(stranger);
    }
    // Without a logger as well: the client that lives is what counts.
    signal(logger.unwrap() as i32, libc::SIGSTOP);
    let mut stranger = Role::start(victim(), "stranger", &scene.path, "", &other_boot);
    assert_eq!(stranger.hear(0), "mismatch control");
    signal(logger.unwrap() as i32, libc::SIGCONT);
    drop(stranger);
    assert_eq!(few.commits(10, true).unwrap(), 50);
    let stats = few.store.stats().unwrap();
    assert_eq!((stats.logger_pid, stats.logger_starts, stats.clients.len()), (logger, 1, 1));
    assert_verified(&few.store);

    // A logger alone makes room by and by.
    worker::options().logger_idle(Duration::from_millis(100)).open(&scene.path).unwrap();
    drop(few);
    let mut stranger = Role::start(victim(), "stranger", &scene.path, "", &other_boot);
    assert_eq!(stranger.hear(0), "opened 50");
    // And now it is the other way round.
    assert!(matches!(Store::open(&scene.path), Err(Error::Mismatch { .. })));
}

/// Interleaving 6: the directory of a living store is copied, region and lock file and all, and the copy is opened in the same boot. Its
/// region says that it belongs to this boot; were it believed, the copy would stand on commit slots, locks and a log ring
/// of somebody else's. It recovers by its files alone, and both go on.
#[test]
fn a_copied_store_goes_its_own_way() {
    let _limit = limit();
    let scene = Scene::new();
    let few = Few::open(worker::options().open(&scene.path).unwrap()).unwrap();
    few.commits(40, true).unwrap();
    few.store.checkpoint().unwrap();
    few.commits(10, true).unwrap();
    // Visible and not durable: it stands in the ring alone.
    few.store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
    few.commits(7, false).unwrap();
    // Copied in the middle of a transaction, so that the region names a living owner of the lock.
    let copied = Scene::new();
    let txn = few.store.begin().unwrap();
    let done = std::process::Command::new("cp").arg("-a").arg(&scene.path).arg(&copied.path).status().unwrap();
    assert!(done.success());
    txn.rollback();
    few.store.set_flush_policy(FlushPolicy::OnCommit).unwrap();

    let copy = Few::open(worker::options().open(&copied.path).unwrap()).unwrap();
    assert_eq!(number(&copy.store, &copy.store.snapshot().unwrap()), 50, "what is in its files");
    let (here, there) = (few.store.stats().unwrap(), copy.store.stats().unwrap());
    assert_ne!(here.logger_pid, there.logger_pid);
    assert_eq!((there.clients.len(), there.logger_starts, there.lock_take_overs), (1, 1, 0));
    assert_eq!(number(&few.store, &few.store.snapshot().unwrap()), 57);
    // Each goes on by itself, while the other works.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| copy.commits(200, true).unwrap());
        assert_eq!(few.commits(300, true).unwrap(), 357);
        assert_eq!(other.join().unwrap(), 250);
    });
    for (few, expected) in [(&few, 357), (&copy, 250)] {
        few.store.checkpoint().unwrap();
        assert_eq!(number(&few.store, &few.store.durable_snapshot().unwrap()), expected);
        assert_verified(&few.store);
    }
    drop((few, copy));
    for (scene, expected) in [(&scene, 357), (&copied, 250)] {
        kernel_crash(&scene.path);
        let store = worker::options().open(&scene.path).unwrap();
        assert_eq!(number(&store, &store.snapshot().unwrap()), expected);
        assert_verified(&store);
    }
}

// ---- forks

/// A child of fork() that lives until it is told otherwise. It ends by itself after a minute, should nobody be left to tell it.
fn fork_sleeper() -> i32 {
    // SAFETY: the child does nothing but sleep, by calls that are safe after a fork.
    unsafe {
        match libc::fork() {
            0 => {
                libc::alarm(60);
                loop {
                    libc::pause();
                }
            }
            child => child,
        }
    }
}

/// The child of a fork, whose parent is not this process. Killed when dropped.
struct Orphan(i32);

impl Orphan {
    fn is_running(&self) -> bool {
        exists(self.0 as u32)
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        signal(self.0, libc::SIGKILL);
    }
}

fn forks_in_transaction(path: &Path) {
    let few = Few::open(worker::options().open(path).unwrap()).unwrap();
    let snapshot = few.store.snapshot().unwrap();
    let mut txn = few.store.begin().unwrap();
    txn.put(&few.keys, b"last", b"never seen").unwrap();
    say(format_args!("forked {}", fork_sleeper()));
    listen();
    drop((txn, snapshot));
}

fn forks_while_opening(path: &Path) {
    let path = path.to_path_buf();
    let opening = std::thread::spawn(move || worker::options().open(&path).map(drop));
    say("opening");
    // Told when the opener is held.
    listen();
    say(format_args!("forked {}", fork_sleeper()));
    listen();
    let _ = opening.join();
}

/// Interleaving 10: a process forks and is killed in its transaction; its child lives on. The child has a copy of everything, but must
/// keep neither the lock nor the pins nor the liveness byte: others take over in milliseconds.
#[test]
fn a_child_keeps_nothing_of_a_parent_killed_in_its_transaction() {
    let _limit = limit();
    let scene = Scene::new();
    let few = Few::open(worker::options().open(&scene.path).unwrap()).unwrap();
    few.commits(10, true).unwrap();
    for _ in 0..3 {
        let mut parent = Role::own("forks-in-transaction", &scene.path, "");
        let child = parent.wait_for("forked ").split_once(' ').unwrap().1.parse().unwrap();
        let child = Orphan(child);
        assert!(matches!(few.store.begin_timeout(Duration::from_millis(30)), Err(Error::LockTimeout { .. })));
        let pid = parent.child.id();
        assert!(few.store.stats().unwrap().readers.iter().any(|reader| reader.pid == pid));
        let waited = std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let txn = few.store.begin().unwrap();
                let taken = Instant::now();
                txn.rollback();
                taken
            });
            std::thread::sleep(Duration::from_millis(20));
            let killed = Instant::now();
            parent.kill();
            waits.join().unwrap().saturating_duration_since(killed)
        });
        eprintln!("taken over after {waited:?}");
        assert!(waited < HANGS, "{waited:?}");
        assert!(child.is_running());
        few.commits(10, true).unwrap();
        wait_until(|| {
            let stats = few.store.stats().unwrap();
            stats.clients.len() == 1 && stats.readers.iter().all(|reader| reader.pid != pid)
        });
        assert_verified(&few.store);
    }
    // A child alone is nobody: the logger leaves, and the next one recovers.
    let mut parent = Role::own("forks-in-transaction", &scene.path, "");
    let child = Orphan(parent.wait_for("forked ").split_once(' ').unwrap().1.parse().unwrap());
    let logger = few.store.stats().unwrap().logger_pid.unwrap();
    worker::options().logger_idle(Duration::from_millis(100)).open(&scene.path).unwrap();
    drop(few);
    parent.kill();
    wait_until(|| !exists(logger));
    assert!(child.is_running());
    let few = Few::open(worker::options().open(&scene.path).unwrap()).unwrap();
    assert_eq!(few.commits(10, true).unwrap(), 50);
}

/// Interleaving 10: a process forks on another thread while it opens the store, and is killed there, with the initialisation lock held; its
/// child lives on. Others must get in at once.
#[test]
fn a_child_keeps_nothing_of_a_parent_killed_while_opening() {
    let _limit = limit_with_victim();
    for point in ["create.after_arena", "client.entered"] {
        let scene = Scene::new();
        let gate = scene.gate("gate");
        gate.close();
        let mut parent = scene.victim(victim(), "forks-while-opening", "", &[gate.at(point)], "");
        gate.wait();
        let heard = parent.lines().len().max(1);
        parent.tell("fork");
        let child = Orphan(parent.hear(heard).split_once(' ').unwrap().1.parse().unwrap());
        let mut other = Role::own("worker", &scene.path, "");
        std::thread::sleep(Duration::from_millis(100));
        assert!(other.lines().is_empty(), "{point}: the initialisation lock is held");
        let killed = Instant::now();
        parent.kill();
        other.wait_for("ready");
        eprintln!("{point}: opened after {:?}", killed.elapsed());
        assert!(killed.elapsed() < HANGS, "{point}: {:?}", killed.elapsed());
        assert!(child.is_running());
        assert_eq!(other.ask("commit 10 durable"), "10");
        let store = worker::options().open(&scene.path).unwrap();
        wait_until(|| store.stats().unwrap().clients.len() == 2);
        assert_verified(&store);
    }
}

/// What a child of fork() meets when it uses its copies, and then drops them; 0 if all is as it should be.
fn use_copies(
    few: Few,
    held: (untorn::Snapshot, untorn::Value, untorn::Ticket),
    (cell, counter): (untorn::Cell, untorn::Counter),
    mut txn: untorn::WriteTxn<'_>,
) -> i32 {
    let is_forked = |result: Result<(), Error>| matches!(result, Err(Error::Forked));
    let (snapshot, value, ticket) = held;
    let answers = [
        is_forked(few.store.snapshot().map(drop)),
        is_forked(few.store.durable_snapshot().map(drop)),
        is_forked(few.store.begin().map(drop)),
        is_forked(few.store.sync()),
        is_forked(few.store.checkpoint().map(drop)),
        is_forked(few.store.stats().map(drop)),
        is_forked(few.store.keyspace("new").map(drop)),
        is_forked(few.keys.get(b"last").map(drop)),
        is_forked(few.keys.put(b"last", b"v").map(drop)),
        is_forked(few.keys.range(..).map(drop)),
        is_forked(snapshot.get(&few.keys, b"last").map(drop)),
        is_forked(snapshot.range(&few.keys, ..).map(drop)),
        is_forked(ticket.wait()),
        is_forked(few.store.cell("cell", 8).map(drop)),
        is_forked(few.store.cells().map(drop)),
        is_forked(few.store.drop_cell("cell").map(drop)),
        is_forked(cell.load(&mut [0; 8]).map(drop)),
        is_forked(cell.version().map(drop)),
        is_forked(cell.store(&[1; 8]).map(drop)),
        is_forked(cell.store_durable(&[1; 8]).map(drop)),
        is_forked(counter.add(1)),
        is_forked(counter.get().map(drop)),
        is_forked(txn.put(&few.keys, b"last", b"v")),
        is_forked(txn.get(&few.keys, b"last").map(drop)),
        is_forked(txn.commit().map(drop)),
    ];
    let wrong = answers.iter().position(|forked| !forked);
    let copies = (snapshot.clone(), ticket.clone());
    drop((copies, value, ticket, snapshot));
    drop((cell.clone(), cell, counter.clone(), counter));
    drop(few);
    wrong.map_or(0, |at| 10 + at as i32)
}

fn child_drops(path: &Path) {
    let few = Few::open(worker::options().open(path).unwrap()).unwrap();
    few.commits(10, false).unwrap();
    let ticket = few.commit(11, Durability::Visible).unwrap();
    let snapshot = few.store.snapshot().unwrap();
    let value = few.keys.get(b"last").unwrap().unwrap();
    let store = few.store.clone();
    let cells = (store.cell("cell", 8).unwrap(), store.counter("counter").unwrap());
    let mut txn = store.begin().unwrap();
    txn.put(&few.keys, b"by-parent", b"v").unwrap();
    let child = |use_it: &mut dyn FnMut() -> i32| {
        // SAFETY: this role runs one thread that does anything; the child uses its copies and ends without running the
        // exit handlers of its parent.
        unsafe {
            match libc::fork() {
                0 => {
                    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(use_it)).unwrap_or(3);
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
    };
    // The child takes these by value and drops them; in the parent they are as before, since that is another process.
    let mut taken = Some((few, (snapshot, value, ticket), cells, txn));
    let code = child(&mut || {
        let (few, held, cells, txn) = taken.take().expect("once in the child");
        use_copies(few, held, cells, txn)
    });
    assert_eq!(code, 0, "the child was answered wrongly (10 and up: which call)");
    // A child may open the store anew, as the process that it is.
    let code = child(&mut || {
        let store = worker::options().open(path).unwrap();
        let waits = matches!(store.begin_timeout(Duration::from_millis(20)), Err(Error::LockTimeout { .. }));
        i32::from(number(&store, &store.snapshot().unwrap()) != 11 || !waits)
    });
    assert_eq!(code, 0, "the child could not open the store for itself");
    say("forked");
    // Others find all of the parent's as it was; then it goes on.
    assert_eq!(listen().as_deref(), Some("go on"));
    let (few, (snapshot, value, ticket), (cell, counter), txn) = taken.take().expect("still the parent's");
    txn.commit().unwrap();
    cell.store_durable(&[2; 8]).unwrap();
    counter.add(1).unwrap();
    assert_eq!(counter.get().unwrap(), 1);
    ticket.wait().unwrap();
    assert_eq!(number(&few.store, &snapshot), 11);
    assert_eq!(workload::unsealed(&value), 11);
    assert_eq!(few.keys.get(b"by-parent").unwrap().unwrap(), b"v");
    few.keys.delete(b"by-parent").unwrap();
    few.commits(50, true).unwrap();
    say("went on");
    listen();
    assert_eq!(number(&few.store, &snapshot), 11);
    assert_eq!(workload::unsealed(&value), 11);
    say("the same");
    listen();
}

/// Interleaving 11: the child of a fork uses its copies of handles, snapshot, value, ticket and open transaction, which answer `Forked`, and
/// drops them all. The parent's lock, pin and life must be untouched: a drop that ran in the child would free them.
#[test]
fn a_child_drops_its_copies() {
    let _limit = limit();
    let scene = Scene::new();
    let mut parent = Role::own("child-drops", &scene.path, "");
    let heard = parent.hear(0);
    assert_eq!(heard, "forked");
    let few = Few::open(worker::options().open(&scene.path).unwrap()).unwrap();
    let pid = parent.child.id();
    let error = few.store.begin_timeout(Duration::from_millis(50)).map(drop).unwrap_err();
    assert!(matches!(&error, Error::LockTimeout { holder, .. } if holder.contains(&pid.to_string())), "{error}");
    // Longer than the dead are looked for.
    std::thread::sleep(Duration::from_millis(250));
    let stats = few.store.stats().unwrap();
    assert!(stats.clients.iter().any(|client| client.pid == pid), "{stats:?}");
    assert!(stats.readers.iter().any(|reader| reader.pid == pid), "{stats:?}");
    assert_eq!(stats.lock_take_overs, 0);
    assert_eq!(parent.ask("go on"), "went on");
    // What it has pinned is overwritten by others, many times.
    for _ in 0..5 {
        few.commits(40, true).unwrap();
    }
    few.store.checkpoint().unwrap();
    assert_eq!(parent.ask("look"), "the same");
    assert_verified(&few.store);
    assert!(few.store.stats().unwrap().readers.iter().any(|reader| reader.pid == pid));
    assert!(parent.end());
}

/// Opens the store, has all descriptors closed that it does not know, and goes on, step by step.
fn closes_descriptors(path: &Path) {
    let few = Few::open(worker::options().open(path).unwrap()).unwrap();
    few.commits(10, true).unwrap();
    // SAFETY: this role uses no descriptors but the standard three; the store must not need any.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    // Their numbers come to name other files, which the store must leave alone.
    let others: Vec<std::fs::File> = (0..40).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    few.commits(10, true).unwrap();
    assert_eq!(number(&few.store, &few.store.snapshot().unwrap()), 20);
    // More readers than the table has at first: it grows, by a file that must be opened anew.
    let mut readers = Vec::new();
    for n in 0..1100 {
        if n % 100 == 0 {
            few.commits(1, true).unwrap();
        }
        readers.push(few.store.durable_snapshot().unwrap());
    }
    for (n, reader) in readers.iter().enumerate() {
        assert_eq!(number(&few.store, reader), 21 + n as u64 / 100);
    }
    few.store.checkpoint().unwrap();
    say("closed");
    while let Some(line) = listen() {
        match line.as_str() {
            "commit" => say(few.commits(10, true).unwrap()),
            "begin" => {
                let txn = few.store.begin().unwrap();
                say("begun");
                listen();
                txn.rollback();
                say("ended");
            }
            other => panic!("no command {other}"),
        }
    }
    drop((readers, few));
    assert!(others.iter().all(|file| file.metadata().is_ok()), "a descriptor was closed that was not the store's");
}

/// Interleaving 11: the host closes all descriptors that it doesn't know, right after the store was opened, and their numbers come to name
/// other files. A liveness byte held by a descriptor would be free, and its owner reaped while it lives; a descriptor used
/// unseen would write into somebody else's file.
#[test]
fn the_host_closes_all_descriptors() {
    let _limit = limit();
    let scene = Scene::new();
    let mut host = Role::own("closes", &scene.path, "");
    assert_eq!(host.hear(0), "closed");
    let store = worker::options().open(&scene.path).unwrap();
    let pid = host.child.id();
    let is_client = || store.stats().unwrap().clients.iter().any(|client| client.pid == pid);
    std::thread::sleep(Duration::from_millis(250));
    assert!(is_client(), "it was taken for dead");
    // Its readers hold more slots than one chunk of the table has.
    assert!(store.stats().unwrap().readers.len() > 1024);
    assert_eq!(host.ask("begin"), "begun");
    assert!(matches!(store.begin_timeout(Duration::from_millis(100)), Err(Error::LockTimeout { .. })));
    assert_eq!(host.ask("end"), "ended");
    // The logger is killed: the host, which alone waits for one, starts its successor.
    let logger = store.stats().unwrap().logger_pid.unwrap();
    drop(store);
    signal(logger as i32, libc::SIGKILL);
    wait_until(|| !exists(logger));
    assert_eq!(host.ask("commit"), "41");
    let store = worker::options().open(&scene.path).unwrap();
    assert_ne!(store.stats().unwrap().logger_pid, Some(logger));
    assert!(store.stats().unwrap().clients.iter().any(|client| client.pid == pid));
    assert_eq!(store.stats().unwrap().reaped, 0);
    assert_verified(&store);
    assert!(host.end(), "its descriptors, or it, came to harm");
}

// ---- the logger's leaving

/// Interleaving 14: the logger decides to leave just as a client comes: before it has the initialisation lock, with it, and when its
/// byte is free but the lock is not. The client gets in, and is never left with a logger that is on its way out.
#[test]
fn the_logger_leaves_as_a_client_comes() {
    let _limit = limit_with_victim();
    for point in ["logger.unneeded", "logger.leaving", "logger.byte_dropped"] {
        let scene = Scene::new();
        let gate = scene.gate("gate");
        gate.close();
        let mut brief = scene.victim(victim(), "brief", "", &[gate.at(point)], "");
        gate.wait();
        assert!(brief.end());
        let mut comer = Role::own("worker", &scene.path, "");
        std::thread::sleep(Duration::from_millis(150));
        // Without the initialisation lock, the logger has not left: the client joins it.
        let joined = point == "logger.unneeded";
        assert_eq!(!comer.lines().is_empty() && is_logger_alive(&scene.path), joined, "{point}");
        let released = Instant::now();
        gate.open();
        comer.wait_for("ready");
        assert_eq!(comer.ask("commit 20 durable"), "20");
        eprintln!("{point}: durable {:?} after", released.elapsed());
        assert!(released.elapsed() < HANGS, "{point}: {:?}", released.elapsed());
        // It stays, although the idle time that the first client set is over.
        let logger = Figures::ask(&mut comer).logger_pid;
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(comer.ask("commit 20 durable"), "40");
        assert_eq!(Figures::ask(&mut comer).logger_pid, logger, "{point}");
        assert!(exists(logger as u32));
        comer.ask("checkpoint");
        assert_eq!(comer.ask("verify"), "clean");
        comer.kill();
        kernel_crash(&scene.path);
        let store = worker::options().open(&scene.path).unwrap();
        assert_eq!(number(&store, &store.snapshot().unwrap()), 40);
        drop(store);
        kill_loggers(&scene.path);
    }
}

/// Whether a logger serves the store.
fn is_logger_alive(path: &Path) -> bool {
    let store = Store::options().create(false).open(path);
    store.is_ok_and(|store| store.stats().unwrap().logger_pid.is_some())
}
