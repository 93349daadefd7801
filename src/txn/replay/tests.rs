use super::*;
use crate::files::extent::LoggedExtent;
use crate::txn::ops::Op;
use crate::{KeyspaceId, PageId};

/// Returns the result of checking these records, which follow transaction 0, if the pages have
/// keyspace 1.
fn check(records: &[(u64, RecordKind, &[Op<'_>])]) -> Result<()> {
    plan(records).map(drop)
}

/// Does the same, and returns the extents to which the records refer, and where each record begins.
fn plan(records: &[(u64, RecordKind, &[Op<'_>])]) -> Result<(ExtentPlan, Vec<Lsn>)> {
    let (mut bytes, mut begins) = (Vec::new(), Vec::new());
    for (txn, kind, ops) in records {
        let mut payload = Vec::new();
        ops.iter().for_each(|op| op.encode(&mut payload));
        let at = Lsn(bytes.len() as u64);
        begins.push(at);
        untorn_wal::record::encode(&mut bytes, 7, at, *txn, *kind, &payload);
    }
    let find_keyspace = |keyspace: KeyspaceId| Ok(keyspace.0 == 1);
    let mut check = Check::new(7, 4096, TxnId::ZERO, Lsn::ZERO, &find_keyspace);
    check.feed(&bytes)?;
    Ok((check.into_extents(), begins))
}

fn extent(page: u32) -> Op<'static> {
    let extent = LoggedExtent { page: PageId(page), len: 64 << 10, crc: 0 };
    Op::PutExtent { keyspace: KeyspaceId(1), key: b"key", extent }
}

fn put(keyspace: u64) -> Op<'static> {
    Op::Put { keyspace: KeyspaceId(keyspace), key: b"key", value: b"value" }
}

fn large(len: u32) -> Op<'static> {
    Op::LargePut { keyspace: KeyspaceId(1), key: b"key", len }
}

fn create(keyspace: u64) -> Op<'static> {
    Op::CreateKeyspace { keyspace: KeyspaceId(keyspace), name: "name" }
}

fn dropped(keyspace: u64) -> Op<'static> {
    Op::DropKeyspace { keyspace: KeyspaceId(keyspace), name: "name" }
}

fn removed(keyspace: u64, end: &[u8]) -> Op<'_> {
    Op::DeleteRange { keyspace: KeyspaceId(keyspace), start: b"", end: Some(end) }
}

fn savepoint(depth: u32) -> Op<'static> {
    Op::Savepoint { depth }
}

fn roll_back(depth: u32) -> Op<'static> {
    Op::RollBack { depth }
}

use RecordKind::{Abort, Commit, Frame, FrameCommit};

/// Records that transactions write are accepted: streams that end, that are aborted, or that
/// another transaction follows.
#[test]
fn possible_transactions_pass() {
    let half = Op::LargeBytes(&[1; 50]);
    check(&[(1, Commit, &[put(1), create(2), put(2)]), (2, Commit, &[put(2), dropped(2)])]).unwrap();
    check(&[(1, Frame, &[create(2), large(100), half]), (1, FrameCommit, &[half, put(2)])]).unwrap();
    check(&[(1, Frame, &[create(2), large(100)]), (1, Abort, &[]), (1, Commit, &[create(2), put(2)])]).unwrap();
    check(&[(1, Frame, &[dropped(1)]), (1, Abort, &[]), (1, Commit, &[put(1)])]).unwrap();
    check(&[(1, Commit, &[removed(1, &[7; 1025])])]).unwrap();
    let ops =
        [savepoint(0), create(2), savepoint(1), dropped(1), roll_back(1), put(1), put(2), roll_back(0), create(2)];
    check(&[(1, Frame, &ops), (1, FrameCommit, &[put(2), roll_back(0), create(2), put(2)])]).unwrap();
}

const SHORT: LoggedExtent = LoggedExtent { page: PageId(9), len: (64 << 10) - 1, crc: 0 };

