//! Random kills of writers, whose pairs of records must stay whole.

use super::*;

/// A writer that keeps pairs, and the newest number that it reported.
struct Pairs {
    child: Process,
    name: String,
    acknowledged: u64,
}

impl Pairs {
    fn start(path: &Path, name: String) -> Pairs {
        let seed = rand::random::<u64>().to_string();
        Pairs { child: spawn("processes::pairs", path, &[&name, &seed]), name, acknowledged: 0 }
    }

    fn note(&mut self, lines: Vec<String>) {
        for line in lines {
            self.acknowledged = line.parse().unwrap();
        }
    }

    fn kill(&mut self) {
        let said = self.child.kill();
        self.note(said);
    }

    /// Both keys of the writer hold the same number: the last that was acknowledged, or the one
    /// after.
    fn check(&self, snapshot: &Snapshot, pairs: &Keyspace) {
        let number = |side: &str| {
            let key = format!("{side}-{}", self.name);
            snapshot.get(pairs, key.as_bytes()).unwrap().map_or(0, amount)
        };
        let (left, right) = (number("left"), number("right"));
        assert_eq!(left, right, "half of a transaction of {}", self.name);
        assert!(
            left == self.acknowledged || left == self.acknowledged + 1,
            "{}: {} was acknowledged, {left} is there",
            self.name,
            self.acknowledged
        );
    }
}

/// Processes are killed at random for some seconds, the logger among them. What was acknowledged is
/// there, nothing is there by half, and no process is held up.
#[test]
fn random_kills() {
    let _limit = limit();
    let seed = crate::common::seed("--test suite processes::random_kills::");
    let mut random = StdRng::seed_from_u64(seed);
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.checkpoint_bytes(256 << 10);
    });
    let pairs = store.keyspace("pairs").unwrap();
    let mut next = 0..;
    let mut start = || Pairs::start(&test.path, format!("writer {}", next.next().unwrap()));
    let mut living: Vec<Pairs> = (0..4).map(|_| start()).collect();
    let mut dead = Vec::new();
    let (mut kills, mut logger_kills) = (0, 0);
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.random_range(5..80)));
        if random.random_bool(0.2) {
            if let Some(pid) = store.stats().unwrap().logger_pid {
                send(pid, Signal::KILL);
                logger_kills += 1;
            }
        } else {
            let killed = random.random_range(0..living.len());
            living[killed].kill();
            dead.push(std::mem::replace(&mut living[killed], start()));
            kills += 1;
        }
        let start = Instant::now();
        let snapshot = store.snapshot().unwrap();
        dead.iter().for_each(|writer| writer.check(&snapshot, &pairs));
        drop(store.durable_snapshot().unwrap());
        assert!(start.elapsed() < HANGS, "a reader was held up for {:?}", start.elapsed());
        if random.random_bool(0.1) {
            assert_clean(&store);
        }
    }
    // The writers that live still get through.
    for writer in &mut living {
        let said = writer.child.heard();
        writer.note(said);
        let said = writer.child.hear();
        writer.note(vec![said]);
    }
    living.iter_mut().for_each(Pairs::kill);
    dead.append(&mut living);
    let snapshot = store.snapshot().unwrap();
    dead.iter().for_each(|writer| writer.check(&snapshot, &pairs));
    drop(snapshot);
    assert_clean(&store);
    let stats = store.stats().unwrap();
    eprintln!(
        "{kills} writers and {logger_kills} loggers killed, {} commits, {} locks taken over, {} checkpoints",
        stats.commits, stats.lock_take_overs, stats.checkpoints
    );
    // And now all of them at once.
    drop(pairs);
    kill_logger(&store);
    drop(store);
    let store = test.open();
    let pairs = store.keyspace("pairs").unwrap();
    let snapshot = store.snapshot().unwrap();
    dead.iter().for_each(|writer| writer.check(&snapshot, &pairs));
    assert_clean(&store);
}
