//! Goal: the library leaves the process that it runs in as it was: its descriptors, its threads,
//! its children. A panic of the host's code, or of a thread of a logger in the host, never leaves a
//! store that nothing serves.
//!
//! Method: real processes in the roles at the end of the file. Some of them are this test's own
//! executable, built once more with crash points, by which a thread can be made to panic.

use crate::common::{
    HANGS, Role, TestStore, assert_clean, copy_program, limit, listen, say, spawn, spawn_by, wait_until,
};
use crate::workload::instrumented;
use std::future::Future;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use untorn::logger::LoggerOptions;
use untorn::{Durability, Error, Store};

/// The limit of every wait here: longer means that it hangs.

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "descriptors" => descriptors(&role),
        "foreground" => foreground(&role),
        "holder" => {
            let store = Store::open(&role.store).unwrap();
            let _txn = store.begin().unwrap();
            say("holds");
            listen();
        }
        "no-descriptors" => no_descriptors(&role),
        "other-clock" => other_clock(&role),
        "late" => late(&role),
        "unwaited" => {
            let store = Store::open(&role.store).unwrap();
            let mut txn = store.begin_with(Durability::Within(Duration::from_millis(50))).unwrap();
            let rows = txn.keyspace("rows").unwrap();
            txn.put(&rows, b"k", b"v").unwrap();
            let ticket = txn.submit().unwrap();
            say(ticket.txn_id().as_u64());
            listen();
        }
        "init" => init(&role),
        "strained" => strained(&role),
        "secure" => {
            let store = Store::open(&role.store).unwrap();
            store.keyspace("rows").unwrap().put(b"k", b"v").unwrap();
            say(store.stats().unwrap().logger_pid.unwrap());
            listen();
        }
        other => panic!("no role {other}"),
    }
}

/// `run_logger` forked its caller and closed all of its descriptors if the variable `UNTORN_DAEMON`
/// was set.
#[test]
fn a_host_that_serves_keeps_its_descriptors_whatever_the_environment_says() {
    let _limit = limit();
    let test = TestStore::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("UNTORN_DAEMON", "1");
    let host = spawn_by(command, "hosts::descriptors", &test.path, &[]);
    host.expect(&host.pid().to_string());
    host.expect("serves");
    test.stop_logger();
    host.expect("true");
    host.finish();
}

/// Serves beside a pipe of its own, which must still be there afterwards.
fn descriptors(role: &Role) {
    let (reader, writer) = std::io::pipe().unwrap();
    let path = role.store.clone();
    let serving = std::thread::spawn(move || LoggerOptions::default().create(true).run(path));
    wait_until(|| untorn::observe(&role.store).is_ok_and(|seen| matches!(seen, untorn::Observation::Live(_))));
    say(std::process::id());
    say("serves");
    serving.join().unwrap().unwrap();
    use std::io::{Read, Write};
    (&writer).write_all(b"x").unwrap();
    let mut read = [0];
    (&reader).read_exact(&mut read).unwrap();
    say(read == *b"x");
}

/// A waker that panics, as one of a runtime that has been shut down may.
struct Panics {
    woken: AtomicUsize,
    when_dropped: bool,
}

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        if !self.when_dropped {
            panic!("this waker panics when it wakes");
        }
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        if self.when_dropped {
            panic!("this waker panics when it is dropped");
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A panic of one task's waker ended the thread that wakes all tasks: every later ticket stayed
/// pending.
#[test]
fn a_waker_that_panics_keeps_no_other_task_waiting() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let rows = store.keyspace("rows").unwrap();
    for when_dropped in [false, true] {
        let commit = |key: &[u8]| {
            let mut txn = store.begin_with(Durability::Within(Duration::from_secs(2))).unwrap();
            txn.put(&rows, key, b"v").unwrap();
            txn.submit().unwrap()
        };
        let (first, second) = (commit(b"a"), commit(b"b"));
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let (mut one, mut two) = (pin!(first), pin!(second));
        // The thread has the only reference, so it drops the waker.
        let bad = Waker::from(Arc::new(Panics { woken: AtomicUsize::new(0), when_dropped }));
        let polled = one.as_mut().poll(&mut Context::from_waker(&bad));
        let good = Waker::from(flag.clone());
        let other = two.as_mut().poll(&mut Context::from_waker(&good));
        std::thread::spawn(move || drop(bad)).join().ok();
        assert!(polled.is_pending() && other.is_pending(), "a flush that came early proves nothing");
        wait_until(|| flag.0.load(Ordering::SeqCst));
        assert!(matches!(two.as_mut().poll(&mut Context::from_waker(&good)), Poll::Ready(Ok(()))));
        // The thread goes on for those that come later.
        flag.0.store(false, Ordering::SeqCst);
        let mut third = pin!(commit(b"c"));
        if third.as_mut().poll(&mut Context::from_waker(&good)).is_pending() {
            wait_until(|| flag.0.load(Ordering::SeqCst));
        }
    }
}

