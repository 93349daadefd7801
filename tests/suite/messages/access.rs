//! Goal: the access file decides which rights a client has, by the uid that the kernel reports.
//! Without it, or with one that is malformed, only the owner gets in. No client gets more than a
//! rule gives, also not by batches, scans or changes of the file.
//!
//! Method: threads of this process take other user ids, which the kernel reports to the server.
//! That needs root; without it the tests report that they were skipped, and fail where the variable
//! `CI` is set.

use crate::common::program::logger as logger_program;
use crate::common::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use untorn::{Batch, Client, CommitOutcome, Error, Result, Store};

const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;

/// A store whose socket others can get at, if the access file lets them.
struct ServedStore {
    at: TestStore,
    store: Store,
    public: tempfile::TempDir,
}

/// Whether this process may take other user ids.
fn may_change_uid(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test}: not root");
    eprintln!("SKIPPED {test}: not root");
    false
}

impl ServedStore {
    fn new(test: &str) -> Option<ServedStore> {
        if !may_change_uid(test) {
            return None;
        }
        let public = tempfile::tempdir().unwrap();
        std::fs::set_permissions(public.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let at = TestStore::new();
        let store = at.open();
        Some(ServedStore { at, store, public })
    }

    fn socket(&self) -> PathBuf {
        self.public.path().join("untorn.sock")
    }

    /// Puts an access file in place, with the socket in public.
    fn set(&self, rules: &str) {
        self.set_bare(&format!("socket \"{}\"\n{rules}", self.socket().display()));
        wait_until(|| self.socket().exists());
        let mode = if rules.contains("allow") { 0o666 } else { 0o600 };
        wait_until(|| std::fs::metadata(self.socket()).is_ok_and(|found| found.mode() & 0o777 == mode));
    }

    fn set_bare(&self, text: &str) {
        let new = self.at.path.join("access.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.at.path.join("access")).unwrap();
        // Longer than a policy that was read goes unlooked for.
        std::thread::sleep(Duration::from_millis(100));
    }

    fn connect_as(&self, uid: u32) -> Result<Client> {
        connect_as(uid, &self.socket())
    }
}

fn connect_as(uid: u32, path: &Path) -> Result<Client> {
    as_user(uid, || Client::options().reconnect_timeout(Duration::ZERO).connect(path))
}

/// A connection, unless the server's queue is full.
fn connect_at_once(path: &Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, with: &str) {
    match result {
        Err(Error::NotAllowed { what }) => assert!(what.contains(with), "{what:?} without {with:?}"),
        other => panic!("allowed: {other:?}"),
    }
}

#[test]
fn without_a_file_only_the_owner() {
    let _limit = limit();
    let Some(served) = ServedStore::new("without_a_file_only_the_owner") else { return };
    let socket = served.at.path.join("logger.sock");
    let mode = std::fs::metadata(&socket).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    Client::connect(&socket).unwrap().put("k", b"a", b"").unwrap();
    // Also where the files' modes would let others through.
    for dir in [served.at.path.parent().unwrap(), &served.at.path] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    refused(connect_as(ALICE, &socket), "mode");
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    refused(connect_as(ALICE, &socket), "54321");
}

/// Goal: a logger that no process uses moves its socket, whenever the access file changed. It reads
/// the file at its last client's end, and then waits until the kernel reports a change.
#[test]
fn the_socket_moves_whenever_the_file_changes() {
    let _limit = limit();
    let test = TestStore::new();
    let public = tempfile::tempdir().unwrap();
    let open = || test.open_with(|options| _ = options.logger_idle(Duration::MAX));
    drop(open());
    for round in 0..30 {
        let socket = public.path().join(format!("{round}.sock"));
        let new = test.path.join("access.new");
        std::fs::write(&new, format!("socket \"{}\"\n", socket.display())).unwrap();
        // At other moments between the end of the client before it and that of the one after it.
        std::thread::sleep(Duration::from_micros(500 * (round % 10)));
        std::fs::rename(&new, test.path.join("access")).unwrap();
        drop(open());
        wait_until(|| socket.exists());
    }
}

#[test]
fn read_only_and_read_write() {
    let _limit = limit();
    let Some(served) = ServedStore::new("read_only_and_read_write") else { return };
    served.set(&format!("allow {ALICE} read-only\nallow {BOB} read-write # and more\n"));
    let keyspace = served.store.keyspace("k").unwrap();
    keyspace.put(b"a", b"1").unwrap();
    served.store.cell("c", 8).unwrap();
    let alice = served.connect_as(ALICE).unwrap();
    assert_eq!(alice.get("k", b"a").unwrap().unwrap(), b"1");
    assert_eq!(alice.scan("k", ..).unwrap().count(), 1);
    alice.cell_load("c").unwrap();
    alice.stats().unwrap();
    refused(alice.put("k", b"a", b"2"), "writing");
    refused(alice.delete("k", b"a"), "writing");
    refused(alice.delete_range("k", ..), "writing");
    refused(alice.commit(Batch::new().delete("k", b"a")), "writing");
    refused(alice.commit(Batch::new().delete_range("k", "a"..)), "writing");
    refused(alice.put("new", b"a", b"2"), "writing");
    refused(alice.cell_store("c", &[1; 8]), "writing");
    refused(alice.counter_add("n", 1), "writing");
    assert_eq!(alice.counter_get("n").unwrap(), 0);
    refused(alice.sync(), "sync");
    refused(alice.checkpoint(), "checkpoint");
    assert_eq!(served.store.keyspaces().unwrap().iter().filter(|name| !name.starts_with("untorn.")).count(), 1);
    let bob = served.connect_as(BOB).unwrap();
    bob.put("k", b"a", b"2").unwrap();
    bob.cell_store("c", &[1; 8]).unwrap();
    bob.sync().unwrap();
    bob.checkpoint().unwrap();
    // No client writes the store's own keyspaces, not even the owner.
    let owner = Client::connect(served.socket()).unwrap();
    for client in [&bob, &owner] {
        refused(client.put("untorn.cells", b"c", b""), "writing");
        refused(client.commit(Batch::new().put("k", b"a", b"3").delete("untorn.cells", b"c")), "untorn.cells");
    }
    assert_eq!(&*keyspace.get(b"a").unwrap().unwrap(), b"2");
    refused(served.connect_as(ALICE + 100), "54421");
}

#[test]
fn prefixes() {
    let _limit = limit();
    let Some(served) = ServedStore::new("prefixes") else { return };
    served.set(&format!(
        "allow {ALICE} read-only \"public.\" \"sensors\"\nallow {ALICE} read-write \"alice.\"\nallow any read-only \"public.\"\n"
    ));
    for name in ["public.a", "sensors", "alice.x", "secret", "publi"] {
        served.store.keyspace(name).unwrap().put(b"k", b"v").unwrap();
        served.store.cell(name, 8).unwrap();
    }
    let alice = served.connect_as(ALICE).unwrap();
    assert_eq!(alice.keyspaces().unwrap(), ["public.a", "sensors", "alice.x"]);
    for name in ["public.a", "sensors", "alice.x"] {
        assert!(alice.get(name, b"k").unwrap().is_some());
        alice.cell_load(name).unwrap();
    }
    for name in ["secret", "publi", "", "absent"] {
        refused(alice.get(name, b"k"), "reading");
        refused(alice.multi_get(name, &[b"k"]), "reading");
        refused(alice.scan(name, ..), "reading");
        refused(alice.cell_load(name), "reading");
        refused(alice.counter_get(name), "reading");
        refused(alice.put(name, b"k", b""), "writing");
    }
    for name in ["public.a", "sensors"] {
        refused(alice.put(name, b"k", b""), "writing");
        refused(alice.delete_range(name, ..), "writing");
        refused(alice.commit(Batch::new().delete_range("alice.x", ..).delete_range(name, ..)), name);
        // Bounds that are longer than what the right is checked by.
        let long = vec![b'k'; 40_000];
        refused(alice.delete_range(name, ..&long[..]), "writing");
        refused(alice.cell_store(name, &[0; 8]), "writing");
    }
    alice.put("alice.new", b"k", b"").unwrap();
    alice.counter_add("alice.n", 1).unwrap();
    // A batch is allowed as a whole or not at all, and its conditions reveal nothing that can't be
    // read.
    refused(alice.commit(Batch::new().put("alice.x", b"k", b"no").put("sensors", b"k", b"no")), "sensors");
    refused(alice.commit(Batch::new().expect_absent("secret", b"k").put("alice.x", b"k", b"no")), "secret");
    assert_eq!(alice.get("alice.x", b"k").unwrap().unwrap(), b"v");
    let fine = alice.commit(Batch::new().expect_absent("sensors", b"none").put("alice.x", b"k", b"yes")).unwrap();
    assert!(matches!(fine, CommitOutcome::Committed(_)));
    alice.put("alice.x", b"l", b"").unwrap();
    assert_eq!(alice.delete_range("alice.x", b"l".to_vec()..).unwrap(), 1);
    refused(alice.delete_range("untorn.cells", ..), "writing");
    refused(alice.stats(), "figures");
    refused(alice.checkpoint(), "checkpoint");
    alice.sync().unwrap();
    // The file names no rule for this uid.
    let bob = served.connect_as(BOB).unwrap();
    assert_eq!(bob.keyspaces().unwrap(), ["public.a"]);
    refused(bob.get("sensors", b"k"), "reading");
    refused(bob.sync(), "sync");
}

#[test]
fn a_malformed_file_lets_only_the_owner_in() {
    let _limit = limit();
    let Some(served) = ServedStore::new("a_malformed_file_lets_only_the_owner_in") else { return };
    served.set(&format!("allow {ALICE} read-write\n"));
    served.connect_as(ALICE).unwrap().put("k", b"a", b"1").unwrap();
    let staying = served.connect_as(ALICE).unwrap();
    let own = served.at.path.join("logger.sock");
    // Then the socket is where it is without a file, and its mode lets only the owner connect.
    served.set_bare(&format!("allow {ALICE} read-write\n\nallow {BOB} everything\n"));
    wait_until(|| own.exists());
    refused(staying.get("k", b"a"), "no longer");
    let owner = Client::connect(&own).unwrap();
    let notice = owner.notice().unwrap();
    assert!(notice.contains("line 3") && notice.contains("read-only or read-write"), "{notice}");
    owner.put("k", b"a", b"2").unwrap();
    for dir in [served.at.path.parent().unwrap(), &served.at.path] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(&own, PermissionsExt::from_mode(0o666)).unwrap();
    refused(connect_as(ALICE, &own), "line 3");
    // A file that other users could have written is ignored too.
    served.set_bare(&format!("allow {ALICE} read-write\n"));
    let access = served.at.path.join("access");
    std::fs::set_permissions(&access, PermissionsExt::from_mode(0o666)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    refused(connect_as(ALICE, &own), "others than its owner");
    std::fs::set_permissions(&access, PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&access, Some(ALICE), None).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    refused(connect_as(ALICE, &own), "belongs to");
    // Nor one that is no file.
    std::fs::remove_file(&access).unwrap();
    std::fs::create_dir(&access).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    refused(connect_as(ALICE, &own), "regular");
    std::fs::remove_dir(&access).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &access).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    refused(connect_as(ALICE, &own), "symbolic link");
}

#[test]
fn rights_that_are_taken_away_are_gone_at_once() {
    let _limit = limit();
    let Some(served) = ServedStore::new("rights_that_are_taken_away_are_gone_at_once") else { return };
    let keyspace = served.store.keyspace("k").unwrap();
    for number in 0..300u32 {
        keyspace.put(&number.to_be_bytes(), &[1; 8000]).unwrap();
    }
    served.set(&format!("allow {ALICE} read-write\n"));
    let alice = served.connect_as(ALICE).unwrap();
    let mut scan = alice.scan("k", ..).unwrap();
    scan.next().unwrap().unwrap();
    served.set(&format!("allow {ALICE} read-only \"other\"\n"));
    refused(alice.put("k", b"a", b""), "writing");
    refused(alice.get("k", b"a"), "reading");
    let last = scan.last().unwrap();
    refused(last, "reading");
    served.set(&format!("allow {BOB} read-only\n"));
    refused(alice.get("other", b"a"), "no longer");
    refused(served.connect_as(ALICE), "54321");
}

/// Also what a feed has taken already and not sent.
#[test]
fn a_feed_does_not_tell_what_may_no_longer_be_read() {
    let _limit = limit();
    let Some(served) = ServedStore::new("a_feed_does_not_tell_what_may_no_longer_be_read") else { return };
    served.set(&format!("allow {ALICE} read-only\n"));
    let (secret, open) = (served.store.keyspace("secret").unwrap(), served.store.keyspace("open").unwrap());
    let alice = served.connect_as(ALICE).unwrap();
    let mut changes = as_user(ALICE, || alice.changes_from_now(untorn::Feed::Visible)).unwrap();
    secret.put(b"first", &vec![1; 700_000]).unwrap();
    secret.put(b"second", &vec![1; 700_000]).unwrap();
    let first = changes.try_next(HANGS).unwrap().unwrap();
    assert_eq!(first.key(), b"first");
    served.set(&format!("allow {ALICE} read-only \"open\"\n"));
    open.put(b"k", b"").unwrap();
    let next = changes.try_next(HANGS).unwrap().unwrap();
    assert_eq!((next.keyspace(), next.key()), ("open", &b"k"[..]));
}

/// Clients of other users leave some connections to the owner, however many they are.
#[test]
fn the_owner_gets_in_beside_many_others() {
    let _limit = limit();
    let Some(served) = ServedStore::new("the_owner_gets_in_beside_many_others") else { return };
    served.set("connections 8\nallow any read-only\n");
    let _others: Vec<Client> = (0..7).map(|number| served.connect_as(ALICE + number).unwrap()).collect();
    let refused = served.connect_as(ALICE + 7);
    assert!(matches!(&refused, Err(Error::Busy { what }) if what.contains('7')), "{refused:?}");
    Client::connect(served.socket()).unwrap();
}

/// Only the owner gets more than half of the connections.
#[test]
fn one_user_does_not_shut_out_the_others() {
    let _limit = limit();
    let Some(served) = ServedStore::new("one_user_does_not_shut_out_the_others") else { return };
    served.set(&format!("connections 6\nallow {ALICE} read-only\nallow {BOB} read-only\n"));
    let alices: Vec<Client> = (0..3).map(|_| served.connect_as(ALICE).unwrap()).collect();
    let refused = served.connect_as(ALICE);
    assert!(matches!(&refused, Err(Error::Busy { what }) if what.contains("54321")), "{refused:?}");
    let _bobs: Vec<Client> = (0..2).map(|_| served.connect_as(BOB).unwrap()).collect();
    let _owner = Client::connect(served.socket()).unwrap();
    assert!(matches!(Client::connect(served.socket()), Err(Error::Busy { .. })));
    drop(alices);
}

/// The socket can't be made at the path in the file: the logger works on, reports the failure, and
/// makes the socket when it can.
#[test]
fn a_place_that_is_not_there_yet() {
    let _limit = limit();
    let Some(served) = ServedStore::new("a_place_that_is_not_there_yet") else { return };
    let note = served.at.path.join("logger.note");
    let wanted = served.public.path().join("later");
    let socket = wanted.join("untorn.sock");
    served.set_bare(&format!("socket \"{}\"\n", socket.display()));
    wait_until(|| std::fs::read_to_string(&note).is_ok_and(|text| text.contains("later")));
    // A new logger does not fail over it either.
    kill_logger(&served.store);
    served.store.keyspace("k").unwrap().put(b"a", b"").unwrap();
    std::fs::create_dir(&wanted).unwrap();
    wait_until(|| socket.exists() && !note.exists());
    Client::connect(&socket).unwrap().get("k", b"a").unwrap();
    // If the socket's file is removed, the logger makes it again.
    std::fs::remove_file(&socket).unwrap();
    wait_until(|| socket.exists());
    // What is no socket, or another server's, is left alone; also a server's that is too busy to
    // accept anyone.
    for other in ["plain", "served", "busy"] {
        let path = served.public.path().join(other);
        let _served;
        let mut waiting = Vec::new();
        if other == "plain" {
            std::fs::write(&path, "precious").unwrap();
        } else {
            _served = std::os::unix::net::UnixListener::bind(&path).unwrap();
        }
        if other == "busy" {
            let refused = loop {
                match connect_at_once(&path) {
                    Ok(connection) => waiting.push(connection),
                    Err(errno) => break errno,
                }
            };
            assert_eq!(refused, rustix::io::Errno::AGAIN, "after {} connections", waiting.len());
        }
        let inode = std::fs::metadata(&path).unwrap().ino();
        served.set_bare(&format!("socket \"{}\"\n", path.display()));
        wait_until(|| std::fs::read_to_string(&note).is_ok_and(|text| text.contains(other)));
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }
}

/// The reason why there is no socket repeats the path in the access file. No character of it reaches
/// the error file, or the standard error of a logger in the foreground, that a terminal obeys.
#[test]
fn a_path_that_a_terminal_would_obey() {
    let _limit = limit();
    let at = TestStore::new();
    drop(at.open());
    at.stop_logger();
    let path = "/nowhere/\u{1b}[31m\u{9b}1m\r\u{7}\u{202e}/untorn.sock";
    std::fs::write(at.path.join("access"), format!("socket \"{path}\"\n")).unwrap();
    let printed = at.path.join("printed");
    let mut logger = std::process::Command::new(logger_program())
        .arg(&at.path)
        .args(["--idle", "never"])
        .stderr(std::fs::File::create(&printed).unwrap())
        .spawn()
        .unwrap();
    let (note, end) = (at.path.join("logger.note"), "\n");
    let texts = [note, printed];
    for text in &texts {
        // The line is complete.
        wait_until(|| std::fs::read_to_string(text).is_ok_and(|text| text.ends_with(end)));
    }
    let texts = texts.map(|text| std::fs::read_to_string(text).unwrap());
    at.stop_logger();
    assert!(logger.wait().unwrap().success());
    for text in texts {
        assert!(text.contains("/nowhere/") && text.contains("[31m"), "{text:?} does not name the path");
        let obeyed = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(obeyed, None, "{text:?}");
    }
}

/// A logger that root starts in another user's directory serves that user, whose socket it is.
#[test]
fn a_directory_of_another_user() {
    let _limit = limit();
    if !may_change_uid("a_directory_of_another_user") {
        return;
    }
    let at = TestStore::new();
    std::fs::create_dir(&at.path).unwrap();
    for dir in [at.path.parent().unwrap(), &at.path] {
        std::os::unix::fs::chown(dir, Some(ALICE), Some(ALICE)).unwrap();
    }
    let store = at.open_with(|options| {
        options.foreign_owner(true);
    });
    store.keyspace("k").unwrap().put(b"a", b"1").unwrap();
    let socket = at.path.join("logger.sock");
    // The logger makes it when it serves already.
    wait_until(|| socket.exists());
    let found = std::fs::metadata(&socket).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (ALICE, 0o600));
    connect_as(ALICE, &socket).unwrap().put("k", b"a", b"2").unwrap();
    // Root may do what it likes to the files, but by message it is a user like others.
    refused(Client::connect(&socket), "uid 0");
}
