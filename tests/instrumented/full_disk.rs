//! Goal: a store on a disk without one free block can be opened, read and written, whatever its
//! processes died of, and has all that it had.
//!
//! Method: each scenario runs in a mount namespace of its own, on a small tmpfs and on a small ext4
//! that ballast fills to the last block. The scenario is a process of its own, the role `scenario`,
//! which mounts, and kills loggers and clients. Deaths in recovery are forced by crash points, in a
//! build that has them.
//!
//! It needs root and `unshare`; without them each test prints that it was skipped, and fails where
//! the variable `CI` is set.

use crate::common::{Role, assert_clean, exists, kill_logger, limit, say, send, spawn, spawn_by, wait_until};
use crate::workload::instrumented;
use rustix::process::Signal;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use untorn::{Durability, Error, Store};

const FILE_SYSTEMS: [&str; 2] = ["tmpfs", "ext4"];
/// Size of the file system: more than a new store takes, and less than one that grows.
const DISK_MIB: u64 = 80;

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "scenario" => scenario(&role),
        "writer" => writer(&role),
        "opener" => opener(&role),
        other => panic!("no role {other}"),
    }
}

/// Runs a scenario on each file system, in a namespace of its own.
fn run(name: &str, program: Option<&Path>) {
    let _limit = limit();
    let possible = Command::new("unshare").args(["--mount", "true"]).output();
    if !rustix::process::geteuid().is_root() || !possible.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "{name}: no mount namespace can be made (root, `unshare`)");
        eprintln!("SKIPPED: {name}: 1 test of full disks, since no mount namespace can be made (root, `unshare`)");
        return;
    }
    for file_system in FILE_SYSTEMS {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--"]).arg(std::env::current_exe().unwrap());
        let program = program.map_or("", |path| path.to_str().unwrap());
        let mut child = spawn_by(command, "full_disk::scenario", dir.path(), &[name, file_system, program]);
        assert_eq!(child.hear(), "done", "{name} on {file_system}");
        child.kill();
    }
}

fn scenario(role: &Role) {
    let disk = Disk::mount(&role.store, &role.arguments[1]);
    match role.arguments[0].as_str() {
        "openings" => openings(&disk),
        "deaths" => deaths(&disk),
        "unflushed" => unflushed(&disk),
        "worthless" => worthless(&disk),
        "retained" => retained(&disk),
        "gaps" => gaps(&disk),
        "points" => points(&disk, Path::new(&role.arguments[2])),
        "no room" => no_room(&disk),
        other => panic!("no scenario {other}"),
    }
    disk.remove_store();
    say("done");
}

/// A small file system. It goes with the namespace.
struct Disk(PathBuf);

impl Disk {
    fn mount(dir: &Path, kind: &str) -> Disk {
        let at = dir.join("disk");
        std::fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        if kind == "tmpfs" {
            mount.args(["-t", "tmpfs", "-o", &format!("size={DISK_MIB}m"), "small"]).arg(&at);
        } else {
            let image = dir.join("image");
            File::create(&image).unwrap().set_len(DISK_MIB << 20).unwrap();
            check(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
            mount.args(["-o", "loop"]).arg(&image).arg(&at);
        }
        check(&mut mount);
        Disk(at)
    }

    fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    fn open(&self) -> untorn::Result<Store> {
        Store::open(self.store())
    }

    /// Leaves not a block of it. Blocks are given out late on some file systems, and given back
    /// late.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.0.join("ballast")).unwrap();
        for _ in 0..2 {
            for piece in [1 << 20, 64 << 10, 4096, 1024, 1] {
                let bytes = vec![0x55; piece];
                while file.write(&bytes).is_ok_and(|written| written > 0) {}
            }
            let _ = file.sync_all();
        }
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }

