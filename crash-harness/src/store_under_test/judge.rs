//! Checks of a store of any kind: each batch is whole or absent, in order, and everything that the
//! store promises to keep is there.

use super::work::{LARGE_EACH, large};
use super::{Entries, Promise};
use crate::outcome::{Finding, Kind};
use crate::processes::sealed::unsealed;
use crate::workload::KEYS;
use crate::workload::oracle::key;
use std::collections::BTreeMap;

/// The acknowledgements of each writer: the last batch that returned, and the last batch before a
/// sync that returned.
#[derive(Clone, Debug, Default)]
pub struct AcknowledgedBatches {
    returned: BTreeMap<String, u64>,
    synced: BTreeMap<String, u64>,
    /// For each writer, the batch after which it continued when it was started. That batch was
    /// there, even if the line about its return was lost.
    begun: BTreeMap<String, u64>,
}

impl AcknowledgedBatches {
    /// Adds one line of a writer: a kind, its name, and a number.
    pub fn hear(&mut self, said: &str) {
        let words: Vec<&str> = said.split(' ').collect();
        let [what, name, number] = words[..] else { return };
        let Ok(number) = number.parse() else { return };
        match what {
            "V" => drop(self.returned.insert(name.into(), number)),
            "B" => drop(self.begun.insert(name.into(), number)),
            "S" => drop(self.synced.insert(name.into(), number)),
            _ => {}
        }
    }

    /// Adds the acknowledgements of another writer.
    pub fn add(&mut self, other: AcknowledgedBatches) {
        self.returned.extend(other.returned);
        self.synced.extend(other.synced);
        self.begun.extend(other.begun);
    }

    /// Converts the batches that a check found into acknowledgements, because none of them may be
    /// lost later.
    pub fn found(found: &BTreeMap<String, u64>) -> AcknowledgedBatches {
        AcknowledgedBatches { returned: found.clone(), synced: found.clone(), begun: found.clone() }
    }

    /// Returns whether nothing was acknowledged yet.
    pub fn is_empty(&self) -> bool {
        self.returned.is_empty()
    }
}

/// Checks that a state is whole: each value, and each writer's keys exactly as its last batch left
/// them. Returns that batch, by writer.
///
/// # Errors
/// The first violation.
pub fn whole(entries: &Entries) -> Result<BTreeMap<String, u64>, Finding> {
    let mut found = BTreeMap::new();
    let mut numbers = BTreeMap::new();
    for (key, value) in entries {
        let n = unsealed(value)?;
        if let Some(name) = key.strip_prefix(b"mark/") {
            found.insert(String::from_utf8_lossy(name).into_owned(), n);
        } else {
            numbers.insert(key.clone(), n);
        }
    }
    let mut expected = BTreeMap::new();
    for (name, n) in &found {
        let first = n.saturating_sub(3 * KEYS) + 1;
        for i in first..=*n {
            expected.insert(key(name, i), i);
            expected.remove(&key(name, i + KEYS / 2));
        }
        if *n >= LARGE_EACH {
            expected.insert(large(name), n - n % LARGE_EACH);
        }
    }
    if numbers == expected {
        return Ok(found);
    }
    let differs = |key: &&Vec<u8>| numbers.get(*key) != expected.get(*key);
    let keys: std::collections::BTreeSet<&Vec<u8>> = numbers.keys().chain(expected.keys()).filter(differs).collect();
    let lines: Vec<String> = keys
        .iter()
        .take(5)
        .map(|key| {
            let (there, wanted) = (numbers.get(*key), expected.get(*key));
            format!("{} is of {there:?}, expected {wanted:?}", String::from_utf8_lossy(key))
        })
        .collect();
    let what = format!("{} keys do not fit the marks {found:?}: {}", keys.len(), lines.join("; "));
    Err(Finding::new(Kind::HalfApplied, what))
}

/// The result of comparing a state with the acknowledgements.
#[derive(Clone, Copy, Default, Debug)]
pub struct Kept {
    /// Batches that had returned and are missing, whether the store promised to keep them or not.
    pub returned_lost: u64,
}