/// A logger in the foreground, one of whose threads had panicked, kept its byte and did nothing.
#[test]
fn a_thread_that_panics_ends_the_logger() {
    let program = instrumented::program();
    let _limit = limit();
    for (thread, point) in [
        ("flush", "flush.round_begun"),
        ("sampler", "sample.round_begun"),
        ("background", "background.round_begun"),
        ("checkpoint", "checkpoint.round_begun"),
        ("listening", "serve.round_begun"),
    ] {
        // At once, and when it has worked for a while.
        for nth in [1, 3] {
            let test = TestStore::new();
            let mut command = Command::new(program);
            command.env("UNTORN_CRASH", format!("{point}@{nth}:panic"));
            let mut host = spawn_by(command, "hosts::foreground", &test.path, &[]);
            host.expect(&format!("{thread}: the crash point {point}"));
            // The process lives on, and a client finds the place free.
            let store = test.open();
            store.keyspace("rows").unwrap().put(b"k", b"v").unwrap();
            assert_ne!(store.stats().unwrap().logger_pid, Some(host.pid()));
            assert_clean(&store);
            host.tell("end");
            host.finish();
        }
    }
}

fn foreground(role: &Role) {
    let ended = LoggerOptions::default().create(true).idle(Duration::MAX).run(&role.store);
    match ended.unwrap_err() {
        Error::LoggerPanicked { thread, message } => say(format!("{thread}: {message}")),
        error => say(error),
    }
    listen();
}

/// A process without a free descriptor could not detect that a lock's holder was dead, and waited
/// for it for ever. With the logger dead, its error after 30 s stated that the logger is alive.
#[test]
fn a_process_without_descriptors_detects_the_dead() {
    let _limit = limit();
    let test = TestStore::new();
    let mut waiter = spawn("hosts::no-descriptors", &test.path, &[]);
    waiter.expect("open");
    let mut holder = spawn("hosts::holder", &test.path, &[]);
    holder.expect("holds");
    waiter.tell("begin");
    waiter.expect("beginning");
    holder.kill();
    waiter.expect("begun");
    let error = waiter.ask("logger");
    assert!(error.contains("Too many open files"), "{error}");
    waiter.finish();
}

fn no_descriptors(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let rows = store.keyspace("rows").unwrap();
    say("open");
    listen();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut all = Vec::new();
    while let Ok(file) = null.try_clone() {
        all.push(file);
    }
    say("beginning");
    let txn = store.begin().unwrap();
    say("begun");
    listen();
    drop(txn);
    crate::common::send(logger, rustix::process::Signal::KILL);
    let mut last = None;
    // It may be acknowledged by the logger while that dies.
    wait_until(|| {
        last = rows.put(b"k", b"v").err();
        last.is_some()
    });
    say(last.unwrap());
}

