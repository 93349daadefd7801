//! Goal: after the death of all processes, the next logger continues their region without a
//! recovery: everything visible is there, nothing else. If anything about the region is in doubt,
//! the store is recovered, and nothing that was acknowledged is lost.
//!
//! Method: another process commits and is killed together with its logger. Then the region is
//! opened as it is, or with one byte changed, or without the marks of its files. The region counts
//! the loggers that it has had, and an id shows the incarnation: both restart with a recovery.

use crate::common::store_files::{kill, scratch, small};
use crate::common::{Role, assert_clean, exists, limit, listen, say, spawn, wait_until};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use untorn::internals::{CHECKED_CELL_NUMBERS, CHECKED_NUMBERS, IMAGES_AT};
use untorn::{Durability, FlushPolicy, Store, TxnId};
use untorn_test_kit::memory_mark::{MARKED, drop_from_memory, is_marked};

const PAGE: u64 = 4096;
/// The words of an image, and where the root of the tree that changed last is among them.
const IMAGE_BYTES: u64 = 32 * 8;
const RECENT_ROOT: u64 = 24;
/// The durable commits of a life, of this many bytes each: they fit the smallest ring.
const DURABLE: u64 = 20;
const VALUE: usize = 400;

/// Not a test of its own: the processes that are killed.
#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = small().open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let before = store.snapshot().unwrap().txn_id().as_u64();
    let cell = store.cell("cell", 8).unwrap();
    store.checkpoint().unwrap();
    for n in 0..DURABLE {
        keys.put(n.to_be_bytes(), [n as u8; VALUE]).unwrap();
    }
    keys.put(b"durable", role.arguments[0].as_bytes()).unwrap();
    store.sync().unwrap();
    // From here on nothing is flushed that nothing waits for.
    store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"visible", role.arguments[0].as_bytes()).unwrap();
    // Its bytes are in the arena alone.
    txn.put(&keys, b"large", large(&role.arguments[0])).unwrap();
    let visible = txn.commit().unwrap().txn_id();
    cell.store(&role.number(0).to_le_bytes()).unwrap();
    let mut open = (role.name == "streamer").then(|| store.begin().unwrap());
    if let Some(txn) = &mut open {
        // More than the ring holds: its frames are in the ring and in the log.
        for n in 0..40_u64 {
            txn.put(&keys, format!("uncommitted {n}"), [1; 4000]).unwrap();
        }
        txn.put(&keys, b"durable", b"uncommitted").unwrap();
    }
    let _pin = store.snapshot().unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    say(format_args!("{logger} {} {}", visible.as_u64(), before + 1));
    listen();
}

/// A value that the log only refers to.
fn large(value: &str) -> Vec<u8> {
    value.bytes().cycle().take(100_000).collect()
}

/// A store whose processes were all killed.
struct Killed {
    _dir: tempfile::TempDir,
    path: PathBuf,
    /// The newest visible transaction.
    visible: TxnId,
    /// The transaction that created the cell.
    cell: u64,
}

impl Killed {
    fn new() -> Killed {
        let dir = scratch();
        let path = dir.path().join("store");
        let (visible, cell) = lives("writer", &path, "1");
        Killed { _dir: dir, path, visible, cell }
    }

    /// Opens the store, whose region must have had so many loggers then, and checks what it holds:
    /// the durable value, and the visible ones if `all`.
    #[track_caller]
    fn open(&self, expected: u64, all: bool, what: &dyn std::fmt::Display) -> Store {
        let store = small().open(&self.path).unwrap();
        assert_eq!(loggers(&store), expected, "{what}");
        check(&store, "1", all);
        store
    }

