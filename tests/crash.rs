//! Goal: a process may die at every named step of every protocol, and nothing is torn, lost or blocked.
//!
//! Method: this test builds itself once more with the crash points compiled in, into a target directory of its own, and runs
//! real processes that are killed, stopped or held at each point in turn; then others go on, everybody is killed, `control` is
//! removed (that is what a kernel crash leaves of it), and each time all that was acknowledged is looked for. Planted bugs show
//! that these checks can fail.

mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use untorn::{Durability, Feed};
use workload::victim::{caught, kill_loggers, logger_of};
use workload::{
    CellWriter, Place, Role, Writer, assert_verified, check, check_cells, my_role, open_small, say, sealed, unsealed,
};

#[test]
fn role() {
    let Some((name, path, arguments)) = my_role() else { return };
    match name.as_str() {
        "busy" => busy(&path, &arguments),
        "brief" => drop(open_small(&path)),
        "pinned" => pinned(&path),
        other => panic!("no role {other}"),
    }
}

/// Does everything that a store can do, again and again, until killed or until so many rounds are done.
fn busy(path: &Path, arguments: &[String]) {
    let rounds: u64 = arguments.get(1).map_or(u64::MAX, |text| text.parse().unwrap());
    let store = open_small(path);
    let writer = Writer::open(store.clone(), &arguments[0]).unwrap();
    let extra = store.keyspace(&format!("extra-{}", arguments[0])).unwrap();
    let cells = CellWriter::open(&store, &arguments[0]).unwrap();
    let mut n = writer.last().unwrap();
    let from = store.snapshot().unwrap().txn_id();
    let mut changes = store.changes(from, Feed::Visible).unwrap().keyspace("marks").prefix(arguments[0].as_bytes());
    let mut told = n;
    let is_sound = std::env::var_os("UNTORN_BUG").is_none_or(|bug| bug.is_empty());
    for round in 0..rounds {
        for _ in 0..12 {
            n += 1;
            let durable = n.is_multiple_of(4);
            let durability = if durable { Durability::Durable } else { Durability::Visible };
            let _ticket = writer.commit(n, durability).unwrap();
            cells.store(n).unwrap();
            say(format_args!("{} {n}", if durable { "D" } else { "V" }));
        }
        // Its own commits, one after the other. A planted bug is to be found by what it leaves, not by this.
        while is_sound && let Some(change) = changes.try_next(Duration::ZERO).unwrap() {
            assert_eq!(unsealed(change.value().unwrap()), told + 1);
            told += 1;
        }
        assert!(told == n || !is_sound);
        cells.store_durable(n).unwrap();
        say(format_args!("C {n}"));
        let passing = format!("passing {}", arguments[0]);
        store.cell(&passing, 24).unwrap().store(&sealed(n, 24)).unwrap();
        assert!(store.drop_cell(&passing).unwrap());
        // A transaction larger than the ring, a large value, deletes that merge, a keyspace that comes and goes.
        let mut txn = store.begin().unwrap();
        for i in 0..60u64 {
            txn.put(&extra, &i.to_be_bytes(), &sealed(round, 3000)).unwrap();
        }
        txn.put(&extra, b"large", &sealed(round, 150_000)).unwrap();
        let _ticket = txn.commit_with(Durability::Visible).unwrap();
        let mut txn = store.begin().unwrap();
        for i in 5..60u64 {
            txn.delete(&extra, &i.to_be_bytes()).unwrap();
        }
        let short = txn.keyspace("short-lived").unwrap();
        txn.put(&short, b"k", &sealed(round, 50)).unwrap();
        let _ticket = txn.commit_with(Durability::Visible).unwrap();
        let mut txn = store.begin().unwrap();
        txn.put(&extra, b"undone", b"never seen").unwrap();
        for i in 100..140u64 {
            txn.put(&extra, &i.to_be_bytes(), &sealed(round, 3000)).unwrap();
        }
        txn.rollback();
        store.drop_keyspace("short-lived").unwrap();
        check(&store, &store.snapshot().unwrap());
        check(&store, &store.durable_snapshot().unwrap());
        assert!(extra.get(b"undone").unwrap().is_none());
        assert_eq!(unsealed(&extra.get(b"large").unwrap().unwrap()), round);
        if round % 3 == 2 {
            store.checkpoint().unwrap();
        }
    }
}

/// Keeps a snapshot and reads it again and again while others write.
fn pinned(path: &Path) {
    let store = open_small(path);
    let snapshot = store.snapshot().unwrap();
    let first = check(&store, &snapshot);
    say("ready");
    loop {
        assert_eq!(check(&store, &snapshot), first);
        say("again");
    }
}