fn unshare(options: &[&str], what: &str) -> Option<Command> {
    let is_possible = Command::new("unshare").args(options).arg("true").status().is_ok_and(|status| status.success());
    if !is_possible {
        assert!(std::env::var_os("CI").is_none(), "{what}: needs root and unshare, which CI has");
        eprintln!("SKIPPED (1): {what}: needs root and unshare");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(options).arg(std::env::current_exe().unwrap());
    Some(command)
}

/// A deadline of a process whose clock is an hour ahead was an hour away for the logger, and the
/// commit waited for it.
#[test]
fn a_deadline_by_another_clock_is_kept() {
    let _limit = limit();
    let options = ["--time", "--monotonic", "3600", "--fork"];
    let Some(command) = unshare(&options, "a deadline by another clock is kept") else { return };
    let test = TestStore::new();
    let store = test.open();
    store.keyspace("rows").unwrap();
    let child = spawn_by(command, "hosts::other-clock", &test.path, &[]);
    child.expect("waited");
    child.expect("awaited");
    child.finish();
}

fn other_clock(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let rows = store.keyspace("rows").unwrap();
    let within = Durability::Within(Duration::from_millis(50));
    let mut txn = store.begin_with(within).unwrap();
    txn.put(&rows, b"a", b"1").unwrap();
    txn.commit().unwrap().wait().unwrap();
    say("waited");
    let mut txn = store.begin_with(within).unwrap();
    txn.put(&rows, b"b", b"2").unwrap();
    let mut ticket = pin!(txn.submit().unwrap());
    let flag = Arc::new(Flag(AtomicBool::new(false)));
    let waker = Waker::from(flag.clone());
    if ticket.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        wait_until(|| flag.0.load(Ordering::SeqCst));
    }
    say("awaited");
}

/// A waiter whose deadline has passed requests a flush, which the logger makes whatever its clock
/// shows. What broke: it waited for the logger's own clock alone. The logger is stopped here, so
/// that it cannot flush for any other reason.
#[test]
fn a_waiter_requests_a_flush_when_its_deadline_has_passed() {
    use std::os::unix::fs::FileExt;
    let _limit = limit();
    for how in ["wait", "await"] {
        let test = TestStore::new();
        let store = test.open();
        store.keyspace("rows").unwrap();
        let mut child = spawn("hosts::late", &test.path, &[how]);
        child.expect("open");
        let control = std::fs::File::open(test.path.join("control")).unwrap();
        let requested = || {
            let mut word = [0; 8];
            control.read_exact_at(&mut word, untorn::internals::FLUSH_REQUEST_AT).unwrap();
            u64::from_le_bytes(word)
        };
        let logger = store.stats().unwrap().logger_pid.unwrap();
        crate::common::send(logger, rustix::process::Signal::STOP);
        let before = requested();
        child.tell("commit");
        wait_until(|| requested() > before);
        crate::common::send(logger, rustix::process::Signal::CONT);
        child.expect("durable");
        child.finish();
    }
}

/// Commits within a short time, and waits for that by a thread or by a task.
fn late(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let rows = store.keyspace("rows").unwrap();
    say("open");
    listen();
    let mut txn = store.begin_with(Durability::Within(Duration::from_millis(50))).unwrap();
    txn.put(&rows, b"k", b"v").unwrap();
    let ticket = txn.submit().unwrap();
    if role.arguments[0] == "wait" {
        ticket.wait().unwrap();
    } else {
        let mut ticket = pin!(ticket);
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(flag.clone());
        if ticket.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            wait_until(|| flag.0.load(Ordering::SeqCst));
        }
    }
    say("durable");
}

/// A deadline of another clock that no caller waits for. The logger has only its own clock to go
/// by, for which the deadline is an hour away, and flushes after its limit of a minute.
#[test]
fn a_deadline_that_nothing_waits_for_has_a_limit() {
    let _limit = limit();
    let options = ["--time", "--monotonic", "3600", "--fork"];
    let Some(command) = unshare(&options, "a deadline that nothing waits for has a limit") else { return };
    let test = TestStore::new();
    let store = test.open();
    store.keyspace("rows").unwrap();
    let mut child = spawn_by(command, "hosts::unwaited", &test.path, &[]);
    let txn: u64 = child.hear().parse().unwrap();
    wait_until(|| store.durable_snapshot().unwrap().txn_id().as_u64() >= txn);
    child.tell("end");
    child.finish();
}

/// Each life of the logger left a zombie in a host that is an init process and reaps nothing.
#[test]
fn an_init_process_that_reaps_nothing_collects_no_zombies() {
    let _limit = limit();
    let options = ["--pid", "--mount", "--fork", "--mount-proc"];
    let Some(command) = unshare(&options, "an init process that reaps nothing") else { return };
    let test = TestStore::new();
    let child = spawn_by(command, "hosts::init", &test.path, &[]);
    child.expect("1");
    child.expect("no zombies");
    child.finish();
}