    /// Changes the newest header, and writes it into its own slot or into the other one.
    fn change_header(&self, change: impl FnOnce(&mut [u8])) {
        let mut bytes = std::fs::read(self.path.join("checkpoint")).unwrap();
        let serial = |slot: &[u8]| u64::from_le_bytes(slot[64..72].try_into().unwrap());
        let mut slot = bytes.chunks(PAGE as usize).max_by_key(|slot| serial(slot)).unwrap().to_vec();
        change(&mut slot);
        let mut sum = crc32fast::Hasher::new();
        sum.update(&slot[..12]);
        sum.update(&slot[16..]);
        slot[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
        let at = (serial(&slot) % 2 * PAGE) as usize;
        bytes[at..at + PAGE as usize].copy_from_slice(&slot);
        std::fs::write(self.path.join("checkpoint"), bytes).unwrap();
    }

    /// Changes bits of a byte of a file.
    fn flip(&self, name: &str, at: u64) {
        let file = std::fs::File::options().read(true).write(true).open(self.path.join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }

    fn control_word(&self, at: u64) -> u64 {
        let file = std::fs::File::open(self.path.join("control")).unwrap();
        let mut word = [0; 8];
        file.read_exact_at(&mut word, at).unwrap();
        u64::from_le_bytes(word)
    }

    /// The offset of the image of the newest commit in `control`.
    fn newest_image(&self) -> u64 {
        let slots = (0..64).map(|slot| IMAGES_AT[0] + slot * IMAGE_BYTES);
        slots.into_iter().find(|at| self.control_word(*at) == self.visible.as_u64()).unwrap()
    }
}

/// Has a process live in a role, and kills it and the logger. Returns its last visible transaction.
fn live_and_die(role: &str, path: &Path, value: &str) -> TxnId {
    lives(role, path, value).0
}

/// The same; also returns the transaction that creates the cell in a new store.
fn lives(role: &str, path: &Path, value: &str) -> (TxnId, u64) {
    let mut child = spawn(&format!("recovery::adoption::{role}"), path, &[value]);
    let said: Vec<u64> = child.hear().split(' ').map(|number| number.parse().unwrap()).collect();
    let logger = said[0] as u32;
    kill(logger);
    child.kill();
    // Until its last thread has ended, it holds its byte, and the store is in use.
    wait_until(|| !exists(logger));
    (TxnId::from_u64(said[1]), said[2])
}

/// Checks what a store holds: the durable value, and the visible ones if `all`.
#[track_caller]
fn check(store: &Store, value: &str, all: bool) {
    assert_clean(store);
    let keys = store.keyspace("keys").unwrap();
    for n in 0..DURABLE {
        assert_eq!(*keys.get(n.to_be_bytes()).unwrap().unwrap(), [n as u8; VALUE]);
    }
    let text = |key: &[u8]| keys.get(key).unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap());
    assert_eq!(text(b"durable").as_deref(), Some(value));
    let mut number = [0; 8];
    store.cell("cell", 8).unwrap().load(&mut number).unwrap();
    if all {
        assert_eq!(text(b"visible").as_deref(), Some(value));
        assert!(keys.get(b"large").unwrap().is_some_and(|found| *found == large(value)[..]));
        assert_eq!(u64::from_le_bytes(number).to_string(), value);
    }
    assert!(keys.prefix(b"uncommitted").unwrap().next().is_none());
}

/// The loggers that the region has had: a recovery makes a region with one.
fn loggers(store: &Store) -> u64 {
    store.stats().unwrap().logger_starts
}

/// Ends a store that a test has opened, and its logger.
fn stop(store: Store, path: &Path) {
    store.close().unwrap();
    untorn::logger::stop_logger(path, Duration::from_secs(60)).unwrap();
}

/// Nothing is replayed and nothing lost, life after life; ids go on in the same incarnation, and
/// what was visible is durable. What the dead held is free, and their settings are not in force.
#[test]
fn a_region_is_continued_after_the_death_of_all() {
    let _limit = limit();
    let dir = scratch();
    let path = dir.path().join("store");
    let mut visible = Vec::new();
    for (life, value) in ["1", "2", "3"].into_iter().enumerate() {
        visible.push(live_and_die("writer", &path, value));
        assert!(MARKED.iter().all(|name| is_marked(&path, name)), "life {life}");
    }
    let store = small().open(&path).unwrap();
    let stats = store.stats().unwrap();
    let readers = stats.readers.iter().filter(|reader| !reader.is_loggers).count();
    assert_eq!((stats.logger_starts, stats.clients.len(), readers), (4, 1, 0), "{stats:?}");
    assert!(visible.iter().all(|txn| txn.incarnation() == visible[0].incarnation()), "{visible:?}");
    assert!(store.durable_snapshot().unwrap().txn_id() >= visible[2]);
    check(&store, "3", true);
    // The dead process had set a policy by which this would wait for an hour.
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"visible", b"3").unwrap();
    let ticket = txn.commit().unwrap();
    assert_eq!(ticket.txn_id().incarnation(), visible[0].incarnation());
    wait_until(|| store.stats().unwrap().durable >= ticket.txn_id());
    store.checkpoint().unwrap();
    check(&store, "3", true);
    drop((keys, ticket));
    stop(store, &path);
    let store = small().open(&path).unwrap();
    assert_eq!(loggers(&store), 1, "it was left in order");
    check(&store, "3", true);
    stop(store, &path);
}

