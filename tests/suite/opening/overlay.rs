//! Goal: on overlayfs, the root file system of containers, a store works as elsewhere. There a
//! mapping does not keep the lock that shows that a process lives, so a descriptor does; a logger
//! once deleted its living successor's files.
//!
//! Method: each test runs in a mount namespace of its own, on a fresh overlay, with real processes
//! that are killed. What copies the descriptor is forced: a fork, a spawn that blocks before its
//! `exec`, a host that closes all descriptors.
//!
//! It needs root and `unshare`; without them each test reports that it was skipped, and fails where
//! the variable `CI` is set.
#![allow(unsafe_code)]

use crate::common::{
    HANGS, Process, Role, assert_clean, exists, kill_logger, limit, listen, say, spawn, spawn_by, wait_until,
};
use rustix::mount::{MountFlags, mount};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use untorn::{Error, Options, Store};

/// A wait that takes longer hangs.

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let path = role.store.as_path();
    match role.name.as_str() {
        "processes" => processes(path),
        "lower" => lower(path),
        "children" => children(path),
        "closing" => closing(path),
        "acts" => acts(path),
        "blind" => blind(path),
        other => panic!("no role {other}"),
    }
}

/// Runs a role of this file in a mount namespace of its own, with an empty directory.
fn inside(role: &str) {
    let _limit = limit();
    let possible = Command::new("unshare").args(["--mount", "true"]).output();
    let problem = match possible {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(problem) = problem {
        assert!(std::env::var_os("CI").is_none(), "{role}: no mount namespace: {problem}");
        eprintln!(
            "SKIPPED: {role}: 1 test of overlayfs, since nothing can be mounted here (root, `unshare`): {problem}"
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
    spawn_by(command, &format!("opening::overlay::{role}"), directory.path(), &[]).finish();
}

/// Mounts an overlay over `lower`, whose changes go to a file system in memory; the store's path in
/// it.
fn mount_overlay(at: &Path) -> std::path::PathBuf {
    for name in ["lower", "memory", "merged"] {
        std::fs::create_dir_all(at.join(name)).unwrap();
    }
    mount("none", at.join("memory"), "tmpfs", MountFlags::empty(), None).unwrap();
    for name in ["upper", "work"] {
        std::fs::create_dir(at.join("memory").join(name)).unwrap();
    }
    let [lower, upper, work] = ["lower", "memory/upper", "memory/work"].map(|name| at.join(name));
    // Without `xino` the inode number of a file changes when it is copied up.
    let options =
        format!("lowerdir={},upperdir={},workdir={},xino=off", lower.display(), upper.display(), work.display());
    let options = CString::new(options).unwrap();
    mount("overlay", at.join("merged"), "overlay", MountFlags::empty(), Some(options.as_c_str())).unwrap();
    at.join("merged/store")
}

fn open(path: &Path) -> Store {
    let mut options = Options::default();
    options.logger_idle(Duration::from_secs(1)).max_size(256 << 20);
    options.open(path).unwrap()
}

/// Has the logger leave: a namespace that ends would not end it.
fn end(path: &Path) {
    untorn::logger::stop_logger(path, HANGS).unwrap();
}

/// A process that executes commands.
fn acts(path: &Path) {
    let store = open(path);
    let keys = store.keyspace("keys").unwrap();
    say("open");
    while let Some(line) = listen() {
        let (what, argument) = line.split_once(' ').unwrap_or((line.as_str(), ""));
        match what {
            "put" => {
                keys.put(argument.as_bytes(), b"value").unwrap();
                say("put");
            }
            "get" => say(keys.get(argument.as_bytes()).unwrap().is_some()),
            // Until it is killed.
            "begin" => {
                let mut txn = store.begin().unwrap();
                txn.put(&keys, b"unfinished", b"").unwrap();
                say("begun");
                listen();
            }
            "puts" => {
                for n in 0.. {
                    keys.put(format!("{argument}{n}").as_bytes(), b"value").unwrap();
                    say(format!("{argument}{n}"));
                }
            }
            // A child of `fork()` that outlives its parent.
            "fork" => {
                let _txn = store.begin().unwrap();
                // SAFETY: the child only waits.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    // Its parent's test kills it; if that fails, it ends by itself.
                    std::thread::sleep(HANGS);
                    std::process::exit(0);
                }
                say(pid);
                listen();
            }
            // A child that shares the memory, and opens a FIFO before its `exec`: it blocks until
            // the other end is opened.
            "spawn" => {
                let _txn = store.begin().unwrap();
                say("spawning");
                spawn_behind(argument);
            }
            other => panic!("no command {other}"),
        }
    }
}

fn spawn_behind(fifo: &str) {
    let fifo = CString::new(fifo).unwrap();
    let arguments = [c"sleep".as_ptr().cast_mut(), c"60".as_ptr().cast_mut(), std::ptr::null_mut()];
    let environment = [std::ptr::null_mut()];
    // SAFETY: all that is passed is valid and lives until the calls are over.
    unsafe {
        let mut actions = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        libc::posix_spawn_file_actions_addopen(&raw mut actions, 0, fifo.as_ptr(), libc::O_RDONLY, 0);
        let mut pid = 0;
        libc::posix_spawn(
            &raw mut pid,
            c"/bin/sleep".as_ptr(),
            &raw const actions,
            std::ptr::null(),
            arguments.as_ptr(),
            environment.as_ptr(),
        );
    }
}

/// An opened process that acts.
fn actor(path: &Path) -> Process {
    let actor = spawn("opening::overlay::acts", path, &[]);
    actor.expect("open");
    actor
}

// ---- the tests

/// Processes share a store on an overlay: one logger, deaths are noticed, nothing acknowledged is
/// lost.
#[test]
fn processes_share_a_store() {
    inside("processes");
}

fn processes(at: &Path) {
    let path = mount_overlay(at);
    let store = open(&path);
    let (mut a, mut b) = (actor(&path), actor(&path));
    assert_eq!(a.ask("put a"), "put");
    assert_eq!(b.ask("get a"), "true");
    assert_eq!(store.stats().unwrap().logger_starts, 1);
    assert_eq!(store.stats().unwrap().clients.len(), 3);
    // One dies with the writer lock.
    assert_eq!(a.ask("begin"), "begun");
    assert!(matches!(store.begin_timeout(Duration::from_millis(20)), Err(Error::LockTimeout { .. })));
    a.kill();
    assert_eq!(b.ask("put b"), "put");
    wait_until(|| store.stats().unwrap().clients.len() == 2);
    assert_eq!(store.stats().unwrap().lock_take_overs, 1);
    // Writers and the logger are killed at any time.
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let mut writers: Vec<Process> = (0..2).map(|_| actor(&path)).collect();
        for (n, writer) in writers.iter_mut().enumerate() {
            writer.tell(&format!("puts {round}-{n}-"));
        }
        acknowledged.extend(writers.iter().map(Process::hear));
        if round % 2 == 0 {
            kill_logger(&store);
            acknowledged.extend(writers.iter().map(Process::hear));
        }
        writers.iter_mut().for_each(|writer| acknowledged.extend(writer.kill()));
    }
    let keys = store.keyspace("keys").unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|key| keys.get(key.as_bytes()).unwrap().is_none()).collect();
    assert!(lost.is_empty() && acknowledged.len() > 16, "{lost:?} of {}", acknowledged.len());
    assert_clean(&store);
    drop((keys, store, b));
    end(&path);
}

