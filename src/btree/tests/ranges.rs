//! Goal: the removal of a range frees whole subtrees without a write to any of their pages, copies
//! only its two edges, and leaves pages as full as single removals do.
//!
//! Method: trees of several levels in memory, whose freed pages are compared with their bytes
//! before. Random ranges are in the model test (`model.rs`).

use crate::btree::node::Node;
use crate::btree::tests::*;

fn key(n: u32) -> Vec<u8> {
    format!("key/{n:08}").into_bytes()
}

/// Returns a tree of three levels, whose pages are all of an earlier transaction.
fn tall() -> Pair {
    let mut pair = Pair::new(4096);
    for n in 0..30_000u32 {
        pair.put(&key(n), &vec![n as u8; 40 + (n % 7) as usize]);
    }
    for n in (0..30_000).step_by(500) {
        pair.put(&key(n), &vec![7; 9_000]);
    }
    assert_eq!(pair.verify().depth, 3);
    pair.pages.next_txn();
    pair
}

fn remove(pair: &mut Pair, start: u32, end: Option<u32>) -> Vec<TxnId> {
    let before = pair.pages.bytes.clone();
    let own = pair.pages.txn_id();
    pair.delete_range(&key(start), end.map(key).as_deref());
    for freed in pair.pages.freed.iter().filter(|freed| freed.freed_txn == own) {
        let bytes = freed.page.0 as usize * 4096..(freed.page.0 + freed.pages) as usize * 4096;
        assert!(pair.pages.bytes[bytes.clone()] == before[bytes], "{freed:?} was written");
    }
    pair.verify();
    pair.pages.live.values().map(|(_, created_txn)| *created_txn).filter(|created_txn| *created_txn == own).collect()
}

#[test]
fn only_the_edges_are_copied() {
    for (start, end) in [(5, Some(29_990)), (12_345, Some(23_456)), (0, Some(15_000)), (15_000, None), (700, Some(702))]
    {
        let mut pair = tall();
        let copied = remove(&mut pair, start, end);
        assert!((1..=6).contains(&copied.len()), "{start} to {end:?}: {} pages of three levels", copied.len());
    }
}

#[test]
fn a_whole_tree_is_freed_without_a_copy() {
    for end in [None, Some(30_000)] {
        let mut pair = tall();
        assert!(remove(&mut pair, 0, end).is_empty());
        assert!(pair.root.is_none() && pair.pages.live.is_empty());
    }
    let mut pair = tall();
    pair.delete_range(b"", None);
    assert!(pair.root.is_none() && pair.pages.live.is_empty());
}

#[test]
fn a_range_without_keys_copies_nothing() {
    let mut pair = tall();
    let live = pair.pages.live.clone();
    let (root, bytes) = (pair.root, pair.pages.bytes.len());
    let ranges: [(&[u8], Option<&[u8]>); 6] = [
        (b"", Some(b"key/")),
        (b"key/00000005x", Some(b"key/00000006")),
        (b"l", None),
        (b"key/00020000", Some(b"key/00010000")),
        (b"key/00020000", Some(b"key/00020000")),
        (b"a", Some(b"")),
    ];
    for (start, end) in ranges {
        pair.delete_range(start, end);
    }
    assert_eq!((pair.root, pair.pages.bytes.len()), (root, bytes));
    assert_eq!(pair.pages.live, live);
    let mut empty = Pair::new(4096);
    empty.delete_range(b"", None);
    assert!(empty.root.is_none());
}

#[test]
fn a_part_of_a_single_leaf() {
    let mut pair = Pair::new(4096);
    for n in 0..20 {
        pair.put(&key(n), &[1; 20]);
    }
    pair.pages.next_txn();
    pair.delete_range(&key(3), Some(&key(17)));
    assert_eq!(pair.verify().pages, 1);
    pair.delete_range(&key(0), Some(&key(3)));
    pair.delete_range(&key(17), None);
    assert!(pair.root.is_none());
    pair.verify();
}

/// The two edges of the gap meet: pages that are nearly empty are merged at every level, and the
/// tree gets lower.
#[test]
fn what_is_left_is_merged() {
    let mut pair = tall();
    remove(&mut pair, 2, Some(29_998));
    let report = pair.verify();
    assert_eq!((report.entries, report.depth, report.leaves), (4, 1, 1), "{report:?}");
    let mut pair = tall();
    remove(&mut pair, 40, Some(29_960));
    let report = pair.verify();
    assert!(report.depth <= 2 && report.leaves <= 4, "{report:?}");
}

/// The range covers pages that the same transaction created. The transaction may reuse them at
/// once.
#[test]
fn pages_of_the_same_transaction_are_reused() {
    let mut pair = tall();
    for n in 40_000..50_000 {
        pair.put(&key(n), &[3; 60]);
    }
    pair.delete_range(&key(39_000), None);
    pair.verify();
    let len = pair.pages.bytes.len();
    for n in 40_000..49_000 {
        pair.put(&key(n), &[4; 60]);
    }
    assert_eq!(pair.pages.bytes.len(), len, "freed pages of the transaction itself are used again");
    pair.verify();
}

/// In a damaged tree, no page may be freed that is in use elsewhere.
#[test]
fn damage_inside_the_range_is_an_error() {
    let pair = tall();
    let child = |branch: PageId, index: usize| Node::open(&pair.pages, branch).unwrap().child(index);
    let (other, covered) = (child(pair.root, 0), child(pair.root, 1));
    // The first child of a covered branch becomes, in turn, a leaf of another branch, another
    // branch, the root, and two numbers of no page.
    for wrong in [child(other, 0), other, pair.root, PageId(u32::MAX), PageId(0)] {
        let mut damaged = pair.clone();
        damaged.pages.tolerant = true;
        let at = covered.0 as usize * 4096 + 28;
        damaged.pages.bytes[at..at + 4].copy_from_slice(&wrong.0.to_le_bytes());
        let result = range::delete(&mut damaged.pages, &mut damaged.root, &key(5), None);
        assert!(matches!(result, Err(crate::Error::Corrupt { .. })), "{wrong:?}: {result:?}");
    }
}

/// If two entries refer to one extent, a removal of both would free it twice.
#[test]
fn an_extent_that_is_found_twice_is_an_error() {
    let mut pair = Pair::new(4096);
    pair.put(b"a", &[1; 9_000]);
    pair.put(b"b", &[2; 9_000]);
    pair.pages.next_txn();
    let reference = |index: usize| match Node::open(&pair.pages, pair.root).unwrap().entry(index).unwrap().1 {
        StoredValue::Extent { page, pages, len } => StoredValue::encode_extent(page, pages, len),
        StoredValue::Inline(_) => panic!("a value in its leaf"),
    };
    let (first, second) = (reference(0), reference(1));
    let leaf = pair.root.0 as usize * 4096;
    let at = (leaf..leaf + 4096).find(|at| pair.pages.bytes[*at..].starts_with(&second)).unwrap();
    pair.pages.bytes[at..at + second.len()].copy_from_slice(&first);
    let error = range::delete(&mut pair.pages, &mut pair.root, b"", None).unwrap_err().to_string();
    assert!(error.contains("a tree reaches the page twice"), "{error}");
}