    fn remove_store(&self) {
        if self.store().exists() {
            untorn::logger::stop_logger(self.store(), Duration::from_secs(60)).unwrap();
            std::fs::remove_dir_all(self.store()).unwrap();
        }
        let _ = std::fs::remove_file(self.0.join("ballast"));
    }
}

fn check(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Repeats a write while the log has no segment for it: the logger's next checkpoint frees one.
fn written(mut write: impl FnMut() -> untorn::Result<()>) {
    wait_until(|| match write() {
        Err(Error::DiskFull { .. }) => false,
        other => other.map(|()| true).unwrap(),
    });
}

fn put(store: &Store, key: &str, value: &str) {
    written(|| store.keyspace("t")?.put(key.as_bytes(), value.as_bytes()).map(drop));
}

fn get(store: &Store, key: &str) -> Option<String> {
    let value = store.keyspace("t").unwrap().get(key.as_bytes()).unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn load(store: &Store) -> [u8; 8] {
    let mut value = [0; 8];
    store.cell("cell", 8).unwrap().load(&mut value).unwrap();
    value
}

/// Closes the store, kills its logger, and returns when all of that is gone.
fn close_and_kill(store: Store) {
    let pid = store.stats().unwrap().logger_pid;
    drop(store);
    if let Some(pid) = pid {
        send(pid, Signal::KILL);
        wait_until(|| !exists(pid));
    }
}

/// What broke: recovery made a second `control` beside the old one, so each open failed, after a
/// kill and after a clean stop.
#[test]
fn a_store_opens_after_a_kill_and_after_a_clean_stop() {
    run("openings", None);
}

fn openings(disk: &Disk) {
    for is_killed in [true, false] {
        let store = disk.open().unwrap();
        put(&store, "a", "1");
        put(&store, "b", "2");
        if is_killed {
            close_and_kill(store);
        } else {
            drop(store);
            untorn::logger::stop_logger(disk.store(), Duration::from_secs(60)).unwrap();
        }
        disk.fill();
        for n in 0..3 {
            let store = disk.open().unwrap();
            assert_eq!(get(&store, "a").as_deref(), Some("1"));
            written(|| store.keyspace("t")?.delete(b"b").map(drop));
            put(&store, "c", &n.to_string());
            assert_eq!((get(&store, "b"), get(&store, "c")), (None, Some(n.to_string())));
            drop(store);
            untorn::logger::stop_logger(disk.store(), Duration::from_secs(60)).unwrap();
            disk.fill();
        }
        disk.clear();
        assert_clean(&disk.open().unwrap());
        disk.remove_store();
    }
}

/// Each recovery takes a segment. What broke: none was left after two loggers that were killed
/// before they could take a checkpoint.
#[test]
fn loggers_are_killed_one_after_the_other() {
    run("deaths", None);
}

fn deaths(disk: &Disk) {
    let store = disk.open().unwrap();
    put(&store, "a", "1");
    close_and_kill(store);
    disk.fill();
    for n in 0..8 {
        let store = disk.open().unwrap();
        assert_eq!(get(&store, "a").as_deref(), Some("1"));
        if n > 0 {
            assert_eq!(get(&store, "n"), Some((n - 1).to_string()));
        }
        put(&store, "n", &n.to_string());
        close_and_kill(store);
        disk.fill();
    }
    disk.clear();
    assert_clean(&disk.open().unwrap());
}

/// What is visible and not durable, and what cells alone hold, is in the old `control` only, whose
/// blocks the new one takes.
#[test]
fn nothing_visible_is_lost() {
    run("unflushed", None);
}

fn unflushed(disk: &Disk) {
    for round in 0..3 {
        let mut writer = spawn("full_disk::writer", &disk.store(), &[&round.to_string()]);
        writer.expect("stored");
        writer.kill();
        let logger: u32 = std::fs::read_to_string(disk.0.join("logger")).unwrap().parse().unwrap();
        send(logger, Signal::KILL);
        wait_until(|| !exists(logger));
        disk.fill();
        let store = disk.open().unwrap();
        assert_eq!(get(&store, "visible"), Some(round.to_string()));
        assert_eq!(load(&store), [round; 8]);
        assert_eq!(store.counter("counter").unwrap().get().unwrap(), u64::from(round) + 7);
        drop(store);
        disk.clear();
    }
}

/// Stops its logger, and then stores what only `control` has.
fn writer(role: &Role) {
    let round = role.number(0) as u8;
    let store = Store::open(&role.store).unwrap();
    let (cell, counter) = (store.cell("cell", 8).unwrap(), store.counter("counter").unwrap());
    put(&store, "durable", "1");
    let logger = store.stats().unwrap().logger_pid.unwrap();
    std::fs::write(role.store.with_file_name("logger"), logger.to_string()).unwrap();
    send(logger, Signal::STOP);
    let keyspace = store.keyspace("t").unwrap();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keyspace, b"visible", round.to_string().as_bytes()).unwrap();
    txn.commit().unwrap();
    cell.store(&[round; 8]).unwrap();
    counter.add(7 + u64::from(round) - counter.get().unwrap()).unwrap();
    say("stored");
    crate::common::listen();
}

/// A `control` that holds nothing of worth: of an earlier boot, cut short, or what an attempt that
/// died left behind; and none at all.
#[test]
fn a_worthless_region_gives_its_blocks() {
    run("worthless", None);
}

fn worthless(disk: &Disk) {
    for case in ["past", "short", "left over", "left over beside one", "none"] {
        let store = disk.open().unwrap();
        put(&store, "a", case);
        // Where there is no region at all, one of two spares gives its room.
        wait_until(|| store.stats().unwrap().wal_spares >= 2);
        close_and_kill(store);
        let (control, left_over) = (disk.store().join("control"), disk.store().join("control.new"));
        let file = File::options().write(true).open(&control).unwrap();
        match case {
            // The boot's number, behind the magic and the store's id.
            "past" => file.write_all_at(&[0x55; 16], 24).unwrap(),
            "short" => file.set_len(100_000).unwrap(),
            "left over" => std::fs::rename(&control, &left_over).unwrap(),
            // The attempt has removed the marks of the region.
            "left over beside one" => {
                std::fs::copy(&control, &left_over).unwrap();
                untorn_test_kit::memory_mark::drop_from_memory(&disk.store(), &["control", "arena"]);
            }
            _ => std::fs::remove_file(&control).unwrap(),
        }
        if case != "short" {
            disk.fill();
        }
        let store = disk.open().unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(get(&store, "a").as_deref(), Some(case));
        put(&store, "b", case);
        assert!(!left_over.exists(), "{case}");
        assert_clean(&store);
        drop(store);
        disk.remove_store();
    }
}

/// The log that is retained for followers gives its blocks to every step of recovery. What broke:
/// the cells are restored after the replay, and a full disk was an error there.
#[test]
fn retained_log_gives_its_blocks_to_cells() {
    run("retained", None);
}

fn retained(disk: &Disk) {
    let mut options = Store::options();
    options.segment_size(256 << 10).ring_size(64 << 10).retain_changes(64 << 20, Duration::MAX);
    let store = options.open(disk.store()).unwrap();
    store.cell("cell", 8).unwrap().store_durable(&[7; 8]).unwrap();
    // Larger values are not in the log.
    let value = "v".repeat(60_000);
    for n in 0..130 {
        put(&store, &format!("large {}", n % 4), &value);
    }
    put(&store, "a", "1");
    store.checkpoint().unwrap();
    wait_until(|| store.stats().unwrap().wal_kept >= 16);
    close_and_kill(store);
    std::fs::remove_file(disk.store().join("control")).unwrap();
    disk.fill();
    let store = disk.open().unwrap();
    assert_eq!((get(&store, "a").as_deref(), load(&store)), (Some("1"), [7; 8]));
    put(&store, "b", "2");
    assert_clean(&store);
}

/// The disk has room for a part of what recovery makes, however large the part is. What broke: the
/// new `control` got its blocks as a file, and those of the cells were missing at a later step.
#[test]
fn some_blocks_are_free() {
    run("gaps", None);
}

fn gaps(disk: &Disk) {
    let gap = disk.0.join("gap");
    for kib in (0..=3072).step_by(128) {
        let store = disk.open().unwrap();
        store.cell("cell", 8).unwrap().store(&[7; 8]).unwrap();
        put(&store, "a", &kib.to_string());
        close_and_kill(store);
        std::fs::write(&gap, vec![0x55; kib << 10]).unwrap();
        File::open(&gap).unwrap().sync_all().unwrap();
        disk.fill();
        std::fs::remove_file(&gap).unwrap();
        let store = disk.open().unwrap_or_else(|error| panic!("{kib} KiB: {error}"));
        assert_eq!((get(&store, "a"), load(&store)), (Some(kib.to_string()), [7; 8]));
        drop(store);
        disk.remove_store();
    }
}

/// A recovery dies on a full disk, at each of its steps, and its successor at the same one: the
/// next one succeeds.
#[test]
fn recoveries_die_at_each_step() {
    run("points", Some(instrumented::program()));
}

fn points(disk: &Disk, program: &Path) {
    let ordinary = untorn::crash_points::ALL.iter().filter(|point| point.starts_with("recover."));
    for point in ordinary.chain(untorn::crash_points::FULL_DEVICE) {
        eprintln!("{point}");
        let store = disk.open().unwrap();
        store.cell("cell", 8).unwrap().store(&[1; 8]).unwrap();
        put(&store, "a", point);
        // Two more loggers are killed, so that no spare is left.
        close_and_kill(store);
        disk.fill();
        for round in 0..2_u8 {
            let store = disk.open().unwrap();
            let cell = store.cell("cell", 8).unwrap();
            let logger = store.stats().unwrap().logger_pid.unwrap();
            put(&store, "b", &round.to_string());
            send(logger, Signal::STOP);
            cell.store(&[round + 2; 8]).unwrap();
            send(logger, Signal::KILL);
            drop((cell, store));
            wait_until(|| !exists(logger));
            disk.fill();
        }
        for _ in 0..2 {
            let mut opener = Command::new(program);
            opener.env("UNTORN_CRASH", format!("{point}@1:kill"));
            let mut opener = spawn_by(opener, "full_disk::opener", &disk.store(), &[]);
            opener.hear();
            opener.kill();
            disk.fill();
        }
        let store = disk.open().unwrap_or_else(|error| panic!("{point}: {error}"));
        assert_eq!(get(&store, "a").as_deref(), Some(*point));
        assert_eq!(get(&store, "b").as_deref(), Some("1"));
        assert_eq!(load(&store), [3; 8], "{point}");
        assert_clean(&store);
        kill_logger(&store);
        drop(store);
        disk.remove_store();
    }
}

/// Opens the store with a logger that dies on its way.
fn opener(role: &Role) {
    match Store::open(&role.store) {
        Ok(_) => say("opened"),
        Err(error) => say(error.to_string().replace('\n', " ")),
    }
}

/// Where nothing helps, the error names the file and the bytes that are missing, and nothing is
/// left behind.
#[test]
fn an_error_names_the_bytes() {
    run("no room", None);
}

fn no_room(disk: &Disk) {
    // A directory and a file without content take blocks as well, on some file systems.
    std::fs::create_dir(disk.store()).unwrap();
    File::create(disk.store().join("lock")).unwrap();
    disk.fill();
    let refused = disk.open().map(drop).unwrap_err();
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused:?}");
    assert!(refused.to_string().contains("arena") && refused.to_string().contains("bytes"), "{refused}");
    let left: Vec<_> = std::fs::read_dir(disk.store()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "lock"), "{left:?}");
}