/// A store of the lower layer is opened through the overlay, for reading first: the reader must see
/// what others write to the copy, and be the same client as a handle opened after it.
#[test]
fn a_store_of_the_lower_layer() {
    inside("lower");
}

fn lower(at: &Path) {
    let below = at.join("lower/store");
    std::fs::create_dir(at.join("lower")).unwrap();
    let keys = open(&below).keyspace("keys").unwrap();
    keys.put(b"old", b"value").unwrap();
    drop(keys);
    end(&below);
    let files = || -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let files = std::fs::read_dir(&below).unwrap().flatten().filter(|file| file.file_type().unwrap().is_file());
        files.map(|file| (file.file_name(), std::fs::read(file.path()).unwrap())).collect()
    };
    let before = files();
    let path = mount_overlay(at);
    let mut options = Options::default();
    let reader = options.read_only(true).create(false).open(&path).unwrap();
    assert!(reader.find_keyspace("keys").unwrap().unwrap().get(b"old").unwrap().is_some());
    let mut writer = actor(&path);
    for n in 0..200 {
        assert_eq!(writer.ask(&format!("put {n}")), "put");
        let keys = reader.find_keyspace("keys").unwrap().unwrap();
        assert!(keys.get(n.to_string().as_bytes()).unwrap().is_some(), "put {n} is not seen");
    }
    let again = open(&path);
    assert_eq!(again.stats().unwrap().clients.len(), 2, "one store twice in this process");
    assert_clean(&again);
    drop((reader, again, writer));
    end(&path);
    assert!(before == files(), "the lower layer has changed");
}

/// What a dead process's children have copied holds nothing once they run on their own: a child of
/// `fork()` from the beginning, a spawned one from its `exec` on. Until then the dead process
/// counts as alive.
#[test]
fn children_of_the_dead() {
    inside("children");
}

