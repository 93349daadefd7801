//! Goal: whatever is killed, nobody sees half a transaction, nothing acknowledged is lost, and the others go on.
//!
//! Method: real processes write, read and are SIGKILLed at random instants, the logger too; the test knows what each writer
//! was told, and checks snapshots, durable snapshots and the whole store after each round. `UNTORN_KILL_SECONDS` says how long.

mod workload;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use untorn::{Durability, Store};
use workload::{Place, Random, Role, Writer, assert_verified, check, my_role, say};

#[test]
fn role() {
    let Some((name, path, arguments)) = my_role() else { return };
    match name.as_str() {
        "writer" => write(&path, &arguments),
        "reader" => read(&path),
        other => panic!("no role {other}"),
    }
}

/// Writes until killed. Every third commit is durable, the others visible.
fn write(path: &std::path::Path, arguments: &[String]) {
    let store = workload::open_small(path);
    let writer = Writer::open(store, &arguments[0]).unwrap();
    let mut n = writer.last().unwrap();
    say("ready");
    loop {
        n += 1;
        let (durability, kind) =
            if n.is_multiple_of(3) { (Durability::Durable, "D") } else { (Durability::Visible, "V") };
        let _ticket = writer.commit(n, durability).unwrap();
        say(format_args!("{kind} {n}"));
    }
}

/// Checks snapshots until killed: each whole, none older than the one before.
fn read(path: &std::path::Path) {
    let store = Store::options().read_only(true).open(path).unwrap();
    let mut last = BTreeMap::new();
    say("ready");
    loop {
        let durable = check(&store, &store.durable_snapshot().unwrap());
        let found = check(&store, &store.snapshot().unwrap());
        for (name, n) in last {
            assert!(found.get(&name).is_some_and(|now| *now >= n), "{name} went back from {n}");
        }
        for (name, n) in durable {
            assert!(found[&name] >= n, "{name}: durable is ahead of visible");
        }
        last = found;
        say("checked");
        // Leaves the writers some of a small machine.
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Everybody's acknowledged transactions are in the store.
fn assert_kept(store: &Store, told: &BTreeMap<String, (u64, u64)>, after_power_loss: bool) {
    let found = check(store, &store.snapshot().unwrap());
    for (name, (visible, durable)) in told {
        let needed = if after_power_loss { *durable } else { *visible };
        let n = found.get(name).copied().unwrap_or(0);
        assert!(n >= needed, "{name} was told {needed}, {n} is there");
    }
}

#[test]
fn random_kills() {
    let seconds = std::env::var("UNTORN_KILL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let mut random = Random::new("--test kills random_kills");
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut kills, mut reopened, mut slowest) = (0u64, 0u64, Duration::ZERO);
    while Instant::now() < end {
        let place = Place::new();
        let path = place.path();
        let mut told: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        // A store lives through several rounds, at the end of each of which everybody is killed.
        for _ in 0..3 {
            let after_power_loss = round(&path, &mut random, &mut told, &mut kills, &mut slowest);
            let store = workload::open_small(&path);
            reopened += 1;
            assert_kept(&store, &told, after_power_loss);
            assert_verified(&store);
            // From here on what is there is what counts.
            for (name, n) in check(&store, &store.snapshot().unwrap()) {
                told.insert(name, (n, n.min(told_durable(&told, after_power_loss))));
            }
            if random.below(3) == 0 {
                store.checkpoint().unwrap();
                assert_verified(&store);
            }
            drop(store);
        }
    }
    eprintln!("{kills} kills, {reopened} recoveries, others went on after {slowest:?} at most");
}

fn told_durable(_told: &BTreeMap<String, (u64, u64)>, _after_power_loss: bool) -> u64 {
    // What a recovery replayed, it wrote to a new segment and synced before anybody could join.
    u64::MAX
}

/// Runs writers and readers, kills some and the logger, and ends with killing everybody; `control` is removed now and then,
/// which is what a kernel crash leaves of it. Says whether it was.
fn round(
    path: &std::path::Path,
    random: &mut Random,
    told: &mut BTreeMap<String, (u64, u64)>,
    kills: &mut u64,
    slowest: &mut Duration,
) -> bool {
    let mut writers: Vec<(String, Role)> = (0..3)
        .map(|i| {
            let name = format!("w{i}");
            let role = Role::own("writer", path, &name);
            (name, role)
        })
        .collect();
    let readers: Vec<Role> = (0..2).map(|_| Role::own("reader", path, "")).collect();
    for (_, role) in &writers {
        role.wait_for("V");
    }
    let note = |told: &mut BTreeMap<String, (u64, u64)>, name: &str, role: &Role| {
        let (visible, durable) = role.acknowledged();
        let entry = told.entry(name.to_string()).or_default();
        *entry = (entry.0.max(visible), entry.1.max(durable));
    };
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let victim = random.below(4) as usize;
        if victim == 3 {
            kill_logger(path);
            *kills += 1;
        } else {
            writers[victim].1.kill();
            *kills += 1;
            let name = writers[victim].0.clone();
            note(told, &name, &writers[victim].1);
            // The others go on.
            let other = &writers[(victim + 1) % 3].1;
            let (before, start) = (other.acknowledged().0, Instant::now());
            while other.acknowledged().0 == before {
                if start.elapsed() > Duration::from_secs(60) {
                    let stats = Store::options().read_only(true).open(path).and_then(|store| store.stats());
                    panic!("the others are blocked: {stats:#?}, {:?}", other.lines().last());
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            *slowest = start.elapsed().max(*slowest);
            writers[victim].1 = Role::own("writer", path, &name);
            writers[victim].1.wait_for("V");
        }
    }
    for reader in &readers {
        reader.wait_for("checked");
    }
    if random.below(2) == 0 {
        kill_logger(path);
    }
    for (_, role) in &mut writers {
        role.kill();
        *kills += 1;
    }
    drop(readers);
    for (name, role) in &writers {
        note(told, name, role);
    }
    let power_loss = random.below(2) == 0;
    if power_loss {
        kill_logger(path);
        let _ = std::fs::remove_file(path.join("control"));
    }
    power_loss
}

/// Kills the logger of the store and waits until it is gone.
fn kill_logger(path: &std::path::Path) {
    let pid = match Store::options().read_only(true).create(false).open(path) {
        Ok(store) => store.stats().unwrap().logger_pid,
        Err(error) => panic!("{error}"),
    };
    if let Some(pid) = pid {
        // SAFETY: the process is the logger of this test's own store.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(pid as i32, libc::SIGKILL);
        }
        let start = Instant::now();
        while std::path::Path::new(&format!("/proc/{pid}/stat")).exists() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
