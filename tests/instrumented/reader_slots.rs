//! Goal: reader slots go back to the shared table when they are not needed any more, and a claim of
//! one never waits for another process.
//!
//! Method: the occupancy map in `control` is read from the file: its bits are the slots that each
//! scan reads. Where a process dies, or is held, in the middle of a claim, it runs the
//! instrumented build.

use crate::common::{Role, limit, listen, say, spawn, wait_until};
use crate::workload::instrumented::{self, Scenario};
use crate::workload::worker;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use untorn::internals::{READER_CHUNK, READER_MAP_AT, READER_MAP_BYTES};
use untorn::{Durability, Keyspace, Snapshot, Store};

#[test]
fn child() {
    let Some(Role { name, store: path, arguments }) = Role::of_this_process() else { return };
    match name.as_str() {
        "holder" => hold(&path, arguments[0].parse().unwrap()),
        other => panic!("no role {other}"),
    }
}

/// Holds `count` snapshots, each of another transaction, until a command ends it.
fn hold(path: &Path, count: usize) {
    let store = worker::options().open(path).unwrap();
    say("open");
    let held = snapshots(&store, count);
    say("held");
    listen();
    drop(held);
}

/// So many snapshots, each of another transaction.
fn snapshots(store: &Store, count: usize) -> Vec<Snapshot> {
    let keys = store.keyspace("keys").unwrap();
    (0..count)
        .map(|n| {
            put(store, &keys, n);
            store.snapshot().unwrap()
        })
        .collect()
}

fn put(store: &Store, keys: &Keyspace, n: usize) {
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(keys, b"key", &n.to_be_bytes()).unwrap();
    let _ticket = txn.commit().unwrap();
}

/// The slots that a scan reads.
fn entered(path: &Path) -> u32 {
    let mut map = vec![0; READER_MAP_BYTES];
    let control = std::fs::File::open(path.join("control")).unwrap();
    control.read_exact_at(&mut map, READER_MAP_AT).unwrap();
    map.iter().map(|byte| byte.count_ones()).sum()
}

/// What a process keeps at most beside the slots of its threads.
const CACHE: u32 = 8;

#[test]
fn slots_of_dropped_snapshots_go_back_to_the_table() {
    let _limit = limit();
    let scenario = Scenario::new();
    let store = worker::options().open(&scenario.path).unwrap();
    let mut held = snapshots(&store, 3000);
    assert!(entered(&scenario.path) >= 3000);
    // The newest one stays: its slot has the highest number.
    let newest = held.pop();
    drop(held);
    assert!(entered(&scenario.path) <= CACHE + 2, "{} slots", entered(&scenario.path));
    drop(newest);
    assert!(entered(&scenario.path) <= CACHE + 1, "{} slots", entered(&scenario.path));
    // The lowest free slots are used first, so the table does not grow.
    let len = std::fs::metadata(scenario.path.join("control")).unwrap().len();
    drop(snapshots(&store, 3000));
    assert_eq!(std::fs::metadata(scenario.path.join("control")).unwrap().len(), len);
    crate::common::assert_clean(&store);
}

#[test]
fn the_slots_of_threads_that_ended_go_back_to_the_table() {
    let _limit = limit();
    let scenario = Scenario::new();
    let store = worker::options().open(&scenario.path).unwrap();
    const THREADS: usize = 200;
    let all_have_one = Barrier::new(THREADS + 1);
    let all_may_end = Barrier::new(THREADS + 1);
    let outlives = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (store, all_have_one, all_may_end) = (&store, &all_have_one, &all_may_end);
                scope.spawn(move || {
                    let snapshot = store.snapshot().unwrap();
                    all_have_one.wait();
                    all_may_end.wait();
                    // That of one thread outlives it.
                    (thread == 0).then_some(snapshot)
                })
            })
            .collect();
        all_have_one.wait();
        assert!(entered(&scenario.path) >= THREADS as u32);
        all_may_end.wait();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    // A scope may end before the thread-local values of its threads are gone.
    wait_until(|| entered(&scenario.path) <= CACHE + 1);
    assert_eq!(outlives.len(), 1);
    drop(outlives);
    assert!(entered(&scenario.path) <= CACHE);
}

#[test]
fn the_slots_of_a_process_that_died_go_back_to_the_table() {
    let _limit = limit();
    let scenario = Scenario::new();
    let store = worker::options().open(&scenario.path).unwrap();
    let mut holder = spawn("reader_slots::holder", &scenario.path, &["2000"]);
    holder.hear_prefix("held");
    assert!(entered(&scenario.path) >= 2000);
    holder.kill();
    wait_until(|| entered(&scenario.path) <= CACHE + 1);
    crate::common::assert_clean(&store);
}

/// A client that is killed between its claim of a slot and the bit that leads to it leaves no slot
/// without use.
#[test]
fn a_slot_whose_owner_died_before_it_was_entered_is_used_again() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let store = worker::options().open(&scenario.path).unwrap();
    let before = store.stats().unwrap().reaped;
    let mut holder = scenario.start("reader_slots::holder", &["5"], &["readers.claimed@3:kill".into()], "");
    holder.hear_prefix("open");
    assert!(!holder.wait());
    // The process, the slot that was claimed and the two that were entered.
    wait_until(|| store.stats().unwrap().reaped >= before + 4);
}

/// A process that makes room in the table is stopped, and then killed: others take slots meanwhile,
/// and use the room that it was to make.
#[test]
fn a_process_stopped_while_it_makes_room_blocks_no_reader() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let store = worker::options().open(&scenario.path).unwrap();
    let hold = scenario.hold_point("making-room");
    hold.arm();
    let many = READER_CHUNK + 100;
    let mut holder =
        scenario.start("reader_slots::holder", &[&many.to_string()], &[hold.at("readers.chunk_claimed")], "");
    hold.wait();
    // The first chunk is used up by the process that is held in the making of the second.
    let held = snapshots(&store, 200);
    assert!(entered(&scenario.path) >= (READER_CHUNK + 200) as u32);
    hold.release();
    holder.hear_prefix("held");
    holder.kill();
    wait_until(|| (entered(&scenario.path) as usize) < READER_CHUNK);
    drop(held);

    // Another one dies there.
    let died = scenario
        .start("reader_slots::holder", &[&(4 * READER_CHUNK).to_string()], &["readers.chunk_claimed:kill".into()], "")
        .wait();
    assert!(!died);
    wait_until(|| (entered(&scenario.path) as usize) < READER_CHUNK);
    let held = snapshots(&store, 4 * READER_CHUNK);
    assert!(entered(&scenario.path) as usize >= 4 * READER_CHUNK);
    drop(held);
    crate::common::assert_clean(&store);
}
