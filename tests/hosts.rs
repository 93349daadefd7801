//! Goal: the library leaves the process that it runs in as it was: its descriptors, its threads, its children. A panic of
//! the host's code, or of a thread of a logger in the host, never leaves a store that nothing serves.
//!
//! Method: real processes in the roles at the end of the file. Some of them are this test's own executable, built once more
//! with crash points, by which a thread can be made to panic.

mod common;
mod workload;

use common::{Child, Role, TestStore, assert_clean, limit, listen, say, wait_for};
use std::future::Future;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use untorn::{Durability, Error, LoggerOptions};

/// The limit of every wait here: longer means that it hangs.
const HANGS: Duration = Duration::from_secs(60);

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "descriptors" => descriptors(&role),
        "foreground" => foreground(&role),
        other => panic!("no role {other}"),
    }
}

/// `run_logger` forked its caller and closed all of its descriptors if the variable `UNTORN_DAEMON` was set.
#[test]
fn a_host_that_serves_keeps_its_descriptors_whatever_the_environment_says() {
    let _limit = limit(120);
    let test = TestStore::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("UNTORN_DAEMON", "1");
    let host = Child::start(command, "descriptors", &test.path, &[]);
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
    wait_for(HANGS, || untorn::observe(&role.store).is_ok_and(|seen| matches!(seen, untorn::Observation::Live(_))));
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

/// A panic of one task's waker ended the thread that wakes all tasks: every later ticket stayed pending.
#[test]
fn a_waker_that_panics_keeps_no_other_task_waiting() {
    let _limit = limit(120);
    let test = TestStore::new();
    let store = test.open();
    let rows = store.keyspace("rows").unwrap();
    for when_dropped in [false, true] {
        let commit = |key: &[u8]| {
            let mut txn = store.begin().unwrap();
            txn.put(&rows, key, b"v").unwrap();
            txn.commit_unwaited(Durability::Within(Duration::from_secs(2))).unwrap()
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
        wait_for(HANGS, || flag.0.load(Ordering::SeqCst));
        assert!(matches!(two.as_mut().poll(&mut Context::from_waker(&good)), Poll::Ready(Ok(()))));
        // The thread goes on for those that come later.
        flag.0.store(false, Ordering::SeqCst);
        let mut third = pin!(commit(b"c"));
        if third.as_mut().poll(&mut Context::from_waker(&good)).is_pending() {
            wait_for(HANGS, || flag.0.load(Ordering::SeqCst));
        }
    }
}

/// A logger in the foreground, one of whose threads had panicked, kept its byte and did nothing.
#[test]
fn a_thread_that_panics_ends_the_logger() {
    let victim = workload::victim::build("hosts");
    let _limit = limit(300);
    for (thread, point) in [
        ("flush", "flush.looked"),
        ("sampler", "sample.looked"),
        ("background", "background.looked"),
        ("checkpoint", "checkpoint.looked"),
        ("listening", "serve.looked"),
    ] {
        // At once, and when it has worked for a while.
        for nth in [1, 3] {
            let test = TestStore::new();
            let mut command = Command::new(victim);
            command.env("UNTORN_CRASH", format!("{point}@{nth}:panic"));
            let mut host = Child::start(command, "foreground", &test.path, &[]);
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
