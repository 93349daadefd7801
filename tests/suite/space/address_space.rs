//! Goal: the address space of a process bounds neither how many stores it opens nor how large they
//! are. A store maps little at first and more as it is used; where the process may not map more, a
//! call fails by an error that names the cause, and the store works as before.
//!
//! Method: the kernel's figure of what a process has mapped; many stores in one process; processes
//! under a small limit (`RLIMIT_AS`), in which the first mapping of the arena is small, so that
//! megabytes of records lie beyond it and across its borders. Those processes are started from this
//! executable in the roles at the end of the file.

use crate::common::{
    HANGS, Process, Role, TestStore, assert_clean, exists, kill_logger, limit, listen, say, spawn, spawn_by, wait_until,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use std::process::Command;
use untorn::{Durability, Error, Keyspace, Store};

/// What a limited process may map. The first mapping of the arena takes a 64th of it: 8 MiB.
const LIMIT_BYTES: u64 = 512 << 20;
const FIRST_BYTES: u64 = LIMIT_BYTES / 64;
/// What a process that has come to its limit may still allocate: less than any mapping of the
/// arena.
const SLACK_BYTES: u64 = 3 << 20;
/// Length of a value of which two or three lie between the borders of mappings.
const LARGE: usize = 3 << 20;

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "measure" => measure(&role),
        "grow" => grow(&role),
        "check" => check(&Store::open(&role.store).unwrap(), role.number(0)),
        "write-until-full" => write_until_full(&role),
        "read-later" => read_later(&role),
        "cells" => cells(&role),
        "cells-until-full" => cells_until_full(&role),
        "many-stores" => many_stores(&role),
        "many-mappings" => many_mappings(&role),
        other => panic!("no role {other}"),
    }
}

/// A child that may map [`LIMIT_BYTES`], and so may the logger that it starts.
fn limited(role: &str, store: &Path, arguments: &[&str]) -> Process {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -v {} && exec \"$0\" \"$@\"", LIMIT_BYTES >> 10));
    // The C library would reserve 64 MiB for the heap of each thread.
    shell.arg(std::env::current_exe().unwrap()).env("MALLOC_ARENA_MAX", "1");
    spawn_by(shell, &format!("space::address_space::{role}"), store, arguments)
}

/// Bytes of address space that this process has mapped.
fn mapped_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// How many mappings of a file of the store this process has.
fn mappings_of(store: &Path, file: &str) -> usize {
    let path = std::fs::canonicalize(store.join(file)).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count()
}

/// Sets what this process may map from now on.
fn limit_to(bytes: Option<u64>) {
    setrlimit(Resource::As, Rlimit { current: bytes, ..getrlimit(Resource::As) }).unwrap();
}

/// A process reserved 1 GiB for the shared region of any store, and twice its greatest size for the
/// arena.
#[test]
fn a_store_takes_little_address_space() {
    let _limit = limit();
    for (max_size, most) in [(8 << 20, 48 << 20), (0, 130 << 30)] {
        let test = TestStore::new();
        let child = spawn("space::address_space::measure", &test.path, &[&max_size.to_string()]);
        let found: u64 = child.hear().parse().unwrap();
        child.finish();
        eprintln!("address space of a store of {max_size} bytes (0: the default): {found} bytes");
        assert!(found < most, "{found} bytes are mapped for a store of {max_size}");
    }
}

/// A process could open 32 to 64 stores, whose arenas it mapped at their greatest size.
#[test]
fn one_process_opens_256_stores() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    spawn("space::address_space::many-stores", dir.path(), &[]).finish();
}