fn victim() -> &'static Path {
    workload::victim::build("crash")
}

/// What kind of start the store has when the victim comes.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    Empty,
    Used,
    /// Used, and everybody was killed and the kernel crashed.
    Crashed,
}

/// One death at one point, and all that must hold afterwards.
fn case(orders: &str, point: &str, bug: &str, start: Start, rounds: &str) -> Result<(), String> {
    let place = Place::new();
    let path = place.path();
    let once = path.with_extension("once");
    let checked = caught(|| {
        if start != Start::Empty {
            assert!(Role::own("busy", &path, "before 4").end());
            if start == Start::Crashed {
                // Something to replay, whenever the last checkpoint was.
                let store = open_small(&path);
                store.checkpoint().unwrap();
                let writer = Writer::open(store, "late").unwrap();
                for n in 1..4 {
                    let _ticket = writer.commit(n, Durability::Durable).unwrap();
                }
            }
            // The victim's logger is to be one with crash points.
            kill_loggers(&path);
            if start == Start::Crashed {
                let _ = std::fs::remove_file(path.join("control"));
            }
        }
        let once_path = once.to_string_lossy().into_owned();
        let env = [("UNTORN_CRASH", orders), ("UNTORN_CRASH_ONCE", once_path.as_str()), ("UNTORN_BUG", bug)];
        let mut role = Role::start(victim(), "busy", &path, &format!("victim {rounds}"), &env);
        // The point is passed sooner or later; if it was the victim's own, it is dead now.
        let mark = PathBuf::from(format!("{once_path}-{point}"));
        let begun = Instant::now();
        while !mark.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "never came by {point}");
            std::thread::sleep(Duration::from_micros(500));
        }
        std::thread::sleep(Duration::from_millis(30));
        let told = role.acknowledged();
        // Others go on within a second, with nobody's help. (A machine that is busy building gets some more.)
        let other = Role::own("busy", &path, "other");
        let begun = Instant::now();
        other.wait_for("D");
        assert!(begun.elapsed() < Duration::from_secs(20), "others were blocked for {:?}", begun.elapsed());
        {
            let store = open_small(&path);
            let found = check(&store, &store.snapshot().unwrap());
            assert!(found.get("victim").copied().unwrap_or(0) >= told.0, "told {told:?}, found {found:?}");
            let cells = check_cells(&store, "victim");
            assert!(cells.0 >= told.0 && cells.1 >= told.0, "told {told:?}, found {cells:?}");
            assert_verified(&store);
        }
        role.kill();
        let (victim_told, other_told) = (role.acknowledged(), other.acknowledged());
        let (victim_cell, other_cell) = (role.acknowledged_cell(), other.acknowledged_cell());
        drop(other);
        kill_loggers(&path);
        {
            let store = open_small(&path);
            let found = check(&store, &store.snapshot().unwrap());
            assert!(found.get("victim").copied().unwrap_or(0) >= victim_told.0, "{victim_told:?}, found {found:?}");
            assert!(found["other"] >= other_told.0, "told {other_told:?}, found {found:?}");
            let (cells, others) = (check_cells(&store, "victim"), check_cells(&store, "other"));
            assert!(cells.0 >= victim_told.0 && cells.1 >= victim_told.0, "told {victim_told:?}, found {cells:?}");
            assert!(others.0 >= other_told.0 && others.1 >= other_told.0, "told {other_told:?}, found {others:?}");
            assert_verified(&store);
        }
        kill_loggers(&path);
        let _ = std::fs::remove_file(path.join("control"));
        let store = open_small(&path);
        let found = check(&store, &store.snapshot().unwrap());
        assert!(found.get("victim").copied().unwrap_or(0) >= victim_told.1, "{victim_told:?}, found {found:?}");
        assert!(found["other"] >= other_told.1, "told {other_told:?}, found {found:?}");
        assert!(check_cells(&store, "victim").0 >= victim_cell, "{victim_cell} was durable in the victim's cell");
        assert!(check_cells(&store, "other").0 >= other_cell, "{other_cell} was durable in the other's cell");
        assert_verified(&store);
    });
    kill_loggers(&path);
    checked
}