fn children(at: &Path) {
    let path = mount_overlay(at);
    let store = open(&path);
    let mut parent = actor(&path);
    let child: u32 = parent.ask("fork").parse().unwrap();
    // Not by `Process::kill`, which waits for all that have its pipe.
    drop(parent);
    store.begin().unwrap().rollback();
    assert!(exists(child), "the child was to outlive its parent");
    crate::common::send(child, rustix::process::Signal::KILL);

    let fifo = at.join("fifo");
    let name = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: a valid string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let mut parent = actor(&path);
    let pid = parent.pid();
    assert_eq!(parent.ask(&format!("spawn {}", fifo.display())), "spawning");
    let children = || -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let listed = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        listed.flat_map(|pids| pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
    };
    wait_until(|| !children().is_empty());
    let spawned = children()[0];
    crate::common::send(pid, rustix::process::Signal::KILL);
    // It has copied its parent's descriptors and not closed them yet.
    assert!(matches!(store.begin_timeout(Duration::from_millis(200)), Err(Error::LockTimeout { .. })));
    let _writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    store.begin().unwrap().rollback();
    assert!(exists(spawned), "the program runs on");
    crate::common::send(spawned, rustix::process::Signal::KILL);
    drop(parent);
    assert_clean(&store);
    drop(store);
    end(&path);
}

/// The host closes descriptors that it did not open. Then every entry returns that error, nothing
/// is written any more, and the store can be opened again beside the dead handle.
#[test]
fn the_host_closes_the_descriptor() {
    inside("closing");
}

fn closing(at: &Path) {
    let path = mount_overlay(at);
    let mut other = actor(&path);
    let store = open(&path);
    let keys = store.keyspace("keys").unwrap();
    let cell = store.cell("cell", 8).unwrap();
    let snapshot = store.snapshot().unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(&keys, b"k", b"v").unwrap();
    // The pipes to the other process are kept.
    let is_stores = |fd: &i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|to| to.starts_with(&path));
    let closed: Vec<i32> = (3..200).filter(is_stores).collect();
    // SAFETY: the store is to notice that these are gone.
    closed.iter().for_each(|fd| assert_eq!(unsafe { libc::close(*fd) }, 0));
    let others: Vec<_> = (0..40).map(|_| std::fs::File::open(path.join("lock")).unwrap()).collect();
    assert!(!closed.is_empty());
    let is_detached = |error: Option<Error>| assert!(matches!(error, Some(Error::Detached { .. })), "{error:?}");
    is_detached(txn.put(&keys, b"l", b"v").err());
    is_detached(txn.commit().err());
    is_detached(store.begin().err());
    is_detached(keys.put(b"k", b"v").err());
    is_detached(keys.get(b"k").err());
    is_detached(snapshot.find_keyspace("keys").err());
    is_detached(store.snapshot().err());
    is_detached(cell.store(&[1; 8]).err());
    is_detached(store.sync().err());
    assert_eq!(other.ask("put k2"), "put");
    let again = open(&path);
    assert!(again.keyspace("keys").unwrap().get(b"k").unwrap().is_none());
    again.keyspace("keys").unwrap().put(b"k3", b"v").unwrap();
    drop((snapshot, keys, cell, store));
    again.keyspace("keys").unwrap().put(b"k4", b"v").unwrap();
    assert_clean(&again);
    assert!(others.iter().all(|file| file.metadata().is_ok()), "a descriptor of the host's was closed");
    drop((again, other));
    end(&path);
}

/// A file system that takes each lock and keeps none: opening is refused, whatever the options. A
/// filter of system calls answers for it.
#[test]
fn locks_that_do_not_hold() {
    let _limit = limit();
    let directory = tempfile::tempdir().unwrap();
    spawn("opening::overlay::blind", directory.path(), &[]).finish();
}

fn blind(at: &Path) {
    let load = |offset: u32| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let skip_unless = |value: u32, jf: u8| libc::sock_filter { code: 0x15, jt: 0, jf, k: value };
    let answer = |k: u32| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    // The call's number, then the low half of its second argument. An "error" of 0 is success
    // without an effect.
    let mut filter = [
        load(0),
        skip_unless(libc::SYS_fcntl as u32, 3),
        load(24),
        skip_unless(libc::F_OFD_SETLK as u32, 1),
        answer(libc::SECCOMP_RET_ERRNO),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program is valid and lives until the call is over.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
    let mut options = Options::default();
    let error = options.any_file_system(true).open(at.join("store")).unwrap_err();
    assert!(matches!(&error, Error::UnsupportedFileSystem { .. }), "{error}");
    assert!(error.to_string().contains("lock"), "{error}");
}