/// A large value that no flush has synced may be missing. Its transaction was visible and never
/// acknowledged as durable: the region is not continued, and the store is recovered without it.
#[test]
fn a_transaction_whose_large_value_is_missing_is_dropped() {
    let _limit = limit();
    let killed = Killed::new();
    let arena = std::fs::read(killed.path.join("arena")).unwrap();
    let value = large("1");
    let at = arena.windows(value.len()).position(|bytes| bytes == value).unwrap();
    killed.flip("arena", at as u64 + 50_000);
    let store = killed.open(1, false, &"the region was continued");
    let keys = store.keyspace("keys").unwrap();
    assert!(keys.get(b"large").unwrap().is_none() && keys.get(b"visible").unwrap().is_none());
    drop(keys);
    stop(store, &killed.path);
}

/// The kernel may have dropped what a file held that lost its mark; the log has everything all the
/// same, or the ring of the region.
#[test]
fn a_file_without_its_mark_is_recovered() {
    let _limit = limit();
    for name in MARKED {
        let killed = Killed::new();
        drop_from_memory(&killed.path, &[name]);
        let store = killed.open(1, true, &name);
        let txn = store.keyspace("keys").unwrap().put(b"more", b"").map(|_| store.snapshot().unwrap().txn_id());
        assert_eq!(txn.unwrap().incarnation(), killed.visible.incarnation() + 1);
        stop(store, &killed.path);
    }
}

/// A ring that differs from the log in one byte is not continued, and neither is one whose part
/// beyond the log is damaged.
#[test]
fn a_ring_that_does_not_repeat_the_log_is_recovered() {
    let _limit = limit();
    for (value, all) in [([7; VALUE].to_vec(), true), (b"visible1".to_vec(), false)] {
        let killed = Killed::new();
        let control = std::fs::read(killed.path.join("control")).unwrap();
        // A record holds the value, or the key and then the value. No page is in this file. The key
        // before the value may end with the same byte.
        let mut at = (0..control.len() - value.len()).filter(|at| control[*at..].starts_with(&value));
        let first = at.next().unwrap();
        assert!(at.all(|at| at == first + 1), "{}", value.len());
        killed.flip("control", first as u64 + 3);
        stop(killed.open(1, all, &""), &killed.path);
    }
}

/// A region in which a commit's image or a number that leads to memory is damaged is not continued.
#[test]
fn a_damaged_region_is_recovered() {
    let _limit = limit();
    let numbers = CHECKED_NUMBERS.iter().chain(CHECKED_CELL_NUMBERS).map(|(name, at)| (*name, Some(*at)));
    for (name, at) in numbers.chain([("newest image", None)]) {
        let killed = Killed::new();
        killed.flip("control", at.unwrap_or_else(|| killed.newest_image() + 9 * 8));
        stop(killed.open(1, false, &name), &killed.path);
    }
}

/// A region whose newest root is not in the arena is not continued: the pages may be of another
/// time.
#[test]
fn a_damaged_root_is_recovered() {
    let _limit = limit();
    // The number of the page, which a page in another place has, and a length.
    for byte in [8 + 4, 8 + 2] {
        let killed = Killed::new();
        let root = killed.control_word(killed.newest_image() + RECENT_ROOT * 8);
        killed.flip("arena", u64::from(root as u32) * PAGE + byte);
        stop(killed.open(1, true, &byte), &killed.path);
    }
}

/// A region that does not belong to the newest header is not continued: one that states that the
/// store was left in order, and one that the region does not count.
#[test]
fn a_region_of_another_header_is_recovered() {
    let _limit = limit();
    type Change = fn(&mut [u8]);
    let in_order: Change = |slot| slot[80] = 1;
    let later: Change = |slot| slot[64] += 1;
    for change in [in_order, later] {
        let killed = Killed::new();
        killed.change_header(change);
        stop(killed.open(1, true, &""), &killed.path);
    }
    // The same header once more is the one that the region counts.
    let killed = Killed::new();
    killed.change_header(|_| ());
    stop(killed.open(2, true, &""), &killed.path);
}

