//! The random operations, and how they are drawn.

use super::*;

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put {
        keyspace: usize,
        key: Vec<u8>,
        len: usize,
    },
    Delete {
        keyspace: usize,
        key: Vec<u8>,
    },
    DeleteRange {
        keyspace: usize,
        bounds: Bounds,
    },
    Drop {
        keyspace: usize,
    },
    /// A range is read in the middle of the transaction.
    Look {
        keyspace: usize,
        bounds: Bounds,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Single(usize, Change),
    Txn {
        handle: usize,
        changes: Vec<Change>,
        commit: bool,
    },
    Fill {
        keyspace: usize,
        first: u32,
        count: u32,
        len: usize,
    },
    Snapshot {
        handle: usize,
        durable: bool,
    },
    Forget(usize),
    Range {
        handle: usize,
        snapshot: Option<usize>,
        keyspace: usize,
        bounds: Bounds,
        turns: u64,
    },
    Prefix {
        handle: usize,
        snapshot: Option<usize>,
        keyspace: usize,
        prefix: Vec<u8>,
        turns: u64,
    },
    Get {
        handle: usize,
        snapshot: Option<usize>,
        keyspace: usize,
        key: Vec<u8>,
    },
    /// A transaction of the other process.
    PeerTxn {
        changes: Vec<Change>,
        commit: bool,
    },
    /// What the other process sees: now, durably, or in a snapshot that it keeps.
    PeerLook {
        durable: bool,
        keep: bool,
    },
    /// What it sees in all snapshots that it has kept.
    PeerKept,
    KillPeer,
    Sync,
    Checkpoint,
    KillLogger,
    Reopen {
        stop_logger: bool,
    },
}

pub(crate) fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => prop::collection::vec(prop::sample::select(vec![0u8, b'a', b'b', 0xff]), 0..5),
        3 => (0u32..200).prop_map(|n| format!("key-{n:05}").into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (1000usize..=1024, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ]
}

pub(crate) fn len() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..200, 3 => 900usize..5000, 1 => 5000usize..40_000]
}

pub(crate) fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![Just(Bound::Unbounded), key().prop_map(Bound::Included), key().prop_map(Bound::Excluded)]
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let keyspace = 0..KEYSPACES;
    prop_oneof![
        8 => (keyspace.clone(), key(), len()).prop_map(|(keyspace, key, len)| Change::Put { keyspace, key, len }),
        4 => (keyspace.clone(), key()).prop_map(|(keyspace, key)| Change::Delete { keyspace, key }),
        2 => (keyspace.clone(), bound(), bound())
            .prop_map(|(keyspace, a, b)| Change::DeleteRange { keyspace, bounds: (a, b) }),
        1 => keyspace.clone().prop_map(|keyspace| Change::Drop { keyspace }),
        1 => (keyspace, bound(), bound()).prop_map(|(keyspace, a, b)| Change::Look { keyspace, bounds: (a, b) }),
    ]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let handle = 0..HANDLES;
    let keyspace = 0..KEYSPACES;
    let snapshot = prop::option::of(0usize..6);
    prop_oneof![
        12 => (handle.clone(), change()).prop_map(|(handle, change)| Op::Single(handle, change)),
        8 => (handle.clone(), prop::collection::vec(change(), 0..30), prop::bool::weighted(0.75))
            .prop_map(|(handle, changes, commit)| Op::Txn { handle, changes, commit }),
        3 => (keyspace.clone(), 0u32..200, 1u32..150, 0usize..300)
            .prop_map(|(keyspace, first, count, len)| Op::Fill { keyspace, first, count, len }),
        4 => (handle.clone(), any::<bool>()).prop_map(|(handle, durable)| Op::Snapshot { handle, durable }),
        3 => (0usize..6).prop_map(Op::Forget),
        8 => (handle.clone(), snapshot.clone(), keyspace.clone(), bound(), bound(), any::<u64>()).prop_map(
            |(handle, snapshot, keyspace, a, b, turns)| Op::Range { handle, snapshot, keyspace, bounds: (a, b), turns }
        ),
        5 => (handle.clone(), snapshot.clone(), keyspace.clone(), prop::collection::vec(prop::sample::select(
            vec![0u8, b'a', b'k', 0xff]), 0..3), any::<u64>()).prop_map(
            |(handle, snapshot, keyspace, prefix, turns)| Op::Prefix { handle, snapshot, keyspace, prefix, turns }
        ),
        8 => (handle, snapshot, keyspace, key())
            .prop_map(|(handle, snapshot, keyspace, key)| Op::Get { handle, snapshot, keyspace, key }),
        6 => (prop::collection::vec(change(), 0..12), prop::bool::weighted(0.8))
            .prop_map(|(changes, commit)| Op::PeerTxn { changes, commit }),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(durable, keep)| Op::PeerLook { durable, keep }),
        2 => Just(Op::PeerKept),
        1 => Just(Op::KillPeer),
        3 => Just(Op::Sync),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::KillLogger),
        1 => any::<bool>().prop_map(|stop_logger| Op::Reopen { stop_logger }),
    ]
}