/// Opens 256 stores of the default sizes in a directory. Their descriptors and mappings are not for
/// the process of other tests.
fn many_stores(role: &Role) {
    let open = |number: u64| {
        let path = role.store.join(number.to_string());
        let store = Store::options().durability(Durability::Visible).open(&path).unwrap();
        let rows = store.keyspace("rows").unwrap();
        rows.put(b"first", &number.to_le_bytes()).unwrap();
        // No logger stays: to have 256 of them is not the goal.
        untorn::logger::stop_logger(&path, HANGS).unwrap();
        (store, rows, path)
    };
    let stores: Vec<_> = (0..256).map(open).collect();
    for (number, (store, rows, _)) in stores.iter().enumerate() {
        let found = rows.get(b"first").unwrap();
        assert_eq!(found.as_deref(), Some(&(number as u64).to_le_bytes()[..]));
        assert_eq!(store.snapshot().unwrap().len(rows).unwrap(), 1);
    }
    // Beside all others, and not only beside those before it. Each needs another logger, so some
    // stand for all.
    for (_, rows, path) in stores.iter().step_by(15) {
        rows.put(b"second", b"value").unwrap();
        assert_eq!(rows.get(b"second").unwrap().as_deref(), Some(&b"value"[..]));
        untorn::logger::stop_logger(path, HANGS).unwrap();
    }
}

/// Records that lie beyond the first mapping of the arena and across its borders survive the deaths
/// of all processes. A limited logger recovers them, and limited and unlimited readers find the
/// same.
#[test]
fn a_store_grows_beyond_its_first_mapping() {
    let _limit = limit();
    let test = TestStore::new();
    let mut written = 0;
    for round in 0..3 {
        let mut child = limited("grow", &test.path, &[&written.to_string()]);
        let logger: u32 = child.hear().parse().unwrap();
        for _ in 0..4 {
            written = child.hear().parse().unwrap();
        }
        crate::common::send(logger, rustix::process::Signal::KILL);
        written = child.kill().last().map_or(written, |said| said.parse().unwrap());
        wait_until(|| !exists(logger));
        limited("check", &test.path, &[&written.to_string()]).finish();
        eprintln!("round {round}: {written} values");
    }
    let store = test.open();
    let before = mappings_of(&test.path, "arena");
    check(&store, written);
    assert_eq!(mappings_of(&test.path, "arena"), before, "an unlimited reader has mapped all of it at once");
}

/// A writer that has come to the end of its address space gets an error that names the limit. What
/// it has is whole and readable, small changes get through, and so does the large one once there is
/// room.
#[test]
fn a_writer_without_address_space_gets_an_error() {
    let _limit = limit();
    let test = TestStore::new();
    let child = spawn("space::address_space::write-until-full", &test.path, &[]);
    child.expect("works again");
    child.finish();
    assert_clean(&test.open());
}

/// A reader that has come to the end of its address space gets an error, and the value once there
/// is room.
#[test]
fn a_reader_without_address_space_gets_an_error() {
    let _limit = limit();
    let test = TestStore::new();
    let mut child = spawn("space::address_space::read-later", &test.path, &[]);
    child.expect("open");
    let store = test.open();
    let rows = store.keyspace("rows").unwrap();
    for number in 0..5 {
        rows.put(&key(number), &value(number)).unwrap();
    }
    assert_eq!(child.ask("read"), "works again");
    child.finish();
}

/// The copies of cells are mapped as they are used, in recovery as well.
#[test]
fn cells_lie_beyond_the_first_mapping() {
    let _limit = limit();
    let test = TestStore::new();
    let child = spawn("space::address_space::cells", &test.path, &["make"]);
    let logger: u32 = child.hear().parse().unwrap();
    // Dies of its exit code alone: the store is not closed.
    child.finish();
    wait_until(|| !exists(logger));
    let child = spawn("space::address_space::cells", &test.path, &["check"]);
    child.finish();
    assert_clean(&test.open());
}

/// A process that can map no more creates no cell, and uses nothing up by trying.
#[test]
fn a_cell_without_address_space_is_an_error() {
    let _limit = limit();
    let test = TestStore::new();
    let child = spawn("space::address_space::cells-until-full", &test.path, &[]);
    child.expect("works again");
    child.finish();
    assert_clean(&test.open());
}

/// The kernel limits the number of mappings as well, and answers as if there were no memory.
#[test]
fn too_many_mappings_are_named() {
    let _limit = limit();
    let most: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if most > 1 << 20 {
        eprintln!("skipped: a process may have {most} mappings");
        return;
    }
    let test = TestStore::new();
    let other = TestStore::new();
    drop(test.open());
    let child = spawn("space::address_space::many-mappings", &test.path, &[other.path.to_str().unwrap()]);
    child.expect("works again");
    child.finish();
}

// ---- roles

fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The value of a number: large, and once larger than the first mapping.
fn value(number: u64) -> Vec<u8> {
    let len = if number == 7 { FIRST_BYTES as usize + 4097 } else { LARGE + number as usize };
    (0..len as u64)
        .map(|at| (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ (at / 8)).to_le_bytes()[at as usize % 8])
        .collect()
}

fn measure(role: &Role) {
    let before = mapped_bytes();
    let mut options = Store::options();
    options.durability(Durability::Visible);
    if role.number(0) != 0 {
        options.max_size(role.number(0));
    }
    let store = options.open(&role.store).unwrap();
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"key", b"value").unwrap();
    assert_eq!(rows.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    say(mapped_bytes() - before);
}

fn grow(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let rows = store.keyspace("rows").unwrap();
    say(store.stats().unwrap().logger_pid.unwrap());
    for number in role.number(0).. {
        let mut txn = store.begin().unwrap();
        txn.put(&rows, &key(number), &value(number)).unwrap();
        for small in 0..100_u64 {
            txn.put(&rows, &[key(number), key(small)].concat(), &number.to_be_bytes()).unwrap();
        }
        txn.commit().unwrap();
        say(number + 1);
    }
}

/// All values up to `written` are there. Of later ones only the next may be there, whole: it was
/// committed and not reported.
fn check(store: &Store, written: u64) {
    let rows = store.keyspace("rows").unwrap();
    let snapshot = store.snapshot().unwrap();
    let count = snapshot.len(&rows).unwrap() / 101;
    assert!((written..=written + 1).contains(&count), "{count} of {written} values");
    assert_eq!(snapshot.len(&rows).unwrap(), count * 101);
    // Held to the end: nothing that is mapped later may move them.
    let held: Vec<_> = (0..count).map(|number| snapshot.get(&rows, &key(number)).unwrap().unwrap()).collect();
    for (number, found) in (0..).zip(&held) {
        assert!(**found == *value(number), "value {number}");
    }
    assert_clean(store);
    for (number, found) in (0..).zip(&held) {
        assert!(**found == *value(number), "value {number}, held since others were mapped");
    }
}

/// The error of a call that found no address space for a file.
#[track_caller]
fn no_address_space(error: &Error, file: &str, limit: u64) {
    let text = error.to_string();
    let is_no_memory = matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(12));
    let option = if file == "arena" { "`Options::max_size`" } else { "`Options::ring_size`" };
    for what in [&format!("of {file} from byte"), "RLIMIT_AS", "ulimit -v", &limit.to_string(), option] {
        assert!(is_no_memory && text.contains(what), "{text}");
    }
}

/// Has this process come to its limit; which that is.
fn reach_limit() -> u64 {
    let limit = mapped_bytes() + SLACK_BYTES;
    limit_to(Some(limit));
    limit
}

