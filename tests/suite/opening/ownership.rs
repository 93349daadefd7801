//! Goal: a store belongs to its owner. No other uid joins it or gets anything of it. A `chmod` that
//! opens the directory to all does not change that, nor does a user namespace where many uids look
//! like one. Root joins only with an option, and then its logger runs as the owner.
//!
//! Method: processes and threads of several uids, and user namespaces with chosen maps, on real
//! directories. That needs root; without it the tests report that they were skipped, and fail where
//! the variable `CI` is set.

use crate::common::program::logger as logger_program;
use crate::common::*;
use crate::common::{Process, Role, listen, say, spawn, spawn_by};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use untorn::logger::LoggerOptions;
use untorn::{Client, Error, Observation, Result, Store};

const ALICE: u32 = 54_331;
const BOB: u32 = 54_332;

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        // Opens as a uid, and works until it is requested to end.
        "open-as" => {
            become_user(role.number(0) as u32);
            open(&role, role.arguments[1] == "foreign");
        }
        // The same in a user namespace, as its uid 0 if it has one.
        "open-inside" => {
            say("unmapped");
            listen();
            if role.arguments[0] == "mapped" {
                set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).unwrap();
                set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).unwrap();
            }
            open(&role, false);
        }
        other => panic!("no role {other}"),
    }
}

fn open(role: &Role, foreign_owner: bool) {
    match Store::options().foreign_owner(foreign_owner).open(&role.store) {
        Ok(store) => {
            store.keyspace("keys").unwrap().put(b"k", b"v").unwrap();
            store.keyspace("public").unwrap().put(b"k", b"v").unwrap();
            say("open");
            listen();
        }
        Err(error) => say(error),
    }
}

/// Makes this thread one of another uid; threads and processes that it starts are, too.
fn become_user(uid: u32) {
    let id = Uid::from_raw(uid);
    set_thread_groups(&[]).unwrap();
    set_thread_gid(Gid::from_raw(uid)).unwrap();
    set_thread_res_uid(id, id, id).unwrap();
}

fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| {
            become_user(uid);
            act()
        });
        acting.join().unwrap()
    })
}

fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test}: not root");
    eprintln!("SKIPPED {test}: not root");
    false
}