/// A region whose entry of a cell is another one's is not continued. The cell has its last sample.
#[test]
fn a_damaged_cell_is_recovered() {
    let _limit = limit();
    let killed = Killed::new();
    let control = std::fs::read(killed.path.join("control")).unwrap();
    // The cells are behind the ring and the readers.
    let words = control.as_chunks::<8>().0.iter().enumerate().skip((1 << 20) / 8);
    let at = words.into_iter().find(|(_, word)| u64::from_le_bytes(**word) == killed.cell).unwrap().0;
    killed.flip("control", 8 * at as u64);
    stop(killed.open(1, false, &""), &killed.path);
}

/// The remedy for a damaged region is to close the store and to open it again. A logger that can't
/// leave the store in order for that reason leaves a region that the next one does not continue.
#[test]
fn a_region_that_can_not_be_left_in_order_is_recovered() {
    let _limit = limit();
    let dir = scratch();
    let path = dir.path().join("store");
    let store = small().sample_interval(Duration::from_secs(3600)).open(&path).unwrap();
    let before = store.snapshot().unwrap().txn_id().as_u64();
    let cell = store.cell("cell", 8).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path.join("control")).unwrap();
    let control = std::fs::read(path.join("control")).unwrap();
    let words = control.as_chunks::<8>().0.iter().enumerate().skip((1 << 20) / 8);
    let at = words.into_iter().find(|(_, word)| u64::from_le_bytes(**word) == before + 1).unwrap().0;
    // Where the copies of its values are, and its kind. The handle has read them.
    file.write_all_at(&[0x55; 16], 8 * at as u64 / 128 * 128 + 64).unwrap();
    cell.store(&[1; 8]).unwrap();
    assert!(MARKED.iter().all(|name| is_marked(&path, name)));
    drop(cell);
    stop(store, &path);
    assert!(!MARKED.iter().any(|name| is_marked(&path, name)));
    let store = small().open(&path).unwrap();
    assert_eq!(loggers(&store), 1);
    assert_clean(&store);
    store.cell("cell", 8).unwrap().store(&[2; 8]).unwrap();
    stop(store, &path);
}

/// Frames of a transaction that never committed are in the ring and in the log: the region is
/// continued behind them, and no reader sees them, also not after a recovery from that log.
#[test]
fn what_was_not_committed_stays_invisible() {
    let _limit = limit();
    let dir = scratch();
    let path = dir.path().join("store");
    live_and_die("streamer", &path, "1");
    let store = small().open(&path).unwrap();
    assert_eq!(loggers(&store), 2);
    check(&store, "1", true);
    store.keyspace("keys").unwrap().put(b"after", b"1").unwrap();
    check(&store, "1", true);
    let logger = store.stats().unwrap().logger_pid.unwrap();
    kill(logger);
    wait_until(|| !exists(logger));
    drop(store);
    drop_from_memory(&path, &MARKED);
    let store = small().open(&path).unwrap();
    assert_eq!(loggers(&store), 1);
    check(&store, "1", true);
    assert_eq!(&*store.keyspace("keys").unwrap().get(b"after").unwrap().unwrap(), b"1");
    stop(store, &path);
}

/// A backup that is copied over the files in place keeps their marks. Its header says that it was
/// left in order, so that the region of a later time does not count.
#[test]
fn a_backup_in_the_same_files_is_not_continued() {
    let _limit = limit();
    let dir = scratch();
    let path = dir.path().join("store");
    let visible = live_and_die("writer", &path, "1");
    stop(small().open(&path).unwrap(), &path);
    let backup = ["arena", "checkpoint"].map(|name| (name, std::fs::read(path.join(name)).unwrap()));
    let log: Vec<_> = std::fs::read_dir(path.join("wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let log: Vec<_> = log.into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect();
    live_and_die("writer", &path, "2");
    for (name, bytes) in backup {
        std::fs::write(path.join(name), bytes).unwrap();
    }
    std::fs::remove_dir_all(path.join("wal")).unwrap();
    std::fs::create_dir(path.join("wal")).unwrap();
    log.into_iter().for_each(|(file, bytes)| std::fs::write(file, bytes).unwrap());
    assert!(MARKED.iter().all(|name| is_marked(&path, name)));
    let store = small().open(&path).unwrap();
    assert_eq!(loggers(&store), 1);
    assert_eq!(store.snapshot().unwrap().txn_id().incarnation(), visible.incarnation());
    check(&store, "1", true);
    stop(store, &path);
}