/// What leads to a point, if it is not plain work in a used store.
fn orders_for(point: &str) -> (String, Start, &'static str) {
    match point {
        "flush.failed" => ("wal.sync@3:fail,flush.failed:kill".into(), Start::Used, ""),
        "logger.unneeded" | "logger.leaving" | "logger.byte_dropped" => (format!("{point}:kill"), Start::Used, "1"),
        // The arena grows seldom.
        "grow.before_zeros" => (format!("{point}:kill"), Start::Empty, ""),
        // Somebody must have died while a cell was created or dropped.
        "cell.resolved" => (format!("cell.dropped@2:kill,{point}:kill"), Start::Used, ""),
        // What a process passes once in its life, it passes at the first time.
        "logger.byte_taken" | "logger.ready" | "client.entered" => (format!("{point}:kill"), Start::Used, ""),
        _ if point.starts_with("create.") => (format!("{point}:kill"), Start::Empty, ""),
        _ if point.starts_with("recover.") || point.starts_with("replay.") => {
            (format!("{point}:kill"), Start::Crashed, "")
        }
        _ => (format!("{point}@2:kill"), Start::Used, ""),
    }
}

#[test]
fn a_death_at_every_point() {
    let points = untorn::crash_points::ALL;
    assert!(points.len() > 30, "{points:?}");
    let only = std::env::var("UNTORN_POINT").ok();
    let mut failures = Vec::new();
    for point in points.iter().filter(|point| only.as_ref().is_none_or(|only| only == *point)) {
        let (orders, start, rounds) = orders_for(point);
        let begun = Instant::now();
        let done = case(&orders, point, "", start, rounds);
        eprintln!("{point}: {:?}, {:?}", done, begun.elapsed());
        if let Err(what) = done {
            failures.push(format!("UNTORN_POINT={point} cargo test --test crash a_death: {what}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn planted_a_swing_before_the_record_is_caught() {
    let orders = "commit.record_written@9:kill";
    let point = "commit.record_written";
    assert_eq!(case(orders, point, "", Start::Used, ""), Ok(()));
    let what = case(orders, point, "swing-before-record", Start::Used, "").expect_err("the bug was not caught");
    assert!(!what.contains("never came"), "{what}");
    eprintln!("caught: {what}");
}

/// Somebody is stopped at a point; a while later everybody dies, and the kernel: what was acknowledged must be there.
fn crash_at(orders: &str, point: &str, bug: &str) -> Result<(), String> {
    let place = Place::new();
    let path = place.path();
    let once = path.with_extension("once").to_string_lossy().into_owned();
    let env = [("UNTORN_CRASH", orders), ("UNTORN_CRASH_ONCE", &once), ("UNTORN_BUG", bug)];
    let mut role = Role::start(victim(), "busy", &path, "victim", &env);
    let begun = Instant::now();
    while !Path::new(&format!("{once}-{point}")).exists() {
        assert!(begun.elapsed() < Duration::from_secs(40), "never came by {point}");
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_millis(200));
    role.kill();
    let told = role.acknowledged();
    kill_loggers(&path);
    std::fs::remove_file(path.join("control")).unwrap();
    let checked = caught(|| {
        let store = open_small(&path);
        let found = check(&store, &store.snapshot().unwrap());
        let n = found.get("victim").copied().unwrap_or(0);
        assert!(n >= told.1, "{} was acknowledged, {n} is there", told.1);
        assert_verified(&store);
    });
    kill_loggers(&path);
    checked
}

#[test]
fn planted_a_header_before_its_pages_is_caught() {
    let (orders, point) = ("header.after_sync@3:stop", "header.after_sync");
    assert_eq!(crash_at(orders, point, ""), Ok(()));
    // Seen if the checkpoint had pages to sum.
    let what = (0..5).find_map(|_| crash_at(orders, point, "header-before-pages").err());
    eprintln!("caught: {}", what.expect("the bug was not caught"));
}

#[test]
fn planted_an_acknowledgement_before_the_sync_is_caught() {
    let (orders, point) = ("flush.before_write@30:stop", "flush.before_write");
    assert_eq!(crash_at(orders, point, ""), Ok(()));
    // Seen if something that the early acknowledgement covered is missing or was overwritten in the ring.
    let what = (0..5).find_map(|_| crash_at(orders, point, "acknowledge-before-fsync").err());
    eprintln!("caught: {}", what.expect("the bug was not caught"));
}

/// **I3**, pins: a snapshot is read while everything is overwritten again and again.
fn pinned_reader(bug: &str) -> bool {
    let place = Place::new();
    let path = place.path();
    assert!(Role::own("busy", &path, "before 3").end());
    let mut reader = Role::own("pinned", &path, "");
    reader.wait_for("ready");
    let writer = Role::start(victim(), "busy", &path, "victim", &[("UNTORN_BUG", bug)]);
    let begun = Instant::now();
    let mut whole = true;
    while begun.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(20));
        if reader.child.try_wait().unwrap().is_some() {
            whole = false;
            break;
        }
    }
    drop(writer);
    reader.kill();
    kill_loggers(&path);
    whole
}

#[test]
fn planted_a_page_reused_under_a_pin_is_caught() {
    assert!(pinned_reader(""), "a pinned snapshot changed");
    assert!(!pinned_reader("reuse-one-txn-early"), "the bug was not caught");
}

/// **I3**, checkpoints: the logger is held between the sums and the header of C while writers go on; then the header is
/// written and everybody dies, and the kernel. Recovery stands on C, whose pages must be untouched.
fn held_checkpoint(bug: &str) -> Result<(), String> {
    let place = Place::new();
    let path = place.path();
    assert!(Role::own("busy", &path, "before 3").end());
    kill_loggers(&path);
    let gate = path.with_extension("gate");
    let once = path.with_extension("once").to_string_lossy().into_owned();
    let orders = format!("checkpoint.arena_synced:hold={},checkpoint.header_written:kill", gate.display());
    let env = [("UNTORN_CRASH", orders.as_str()), ("UNTORN_CRASH_ONCE", &once), ("UNTORN_BUG", bug)];
    let mut role = Role::start(victim(), "busy", &path, "victim", &env);
    let begun = Instant::now();
    while !gate.with_extension("reached").exists() {
        // A page of the checkpoint that was overwritten early enough ends the checkpoint itself, and who waits for it.
        if let Some(status) = role.child.try_wait().unwrap() {
            kill_loggers(&path);
            return Err(format!("the writer met damage: {status}"));
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "no checkpoint came");
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_millis(400));
    std::fs::write(&gate, "").unwrap();
    while !Path::new(&format!("{once}-checkpoint.header_written")).exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the header was not written");
        std::thread::sleep(Duration::from_micros(500));
    }
    role.kill();
    let told = role.acknowledged();
    kill_loggers(&path);
    let _ = std::fs::remove_file(path.join("control"));
    let checked = caught(|| {
        let store = open_small(&path);
        let found = check(&store, &store.snapshot().unwrap());
        assert!(found.get("victim").copied().unwrap_or(0) >= told.1);
        assert_verified(&store);
    });
    kill_loggers(&path);
    checked
}

#[test]
fn planted_a_page_of_the_running_checkpoint_reused_is_caught() {
    assert_eq!(held_checkpoint(""), Ok(()));
    let caught = (0..3).find_map(|_| held_checkpoint("reuse-running-checkpoint").err());
    assert!(caught.is_some(), "the bug was not caught");
}

/// A failed sync of the arena, of the header: no checkpoint any more, a sticky mark, errors that say so, readers go on;
/// after all have closed it, the store is whole again.
///
/// The logger is held before the sync until another client has joined, since a marked store that nobody uses any more is
/// recovered at once.
#[test]
fn a_failed_sync_of_arena_or_header_is_sticky_until_all_have_closed() {
    // The first write of a header is recovery's.
    for (before, point, nth) in
        [("checkpoint.pages_summed", "arena.sync", 1), ("checkpoint.arena_synced", "checkpoint.sync", 2)]
    {
        let place = Place::new();
        let path = place.path();
        assert!(Role::own("busy", &path, "before 4").end());
        kill_loggers(&path);
        let gate = path.with_extension("gate");
        let once = path.with_extension("once").to_string_lossy().into_owned();
        let orders = format!("{before}:hold={},{point}@{nth}:fail", gate.display());
        let env = [("UNTORN_CRASH", orders.as_str()), ("UNTORN_CRASH_ONCE", &once)];
        let mut role = Role::start(victim(), "busy", &path, "victim", &env);
        let begun = Instant::now();
        while !gate.with_extension("reached").exists() {
            assert!(begun.elapsed() < Duration::from_secs(40), "{point}: no checkpoint came");
            std::thread::sleep(Duration::from_micros(500));
        }
        let store = open_small(&path);
        std::fs::write(&gate, "").unwrap();
        assert!(!role.end(), "{point}: the writer should have met the error");
        let told = role.acknowledged();
        let refused = store.begin().map(|_| ()).unwrap_err();
        assert!(matches!(refused, untorn::Error::NeedsRecovery { .. }), "{point}: {refused}");
        assert!(store.stats().unwrap().needs_recovery.is_some());
        check(&store, &store.snapshot().unwrap());
        drop(store);
        // A marked store's logger makes room as soon as nobody uses it; told, it is quicker.
        untorn::stop_logger(&path, Duration::from_secs(10)).unwrap();
        let store = open_small(&path);
        let found = check(&store, &store.snapshot().unwrap());
        assert!(found["victim"] >= told.1, "{point}: told {told:?}, found {found:?}");
        store.begin().unwrap().rollback();
        assert_verified(&store);
        drop(store);
        assert!(logger_of(&path).is_some());
    }
}
