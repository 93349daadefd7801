//! Goal: after any edits the tree is sound and equals a map, older roots still read their old
//! entries, and no page leaks. Method: random transactions on hard keys, with snapshots kept and
//! released; and hand-made shapes that are known to break trees.

use crate::btree::tests::*;

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<u8>, Vec<u8>),
    /// Puts keys after the tree's last one, each as long as the key before it or longer.
    Append(Vec<Vec<u8>>),
    Delete(Vec<u8>),
    /// Deletes the n-th existing key, so that the deletion removes an entry.
    DeleteNth(usize),
    DeleteRange(Vec<u8>, Option<Vec<u8>>),
    /// Deletes a number of keys from the n-th on, so that large and small parts of the tree are
    /// removed.
    DeleteSpan(usize, usize),
    Commit,
    Release,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (keys(), values()).prop_map(|(key, value)| Op::Put(key, value)),
        1 => proptest::collection::vec(values(), 1..30).prop_map(Op::Append),
        1 => keys().prop_map(Op::Delete),
        5 => any::<usize>().prop_map(Op::DeleteNth),
        1 => (keys(), proptest::option::weighted(0.9, keys())).prop_map(|(start, end)| Op::DeleteRange(start, end)),
        1 => (any::<usize>(), 1..60_usize).prop_map(|(first, count)| Op::DeleteSpan(first, count)),
        2 => Just(Op::Commit),
        1 => Just(Op::Release),
    ];
    proptest::collection::vec(op, 1..400)
}

fn run(page_size: usize, ops: Vec<Op>) {
    let mut pair = Pair::new(page_size);
    let mut snapshots: Vec<(TxnId, PageId, Map)> = Vec::new();
    for op in ops {
        match op {
            Op::Put(key, value) => pair.put(&key, &value),
            Op::Append(values) => {
                let mut key = pair.map.keys().next_back().cloned().unwrap_or_default();
                for value in values {
                    let len = key.len();
                    match key.last_mut() {
                        Some(last) if *last < 200 => *last += 1,
                        _ if len < key_len_max(page_size) => key.push(b'm'),
                        _ => break,
                    }
                    pair.put(&key, &value);
                }
            }
            Op::Delete(key) => pair.delete(&key),
            Op::DeleteNth(n) => {
                if let Some(key) = pair.map.keys().nth(n % pair.map.len().max(1)).cloned() {
                    pair.delete(&key);
                }
            }
            Op::DeleteRange(start, end) => pair.delete_range(&start, end.as_deref()),
            Op::DeleteSpan(first, count) => {
                let first = first % pair.map.len().max(1);
                let mut keys = pair.map.keys().skip(first).step_by(count);
                let (start, end) = (keys.next().cloned(), keys.next().cloned());
                pair.delete_range(&start.unwrap_or_default(), end.as_deref());
            }
            Op::Commit => {
                pair.verify();
                snapshots.push((pair.pages.txn_id(), pair.root, pair.map.clone()));
                pair.pages.next_txn();
            }
            Op::Release => {
                // The older half of the snapshots is dropped; a page freed by txn f is needed by
                // snapshots before f.
                snapshots.drain(..snapshots.len() / 2);
                let oldest = snapshots.first().map_or(TxnId::ZERO, |snapshot| snapshot.0);
                pair.pages.release(oldest);
            }
        }
    }
    pair.verify();
    for (_, root, map) in &snapshots {
        assert_holds(&pair.pages, *root, map);
    }
    pair.pages.next_txn();
    edit::free_tree(&mut pair.pages, pair.root).unwrap();
    assert!(pair.pages.live.is_empty());
    let mut emptied = Pair { root: snapshots.last().map_or(PageId::NONE, |s| s.1), ..pair };
    if let Some((_, _, map)) = snapshots.last() {
        assert_holds(&emptied.pages, emptied.root, map);
    }
    emptied.root = PageId::NONE;
    emptied.map.clear();
    emptied.verify();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn equals_a_map_and_leaks_nothing(page_size in page_sizes(), ops in ops()) {
        run(page_size, ops);
    }

    /// Everything is deleted again, in any order, within transactions of any length.
    #[test]
    fn emptying_gives_every_page_back(
        entries in proptest::collection::vec((keys(), values()), 1..200),
        seed in any::<u64>(),
        per_txn in 1usize..50,
    ) {
        let mut pair = Pair::new(4096);
        for (key, value) in &entries {
            pair.put(key, value);
        }
        pair.verify();
        let mut keys: Vec<Vec<u8>> = pair.map.keys().cloned().collect();
        keys.sort_by_key(|key| crc32fast::hash(key) as u64 ^ seed);
        for (n, key) in keys.iter().enumerate() {
            if n % per_txn == 0 {
                pair.verify();
                pair.pages.next_txn();
            }
            pair.delete(key);
        }
        prop_assert!(pair.root.is_none());
        pair.verify();
    }
}

