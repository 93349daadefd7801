//! The model of a keyspace: a map.

use super::*;

pub(crate) fn bounds_of(bounds: &Bounds) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (bounds.0.as_ref().map(|key| &key[..]), bounds.1.as_ref().map(|key| &key[..]))
}

/// What a map has in a range; `BTreeMap` itself panics for bounds that cross.
pub(crate) fn in_range<'m>(map: Option<&'m Map>, bounds: &Bounds) -> Vec<(&'m Vec<u8>, &'m Vec<u8>)> {
    let above = |key: &Vec<u8>| match &bounds.0 {
        Bound::Included(low) => key >= low,
        Bound::Excluded(low) => key > low,
        Bound::Unbounded => true,
    };
    let below = |key: &Vec<u8>| match &bounds.1 {
        Bound::Included(high) => key <= high,
        Bound::Excluded(high) => key < high,
        Bound::Unbounded => true,
    };
    map.into_iter().flatten().filter(|(key, _)| above(key) && below(key)).collect()
}

/// Removes a range from a map, and returns how many entries that were.
pub(crate) fn remove_range(map: &mut Map, bounds: &Bounds) -> u64 {
    let keys: Vec<Vec<u8>> = in_range(Some(map), bounds).into_iter().map(|(key, _)| key.clone()).collect();
    keys.iter().for_each(|key| drop(map.remove(key)));
    keys.len() as u64
}

/// Takes entries from both ends, by the bits of `turns`, and compares them with the expected ones.
pub(crate) fn compare<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    mut found: impl DoubleEndedIterator<Item = untorn::Result<(K, V)>>,
    expected: Vec<(&Vec<u8>, &Vec<u8>)>,
    turns: u64,
) {
    let mut expected = expected.into_iter();
    for turn in 0.. {
        let back = turns >> (turn % 64) & 1 == 1;
        let (found, expected) =
            if back { (found.next_back(), expected.next_back()) } else { (found.next(), expected.next()) };
        match (found, expected) {
            (None, None) => break,
            (Some(found), Some((key, value))) => {
                let (found_key, found_value) = found.unwrap();
                assert_eq!(found_key.as_ref(), &key[..]);
                assert!(found_value.as_ref() == &value[..], "the value of {key:?}");
            }
            (found, expected) => {
                let found = found.map(|found| found.unwrap().0.as_ref().to_vec());
                panic!("found {found:?}, expected {:?}", expected.map(|(key, _)| key));
            }
        }
    }
    // Used up, from either end, is used up for good.
    assert!(found.next().is_none() && found.next_back().is_none());
}
