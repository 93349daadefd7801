//! Interleavings 10 and 11: children of `fork()`.

use super::*;
use untorn::reason::LockHolder;
use untorn_test_kit::sealed::expect_sealed;

/// A child of fork() that lives until it is killed. It ends by itself after a minute, in case the
/// test does not kill it.
pub(crate) fn fork_sleeper() -> i32 {
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

pub(crate) fn forks_in_transaction(path: &Path) {
    let few = Few::open(worker::options().open(path).unwrap()).unwrap();
    let snapshot = few.store.snapshot().unwrap();
    let mut txn = few.store.begin().unwrap();
    txn.put(&few.keys, b"last", b"never seen").unwrap();
    say(format_args!("forked {}", fork_sleeper()));
    listen();
    drop((txn, snapshot));
}

pub(crate) fn forks_while_opening(path: &Path) {
    let path = path.to_path_buf();
    let opening = std::thread::spawn(move || worker::options().open(&path).map(drop));
    say("opening");
    // A command comes when the opener is held.
    listen();
    say(format_args!("forked {}", fork_sleeper()));
    listen();
    let _ = opening.join();
}

/// Interleaving 10: a process forks and is killed in its transaction; its child lives on. The child
/// has a copy of everything, but must keep neither the lock nor the pins nor the liveness byte:
/// others take over in milliseconds.
#[test]
fn a_child_keeps_nothing_of_a_parent_killed_in_its_transaction() {
    let _limit = limit();
    let scenario = Scenario::new();
    let few = Few::open(worker::options().open(&scenario.path).unwrap()).unwrap();
    few.commits(10, true).unwrap();
    for _ in 0..3 {
        let mut parent = spawn("interleavings::lives::forks-in-transaction", &scenario.path, &[]);
        let child = parent.hear_prefix("forked ").split_once(' ').unwrap().1.parse().unwrap();
        let child = Orphan(child);
        assert!(matches!(few.store.begin_timeout(Duration::from_millis(30)), Err(Error::LockTimeout { .. })));
        let pid = parent.pid();
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
            parent.kill_beside_children();
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
    // A child without its parent is no client: the logger leaves, and the next one recovers.
    let mut parent = spawn("interleavings::lives::forks-in-transaction", &scenario.path, &[]);
    let child = Orphan(parent.hear_prefix("forked ").split_once(' ').unwrap().1.parse().unwrap());
    let logger = few.store.stats().unwrap().logger_pid.unwrap();
    worker::options().logger_idle(Duration::from_millis(100)).open(&scenario.path).unwrap();
    drop(few);
    parent.kill_beside_children();
    wait_until(|| !exists(logger));
    assert!(child.is_running());
    let few = Few::open(worker::options().open(&scenario.path).unwrap()).unwrap();
    assert_eq!(few.commits(10, true).unwrap(), 50);
}

/// Interleaving 10: a process forks on another thread while it opens the store, and is killed
/// there, with the initialisation lock held; its child lives on. Others must get in at once.
#[test]
fn a_child_keeps_nothing_of_a_parent_killed_while_opening() {
    let _limit = instrumented::limit_after_build();
    for point in ["create.arena_created", "client.entered"] {
        let scenario = Scenario::new();
        let hold = scenario.hold_point("hold");
        hold.arm();
        let mut parent = scenario.start("interleavings::lives::forks-while-opening", &[], &[hold.at(point)], "");
        hold.wait();
        let heard = parent.lines().len().max(1);
        parent.tell("fork");
        let child = Orphan(parent.line(heard).split_once(' ').unwrap().1.parse().unwrap());
        let mut other = spawn("interleavings::lives::worker", &scenario.path, &[]);
        std::thread::sleep(Duration::from_millis(100));
        assert!(other.lines().is_empty(), "{point}: the initialisation lock is held");
        let killed = Instant::now();
        parent.kill_beside_children();
        other.hear_prefix("ready");
        eprintln!("{point}: opened after {:?}", killed.elapsed());
        assert!(killed.elapsed() < HANGS, "{point}: {:?}", killed.elapsed());
        assert!(child.is_running());
        assert_eq!(other.ask("commit 10 durable"), "10");
        let store = worker::options().open(&scenario.path).unwrap();
        wait_until(|| store.stats().unwrap().clients.len() == 2);
        assert_verified(&store);
    }
}

/// Uses the copies in a child of fork(), then drops them. Returns 0 if each use returned `Forked`,
/// else 10 and the index of the first that did not.
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

pub(crate) fn child_drops(path: &Path) {
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
        // SAFETY: this role runs one thread that does anything; the child uses its copies and ends
        // without running the exit handlers of its parent.
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
    // The child takes these by value and drops them; in the parent they are as before, since that
    // is another process.
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
    assert_eq!(expect_sealed(&value), 11);
    assert_eq!(few.keys.get(b"by-parent").unwrap().unwrap(), b"v");
    few.keys.delete(b"by-parent").unwrap();
    few.commits(50, true).unwrap();
    say("went on");
    listen();
    assert_eq!(number(&few.store, &snapshot), 11);
    assert_eq!(expect_sealed(&value), 11);
    say("the same");
    listen();
}

/// Interleaving 11: the child of a fork uses its copies of handles, snapshot, value, ticket and
/// open transaction, which answer `Forked`, and drops them all. The parent's lock, pin and life
/// must be untouched: a drop that ran in the child would free them.
#[test]
fn a_child_drops_its_copies() {
    let _limit = limit();
    let scenario = Scenario::new();
    let mut parent = spawn("interleavings::lives::child-drops", &scenario.path, &[]);
    let heard = parent.line(0);
    assert_eq!(heard, "forked");
    let few = Few::open(worker::options().open(&scenario.path).unwrap()).unwrap();
    let pid = parent.pid();
    let error = few.store.begin_timeout(Duration::from_millis(50)).map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::LockTimeout { holder, .. } if matches!(holder, Some(LockHolder::Process { pid: found, .. }) if *found == pid)),
        "{error}"
    );
    // Longer than the interval between liveness tests.
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
    assert!(parent.wait());
}