/// Checks a state against the store's promises, and counts missing batches that had returned
/// without a promise.
///
/// # Errors
/// If a batch is missing that the store promised to keep, or if one is there that was never begun.
pub fn kept(
    found: &BTreeMap<String, u64>,
    acknowledged: &AcknowledgedBatches,
    promise: Promise,
) -> Result<Kept, Finding> {
    let promised = match promise {
        Promise::Batch => &acknowledged.returned,
        Promise::Sync => &acknowledged.synced,
    };
    for (name, n) in promised {
        let there = found.get(name).copied().unwrap_or(0);
        if there < *n {
            let what = format!("{name}: batch {n} was promised to be kept, {there} is the last one there");
            return Err(Finding::new(Kind::LostAcked, what));
        }
    }
    let mut kept = Kept::default();
    for (name, returned) in &acknowledged.returned {
        let there = found.get(name).copied().unwrap_or(0);
        kept.returned_lost += returned.saturating_sub(there);
        // One more batch may have been in progress.
        if there > acknowledged.begun.get(name).map_or(*returned, |begun| *returned.max(begun)) + 1 {
            let what = format!("{name}: batch {there} is there, {returned} was the last one to return");
            return Err(Finding::new(Kind::OrderViolation, what));
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::super::work::batch;
    use super::*;

    /// Returns the entries after the n-th batch of a writer.
    fn after(n: u64) -> Entries {
        let mut entries = Entries::new();
        for change in (1..=n).flat_map(|i| batch("w", i)) {
            match change.value {
                Some(value) => drop(entries.insert(change.key, value)),
                None => drop(entries.remove(&change.key)),
            }
        }
        entries
    }

    fn kind<T>(judged: Result<T, Finding>) -> Option<Kind> {
        judged.err().map(|finding| finding.kind)
    }

    #[test]
    fn whole_states_pass() {
        assert_eq!(whole(&Entries::new()).unwrap(), BTreeMap::new());
        for n in 1..200 {
            assert_eq!(whole(&after(n)).unwrap(), BTreeMap::from([("w".to_string(), n)]));
        }
    }

    #[test]
    fn a_torn_value_and_every_part_of_a_batch_are_found() {
        for n in [1, 32, 33, 100] {
            for (key, value) in after(n) {
                let mut torn = after(n);
                torn.get_mut(&key).unwrap()[value.len() / 2] ^= 1;
                assert_eq!(kind(whole(&torn)), Some(Kind::TornRead));
                let mut missing = after(n);
                missing.remove(&key);
                assert_eq!(kind(whole(&missing)), Some(Kind::HalfApplied));
            }
            // Each change of the next batch alone.
            for change in batch("w", n + 1) {
                let mut half = after(n);
                match change.value {
                    Some(value) => drop(half.insert(change.key, value)),
                    // Removing an absent key changes nothing.
                    None if half.remove(&change.key).is_none() => continue,
                    None => {}
                }
                assert_eq!(kind(whole(&half)), Some(Kind::HalfApplied));
            }
        }
    }

    #[test]
    fn what_was_promised_must_be_there() {
        let mut acknowledged = AcknowledgedBatches::default();
        ["B w 0", "V w 8", "S w 8", "V w 9"].iter().for_each(|said| acknowledged.hear(said));
        let judged = |there: u64, promise| kept(&BTreeMap::from([("w".to_string(), there)]), &acknowledged, promise);
        assert_eq!(judged(9, Promise::Batch).unwrap().returned_lost, 0);
        assert_eq!(judged(10, Promise::Batch).unwrap().returned_lost, 0);
        assert_eq!(kind(judged(8, Promise::Batch)), Some(Kind::LostAcked));
        assert_eq!(judged(8, Promise::Sync).unwrap().returned_lost, 1);
        assert_eq!(kind(judged(7, Promise::Sync)), Some(Kind::LostAcked));
        assert_eq!(kind(judged(11, Promise::Sync)), Some(Kind::OrderViolation));
        assert_eq!(kind(kept(&BTreeMap::new(), &acknowledged, Promise::Sync)), Some(Kind::LostAcked));
    }
}
