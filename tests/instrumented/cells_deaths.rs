//! Goal: cells and counters keep their contract at the worst instants, and the checks of it can
//! fail.
//!
//! Method: processes with crash points die in the middle of a store, or all processes and the
//! kernel do. Each check is then made with a planted bug as well, which it must catch. Interleaving
//! 18 of docs/design.md is here.

use crate::common::{HANGS, Process, Role, TestStore, say, wait_until};
use crate::workload::instrumented::{self, caught, logger_of, signal};
use crate::workload::open_small;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Cell, Durability, Store, Version};
use untorn_test_kit::loggers::{crash_kernel, kill_loggers};
use untorn_test_kit::sealed::{expect_sealed, sealed};

#[test]
fn child() {
    let Some(Role { name, store: path, arguments }) = Role::of_this_process() else { return };
    let mut options = Store::options();
    if name == "durable" {
        // No samples by time; each is requested.
        options.sample_interval(Duration::from_secs(3600));
    }
    let store = options.durability(Durability::Visible).open(&path).unwrap();
    match name.as_str() {
        "store" => store_for_ever(&store, arguments[0].parse().unwrap()),
        "load" => load_for_a_while(&store, Duration::from_secs(arguments[0].parse().unwrap())),
        "add" => (0..200_000).for_each(|_| store.counter("count").unwrap().add(1).unwrap()),
        "durable" => store_durably(&store),
        "versions" => say_versions(&store),
        "create" => drop(store.cell("small", 8).unwrap()),
        other => panic!("no role {other}"),
    }
}

/// Stores one value after the other, without rest.
fn store_for_ever(store: &Store, len: usize) {
    let cell = store.cell("cell", len).unwrap();
    say("storing");
    for n in 1.. {
        cell.store(&sealed(n, len)).unwrap();
    }
}

/// Loads, checks each value, and prints the number of loads and the longest duration.
fn load_for_a_while(store: &Store, time: Duration) {
    let cell = store.find_cell("cell").unwrap().unwrap();
    let (start, mut loads, mut longest) = (Instant::now(), 0_u64, Duration::ZERO);
    while start.elapsed() < time {
        let begun = Instant::now();
        load(&cell);
        longest = longest.max(begun.elapsed());
        loads += 1;
    }
    say(format_args!("{loads} {}", longest.as_millis()));
}

fn load(cell: &Cell) -> (u64, Version) {
    let mut bytes = vec![0; cell.size()];
    let version = cell.load(&mut bytes).unwrap();
    (if bytes.iter().all(|byte| *byte == 0) { 0 } else { expect_sealed(&bytes) }, version)
}

fn store_durably(store: &Store) {
    let cell = store.cell("cell", 64).unwrap();
    for n in 1.. {
        cell.store_durable(&sealed(n, 64)).unwrap();
        say(n);
    }
}

/// Stores, and prints the version of each value.
fn say_versions(store: &Store) {
    let cell = store.cell("cell", 64).unwrap();
    // Numbers that no other process uses.
    let mut n = u64::from(std::process::id()) << 32;
    loop {
        n += 1;
        let version = cell.store(&sealed(n, 64)).unwrap();
        say(format_args!("{} {n}", version.as_u64()));
    }
}

// ---- one writer dies in the middle

/// A writer is killed with half a value written. A reader that loads then gets the last whole
/// value, at once.
fn half_a_store(bug: &str) -> Result<(), String> {
    let test = TestStore::new();
    let path = test.path.clone();
    let checked = caught(|| {
        let store = open_small(&path);
        let cell = store.cell("cell", 64).unwrap();
        // All processes of a cell must agree on the number of its copies.
        let before = instrumented::spawn("cells_deaths::store", &path, &["64"], &[("UNTORN_BUG", bug)]);
        before.hear_prefix("storing");
        drop(before);
        let orders = "cell.half_filled@100:kill";
        let mut writer = instrumented::spawn(
            "cells_deaths::store",
            &path,
            &["64"],
            &[("UNTORN_CRASH", orders), ("UNTORN_BUG", bug)],
        );
        assert!(!writer.wait());
        let mut reader = instrumented::spawn("cells_deaths::load", &path, &["1"], &[("UNTORN_BUG", bug)]);
        assert!(reader.wait(), "the reader failed");
        // The next writer finds the latch held by a dead one.
        let begun = Instant::now();
        cell.store(&sealed(7, 64)).unwrap();
        assert!(begun.elapsed() < HANGS, "the latch was not taken over for {:?}", begun.elapsed());
        assert_eq!(load(&cell).0, 7);
    });
    kill_loggers(&path);
    checked
}

#[test]
fn a_writer_dies_with_half_a_value() {
    assert_eq!(half_a_store(""), Ok(()));
}

#[test]
fn planted_a_cell_of_a_single_copy_is_caught() {
    half_a_store("single-copy-cell").expect_err("the bug was not caught");
}

