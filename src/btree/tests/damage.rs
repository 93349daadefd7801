//! Goal: damaged pages cause errors. No read or edit panics, loops or reads out of bounds. Method:
//! flip bytes, swap pages and redirect child pointers in sound trees, then run all reads and edits.

use crate::btree::node::GARBAGE_AT;
use crate::btree::tests::*;
use crate::files::page::CHECKSUM_LEN;
use std::time::{Duration, Instant};

fn tree(page_size: usize) -> Pair {
    let mut pair = Pair::new(page_size);
    for n in 0..400u32 {
        pair.put(format!("some/prefix/{:06}", n * 37 % 400).as_bytes(), &vec![n as u8; (n % 90) as usize]);
    }
    for n in 0..6u8 {
        pair.put(&[n; 5], &vec![n; 5000]);
        pair.put(&longest(page_size, n, b"x"), b"");
        pair.put(&vec![0; n.into()], b"zeros");
    }
    pair.pages.next_txn();
    pair
}

/// Runs all reads, then edits. Results don't matter, but each call must return.
fn exercise(pair: &Pair) {
    let started = Instant::now();
    for key in pair.map.keys().step_by(7) {
        let _ = search::get(&pair.pages, pair.root, key);
        let _ = search::get(&pair.pages, pair.root, &key[..key.len() / 2]);
    }
    let _ = collect(&pair.pages, RangeCursor::new(pair.root, Bound::Unbounded, Bound::Unbounded));
    let mut back = RangeCursor::new(pair.root, Bound::Excluded(b"\0"), Bound::Included(b"some/prefix/000300"));
    while let Ok(Some(_)) = back.next_back(&pair.pages) {}
    let mut cursor = PointCursor::new(pair.root);
    while let Ok(Some(_)) = cursor.next(&pair.pages) {}
    let _ = cursor.last(&pair.pages);
    while let Ok(Some(_)) = cursor.prev(&pair.pages) {}
    for key in pair.map.keys().step_by(7) {
        let _ = cursor.seek(&pair.pages, key);
        let _ = cursor.next(&pair.pages);
    }
    let _ = check_tree(&pair.pages, pair.root, &mut |_| Ok(()));
    let mut edited = pair.clone();
    // Damage may lead to one page by two paths; the test's arena must then tolerate that.
    edited.pages.tolerant = true;
    for (n, key) in pair.map.keys().enumerate().step_by(5) {
        let version = edited.pages.txn_id();
        let done = if n % 2 == 0 {
            edit::put(&mut edited.pages, &mut edited.root, key, version, StoredValue::Inline(&[1; 120]))
        } else {
            edit::delete(&mut edited.pages, &mut edited.root, key)
        };
        if done.is_err() {
            break;
        }
    }
    let all: Vec<&Vec<u8>> = pair.map.keys().collect();
    for (start, end) in [(0, None), (all.len() / 5, Some(all.len() / 2)), (3, Some(7)), (all.len() / 2, None)] {
        let mut edited = pair.clone();
        edited.pages.tolerant = true;
        let end = end.map(|end| &all[end][..]);
        let _ = range::delete(&mut edited.pages, &mut edited.root, all[start], end);
    }
    assert!(started.elapsed() < Duration::from_secs(300), "damage must not lead to endless work");
}

/// A removal of a range looks for underfull pages before it has checked them.
#[test]
fn more_garbage_than_bytes_is_survived() {
    let sound = tree(4096);
    let keys: Vec<&Vec<u8>> = sound.map.keys().collect();
    for page in 1..sound.pages.bytes.len() / 4096 {
        for (first, count) in (0..keys.len()).step_by(3).flat_map(|first| [(first, 5), (first, 60)]) {
            let Some(end) = keys.get(first + count) else { continue };
            let mut pair = sound.clone();
            pair.pages.tolerant = true;
            let garbage = page * 4096 + CHECKSUM_LEN + GARBAGE_AT;
            pair.pages.bytes[garbage..garbage + 2].fill(0xff);
            let _ = range::delete(&mut pair.pages, &mut pair.root, keys[first], Some(end));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_are_survived(
        flips in proptest::collection::vec((any::<u32>(), 0usize..200, any::<u8>(), any::<bool>()), 1..6),
    ) {
        let mut pair = tree(4096);
        let page_count = pair.pages.bytes.len() / 4096 - 1;
        for (page, near, value, in_header) in flips {
            let page = 1 + page as usize % page_count;
            let at = if in_header { 8 + near % 40 } else { near * 19 % 4088 + 8 };
            pair.pages.bytes[page * 4096 + at] = value;
        }
        exercise(&pair);
    }

    /// One page is copied over another, so that child pointers lead to wrong pages, also to
    /// ancestors.
    #[test]
    fn exchanged_pages_are_found(a in any::<u32>(), b in any::<u32>(), rename in any::<bool>()) {
        let mut pair = tree(4096);
        let page_count = (pair.pages.bytes.len() / 4096 - 1) as u32;
        let (a, b) = (1 + a % page_count, 1 + b % page_count);
        let (from, to) = (a as usize * 4096, b as usize * 4096);
        pair.pages.bytes.copy_within(from..from + 4096, to);
        if rename {
            pair.pages.bytes[to + 12..to + 16].copy_from_slice(&b.to_le_bytes());
        }
        let reached = {
            let mut reached = false;
            let _ = check_tree(&tree(4096).pages, pair.root, &mut |seen| {
                reached |= (seen.page.0..seen.page.0 + seen.pages).contains(&b) && seen.pages == 1;
                Ok(())
            });
            reached
        };
        // Another page in the root's place is a valid tree, only a smaller one.
        if a != b && reached && b != pair.root.0 {
            prop_assert!(check_tree(&pair.pages, pair.root, &mut |_| Ok(())).is_err());
        }
        exercise(&pair);
    }
}

/// The error contains the page's offset in the arena.
#[test]
fn the_error_names_the_place() {
    let mut pair = tree(4096);
    let page = pair.root.0 as usize;
    pair.pages.bytes[page * 4096 + 8] = 77;
    let error = search::get(&pair.pages, pair.root, b"k").unwrap_err();
    let expected = format!("arena is damaged at byte {}: unknown kind of page", page * 4096);
    assert_eq!(error.to_string(), expected);
}

/// If all children of each branch are the same page, a scan through many levels would not end in
/// practice. The check of the order ends it.
#[test]
fn a_page_reached_by_many_ways_ends_a_walk() {
    let mut pair = tree(4096);
    let root = pair.root.0 as usize * 4096;
    assert_eq!(pair.pages.bytes[root + 8], 2, "the root is a branch");
    let first: [u8; 4] = pair.pages.bytes[root + 28..root + 32].try_into().unwrap();
    let body = pair.pages.body(pair.root).unwrap();
    let node = crate::btree::node::Node::parse(body, pair.root).unwrap();
    let slots = 8 + node.arrays_end() - 8 * node.count();
    for index in 0..node.count() {
        let at = root + slots + index * 8 + 4;
        pair.pages.bytes[at..at + 4].copy_from_slice(&first);
    }
    assert!(collect(&pair.pages, RangeCursor::new(pair.root, Bound::Unbounded, Bound::Unbounded)).is_err());
    assert!(check_tree(&pair.pages, pair.root, &mut |_| Ok(())).is_err());
    assert!(edit::free_tree(&mut pair.pages, pair.root).is_err());
}
