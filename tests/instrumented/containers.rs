//! Goal: containers share a store as other processes do, whatever they share besides. The death of
//! a process is noticed in the other container, a living process is never taken for dead, and the
//! logger may run in either, or go with it.
//!
//! Method: real namespaces (see `container`), two to a test, that see one store at two different
//! paths. The processes that matter have the same process id in both. So a query of the kernel by
//! an id of the other container finds the wrong process: a living one in place of the dead, or none
//! in place of the living. The host, which sees all, decides which process is stopped or killed.
//!
//! It needs root and `unshare`; without them each test reports that it was skipped, and fails where
//! the variable `CI` is set.

mod container;
mod messenger;
mod worker;

use crate::common::{HANGS, Role, TestStore, assert_clean, limit, wait_until};
use crate::workload::instrumented;
use container::{Container, Inside, Plan, is_possible};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::Store;

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "init" => container::init(&role),
        "worker" => worker::work(&role),
        "messenger" => messenger::serve(&role),
        other => panic!("no role {other}"),
    }
}

/// Where the two containers see the store.
const OF_A: &str = "/data";
const OF_B: &str = "/srv/somewhere/else";
/// The process id of the processes that matter, in each container.
const SAME: u32 = 50;

/// Two containers that share the directory of one store, which only they use.
struct Pair {
    test: TestStore,
    a: Container,
    b: Container,
}

impl Pair {
    fn new() -> Pair {
        Pair::with_bug(None)
    }

    fn with_bug(bug: Option<&'static str>) -> Pair {
        let test = TestStore::new();
        std::fs::create_dir(&test.path).unwrap();
        let start = |at| Container::start(&Plan { mounts: &[(&test.path, at)], first_uid: None, has_proc: true, bug });
        let (a, b) = (start(OF_A), start(OF_B));
        Pair { test, a, b }
    }

    fn worker_a(&mut self, pid: u32) -> Inside {
        let worker = self.a.run("worker", pid, 0, OF_A, &[]);
        worker.child.expect("open");
        worker
    }

    fn worker_b(&mut self, pid: u32) -> Inside {
        let worker = self.b.run("worker", pid, 0, OF_B, &[]);
        worker.child.expect("open");
        worker
    }
}

/// The host opens the store, as one more client.
fn host(path: &Path) -> Store {
    worker::options().open(path).unwrap()
}

/// Two containers open a store at once that neither has: they make one, with one logger.
#[test]
fn both_open_at_once() {
    if !is_possible("both_open_at_once") {
        return;
    }
    let _limit = limit();
    let mut pair = Pair::new();
    for round in 0..3 {
        let mut workers = [pair.a.run("worker", SAME, 0, OF_A, &[]), pair.b.run("worker", SAME, 0, OF_B, &[])];
        workers.iter().for_each(|worker| worker.child.expect("open"));
        let [a, b] = &mut workers;
        assert_eq!(a.ask("put k of-a"), "put");
        assert_eq!(b.ask("get k"), "of-a");
        // Equal ids are two processes.
        assert_eq!(b.ask("pids"), format!("[{SAME}, {SAME}]"));
        let store = host(&pair.test.path);
        assert_eq!(store.stats().unwrap().logger_starts, 1, "in round {round}");
        workers.iter_mut().for_each(Inside::kill);
        drop(store);
        pair.test.stop_logger();
    }
    assert_clean(&host(&pair.test.path));
}

