//! Goal: a `tracing` subscriber receives the events of a store's life, at the levels where people
//! look for them. The path of a visible commit or a read emits none.
//!
//! Method: one life with the logger as a thread of a child process, whose events go to a buffer
//! with the names of their threads.

use crate::common::{HANGS, Role, TestStore, limit, listen, say, spawn};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing_subscriber::filter::LevelFilter;
use untorn::{Durability, FlushPolicy, Store};

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "life" => life(),
        "hold" => {
            let store = Store::open(&role.store).unwrap();
            let _txn = store.begin().unwrap();
            say("holds the lock");
            listen();
        }
        other => panic!("no role {other}"),
    }
}

/// The events received so far.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Heard {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_string).collect()
    }

    /// Whether there was such an event, with all of these words.
    fn has(&self, level: &str, words: &[&str]) -> bool {
        self.lines()
            .iter()
            .any(|line| line.trim_start().starts_with(level) && words.iter().all(|word| line.contains(word)))
    }

    #[track_caller]
    fn expect(&self, level: &str, words: &[&str]) {
        let start = std::time::Instant::now();
        while !self.has(level, words) {
            assert!(start.elapsed() < HANGS, "no {level} {words:?} in {:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Events of this thread.
    fn own(&self) -> usize {
        let name = std::thread::current().name().unwrap().to_string();
        self.lines().iter().filter(|line| line.contains(&format!(" {name} "))).count()
    }
}

#[test]
fn the_events_of_a_life() {
    let _limit = limit();
    let nowhere = tempfile::tempdir().unwrap();
    spawn("monitoring::events::life", nowhere.path(), &[]).finish();
}

/// One life of a store in a process of its own: a process has one subscriber, which must not
/// receive the events of other tests.
fn life() {
    let heard = Heard::default();
    let writer = heard.clone();
    tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(LevelFilter::TRACE)
        .with_thread_names(true)
        .with_ansi(false)
        .without_time()
        .init();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.logger_thread(true);
    });
    heard.expect("INFO", &["log replayed", "committed=", "transactions=0"]);
    heard.expect("INFO", &["logger started", "logger_pid="]);
    heard.expect("INFO", &["store opened", &test.path.display().to_string()]);
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"key", b"value").unwrap();
    heard.expect("TRACE", &["flushed", "durable=", "flush_ns="]);
    store.checkpoint().unwrap();
    heard.expect("DEBUG", &["checkpoint started"]);
    heard.expect("DEBUG", &["checkpoint finished", "checkpoint_ns="]);
    heard.expect("DEBUG", &["log segment started"]);

    // Nothing of what is done a hundred thousand times a second.
    store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
    let before = heard.own();
    assert!(before > 0, "the events of this thread can be told apart");
    for _ in 0..100 {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, b"key", b"value").unwrap();
        txn.commit().unwrap();
        keys.get(b"key").unwrap().unwrap();
        store.snapshot().unwrap();
    }
    assert_eq!(heard.own(), before);
    store.set_flush_policy(FlushPolicy::OnCommit).unwrap();

    // A process dies with the lock; the next writer takes it over.
    let mut other = spawn("monitoring::events::hold", &test.path, &[]);
    other.expect("holds the lock");
    let pid = format!("pid={}", other.pid());
    other.kill();
    keys.put(b"key", b"after its death").unwrap();
    heard.expect("WARN", &["taken over", &pid]);
    heard.expect("WARN", &["a process died", &pid]);

    let client = untorn::Client::connect(test.path.join("logger.sock")).unwrap();
    heard.expect("INFO", &["message client connected", "uid="]);
    drop(client);
    drop(keys);
    store.close().unwrap();
    heard.expect("INFO", &["store closed"]);
    test.stop_logger();
    heard.expect("INFO", &["logger left"]);
    assert!(!heard.lines().iter().any(|line| line.trim_start().starts_with("ERROR")), "{:#?}", heard.lines());
}