/// The empty key is inserted into a page of long keys with a long common prefix: two pages are not
/// enough.
#[test]
fn a_prefix_that_vanishes_splits_a_page_in_three() {
    for page_size in [4096, 8192, 16384, 32768, 65536] {
        for middle in [&b""[..], b"a", &[b'k'; 7], b"kz", b"z"] {
            let mut pair = Pair::new(page_size);
            let count = 120;
            for n in 0..count {
                let fill = if n % 2 == 0 { b'k' } else { b'l' };
                pair.put(&longest(page_size, fill, format!("{n:03}").as_bytes()), &[n as u8; 20]);
            }
            pair.pages.next_txn();
            pair.put(middle, &vec![1; page_size / 3 - 100]);
            pair.verify();
        }
    }
}

/// Long separators make branches of three; they split, merge and vanish at every level.
#[test]
fn branches_of_few_children_grow_and_shrink() {
    let mut pair = Pair::new(4096);
    let key = |n: u32| {
        let mut key = vec![b'p'; 1016];
        key.extend_from_slice(format!("{:08}", n.wrapping_mul(2654435761) % 100_000_000).as_bytes());
        key[(n % 1000) as usize] = b'q';
        key
    };
    for n in 0..600 {
        pair.put(&key(n), &[0; 300]);
        if n % 16 == 0 {
            pair.pages.next_txn();
        }
    }
    assert!(pair.verify().depth >= 3);
    for n in 0..600 {
        pair.delete(&key(n * 7 % 600));
        if n % 16 == 0 {
            pair.verify();
            pair.pages.next_txn();
        }
    }
    assert!(pair.root.is_none() && pair.pages.live.is_empty());
}

/// Ascending insertions fill their pages.
#[test]
fn a_sorted_load_fills_pages() {
    let mut pair = Pair::new(4096);
    for n in 0..20_000u32 {
        pair.put(format!("key/{n:020}").as_bytes(), &[7; 150]);
    }
    let report = pair.verify();
    let filled = report.bytes as f64 / (report.leaves * 4096) as f64;
    assert!(filled > 0.85, "{report:?}: {filled}");
    assert!(report.branches < report.leaves / 100, "{report:?}");
}

/// Replacing values in place, shrinking and growing them, does not use up pages.
#[test]
fn replacing_values_does_not_grow_the_tree() {
    let mut pair = Pair::new(4096);
    for round in 0..60usize {
        for n in 0..200u32 {
            let len = (n as usize * 31 + round * 17) % 300;
            pair.put(format!("{n:08}").as_bytes(), &vec![round as u8; len]);
        }
        pair.verify();
        pair.pages.next_txn();
    }
    let report = pair.verify();
    assert!(report.leaves <= 60, "{report:?}");
}

/// After a write, the old root still reads the old value.
#[test]
fn a_transaction_frees_only_what_it_replaced() {
    let mut pair = Pair::new(4096);
    for n in 0..1000u32 {
        pair.put(format!("{n:08}").as_bytes(), &[1; 100]);
    }
    let before = (pair.root, pair.map.clone(), pair.verify());
    pair.pages.next_txn();
    pair.put(b"00000500", &[2; 100]);
    pair.delete(b"no such key");
    assert_eq!(pair.pages.freed.len() as u32, before.2.depth, "one page a level");
    assert_holds(&pair.pages, before.0, &before.1);
    pair.verify();
}

/// The limits are errors that change nothing.
#[test]
fn too_long_is_an_error() {
    let mut pair = Pair::new(4096);
    pair.put(b"k", b"v");
    let version = pair.pages.txn_id();
    let (pages, root) = (&mut pair.pages, &mut pair.root);
    let key = vec![0; 1025];
    let error = edit::put(pages, root, &key, version, StoredValue::Inline(b"")).unwrap_err();
    assert!(matches!(error, crate::Error::Limit { found: 1025, limit: 1024, .. }), "{error}");
    assert!(edit::put(pages, root, b"k", version, StoredValue::Inline(&[0; 2000])).is_err());
    pair.verify();
}