/// A process dies in A with all that one can hold; in B a process of the same id lives. A liveness
/// test by process id would take the dead one for alive for ever.
#[test]
fn the_dead_are_noticed() {
    if !is_possible("the_dead_are_noticed") {
        return;
    }
    let _limit = limit();
    let mut pair = Pair::new();
    let mut b = pair.worker_b(SAME);
    assert_eq!(b.ask("put k old"), "put");

    // In a transaction.
    let mut a = pair.worker_a(SAME);
    assert_eq!(a.ask("begin"), "begun");
    let refused = b.ask("begin");
    assert!(refused.starts_with("timeout: ") && refused.contains(&SAME.to_string()), "{refused}");
    b.child.tell("wait");
    std::thread::sleep(Duration::from_millis(50));
    let killed = Instant::now();
    a.kill();
    b.child.hear();
    eprintln!("the lock was taken over after {:?}", killed.elapsed());
    assert!(killed.elapsed() < HANGS, "{:?}", killed.elapsed());
    assert_eq!(b.ask("get k"), "old");

    // With a snapshot, which holds back what B then frees.
    let mut a = pair.worker_a(SAME);
    assert_eq!(a.ask("pin"), "pinned");
    let store = host(&pair.test.path);
    let pins = || store.stats().unwrap().readers.iter().filter(|reader| !reader.is_loggers).count();
    for n in 0..20 {
        assert_eq!(b.ask(&format!("put k {n}")), "put");
    }
    assert_eq!(pins(), 1);
    a.kill();
    wait_until(|| pins() == 0);
    wait_until(|| store.stats().unwrap().clients.len() == 2);
    // The living process of that id stays; and the host is there.
    assert_eq!(b.ask("pids"), format!("[{SAME}, {}]", std::process::id()));

    // In the middle of a store into a cell.
    let mut tries = 0;
    loop {
        let mut a = pair.worker_a(SAME);
        assert_eq!(a.ask("storm"), "storming");
        std::thread::sleep(Duration::from_millis(20));
        a.stop();
        let caught = b.ask("store").starts_with("timeout: ");
        let killed = Instant::now();
        a.kill();
        assert_eq!(b.ask("load"), "whole");
        assert_eq!(b.ask("store"), "stored");
        assert!(killed.elapsed() < HANGS, "{:?}", killed.elapsed());
        if caught {
            break;
        }
        tries += 1;
        assert!(tries < 100, "it was never in the middle");
    }
    assert!(store.stats().unwrap().lock_take_overs >= 1);
    assert_clean(&store);
}