/// A cell's creator dies when its entry states the cell's kind, but not yet that it is in use. The
/// next cell in that entry has room of its own.
#[test]
fn a_creator_dies_with_a_smaller_cell_in_the_entry() {
    let test = TestStore::new();
    let path = test.path.clone();
    let checked = caught(|| {
        let store = open_small(&path);
        let mut creator =
            instrumented::spawn("cells_deaths::create", &path, &[], &[("UNTORN_CRASH", "cell.entry_filled:kill")]);
        assert!(!creator.wait());
        let large = store.cell("large", 4096).unwrap();
        let others: Vec<Cell> = (0..4).map(|n| store.cell(&format!("other {n}"), 64).unwrap()).collect();
        large.store(&sealed(7, 4096)).unwrap();
        for (n, other) in others.iter().enumerate() {
            for _ in 0..4 {
                other.store(&sealed(n as u64 + 1, 64)).unwrap();
            }
        }
        assert_eq!(load(&large).0, 7);
        for n in 8..12 {
            large.store(&sealed(n, 4096)).unwrap();
        }
        others.iter().enumerate().for_each(|(n, other)| assert_eq!(load(other).0, n as u64 + 1));
    });
    kill_loggers(&path);
    assert_eq!(checked, Ok(()));
}

// ---- a writer that never rests

/// Interleaving 18: 4 KiB are stored back to back while they are read. Every load is whole, and
/// none takes for ever.
fn restless_writer(bug: &str) -> Result<String, String> {
    let test = TestStore::new();
    let path = test.path.clone();
    let _store = open_small(&path);
    let writer = instrumented::spawn("cells_deaths::store", &path, &["4096"], &[("UNTORN_BUG", bug)]);
    writer.hear_prefix("storing");
    let mut reader = instrumented::spawn("cells_deaths::load", &path, &["2"], &[("UNTORN_BUG", bug)]);
    let is_whole = reader.wait();
    let said = reader.lines().join("; ");
    drop(writer);
    if is_whole { Ok(said) } else { Err(said) }
}

#[test]
fn a_cell_is_stored_back_to_back_while_it_is_read() {
    let said = restless_writer("").expect("every load is whole");
    let (loads, longest) = said.split_once(' ').unwrap();
    eprintln!("{loads} loads, the longest {longest} ms");
    assert!(loads.parse::<u64>().unwrap() > 1000, "{said}");
    assert!(longest.parse::<u128>().unwrap() < HANGS.as_millis(), "{said}");
}

#[test]
fn planted_a_load_without_its_second_look_is_caught() {
    assert!((0..5).any(|_| restless_writer("read-cell-once").is_err()), "the bug was not caught");
}

// ---- counters

fn counted(bug: &str) -> u64 {
    let test = TestStore::new();
    let store = open_small(&test.path);
    let count = store.counter("count").unwrap();
    let mut adders: Vec<Process> =
        (0..3).map(|_| instrumented::spawn("cells_deaths::add", &test.path, &[], &[("UNTORN_BUG", bug)])).collect();
    adders.iter_mut().for_each(|adder| assert!(adder.wait()));
    count.get().unwrap()
}

#[test]
fn planted_a_counter_by_load_and_store_is_caught() {
    assert_eq!(counted(""), 600_000);
    assert!(counted("counter-by-load-and-store") < 600_000, "the bug was not caught");
}

// ---- all processes die, and the kernel

/// The sampler is held in the middle of a round, and then all processes die. The log goes on
/// meanwhile.
fn durable_stores(bug: &str) -> Result<(), String> {
    let test = TestStore::new();
    let path = test.path.clone();
    let once = path.with_extension("once").to_string_lossy().into_owned();
    let orders = format!("sample.collected@30:hold={}", path.with_extension("hold").display());
    let env = [("UNTORN_CRASH", orders.as_str()), ("UNTORN_CRASH_ONCE", &once), ("UNTORN_BUG", bug)];
    let mut writer = instrumented::spawn("cells_deaths::durable", &path, &[], &env);
    writer.hear_prefix("20");
    wait_until(|| Path::new(&format!("{once}-sample.collected")).exists());
    std::thread::sleep(Duration::from_millis(50));
    writer.kill();
    crash_kernel(&path);
    let told: u64 = writer.lines().last().unwrap().parse().unwrap();
    let found = load(&Store::open(&path).unwrap().cell("cell", 64).unwrap()).0;
    kill_loggers(&path);
    if found >= told { Ok(()) } else { Err(format!("{told} was durable, {found} is there")) }
}

#[test]
fn planted_a_sample_acknowledged_early_is_caught() {
    assert_eq!(durable_stores(""), Ok(()));
    let what = (0..5).find_map(|_| durable_stores("acknowledge-sample-early").err());
    eprintln!("caught: {}", what.expect("the bug was not caught"));
}

/// A version that was lost with the power never names another value.
fn lost_versions(bug: &str) -> Result<(), String> {
    let test = TestStore::new();
    let path = test.path.clone();
    let mut values = BTreeMap::new();
    for life in 0..3 {
        let mut writer = instrumented::spawn("cells_deaths::versions", &path, &[], &[("UNTORN_BUG", bug)]);
        writer.line(2000);
        // From here on nothing is sampled.
        signal(logger_of(&path).unwrap(), libc::SIGSTOP);
        let heard = writer.lines().len();
        writer.line(heard + 2000);
        writer.kill();
        crash_kernel(&path);
        for line in writer.lines() {
            let Some((version, n)) = line.split_once(' ') else { continue };
            let (Ok(version), Ok(n)) = (version.parse::<u64>(), n.parse::<u64>()) else { continue };
            if values.insert(version, n).is_some_and(|before| before != n) {
                return Err(format!("life {life}: version {version} names two values"));
            }
        }
    }
    Ok(())
}

#[test]
fn planted_versions_that_continue_after_a_loss_are_caught() {
    assert_eq!(lost_versions(""), Ok(()));
    let what = (0..5).find_map(|_| lost_versions("versions-go-on").err());
    eprintln!("caught: {}", what.expect("the bug was not caught"));
}