/// Goal: only the extents of committed transactions count. A stream that was aborted, that another
/// transaction follows, or that the log ends in, never commits.
#[test]
fn extents_of_streams_that_never_commit_do_not_count() {
    let records: &[(u64, RecordKind, &[Op<'_>])] = &[
        (1, Frame, &[extent(100)]),
        (1, Abort, &[]),
        (1, Frame, &[extent(100)]),
        (1, FrameCommit, &[extent(200)]),
        (2, Frame, &[extent(300)]),
        (2, Commit, &[extent(300)]),
        (3, Frame, &[extent(400)]),
        (3, Frame, &[extent(500)]),
    ];
    let (plan, begins) = plan(records).unwrap();
    assert_eq!(plan.sorted_ranges(4096), [100..117, 200..217, 300..317]);
    assert_eq!(plan.bytes(), 3 * (64 << 10));
    let never: Vec<bool> = begins.iter().map(|at| plan.never_commits(*at)).collect();
    assert_eq!(never, [true, false, false, false, true, false, true, true]);
    assert_eq!(plan.beyond(begins[5]).map(|found| found.page.0).collect::<Vec<_>>(), [300]);
}

/// Records that no transaction writes are rejected.
#[test]
fn impossible_transactions_are_refused() {
    let half = Op::LargeBytes(&[1; 50]);
    type Records<'a> = &'a [(u64, RecordKind, &'a [Op<'a>])];
    let table: &[(Records<'_>, &str)] = &[
        (&[(1, Commit, &[put(2)])], "keyspace number 2, which the pages don't have"),
        (&[(1, Commit, &[dropped(1)]), (2, Commit, &[put(1)])], "keyspace number 1, which the pages don't have"),
        (&[(1, Commit, &[create(1)])], "creates keyspace number 1"),
        (&[(1, Frame, &[create(2)]), (1, Abort, &[]), (1, Commit, &[put(2)])], "keyspace number 2"),
        (&[(1, FrameCommit, &[put(1)])], "without having begun"),
        (&[(1, Frame, &[put(1)]), (1, Abort, &[]), (1, FrameCommit, &[put(1)])], "without having begun"),
        (&[(1, Commit, &[put(1)]), (1, Commit, &[put(1)])], "does not follow"),
        (&[(1, Commit, &[large(100), half])], "ends before the last 50 bytes"),
        (&[(1, Commit, &[large(100), half, put(1)])], "bytes of a large value are missing"),
        (&[(1, Commit, &[large(60), half, half])], "more bytes than"),
        (&[(1, Commit, &[half])], "was not begun"),
        (&[(1, Commit, &[savepoint(1)])], "follows 1 others, of which there are 0"),
        (&[(1, Commit, &[savepoint(0), roll_back(1)])], "savepoint 1, which is not there"),
        (&[(1, Commit, &[savepoint(0), savepoint(1), roll_back(0), roll_back(1)])], "savepoint 1, which is not there"),
        (&[(1, Commit, &[savepoint(0), create(2), roll_back(0), put(2)])], "keyspace number 2"),
        (&[(1, Frame, &[savepoint(0)]), (1, Abort, &[]), (1, Commit, &[roll_back(0)])], "savepoint 0"),
        (&[(1, Commit, &[large(100), savepoint(0)])], "bytes of a large value are missing"),
        (
            &[(1, Commit, &[Op::PutExtent { keyspace: KeyspaceId(1), key: b"key", extent: SHORT }])],
            "65535 bytes at page 9",
        ),
        (&[(1, Commit, &[extent(0)])], "at page 0"),
        (&[(1, Commit, &[large(100), extent(9)])], "bytes of a large value are missing"),
        (&[(1, Commit, &[removed(2, b"z")])], "keyspace number 2, which the pages don't have"),
        (&[(1, Commit, &[removed(1, &[7; 1026])])], "a bound of bytes 1026, the limit is 1025"),
        (&[(1, Commit, &[large(100), removed(1, b"z")])], "bytes of a large value are missing"),
    ];
    for (records, what) in table {
        let error = check(records).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}