/// A process is stopped in A with all that one can hold. In B, where the logger runs that tests for
/// dead processes, none has that id. A liveness test by process id would take it for dead, and give
/// its lock to another.
#[test]
fn the_living_are_never_taken_for_dead() {
    if !is_possible("the_living_are_never_taken_for_dead") {
        return;
    }
    let _limit = limit();
    let mut pair = Pair::new();
    let mut b = pair.worker_b(SAME + 20);
    assert_eq!(b.ask("put k old"), "put");
    let mut a = pair.worker_a(SAME);
    assert_eq!(a.ask("pin"), "pinned");
    assert_eq!(b.ask(&format!("exists {SAME}")), "false");
    let store = host(&pair.test.path);

    // With a snapshot: what it reads stays, whatever becomes free.
    a.stop();
    for n in 0..30 {
        assert_eq!(b.ask(&format!("put k {n}")), "put");
    }
    store.checkpoint().unwrap();
    // Longer than the logger's interval between liveness tests.
    std::thread::sleep(Duration::from_millis(300));
    for n in 0..30 {
        assert_eq!(b.ask(&format!("put k {n}")), "put");
    }
    assert!(store.stats().unwrap().readers.iter().any(|reader| reader.pid == SAME && !reader.is_loggers));
    a.resume();
    assert_eq!(a.ask("look k"), "old");

    // In a transaction: B waits in vain, and A's commit is whole.
    assert_eq!(a.ask("begin"), "begun");
    a.stop();
    for _ in 0..3 {
        assert!(b.ask("begin").starts_with("timeout: "));
    }
    assert_eq!(b.ask("get k"), "29");
    a.resume();
    assert_eq!(a.ask("end"), "true");
    assert_eq!(b.ask("get k"), "unfinished");

    // In the middle of a store into a cell.
    assert_eq!(a.ask("storm"), "storming");
    let mut tries = 0;
    loop {
        a.stop();
        if b.ask("store").starts_with("timeout: ") {
            break;
        }
        a.resume();
        tries += 1;
        assert!(tries < 1000, "it was never in the middle");
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(b.ask("store").starts_with("timeout: "));
    assert_eq!(b.ask("load"), "whole");
    let before: u64 = {
        a.resume();
        a.ask("stored").parse().unwrap()
    };
    wait_until(|| a.ask("stored").parse::<u64>().unwrap() > before);
    let stats = store.stats().unwrap();
    assert_eq!((stats.lock_take_overs, stats.reaped), (0, 0), "no process has died");
    assert_clean(&store);
}

/// A liveness test by process id, as many a lock file has it, fails in both ways, and the two tests
/// above would show it.
#[test]
fn planted_liveness_by_pid_is_caught() {
    if !is_possible("planted_liveness_by_pid_is_caught") {
        return;
    }
    let _limit = instrumented::limit_after_build();
    let mut pair = Pair::with_bug(Some("liveness-by-pid"));
    let mut b = pair.worker_b(SAME);
    let mut a = pair.worker_a(SAME);
    assert_eq!(a.ask("begin"), "begun");
    a.kill();
    b.child.tell("wait");
    std::thread::sleep(Duration::from_secs(1));
    assert!(b.child.heard().is_empty(), "the dead one was noticed although a process with its id lives");
    b.kill();
    // If no process has the id, the death is noticed even so.
    let mut b = pair.worker_b(SAME + 20);
    assert!(b.ask("wait").parse::<u64>().is_ok());
    let mut a = pair.worker_a(SAME);
    assert_eq!(a.ask("begin"), "begun");
    a.stop();
    assert_eq!(b.ask("begin"), "begun", "the living one kept its lock although no process with its id lives");
}

/// What a counting worker reported as acknowledged.
fn heard(worker: &Inside) -> u64 {
    worker.child.heard().last().map_or(0, |line| line.parse().unwrap())
}

fn number_of(store: &Store, name: &str) -> u64 {
    let value = store.keyspace("keys").unwrap().get(name.as_bytes()).unwrap().unwrap();
    String::from_utf8_lossy(&value).parse().unwrap()
}

/// The logger runs in A, and A dies as a whole, in the middle of both's commits. B has the next
/// logger, and nothing that was acknowledged is missing, in A or B, visible or durable. Then B dies
/// as well, and the host finds the same.
#[test]
fn the_logger_dies_with_its_container() {
    if !is_possible("the_logger_dies_with_its_container") {
        return;
    }
    let _limit = limit();
    let mut pair = Pair::new();
    let mut a = pair.worker_a(SAME);
    let mut b = pair.worker_b(SAME);
    // The first to open had a logger started, in its own namespaces.
    let store = host(&pair.test.path);
    let logger = store.stats().unwrap().logger_pid.unwrap();
    assert_eq!(a.ask(&format!("exists {logger}")), "true");
    a.child.tell("count of-a");
    b.child.tell("count of-b");
    std::thread::sleep(Duration::from_millis(500));
    let Pair { test, a: container_a, b: container_b } = pair;
    container_a.destroy();
    drop(store);
    let killed = Instant::now();
    let before = heard(&b);
    let mut newest = before;
    while newest <= before + 2 {
        assert!(killed.elapsed() < HANGS, "B's durable commits stand still");
        std::thread::sleep(Duration::from_millis(1));
        newest = newest.max(heard(&b));
    }
    eprintln!("B went on {:?} after A's end, from {before}", killed.elapsed());
    let store = host(&test.path);
    let (said, found) = (heard(&a), number_of(&store, "of-a"));
    assert!(said > 10 && (said..=said + 1).contains(&found), "A was told {said}, {found} is there");
    let stats = store.stats().unwrap();
    assert_eq!(stats.logger_starts, 2);
    drop(store);
    container_b.destroy();
    let said = newest.max(heard(&b));
    let store = host(&test.path);
    let found_b = number_of(&store, "of-b");
    assert!((said..=said + 1).contains(&found_b), "B was told {said}, {found_b} is there");
    assert_eq!(number_of(&store, "of-a"), found);
    assert_clean(&store);
}

/// Two containers whose user namespaces map the owner of the store to different ids, 0 and 1000,
/// and neither of them to root of the host. For other users of the container the store is closed,
/// and the error names what to use instead.
#[test]
fn user_namespaces() {
    const OWNER: u32 = 100_000;
    if !is_possible("user_namespaces") {
        return;
    }
    let _limit = limit();
    let test = TestStore::new();
    std::fs::create_dir(&test.path).unwrap();
    chown(&test.path, Some(OWNER), Some(OWNER)).unwrap();
    // To find what it mounts, the root of a container must get through to it.
    let parent = test.path.parent().unwrap();
    std::fs::set_permissions(parent, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let start = |at, first| {
        Container::start(&Plan { mounts: &[(&test.path, at)], first_uid: Some(first), has_proc: true, bug: None })
    };
    let (mut container_a, mut container_b) = (start(OF_A, OWNER), start(OF_B, OWNER - 1000));
    let mut a = container_a.run("worker", SAME, 0, OF_A, &[]);
    a.child.expect("open");
    let mut b = container_b.run("worker", SAME, 1000, OF_B, &[]);
    b.child.expect("open");
    assert_eq!((a.ask("ids"), b.ask("ids")), (format!("0 {SAME}"), format!("1000 {SAME}")));
    for file in std::fs::read_dir(&test.path).unwrap().flatten() {
        let stat = file.metadata().unwrap();
        assert_eq!((stat.uid(), stat.mode() & 0o077), (OWNER, 0), "{file:?}");
    }
    assert_eq!(a.ask("put k of-a"), "put");
    assert_eq!(b.ask("get k"), "of-a");
    assert_eq!(b.ask("begin"), "begun");
    b.stop();
    assert!(a.ask("begin").starts_with("timeout: "));
    b.resume();
    assert_eq!(b.ask("end"), "true");
    assert_eq!(b.ask("begin"), "begun");
    b.kill();
    assert!(a.ask("wait").parse::<u64>().unwrap() < 1000);
    assert_eq!(a.ask("get k"), "unfinished");

    let stranger = container_b.run("worker", SAME, 5, OF_B, &[]);
    let said = stranger.child.hear();
    assert!(said.starts_with("refused: no permission for ") && said.contains("direct client"), "{said}");
    wait_until(|| a.ask("pids") == format!("[{SAME}]"));
}

/// Containers whose roots hold a socket and what programs need to run: no store, no `/proc`, no
/// `/dev`, other users. One sees the directory that the socket is in, and finds the next logger's
/// socket there; the other sees the file, which is that of the first logger for ever.
#[test]
fn nothing_but_the_socket() {
    const WRITER: u32 = 200_000;
    const READER: u32 = 300_000;
    if !is_possible("nothing_but_the_socket") {
        return;
    }
    let _limit = limit();
    let test = TestStore::new();
    let parent = test.path.parent().unwrap();
    let run = parent.join("run");
    let socket = run.join("untorn.sock");
    for dir in [&run, &test.path] {
        std::fs::create_dir(dir).unwrap();
    }
    for (dir, mode) in [(parent, 0o711), (&test.path, 0o700), (&run, 0o755)] {
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let access = test.path.join("access");
    let rules = format!("allow {WRITER} read-write \"shared\"\nallow {READER} read-only \"shared\"\n");
    std::fs::write(&access, format!("socket \"{}\"\n{rules}", socket.display())).unwrap();
    std::fs::set_permissions(&access, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let store = host(&test.path);
    store.keyspace("private").unwrap().put(b"k", b"of the host").unwrap();
    let shared = store.keyspace("shared").unwrap();
    wait_until(|| socket.exists());

    let start = |from: &Path, to, first| {
        Container::start(&Plan { mounts: &[(from, to)], first_uid: Some(first), has_proc: false, bug: None })
    };
    let mut of_writer = start(&run, "/run/untorn", WRITER);
    let mut of_reader = start(&socket, "/untorn.sock", READER);
    let mut writer = of_writer.run("messenger", SAME, 0, "/run/untorn/untorn.sock", &[]);
    let mut reader = of_reader.run("messenger", SAME, 0, "/untorn.sock", &[]);
    writer.child.expect("connected");
    reader.child.expect("connected");
    assert_eq!(writer.ask("look"), "run test");
    assert_eq!(writer.ask("put shared a of-writer"), "durable");
    assert_eq!(shared.get(b"a").unwrap().unwrap(), b"of-writer");
    shared.put(b"b", b"of-host").unwrap();
    for client in [&mut writer, &mut reader] {
        assert_eq!(client.ask("get shared b"), "of-host");
        assert_eq!(client.ask("scan shared"), "a b");
        assert_eq!(client.ask("follow shared"), "a");
        assert!(client.ask("get private k").starts_with("error: "));
    }
    assert!(reader.ask("put shared a of-reader").starts_with("error: "));
    // Another user of the container is another user of the host, whom no rule allows in.
    let stranger = of_writer.run("messenger", SAME, 5, "/run/untorn/untorn.sock", &[]);
    let said = stranger.child.hear();
    assert!(said.starts_with("refused: "), "{said}");

    // A client is killed in the middle of its requests: nothing is held up.
    let mut storm = of_writer.run("messenger", SAME, 0, "/run/untorn/untorn.sock", &[]);
    storm.child.expect("connected");
    storm.child.tell("storm shared");
    wait_until(|| shared.get(b"storm").unwrap().is_some());
    storm.kill();
    let killed = Instant::now();
    shared.put(b"c", b"of-host").unwrap();
    assert!(killed.elapsed() < HANGS);

    // The logger is killed, and the host has the next one.
    crate::common::kill_logger(&store);
    shared.put(b"d", b"of-host").unwrap();
    assert_eq!(writer.ask("put shared e after"), "durable");
    assert_eq!(shared.get(b"e").unwrap().unwrap(), b"after");
    let said = reader.ask("get shared e");
    assert!(said.starts_with("error: "), "through a file of a logger that is gone: {said}");
    of_writer.destroy();
    of_reader.destroy();
    assert_eq!(store.stats().unwrap().clients.len(), 1);
    assert_clean(&store);
}
