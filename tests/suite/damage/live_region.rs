//! Bits that flip in the shared region of a store that is in use.

use super::*;
use crate::common::program::logger as logger_program;

const LIVE: &str = "UNTORN_TEST_LIVE_STORE";

fn live_options() -> Options {
    let mut options = Store::options();
    options.logger_timeout(Duration::from_secs(1)).lock_timeout(Duration::from_secs(1)).create(false);
    options.logger_program(logger_program());
    options
}

/// Not a test of its own: the process beneath which bits flip. Uses the store in all ways until a
/// file appears.
#[test]
fn live_child() {
    let Some(path) = std::env::var_os(LIVE).map(std::path::PathBuf::from) else { return };
    let store = live_options().open(&path).unwrap();
    std::fs::write(path.join("child-is-ready"), b"").unwrap();
    let stop = path.join("child-is-to-stop");
    let worst = std::sync::Mutex::new((Duration::ZERO, String::new()));
    let timed = |what: &str, call: &mut dyn FnMut()| {
        let started = Instant::now();
        call();
        let mut worst = worst.lock().unwrap();
        if started.elapsed() > worst.0 {
            *worst = (started.elapsed(), what.to_string());
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (store, stop, timed) = (&store, &stop, &timed);
            scope.spawn(move || {
                let mut random = Random::new(thread);
                while !stop.exists() {
                    match random.below(if thread == 0 { 4 } else { 12 }) {
                        0 | 1 => timed("put", &mut || {
                            if let Ok(keyspace) = store.keyspace("a") {
                                let _ = keyspace.put(&random.below(50).to_le_bytes(), &[3; 300]);
                            }
                        }),
                        2 => timed("visible", &mut || {
                            if let (Ok(Some(keyspace)), Ok(mut txn)) =
                                (store.find_keyspace("a"), store.begin_with(Durability::Visible))
                            {
                                for _ in 0..random.below(60) {
                                    if txn.put(&keyspace, &random.below(500).to_le_bytes(), &[4; 900]).is_err() {
                                        return;
                                    }
                                }
                                drop(txn.commit());
                            }
                        }),
                        3 => timed("sync", &mut || drop(store.sync())),
                        4 => timed("checkpoint", &mut || drop(store.checkpoint())),
                        5 => timed("durable snapshot", &mut || drop(store.durable_snapshot().map(|s| s.keyspaces()))),
                        6 => timed("stats", &mut || drop(store.stats())),
                        7 => timed("verify", &mut || drop(store.verify())),
                        8 => timed("cells", &mut || use_cells(store, random.below(20))),
                        9 => timed("changes", &mut || follow(store)),
                        _ => timed("read", &mut || drop(read(store))),
                    }
                }
            });
        }
    });
    let worst = worst.lock().unwrap();
    println!("longest call: {} {:?}", worst.1, worst.0);
    assert!(worst.0 < HANGS, "{} took {:?}", worst.1, worst.0);
}

/// Cells in all ways. A value may be anything by now; a call answers.
fn use_cells(store: &Store, number: u64) {
    let _ = store.cells();
    if let Ok(cell) = store.cell(&format!("cell {number}"), 8 + 100 * number as usize) {
        let mut value = vec![number as u8; cell.size()];
        let _ = cell.store(&value);
        if let Ok(version) = cell.load(&mut value) {
            let _ = cell.load_version(version, &mut value);
        }
        if number == 0 {
            let _ = cell.store_durable(&value);
        }
    }
    if let Ok(counter) = store.counter("counter") {
        let _ = counter.add(1);
        let _ = counter.get();
    }
    if number == 1 {
        let _ = store.drop_cell("cell 2");
    }
}

/// Reads a part of the feed. Errors are as good as changes, but each change must have happened.
fn follow(store: &Store) {
    for feed in [Feed::Visible, Feed::Durable] {
        let Ok(mut changes) = store.changes(TxnId::ZERO, feed) else { continue };
        for _ in 0..300 {
            let Ok(Some(change)) = changes.try_next(Duration::ZERO) else { break };
            let value = change.value().unwrap_or_default();
            let is_known = [(1, 5000), (3, 300), (4, 900)].iter().any(|(byte, len)| value == vec![*byte; *len]);
            assert!(is_known || change.keyspace() != "a", "{change:?}");
        }
    }
}

/// A process that ends with the test, however that ends.
struct Mortal(Child);

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a child's end; kills it after the time.
fn end(child: &mut Child, within: Duration) -> Option<std::process::ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < within {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn bits_flip_in_the_live_region() {
    let rounds = if std::env::var_os("UNTORN_SWEEP").is_some() { 400 } else { 16 };
    let dir = scratch();
    for round in 0..rounds {
        let seed = seed() * 1000 + round;
        let mut random = Random::new(seed);
        let path = numbered(dir.path(), round as usize);
        {
            let store = small().open(&path).unwrap();
            store.keyspace("a").unwrap().put(b"key", &[1; 5000]).unwrap();
            store.cell("cell 3", 308).unwrap().store(&[3; 308]).unwrap();
        }
        untorn::logger::stop_logger(&path, HANGS).unwrap();
        let logger = Command::new(logger_program()).arg(&path).stderr(Stdio::null()).spawn();
        let mut logger = Mortal(logger.unwrap());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "damage::live_region::live_child", "--nocapture"])
            .env(LIVE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = Mortal(child.unwrap());
        wait_until(|| path.join("child-is-ready").exists());
        let control = std::fs::File::options().read(true).write(true).open(path.join("control")).unwrap();
        // The table of cells, and the cells' copies, each after a hole.
        let data_after = |from: u64| rustix::fs::seek(&control, rustix::fs::SeekFrom::Data(from)).unwrap_or(0);
        let cells = data_after(2 << 20);
        let mut flips = Vec::new();
        for _ in 0..1 + random.below(4) {
            std::thread::sleep(Duration::from_millis(20 + random.below(60)));
            // Words of state far more often than the tables and the ring.
            let at = match random.below(8) {
                0 => random.below(control.metadata().unwrap().len()),
                1 => random.below(16 << 10),
                2 => cells + random.below(3 << 10),
                3 => data_after(cells + (1 << 20)) + random.below(8 << 10),
                _ => random.below(2 << 10),
            };
            let bits = 1 << random.below(8);
            flip(&control, at, bits);
            flips.push((at, bits));
        }
        std::thread::sleep(Duration::from_millis(200));
        std::fs::write(path.join("child-is-to-stop"), b"").unwrap();
        let ended = end(&mut child.0, HANGS.saturating_mul(2));
        let replay = format!("UNTORN_SEED={} round {round}, flips {flips:?}", self::seed());
        let mut said = String::new();
        use std::io::Read;
        child.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = ended.unwrap_or_else(|| panic!("{replay}: the client hangs\n{said}"));
        assert!(status.success(), "{replay}: {status}\n{said}");
        // The logger may have been requested to leave, or may have given up, but it has not
        // crashed.
        if let Some(status) = logger.0.try_wait().unwrap() {
            assert!(status.signal().is_none() && status.code() != Some(101), "{replay}: the logger: {status}");
        }
        drop(logger);
        // Loggers that clients started find their directory gone.
        store_files::remove_all(&path);
    }
}
