//! Cells and counters under kills.

use super::*;
use crate::common::{Process, spawn};

/// Writers of several processes, killed and stopped at random; readers check every load, and are
/// never held up.
#[test]
fn killed_and_stopped_writers() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let mut random = StdRng::seed_from_u64(seed("--test suite cells::kills::killed_and_stopped"));
    for len in [16, 64, 4096] {
        let name = format!("cell of {len}");
        let cell = store.cell(&name, len).unwrap();
        let argument = [name.as_str()];
        let start = || spawn("cells::storer", &test.path, &argument);
        let mut writers: Vec<Process> = (0..2).map(|_| start()).collect();
        writers.iter().for_each(|writer| writer.expect("storing"));
        let reader = spawn("cells::checker", &test.path, &argument);
        reader.expect("checking");
        let mut newest = Version::default();
        for _ in 0..12 {
            let until = Instant::now() + Duration::from_millis(random.random_range(5..40));
            while Instant::now() < until {
                let (_, version) = load(&cell);
                assert!(version >= newest, "the cell went back");
                newest = version;
            }
            let killed = random.random_range(0..writers.len());
            if random.random_bool(0.5) {
                writers[killed].kill();
                writers[killed] = start();
                writers[killed].expect("storing");
            } else {
                writers[killed].signal(Signal::STOP);
                // Whether or not it is stopped in the middle of a store, loads go on.
                for _ in 0..1000 {
                    load(&cell);
                }
                writers[killed].signal(Signal::CONT);
            }
        }
        writers.iter_mut().for_each(|writer| drop(writer.kill()));
        // Also if the last of them died with the latch.
        let start = Instant::now();
        let version = cell.store(&whole(1, len)).unwrap();
        assert!(start.elapsed() < HANGS, "{:?}", start.elapsed());
        assert_eq!(load(&cell), (1, version));
        drop(reader.finish());
    }
    assert_clean(&store);
}

/// Additions of processes that are killed, while the logger is killed as well: none is lost, none
/// counts twice.
#[test]
fn counters_lose_nothing_to_kills() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let total = store.counter("total").unwrap();
    let mut random = StdRng::seed_from_u64(seed("--test suite cells::kills::counters_lose"));
    // Each child has a counter of its own, which it adds to after the common one.
    let mut own = Vec::new();
    let mut start = || {
        let name = format!("of child {}", own.len());
        own.push(store.counter(&name).unwrap());
        let child = spawn("cells::adder", &test.path, &[&name]);
        child.expect("adding");
        child
    };
    let mut children: Vec<Process> = (0..3).map(|_| start()).collect();
    for round in 0..15 {
        std::thread::sleep(Duration::from_millis(random.random_range(1..40)));
        let killed = random.random_range(0..children.len());
        children[killed].kill();
        children[killed] = start();
        if round % 5 == 4 {
            kill_logger(&store);
        }
    }
    children.iter_mut().for_each(|child| drop(child.kill()));
    let counted: u64 = own.iter().map(|counter| counter.get().unwrap()).sum();
    let total = total.get().unwrap();
    // Each child may have died between its two additions.
    assert!((counted..=counted + own.len() as u64).contains(&total), "{counted} by the children, {total} in all");
    assert!(counted > 1000);
}

/// When all processes die, the logger included, cells and counters have what they had.
#[test]
fn the_death_of_all_loses_nothing() {
    let _limit = limit();
    let test = TestStore::new();
    let mut random = StdRng::seed_from_u64(seed("--test suite cells::kills::the_death_of_all"));
    let mut adds = 0;
    let mut newest = Version::default();
    for round in 1..8u64 {
        // Nothing but the region itself can have the values: no sample is taken while the round
        // lasts.
        let child = spawn("cells::all", &test.path, &[&round.to_string()]);
        let mut child = child;
        child.expect("stored");
        let said = child.hear();
        let version = Version::from_u64(said.parse().unwrap());
        assert!(version > newest, "a version was given twice");
        newest = version;
        adds += round;
        let logger: u32 = child.hear().parse().unwrap();
        if random.random_bool(0.5) {
            crate::common::send(logger, Signal::KILL);
        }
        child.kill();
        crate::common::send(logger, Signal::KILL);
        wait_until(|| !crate::common::exists(logger));
        let store = test.open();
        let cell = store.cell("a", 200).unwrap();
        assert_eq!(load(&cell), (round, version), "in round {round}");
        assert_eq!(store.counter("n").unwrap().get().unwrap(), adds);
        assert_clean(&store);
        drop((cell, store));
        if random.random_bool(0.3) {
            test.stop_logger();
        }
    }
}

// ---- roles
