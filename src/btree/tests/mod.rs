//! Shared code of the tree's tests: a tree and the map that it must equal, and keys that are
//! difficult for page layouts.

mod cursors;
mod damage;
mod golden;
mod model;
mod ranges;

use crate::btree::check::{TreeReport, check_tree};
use crate::btree::cursor::RangeCursor;
use crate::btree::point_cursor::PointCursor;
use crate::btree::position::EntryAt;
use crate::btree::{edit, range, search};
use crate::files::page::{PageRead, PageWrite};
use crate::files::page::{StoredValue, write_extent};
use crate::ids::PageId;
use crate::limits::key_len_max;
use crate::pages::memory::TestPages;
use crate::{Result, TxnId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Bound;

pub(crate) type Map = BTreeMap<Vec<u8>, (TxnId, Vec<u8>)>;

/// A tree in memory and what it must contain.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) pages: TestPages,
    pub(crate) root: PageId,
    pub(crate) map: Map,
    /// The path for ascending keys, and the transaction to which it belongs.
    append: (edit::AppendPath, TxnId),
}

impl Pair {
    pub(crate) fn new(page_size: usize) -> Pair {
        Pair { pages: TestPages::new(page_size), root: PageId::NONE, map: Map::new(), append: Default::default() }
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        let version = self.pages.txn_id();
        let stored = if edit::needs_extent(self.pages.page_size(), key.len(), value.len()) {
            write_extent(&mut self.pages, value).unwrap()
        } else {
            StoredValue::Inline(value)
        };
        if self.append.1 != version {
            self.append = (edit::AppendPath::default(), version);
        }
        let (pages, root, append) = (&mut self.pages, &mut self.root, &mut self.append.0);
        let replaced = edit::put_after(pages, root, key, version, stored, append).unwrap();
        let before = self.map.insert(key.to_vec(), (version, value.to_vec()));
        assert_eq!(replaced, before.is_some());
    }

    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.append.0.clear();
        let deleted = edit::delete(&mut self.pages, &mut self.root, key).unwrap();
        assert_eq!(deleted, self.map.remove(key).is_some());
    }

    pub(crate) fn delete_range(&mut self, start: &[u8], end: Option<&[u8]>) {
        self.append.0.clear();
        let removed = range::delete(&mut self.pages, &mut self.root, start, end).unwrap();
        let before = self.map.len();
        self.map.retain(|key, _| **key < *start || end.is_some_and(|end| **key >= *end));
        assert_eq!(removed, (before - self.map.len()) as u64);
    }

    /// Checks the tree, its contents, and that the allocated pages are exactly the reachable ones.
    pub(crate) fn verify(&self) -> TreeReport {
        let mut reachable = BTreeMap::new();
        let report = check_tree(&self.pages, self.root, &mut |seen| {
            assert!(reachable.insert(seen.page, (seen.pages, seen.created_txn)).is_none(), "{seen:?} is reached twice");
            Ok(())
        });
        let report = report.unwrap();
        assert_eq!(reachable, self.pages.live, "reachable = allocated");
        assert_eq!(report.entries, self.map.len() as u64);
        assert_holds(&self.pages, self.root, &self.map);
        report
    }
}

pub(crate) fn owned(entry: EntryAt<'_>) -> (Vec<u8>, Vec<u8>) {
    (entry.key.to_vec(), entry.value.to_vec())
}

/// Asserts that the tree has exactly the map's entries, by iteration and by lookup.
pub(crate) fn assert_holds(pages: &TestPages, root: PageId, map: &Map) {
    let mut cursor = RangeCursor::new(root, Bound::Unbounded, Bound::Unbounded);
    for (key, (version, value)) in map {
        let entry = cursor.next(pages).unwrap().map(owned);
        assert_eq!(entry, Some((key.clone(), value.clone())));
        let found = search::get(pages, root, key).unwrap().expect("a key that was put");
        assert_eq!((found.version, found.value), (*version, value.as_slice()));
    }
    assert!(cursor.next(pages).unwrap().is_none());
}

pub(crate) fn page_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![6 => Just(4096usize), 1 => Just(8192), 1 => Just(16384), 1 => Just(32768), 1 => Just(65536)]
}

/// Keys that collide in heads and prefixes: few letters, zero bytes, lengths from 0 to the limit.
pub(crate) fn keys() -> impl Strategy<Value = Vec<u8>> {
    let letter = || prop_oneof![3 => Just(0u8), 3 => Just(b'a'), 1 => Just(b'b'), 1 => Just(255)];
    let long = |len: std::ops::RangeInclusive<usize>| {
        (letter(), len, proptest::collection::vec(letter(), 0..4)).prop_map(|(fill, len, end)| {
            let mut key = vec![fill; len];
            let start = len.saturating_sub(end.len());
            let end_len = len - start;
            key[start..].copy_from_slice(&end[..end_len]);
            key
        })
    };
    prop_oneof![
        4 => proptest::collection::vec(letter(), 0..12),
        2 => long(0..=40),
        2 => long(900..=1024),
        2 => (0u32..400).prop_map(|n| format!("user/profile/{n:06}").into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        1 => Just(Vec::new()),
    ]
}

pub(crate) fn values() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![4 => 0usize..40, 3 => 100usize..400, 2 => 400usize..1400, 1 => 1400usize..20000];
    (any::<u8>(), len).prop_map(|(byte, len)| vec![byte; len])
}

/// Returns all entries of a range.
pub(crate) fn collect(pages: &TestPages, mut cursor: RangeCursor) -> Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    while let Some(entry) = cursor.next(pages)? {
        keys.push(entry.key.to_vec());
    }
    Ok(keys)
}

/// Returns the longest key for a page size, ending in these bytes.
pub(crate) fn longest(page_size: usize, fill: u8, end: &[u8]) -> Vec<u8> {
    let mut key = vec![fill; key_len_max(page_size) - end.len()];
    key.extend_from_slice(end);
    key
}