fn init(role: &Role) {
    say(std::process::id());
    for _ in 0..3 {
        let store = Store::open(&role.store).unwrap();
        store.keyspace("rows").unwrap().put(b"k", b"v").unwrap();
        drop(store);
        untorn::logger::stop_logger(&role.store, HANGS).unwrap();
    }
    let zombies = || {
        let stats = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
            std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()
        });
        stats.filter(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"))).count()
    };
    wait_until(|| zombies() == 0);
    say("no zombies");
}

/// The logger took over its starter's niceness and limit of CPU time, and, where a filter refuses
/// `close_range`, its descriptors.
#[test]
fn the_logger_is_free_of_its_starter() {
    let _limit = limit();
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root, which CI has");
        eprintln!("SKIPPED (1): the logger is free of its starter: needs root");
        return;
    }
    let test = TestStore::new();
    let child = spawn("hosts::strained", &test.path, &[]);
    child.expect("0");
    let limit = child.hear();
    // The hard limit is lifted where the system allows it, the soft one always.
    assert!(limit.contains("unlimited") || limit.matches("2000").count() == 2, "{limit}");
    child.expect("closed");
    child.finish();
}

#[allow(unsafe_code)]
fn strained(role: &Role) {
    let allow = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let mut filter = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_close_range as u32 },
        allow(0x0005_0000 | libc::EPERM as u32),
        allow(0x7fff_0000),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let mut pipe = [0; 2];
    // SAFETY: the calls read and write values on this stack, and their results are checked.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        assert_eq!(libc::setpriority(libc::PRIO_PROCESS, 0, 10), 0);
        let limit = libc::rlimit { rlim_cur: 1000, rlim_max: 2000 };
        assert_eq!(libc::setrlimit(libc::RLIMIT_CPU, &raw const limit), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
    let store = Store::open(&role.store).unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{logger}/{name}")).unwrap();
    let stat = read("stat");
    say(stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap());
    say(read("limits").lines().find(|line| line.starts_with("Max cpu time")).unwrap());
    let mut one = [0u8];
    // SAFETY: the descriptors are this function's own.
    let ended = unsafe {
        libc::close(pipe[1]);
        libc::read(pipe[0], one.as_mut_ptr().cast(), 1)
    };
    say(if ended == 0 { "closed" } else { "open" });
}

/// A program with more rights than its caller obeyed the caller's variables: it ran the caller's
/// program with its rights.
#[test]
fn a_setuid_program_obeys_no_variable() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    const OWNER: u32 = 12345;
    let _limit = limit();
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root, which CI has");
        eprintln!("SKIPPED (1): a setuid program obeys no variable: needs root");
        return;
    }
    let test = TestStore::new();
    let beside = test.path.parent().unwrap();
    std::fs::set_permissions(beside, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(&test.path).unwrap();
    chown(&test.path, Some(OWNER), Some(OWNER)).unwrap();
    let (program, evil, mark) = (beside.join("program"), beside.join("evil"), beside.join("mark"));
    copy_program(&std::env::current_exe().unwrap(), &program);
    chown(&program, Some(OWNER), Some(OWNER)).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::create_dir(&mark).unwrap();
    std::fs::set_permissions(&mark, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(&evil, format!("#!/bin/sh\n: > {}/ran\n", mark.display())).unwrap();
    std::fs::set_permissions(&evil, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command.uid(54321).gid(54321).env("UNTORN_LOGGER", &evil).env("UNTORN_BECOME_LOGGER", &test.path);
    let mut child = spawn_by(command, "hosts::secure", &test.path, &[]);
    let logger: u32 = child.hear().parse().unwrap();
    assert!(!mark.join("ran").exists());
    let stat = std::fs::metadata(format!("/proc/{logger}")).unwrap();
    assert_eq!(stat.uid(), OWNER);
    assert_ne!(logger, child.pid());
    child.tell("end");
    child.finish();
}
