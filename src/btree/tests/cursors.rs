//! Goal: a cursor yields exactly `BTreeMap::range`, from both ends in any interleaving, for all
//! kinds of bounds. Method: random trees, bounds on and beside existing keys, random directions.

use crate::btree::tests::*;

fn bound(kind: u8, key: &[u8]) -> Bound<&[u8]> {
    match kind % 3 {
        0 => Bound::Unbounded,
        1 => Bound::Included(key),
        _ => Bound::Excluded(key),
    }
}

/// Returns whether a range is inverted: `BTreeMap::range` panics on such ranges; here they are
/// empty.
fn is_inverted(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> bool {
    match (lower, upper) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Excluded(a), Bound::Excluded(b)) => a >= b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a > b,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn yields_what_a_map_yields(
        entries in proptest::collection::vec((keys(), values()), 0..150),
        picks in (any::<usize>(), any::<usize>()),
        beside in (keys(), keys()),
        kinds in (any::<u8>(), any::<u8>()),
        on_keys in (any::<bool>(), any::<bool>()),
        directions in proptest::collection::vec(any::<bool>(), 1..32),
    ) {
        let mut pair = Pair::new(4096);
        for (key, value) in &entries {
            pair.put(key, value);
        }
        let existing: Vec<Vec<u8>> = pair.map.keys().cloned().collect();
        let pick = |on_key: bool, index: usize, beside: Vec<u8>| {
            if on_key && !existing.is_empty() { existing[index % existing.len()].clone() } else { beside }
        };
        let low = pick(on_keys.0, picks.0, beside.0);
        let high = pick(on_keys.1, picks.1, beside.1);
        let (lower, upper) = (bound(kinds.0, &low), bound(kinds.1, &high));
        let mut expected: Vec<_> = if is_inverted(lower, upper) {
            Vec::new()
        } else {
            pair.map.range::<[u8], _>((lower, upper)).map(|(key, entry)| (key.clone(), entry.clone())).collect()
        };
        let mut cursor = RangeCursor::new(pair.root, lower, upper);
        let mut directions = directions.iter().cycle();
        loop {
            let (found, expected) = if *directions.next().unwrap() {
                let first = if expected.is_empty() { None } else { Some(expected.remove(0)) };
                (cursor.next(&pair.pages).unwrap().map(owned), first)
            } else {
                (cursor.next_back(&pair.pages).unwrap().map(owned), expected.pop())
            };
            prop_assert_eq!(&found, &expected.map(|(key, (_, value))| (key, value)));
            if found.is_none() {
                break;
            }
        }
        prop_assert!(expected.is_empty());
        prop_assert!(cursor.next(&pair.pages).unwrap().is_none());
        prop_assert!(cursor.next_back(&pair.pages).unwrap().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// A point cursor moves as an index in the map does. Its key buffer is reused for leaves of
    /// different prefixes.
    #[test]
    fn a_point_cursor_moves_like_an_index(
        entries in proptest::collection::vec((keys(), values()), 0..150),
        moves in proptest::collection::vec((0u8..8, keys(), any::<usize>(), 1usize..40), 1..40),
    ) {
        let mut pair = Pair::new(4096);
        for (key, value) in &entries {
            pair.put(key, value);
        }
        let all: Vec<(&[u8], &[u8])> = pair.map.iter().map(|(key, (_, value))| (&key[..], &value[..])).collect();
        let end = all.len() as isize;
        let mut cursor = PointCursor::new(pair.root);
        // The index of the cursor's entry; -1 before the first, and `end` after the last.
        let mut at: Option<isize> = None;
        for (kind, key, pick, steps) in &moves {
            let (kind, steps) = (*kind, if *kind < 4 { *steps } else { 1 });
            for _ in 0..steps {
                let found = match kind {
                    0 | 1 => cursor.next(&pair.pages),
                    2 | 3 => cursor.prev(&pair.pages),
                    4 => cursor.first(&pair.pages),
                    5 => cursor.last(&pair.pages),
                    6 => cursor.seek(&pair.pages, key),
                    _ => cursor.seek(&pair.pages, all.get(pick % all.len().max(1)).map_or(&key[..], |entry| entry.0)),
                };
                let found = found.unwrap().map(|(key, value)| (key.to_vec(), value.to_vec()));
                let before = |key: &[u8]| all.iter().take_while(|entry| entry.0 < key).count() as isize;
                let moved = match kind {
                    0 | 1 => at.map_or(0, |at| (at + 1).min(end)),
                    2 | 3 => at.map_or(end - 1, |at| (at - 1).max(-1)),
                    4 => 0,
                    5 => end - 1,
                    6 => before(key),
                    _ => before(all.get(pick % all.len().max(1)).map_or(&key[..], |entry| entry.0)),
                };
                let expected = usize::try_from(moved).ok().and_then(|at| all.get(at));
                prop_assert_eq!(&found, &expected.map(|(key, value)| (key.to_vec(), value.to_vec())));
                at = Some(moved);
            }
        }
    }
}

/// An empty tree has no entries at either end.
#[test]
fn of_an_empty_tree() {
    let pages = TestPages::new(4096);
    let mut cursor = RangeCursor::new(PageId::NONE, Bound::Included(b"a"), Bound::Unbounded);
    assert!(cursor.next(&pages).unwrap().is_none() && cursor.next_back(&pages).unwrap().is_none());
}

/// Returns a tree of several leaves, in which the second leaf is damaged.
fn broken() -> Pair {
    let mut pair = Pair::new(4096);
    for n in 0..400u32 {
        pair.put(format!("{n:06}").as_bytes(), &[0; 80]);
    }
    let root = crate::btree::node::Node::open(&pair.pages, pair.root).unwrap();
    let second = root.child(1).0 as usize;
    pair.pages.bytes[second * 4096 + 8] = 77;
    pair
}

/// After an error a point cursor is on no entry, so that a loop that ignores the error ends.
/// `first` moves the cursor to an entry again.
#[test]
fn a_failed_cursor_is_nowhere() {
    let pair = broken();
    let mut cursor = PointCursor::new(pair.root);
    let mut steps = 0;
    while let Ok(Some(_)) = cursor.next(&pair.pages) {
        steps += 1;
    }
    assert!((1..400).contains(&steps), "{steps} entries before the damaged leaf");
    assert!(cursor.next(&pair.pages).unwrap().is_none() && cursor.prev(&pair.pages).unwrap().is_none());
    assert_eq!(cursor.first(&pair.pages).unwrap().unwrap().0, b"000000");
    assert!(cursor.seek(&pair.pages, format!("{steps:06}").as_bytes()).is_err());
    assert!(cursor.prev(&pair.pages).unwrap().is_none() && cursor.next(&pair.pages).unwrap().is_none());
    assert_eq!(cursor.last(&pair.pages).unwrap().unwrap().0, b"000399");
}
