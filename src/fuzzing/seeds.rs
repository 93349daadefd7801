//! Real bytes for each target: the files of a store that is made for it, and messages of every
//! kind.

use crate::error::codec;
use crate::error::reason::{LockHolder, LockKind, MismatchKind, NotDurableReason};
use crate::files::page::CHECKSUM_LEN;
use crate::files::slot::SLOT_WORDS;
use crate::fuzzing::files::seal_image;
use crate::fuzzing::log::SEGMENT;
use crate::fuzzing::u64_at;
use crate::{Durability, Error, LimitKind, Options, Result, Store, TxnId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use untorn_wal::record;
use untorn_wal::record::Decoded;
use untorn_wal::segment_catalog::slot_name;
use untorn_wal::testing::SimDisk;
use untorn_wal::wire;
use untorn_wal::wire::{
    ChangeItem, Edge, Failure, FoundValue, Happened, List, Operation, RangeRecord, Reply, Request, request,
};
use untorn_wal::{LogScan, LogShape, Lsn, StoreId};

/// The length of the slots in which the newest header of `checkpoint` is searched.
const SLOT_BYTES: usize = 4096;
/// The longest piece of the log that is one seed.
const STREAM_BYTES: usize = 6000;

type Seeds = BTreeMap<&'static str, Vec<Vec<u8>>>;

/// Returns seeds for each target, by its name. Makes a store in the directory `dir`, which must be
/// empty, and leaves it there.
///
/// # Errors
/// The errors of the store.
pub fn seeds(dir: &Path) -> Result<Seeds> {
    let mut seeds = Seeds::new();
    for (name, page_size) in [("small", 4096), ("large", 65536)] {
        let path = dir.join(name);
        let mut options = Store::options();
        options.ring_size(64 << 10).segment_size(SEGMENT as u64).page_size(page_size).max_size(16 << 20);
        options.retain_changes(1 << 20, Duration::from_secs(3600));
        let store = fill(&options, &path)?;
        add_files(&mut seeds, &path, page_size)?;
        drop(store);
        crate::logger::stop_logger(&path, Duration::from_secs(60))?;
        add_files(&mut seeds, &path, page_size)?;
    }
    seeds.insert("request", requests());
    seeds.insert("reply", replies());
    seeds.insert("access", access_files());
    Ok(seeds)
}

/// Makes a store with keyspaces, deletions of keys and ranges, large values, a transaction that
/// streams and one that is rolled back, two checkpoints, and commits after the last of them.
fn fill(options: &Options, path: &Path) -> Result<Store> {
    let store = options.clone().logger_thread(true).logger_idle(Duration::from_millis(1)).open(path)?;
    for round in 0..24u64 {
        let mut txn = store.begin_with(Durability::Visible)?;
        for name in ["a", "bees", "x.y"] {
            let keyspace = txn.keyspace(name)?;
            for n in 0..12u64 {
                let key = format!("{name} common beginning {}", (round * 7 + n * 5) % 90);
                txn.put(&keyspace, key.as_bytes(), &vec![n as u8; (round * 9 + n) as usize % 200])?;
            }
            txn.delete(&keyspace, format!("{name} common beginning {round}").as_bytes())?;
        }
        let keyspace = txn.keyspace("large")?;
        match round % 8 {
            1 => txn.put(&keyspace, b"run", &vec![round as u8; 30_000])?,
            3 => {
                for n in 0..40u64 {
                    txn.put(&keyspace, &n.to_le_bytes(), &[round as u8; 1000])?;
                }
                let savepoint = txn.savepoint();
                for n in 20..40u64 {
                    txn.put(&keyspace, &n.to_le_bytes(), &[7; 1000])?;
                }
                txn.rollback_to(savepoint)?;
            }
            5 => {
                txn.rollback();
                continue;
            }
            2 => {
                let keyspace = txn.keyspace("bees")?;
                txn.delete_range(&keyspace, "bees common beginning 3"..="bees common beginning 5")?;
                txn.clear(&keyspace)?;
            }
            6 => txn.drop_keyspace("x.y").map(drop)?,
            _ => {}
        }
        txn.commit()?;
        if round == 8 || round == 16 {
            store.checkpoint()?;
        }
    }
    store.sync()?;
    Ok(store)
}

fn add_files(seeds: &mut Seeds, path: &Path, page_size: usize) -> Result<()> {
    let read = |name: &str| std::fs::read(path.join(name)).map_err(crate::Error::io(format!("read of {name}")));
    let checkpoint = read("checkpoint")?;
    let newest = checkpoint.chunks(SLOT_BYTES).max_by_key(|slot| u64_at(slot, 64)).expect("two slots");
    let image = &newest[112..112 + 8 * SLOT_WORDS];
    let high_water = u64_at(image, 16) as usize;
    let mut arena = read("arena")?;
    arena.truncate(high_water * page_size);
    let pages = arena.chunks(page_size).map(|page| page[CHECKSUM_LEN..].to_vec());
    let bodies = pages.filter(|body| matches!(body[0], 1 | 2)).step_by(3).take(16);
    seeds.entry("page").or_default().extend(bodies);
    let mut words = image.to_vec();
    seal_image(&mut words);
    seeds.entry("slot_image").or_default().push(words);
    if page_size == 4096 {
        seeds.entry("arena").or_default().push([image, &arena].concat());
    }
    let from = u64_at(newest, 72);
    let mut names: Vec<_> = std::fs::read_dir(path.join("wal"))
        .map_err(crate::Error::io("listing wal"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("seg-"))
        .collect();
    names.sort();
    let files = names.iter().map(|name| read(&format!("wal/{name}"))).collect::<Result<Vec<_>>>()?;
    let mut segments = from.to_le_bytes().to_vec();
    segments.extend(files.iter().take(4).flatten());
    seeds.entry("segments").or_default().push(segments);
    let store = StoreId(newest[16..32].try_into().expect("16 bytes"));
    seeds.entry("records").or_default().extend(streams(&files, store, Lsn(from)));
    seeds.entry("header").or_default().push(checkpoint);
    Ok(())
}

/// Returns pieces of the stream of records, each of which begins with another record.
fn streams(files: &[Vec<u8>], store: StoreId, from: Lsn) -> Vec<Vec<u8>> {
    let disk = SimDisk::new(1);
    files.iter().enumerate().for_each(|(slot, file)| disk.set_contents(&slot_name(slot as u32 + 1), file));
    let shape = LogShape::new(store, SEGMENT as u64).expect("the size of the store's segments");
    let Ok(mut scan) = LogScan::open(&disk, &shape, from) else { return Vec::new() };
    let mut bytes = Vec::new();
    while let Ok(Some((_, chunk))) = scan.next_chunk() {
        bytes.extend_from_slice(chunk);
    }
    let (mut at, mut found) = (0, Vec::new());
    while let Decoded::Record { len, .. } = record::decode(&bytes[at..], store.seed(), from.advanced_by(at as u64)) {
        found.push(bytes[at..bytes.len().min(at + STREAM_BYTES.max(len))].to_vec());
        at += len;
    }
    found.into_iter().step_by(2).take(12).collect()
}

/// Returns a request of each kind.
fn requests() -> Vec<Vec<u8>> {
    let (keyspace, key, name) = ("readings", &b"10:00"[..], "beats");
    let durability = request::Durability::Within { micros: 2000 };
    let operations = [
        Operation::ExpectVersion { keyspace, key, version: 7 },
        Operation::ExpectAbsent { keyspace, key: b"" },
        Operation::Put { keyspace, key, value: &[9; 40] },
        Operation::Delete { keyspace, key },
        Operation::DeleteRange { keyspace, lower: Edge::With(key), upper: Edge::Open },
    ];
    let requests = [
        Request::Get { keyspace, key },
        Request::MultiGet { keyspace, keys: List(vec![key, b"", b"other"]) },
        Request::Put { keyspace, key, value: &[1; 100], durability },
        Request::Delete { keyspace, key, durability },
        Request::Commit { operations: List(operations.to_vec()), durability },
        Request::Scan {
            keyspace,
            lower: Edge::With(key),
            upper: Edge::Without(b"b"),
            is_reverse: true,
            piece_bytes: 4096,
        },
        Request::ScanNext { scan: 3 },
        Request::ScanClose { scan: 3 },
        Request::Keyspaces,
        Request::Sync,
        Request::Checkpoint,
        Request::Stats,
        Request::CellLoad { name },
        Request::CellLoadVersion { name, version: 3 },
        Request::CellStore { name, value: key, is_durable: true },
        Request::CounterAdd { name, amount: 1 },
        Request::CounterGet { name },
        Request::Changes { from: Some(4), feed: request::Feed::Visible, keyspace: Some(keyspace), prefix: key },
        Request::ChangesNext { wait_ms: 100 },
        Request::DeleteRange { keyspace, lower: Edge::Without(key), upper: Edge::With(b"11"), durability },
    ];
    let mut messages: Vec<Vec<u8>> = requests.iter().map(|request| message(wire::encode(request))).collect();
    messages.push(wire::ClientHello::OURS.encode().to_vec());
    messages
}

/// Returns a reply of each kind, and of errors those with text and numbers.
fn replies() -> Vec<Vec<u8>> {
    let found = FoundValue { version: 5, value: &[3; 20] };
    let change = |what| ChangeItem { txn: 8, keyspace: "readings", key: b"k", what, is_last_in_txn: true };
    let failures = [
        Error::LockTimeout {
            lock: LockKind::Writer,
            waited: Duration::from_millis(12),
            holder: Some(LockHolder::Process { pid: 7, held_for: None }),
        },
        Error::NotDurable {
            txn: TxnId::from_u64(9),
            reason: NotDurableReason::Failed { error: Arc::new(Error::corrupt("wal", 1, "w")) },
        },
        Error::Mismatch { file: "wal".into(), what: MismatchKind::Missing },
        Error::LoggerStalled { waited: Duration::from_secs(30), visible: Some(TxnId::from_u64(9)) },
        Error::corrupt("arena", 4096, "page 1 \u{1b}[2J"),
        Error::Limit { what: LimitKind::KeyLength, found: 2000, limit: 1024 },
        Error::Io { what: "read".into(), source: std::io::Error::from_raw_os_error(5) },
        Error::Io { what: "read".into(), source: std::io::Error::other("something") },
        Error::TransactionFailed,
    ];
    let replies = [
        Reply::Done,
        Reply::Value(Some(found)),
        Reply::Value(None),
        Reply::Values { txn: 4, values: List(vec![Some(found), None]) },
        Reply::Committed { txn: 6 },
        Reply::Deleted { txn: 6, was_there: true },
        Reply::RangeDeleted { txn: 6, removed: 3 },
        Reply::Unmet { index: 2, current: Some(7) },
        Reply::Piece { scan: 1, txn: 4, records: List(vec![RangeRecord { key: b"a", value: b"b" }; 3]) },
        Reply::Names(List(vec!["a", "größe"])),
        Reply::Stats(b"figures"),
        Reply::Cell { version: 2, value: &[1; 8] },
        Reply::Count(77),
        Reply::Changes {
            through: 9,
            changes: List(vec![
                change(Happened::Put(b"v")),
                change(Happened::Delete),
                change(Happened::DropKeyspace),
                change(Happened::DeleteRange { end: Some(b"z") }),
                change(Happened::DeleteRange { end: None }),
            ]),
        },
    ];
    let mut messages: Vec<Vec<u8>> = replies.iter().map(|reply| message(wire::encode(reply))).collect();
    messages.extend(failures.iter().map(|error| {
        let failure = Failure { text: &error.to_string(), error: &codec::encode(error) };
        message(wire::encode(&Reply::Failed(failure)))
    }));
    messages.push(wire::ServerHello::encode(wire::VERSION, None, ""));
    messages.push(wire::ServerHello::encode(0, Some(wire::Refusal::Busy), "too many connections"));
    messages
}

/// Returns a message without the length of its frame.
fn message(frame: std::result::Result<Vec<u8>, wire::WireError>) -> Vec<u8> {
    frame.expect("a short message").split_off(wire::FRAME_HEADER_BYTES)
}

fn access_files() -> Vec<Vec<u8>> {
    let files = [
        "# rules\n\n  allow 1000 read-write# all\nallow 1001 read-only \"a.\" \"b \\\"\\\\#\"\t# some\n",
        "allow any read-only \"public\"\r\nsocket \"/run/x y.sock\"\nconnections 9\npatience 3",
        "allow 65534 read-only\nallow 4294967294 read-write \"untorn.\" \"größe\"\n",
    ];
    files.map(|file| file.as_bytes().to_vec()).to_vec()
}
