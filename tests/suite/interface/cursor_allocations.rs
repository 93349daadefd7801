//! Goal: a cursor allocates nothing per entry. Method: an allocator that counts what this thread
//! allocates while a warmed-up cursor passes thousands of entries, over the borders of leaves and
//! branches, by steps and by seeks.

use crate::allocator::allocations;
use crate::common::{TestStore, limit};
use untorn::Durability;

const ENTRIES: u32 = 20_000;

#[test]
fn a_cursor_allocates_nothing_per_entry() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    for number in 0..ENTRIES {
        txn.put(&keys, format!("a prefix/{number:08}"), vec![1; 1 + number as usize % 300]).unwrap();
    }
    txn.put(&keys, "a prefix/large", vec![2; 100_000]).unwrap();
    txn.commit().unwrap();
    let snapshot = store.snapshot().unwrap();
    let mut cursor = snapshot.cursor(&keys).unwrap();
    // The path and the key get their memory.
    cursor.first().unwrap();
    let before = allocations();
    let mut passed = 1;
    while let Some((key, value)) = cursor.next().unwrap() {
        passed += u32::from(!key.is_empty() && !value.is_empty());
    }
    while let Some((key, _)) = cursor.prev().unwrap() {
        passed += u32::from(!key.is_empty());
    }
    for number in (0..ENTRIES).step_by(97) {
        let mut key = *b"a prefix/00000000";
        for (at, digit) in key[9..].iter_mut().rev().enumerate() {
            *digit += (number / 10_u32.pow(at as u32) % 10) as u8;
        }
        passed += u32::from(cursor.seek(key).unwrap().is_some_and(|(found, _)| found == key));
    }
    assert_eq!(allocations() - before, 0, "allocations for {passed} entries");
    assert_eq!(passed, 2 * (ENTRIES + 1) + ENTRIES.div_ceil(97));
    // The counter works: a range allocates for each entry.
    let before = allocations();
    assert_eq!(snapshot.range(&keys, ..).unwrap().count(), ENTRIES as usize + 1);
    assert!(allocations() - before >= u64::from(ENTRIES));
}