/// A directory for a store, and the one that holds it, of a uid.
fn directory_of(uid: u32) -> TestStore {
    let test = TestStore::new();
    std::fs::create_dir(&test.path).unwrap();
    for dir in [test.path.parent().unwrap(), &test.path] {
        chown(dir, Some(uid), Some(uid)).unwrap();
    }
    std::fs::set_permissions(test.path.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    test
}

/// A store that a uid has made and that no process uses.
fn store_of(uid: u32) -> TestStore {
    let test = directory_of(uid);
    let owner = spawn("opening::ownership::open-as", &test.path, &[&uid.to_string(), ""]);
    owner.expect("open");
    owner.finish();
    test.stop_logger();
    test
}

/// All files of a store, and the folder of its log.
fn files(store: &Path) -> Vec<PathBuf> {
    let names = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    [names(store), names(&store.join("wal"))].concat()
}

fn open_to_all(store: &Path) {
    for path in files(store).into_iter().chain([store.to_path_buf()]) {
        let mode = std::fs::metadata(&path).unwrap().mode();
        let mode = mode | 0o066 | if path.is_dir() { 0o011 } else { 0 };
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
}

#[track_caller]
fn refused<T>(result: Result<T>, with: &[&str]) {
    match result {
        Err(error @ Error::Permission { .. }) => {
            let text = error.to_string();
            assert!(with.iter().all(|with| text.contains(with)), "{text:?} without one of {with:?}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("let in"),
    }
}

/// The owner of the directory gets everything by its `access` file. So root does not join in
/// silence, and leaves everything as it was.
#[test]
fn root_does_not_join_by_accident() {
    let _limit = limit();
    if !is_root("root_does_not_join_by_accident") {
        return;
    }
    let (test, empty) = (store_of(ALICE), directory_of(ALICE));
    let before: Vec<_> = files(&test.path).iter().map(|file| std::fs::metadata(file).unwrap().mtime_nsec()).collect();
    let why = ["uid 54331", "uid 0", "Options::foreign_owner", "--foreign-owner"];
    for path in [&test.path, &empty.path] {
        refused(Store::open(path), &why);
        refused(Store::options().read_only(true).open(path), &why);
        refused(Store::options().logger_thread(true).open(path), &why);
        refused(untorn::logger::run_logger(path), &why);
        refused(LoggerOptions::default().create(true).run(path), &why);
        refused(untorn::logger::stop_logger(path, Duration::from_secs(1)), &why);
        refused(untorn::observe(path), &why);
        let logger = Command::new(logger_program()).arg(path).output().unwrap();
        assert_eq!(logger.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&logger.stderr).contains("--foreign-owner"));
    }
    let after: Vec<_> = files(&test.path).iter().map(|file| std::fs::metadata(file).unwrap().mtime_nsec()).collect();
    assert_eq!(before, after);
    assert_eq!(std::fs::read_dir(&empty.path).unwrap().count(), 0);
    // A thread can't become another user alone.
    let error = Store::options().foreign_owner(true).logger_thread(true).open(&test.path).unwrap_err();
    assert!(matches!(&error, Error::Invalid { what } if what.contains("logger_thread")), "{error}");
}

/// A line of a process's status, as the kernel reports it.
fn status(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A process has nothing of root: neither ids, groups or capabilities, nor what root had open or in
/// its environment.
fn assert_is_owners(pid: u32) {
    let ids = [ALICE; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((status(pid, "Uid"), status(pid, "Gid"), status(pid, "Groups")), (ids.clone(), ids, String::new()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(pid, set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    for variable in environment.split(|&byte| byte == 0).filter(|variable| !variable.is_empty()) {
        let variable = String::from_utf8_lossy(variable);
        let name = variable.split('=').next().unwrap();
        let is_needed = ["PATH", "UNTORN_BECOME_LOGGER", "UNTORN_DAEMON", "UNTORN_FOREIGN_OWNER"].contains(&name);
        assert!(is_needed, "{variable}");
    }
    for open in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // It may close some meanwhile.
        let Ok(target) = std::fs::read_link(open.unwrap().path()) else { continue };
        assert!(!target.ends_with("of-root"), "{target:?}");
    }
}

/// Root joins, and everything that stays is the owner's. Nothing in the directory leads a process
/// of root anywhere.
#[test]
fn root_joins_if_it_says_so() {
    let _limit = limit();
    if !is_root("root_joins_if_it_says_so") {
        return;
    }
    let of_root = tempfile::tempdir().unwrap();
    // Open in this process, and not closed by an exec.
    let secret = std::fs::File::create(of_root.path().join("of-root")).unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let test = store_of(ALICE);
    let forbidden = of_root.path().join("of-owner.sock");
    let access = test.path.join("access");
    std::fs::write(&access, format!("socket \"{}\"\nallow any read-write\n", forbidden.display())).unwrap();
    chown(&access, Some(ALICE), Some(ALICE)).unwrap();

    let mut by_hand = Command::new(logger_program());
    by_hand.args(["--idle", "never", "--foreign-owner"]).arg(&test.path).env("SECRET", "of root");
    by_hand.env("UNTORN_SECRET", "of root").env("UNTORN_LOGGER", "/of/root");
    for is_by_hand in [false, true] {
        let mut logger = is_by_hand.then(|| by_hand.stderr(std::process::Stdio::null()).spawn().unwrap());
        if let Some(logger) = &logger {
            let found = || Store::options().foreign_owner(true).observe(&test.path);
            let serves = |found| matches!(found, Observation::Live(stats) if stats.logger_pid == Some(logger.id()));
            wait_until(|| found().is_ok_and(serves));
        }
        let store = test.open_with(|options| {
            options.foreign_owner(true);
        });
        store.keyspace("keys").unwrap().put(b"k", b"v2").unwrap();
        let pid = store.stats().unwrap().logger_pid.unwrap();
        assert!(logger.as_ref().is_none_or(|logger| logger.id() == pid));
        assert_is_owners(pid);
        // The socket's place is one where only root may write.
        wait_until(|| test.path.join("logger.note").exists());
        assert!(!forbidden.exists());
        for file in files(&test.path) {
            let found = std::fs::symlink_metadata(&file).unwrap();
            assert_eq!((found.uid(), found.gid()), (ALICE, ALICE), "{file:?}");
        }
        assert_clean(&store);
        drop(store);
        test.stop_logger();
        logger.iter_mut().for_each(|logger| assert!(logger.wait().unwrap().success()));
    }
    // A logger that a client starts takes no variable of root's along either, whatever its name
    // begins with.
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("UNTORN_SECRET", "of root").env("SECRET", "of root");
    let root = spawn_by(command, "opening::ownership::open-as", &test.path, &["0", "foreign"]);
    root.expect("open");
    let Observation::Live(stats) = Store::options().foreign_owner(true).observe(&test.path).unwrap() else {
        panic!("the store is not open")
    };
    assert_is_owners(stats.logger_pid.unwrap());
    root.finish();
    test.stop_logger();
    // The owner works with it as before.
    let owner = spawn("opening::ownership::open-as", &test.path, &[&ALICE.to_string(), ""]);
    owner.expect("open");
    owner.finish();
    test.stop_logger();

    // A file of root's that the owner has brought there, as hard links allow, stays as it is.
    let precious = of_root.path().parent().unwrap().join(format!("untorn-precious-{}", std::process::id()));
    std::fs::write(&precious, "precious").unwrap();
    let lock = test.path.join("lock");
    std::fs::rename(&precious, &lock).unwrap();
    refused(Store::options().foreign_owner(true).open(&test.path), &["lock", "uid 0"]);
    assert_eq!((std::fs::read(&lock).unwrap(), std::fs::metadata(&lock).unwrap().uid()), (b"precious".to_vec(), 0));
}

/// Modes that let all users write do not let another uid in; what it puts there without this
/// library is refused by the owner.
#[test]
fn modes_let_no_other_user_in() {
    let _limit = limit();
    if !is_root("modes_let_no_other_user_in") {
        return;
    }
    let test = TestStore::new();
    std::fs::set_permissions(test.path.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    let store = test.open();
    store.keyspace("keys").unwrap().put(b"k", b"v").unwrap();
    open_to_all(&test.path);
    let try_all = |store: Option<&Store>| {
        for foreign in ["", "foreign"] {
            let bob = spawn("opening::ownership::open-as", &test.path, &[&BOB.to_string(), foreign]);
            let said = bob.hear();
            assert!(said.starts_with("no permission for") && said.contains("uid 54332"), "{said}");
            bob.finish();
        }
        refused(as_user(BOB, || untorn::logger::stop_logger(&test.path, Duration::from_secs(1))), &["uid 54332"]);
        refused(as_user(BOB, || untorn::logger::run_logger(&test.path)), &["uid 54332"]);
        assert!(files(&test.path).iter().all(|file| std::fs::symlink_metadata(file).unwrap().uid() == 0));
        assert!(store.is_none_or(|store| store.stats().unwrap().clients.len() == 1));
    };
    // While the owner uses it, while no process does, and when the owner comes back.
    try_all(Some(&store));
    drop(store);
    test.stop_logger();
    open_to_all(&test.path);
    try_all(None);
    assert_clean(&test.open());
    test.stop_logger();

    // Files of Bob's in place of the store's own.
    let segment = files(&test.path.join("wal").join(".."))
        .into_iter()
        .find(|file| file.parent().is_some_and(|dir| dir.ends_with("wal")))
        .unwrap();
    for file in
        ["lock", "checkpoint", "control", "arena", "wal"].map(|name| test.path.join(name)).into_iter().chain([segment])
    {
        if !file.exists() {
            std::fs::write(&file, "").unwrap();
        }
        chown(&file, Some(BOB), Some(BOB)).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        refused(Store::open(&test.path), &[name, "uid 54332"]);
        chown(&file, Some(0), Some(0)).unwrap();
    }
    let control = test.path.join("control");
    if std::fs::metadata(&control).unwrap().len() == 0 {
        std::fs::remove_file(control).unwrap();
    }
    assert_clean(&test.open());
}

/// A process in a user namespace whose uids `map` names: none if it is empty.
fn spawn_inside(store: &Path, map: &str) -> Process {
    let mut command = Command::new("unshare");
    command.args(["--user", "--keep-caps", "--"]).arg(std::env::current_exe().unwrap());
    let mut child =
        spawn_by(command, "opening::ownership::open-inside", store, &[if map.is_empty() { "" } else { "mapped" }]);
    child.expect("unmapped");
    if !map.is_empty() {
        for kind in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{kind}", child.pid()), map).unwrap();
        }
    }
    child.tell("mapped");
    child
}

/// In a user namespace all uids that it has no number for look like one. None of them is the owner,
/// and no rule names them.
#[test]
fn unmapped_users_are_no_user() {
    const INSIDE: u32 = 100_000;
    let _limit = limit();
    if !is_root("unmapped_users_are_no_user") {
        return;
    }
    // The directory of a uid that is not mapped in the namespace: any other such uid would be its
    // owner.
    let test = store_of(ALICE);
    open_to_all(&test.path);
    let said = spawn_inside(&test.path, &format!("0 {INSIDE} 65536")).hear();
    assert!(said.contains("user namespace") && said.contains("65534"), "{said}");
    // A process that itself has no uid there looks like the owner of everything.
    let said = spawn_inside(&test.path, "").hear();
    assert!(said.contains("user namespace") && said.contains("65534"), "{said}");

    // A logger in the namespace, and peers whose uids are not mapped there.
    let test = directory_of(INSIDE);
    let public = tempfile::tempdir().unwrap();
    std::fs::set_permissions(public.path(), PermissionsExt::from_mode(0o755)).unwrap();
    chown(public.path(), Some(INSIDE), Some(INSIDE)).unwrap();
    let socket = public.path().join("untorn.sock");
    let set = |rules: &str| {
        let new = test.path.join("access.new");
        std::fs::write(&new, format!("socket \"{}\"\n{rules}", socket.display())).unwrap();
        chown(&new, Some(INSIDE), Some(INSIDE)).unwrap();
        std::fs::rename(new, test.path.join("access")).unwrap();
    };
    set("allow any read-only \"public\"\n");
    let child = spawn_inside(&test.path, &format!("0 {INSIDE} 65536"));
    child.expect("open");
    wait_until(|| socket.exists());
    let is_owners_socket =
        || std::fs::metadata(&socket).is_ok_and(|found| found.uid() == INSIDE && found.mode() & 0o777 == 0o666);
    wait_until(is_owners_socket);
    let connect = |uid| as_user(uid, || Client::options().reconnect_timeout(Duration::ZERO).connect(&socket));
    let peers = [ALICE, BOB, 65_534].map(|uid| connect(uid).unwrap());
    for peer in &peers {
        assert_eq!(peer.get("public", b"k").unwrap().unwrap(), b"v");
        assert!(matches!(peer.get("keys", b"k"), Err(Error::NotAllowed { .. })));
        assert!(matches!(peer.put("public", b"k", b"w"), Err(Error::NotAllowed { .. })));
        assert!(matches!(peer.checkpoint(), Err(Error::NotAllowed { .. })));
    }
    // A line for the uid that they look like would be one for all of them.
    set("allow 65534 read-write\n");
    wait_until(|| matches!(peers[0].get("public", b"k"), Err(Error::NotAllowed { .. } | Error::Disconnected { .. })));
    for uid in [ALICE, BOB, 65_534] {
        assert!(connect(uid).is_err());
    }
    let owner = as_user(INSIDE, || Client::connect(test.path.join("logger.sock")));
    wait_until(|| test.path.join("logger.sock").exists());
    let owner = owner.or_else(|_| as_user(INSIDE, || Client::connect(test.path.join("logger.sock")))).unwrap();
    assert!(owner.notice().unwrap().contains("65534"), "{:?}", owner.notice());
    owner.put("public", b"k", b"w").unwrap();
    drop((owner, peers));
    child.finish();
    // Where each uid has a number, this one is a user like others.
    drop(store_of(65_534));
}

/// A name in another user's directory does not lead root to a server of a third user, or of root
/// itself.
#[test]
fn sockets_are_their_owners() {
    let _limit = limit();
    if !is_root("sockets_are_their_owners") {
        return;
    }
    let of_alice = directory_of(ALICE);
    let of_root = tempfile::tempdir().unwrap();
    let served = of_root.path().join("served");
    let server = UnixListener::bind(&served).unwrap();
    server.set_nonblocking(true).unwrap();
    let link = of_alice.path.join("logger.sock");
    symlink(&served, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(ALICE), Some(ALICE)).unwrap();
    let error = Client::connect(&link).unwrap_err().to_string();
    assert!(error.contains("symbolic link") && error.contains("54331"), "{error}");
    assert_eq!(server.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it was connected to");
    // The file of one user, the server of another: what a name that is changed at the right moment
    // comes to.
    chown(&served, Some(BOB), Some(BOB)).unwrap();
    let error = Client::connect(&served).unwrap_err().to_string();
    assert!(error.contains("uid 54332") && error.contains("uid 0"), "{error}");
    let (mut connection, _) = server.accept().unwrap();
    let mut sent = Vec::new();
    std::io::Read::read_to_end(&mut connection, &mut sent).unwrap();
    assert_eq!(sent, b"", "it was told something");
}