fn write_until_full(role: &Role) {
    limit_to(Some(LIMIT_BYTES));
    let store = Store::open(&role.store).unwrap();
    let rows = store.keyspace("rows").unwrap();
    let small = |rows: &Keyspace, number: u64| rows.put(b"small", &number.to_le_bytes());
    for number in 0..50 {
        small(&rows, number).unwrap();
    }
    let before = mappings_of(&role.store, "arena");
    let value = |number: u64| value(number)[..512 << 10].to_vec();
    let held = value(0);
    rows.put(&key(0), &held).unwrap();
    let kept = rows.get(&key(0)).unwrap().unwrap();
    let limit = reach_limit();
    let mut written = 1;
    let error = loop {
        match rows.put(&key(written), &value(written)) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    no_address_space(&error, "arena", limit);
    assert!((2..64).contains(&written), "{written} values");
    // Over and over: no attempt leaves anything.
    let mapped = mapped_bytes();
    for _ in 0..100 {
        no_address_space(&rows.put(&key(written), &value(written)).unwrap_err(), "arena", limit);
    }
    assert!(mapped_bytes() < mapped + SLACK_BYTES);
    for number in 0..written {
        assert!(*rows.get(&key(number)).unwrap().unwrap() == *value(number));
        small(&rows, number).unwrap();
    }
    assert_eq!(mappings_of(&role.store, "arena"), before);
    limit_to(None);
    for number in written..written + 20 {
        rows.put(&key(number), &value(number)).unwrap();
    }
    for number in 0..written + 20 {
        assert!(*rows.get(&key(number)).unwrap().unwrap() == *value(number));
    }
    assert!(*kept == *held);
    assert!(mappings_of(&role.store, "arena") > before);
    say("works again");
}

fn read_later(role: &Role) {
    limit_to(Some(LIMIT_BYTES));
    let mut options = Store::options();
    let store = options.read_only(true).open(&role.store).unwrap();
    say("open");
    assert_eq!(listen().as_deref(), Some("read"));
    let limit = reach_limit();
    let get_all = || -> untorn::Result<()> {
        let rows = store.keyspace("rows")?;
        let snapshot = store.snapshot()?;
        for number in 0..5 {
            assert!(*snapshot.get(&rows, &key(number))?.unwrap() == *value(number));
        }
        Ok(())
    };
    for _ in 0..10 {
        no_address_space(&get_all().unwrap_err(), "arena", limit);
    }
    limit_to(None);
    get_all().unwrap();
    say("works again");
}

fn cells(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let before = mappings_of(&role.store, "control");
    let cells: Vec<_> = (0..400_u64).map(|number| store.cell(&number.to_string(), 4096).unwrap()).collect();
    assert!(mappings_of(&role.store, "control") > before);
    let value = |number: usize| vec![number as u8; 4096];
    if role.arguments == ["make"] {
        for (number, cell) in cells.iter().enumerate() {
            cell.store(&value(number)).unwrap();
        }
    }
    for (number, cell) in cells.iter().enumerate() {
        let mut found = [0; 4096];
        cell.load(&mut found).unwrap();
        assert!(found == value(number)[..]);
    }
    if role.arguments == ["make"] {
        let logger = store.stats().unwrap().logger_pid.unwrap();
        kill_logger(&store);
        say(logger);
        std::process::exit(0);
    }
}

fn cells_until_full(role: &Role) {
    limit_to(Some(LIMIT_BYTES));
    let store = Store::open(&role.store).unwrap();
    store.cell("first", 4096).unwrap();
    let limit = reach_limit();
    let create = |number: usize| store.cell(&number.to_string(), 4096);
    let mut cells = Vec::new();
    let error = loop {
        match create(cells.len()) {
            Ok(cell) => cells.push(cell),
            Err(error) => break error,
        }
    };
    no_address_space(&error, "control", limit);
    let control_len = || std::fs::metadata(role.store.join("control")).unwrap().len();
    let before = control_len();
    for _ in 0..100 {
        no_address_space(&create(cells.len()).unwrap_err(), "control", limit);
    }
    assert_eq!(control_len(), before, "entries and copies of cells that were not created");
    for (number, cell) in cells.iter().enumerate() {
        cell.store(&[number as u8; 4096]).unwrap();
    }
    limit_to(None);
    create(cells.len()).unwrap().store_durable(&[1; 4096]).unwrap();
    for (number, cell) in cells.iter().enumerate() {
        let mut found = [0; 4096];
        cell.load(&mut found).unwrap();
        assert!(found == [number as u8; 4096]);
    }
    say("works again");
}

#[allow(unsafe_code)]
fn many_mappings(role: &Role) {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    let other = Store::open(&role.arguments[0]).unwrap();
    let page = rustix::param::page_size();
    let mut mappings = Vec::with_capacity(1 << 20);
    // Neighbours with the same rights would become one.
    for protection in [ProtFlags::READ, ProtFlags::empty()].into_iter().cycle() {
        // SAFETY: a new mapping at an address of the kernel's choice.
        match unsafe { mmap_anonymous(std::ptr::null_mut(), page, protection, MapFlags::PRIVATE) } {
            Ok(mapping) => mappings.push(mapping),
            Err(_) => break,
        }
    }
    let error = Store::open(&role.store).unwrap_err().to_string();
    assert!(error.contains("no address space for") && error.contains("`vm.max_map_count`"), "{error}");
    for mapping in mappings {
        // SAFETY: made above, and used by nothing.
        unsafe { munmap(mapping, page) }.unwrap();
    }
    let store = Store::open(&role.store).unwrap();
    for store in [store, other] {
        store.keyspace("rows").unwrap().put(b"key", b"value").unwrap();
    }
    say("works again");
}
