//! Checks one snapshot of the index: every record is whole and under its key, and every writer's
//! records add up to its totals.
//!
//! A snapshot holds whole transactions only, so all of this is exact, whatever the writers do
//! meanwhile.

use super::WRITERS;
use super::record::{FileRecord, Totals};
use untorn::{Keyspace, Snapshot, TxnId};

/// The findings in one snapshot.
pub(crate) struct Census {
    /// The transaction of the snapshot.
    pub(crate) txn: TxnId,
    /// Records read.
    pub(crate) records: u64,
    /// Each writer's totals, as it has stored them.
    pub(crate) totals: [Totals; WRITERS],
    /// Records that no writer can have written.
    pub(crate) torn: Vec<String>,
    /// Sums that are wrong.
    pub(crate) violations: Vec<String>,
    /// Checksum over all keys and values, to compare two readings of one snapshot.
    pub(crate) fingerprint: u32,
}

impl Census {
    /// Commits of all writers that the snapshot holds.
    pub(crate) fn commits(&self) -> u64 {
        self.totals.iter().map(|totals| totals.commits).sum()
    }
}

/// Reads the whole snapshot.
pub(crate) fn take(snapshot: &Snapshot, files: &Keyspace, totals: &Keyspace) -> untorn::Result<Census> {
    let mut census = Census {
        txn: snapshot.txn_id(),
        records: 0,
        totals: [Totals::default(); WRITERS],
        torn: Vec::new(),
        violations: Vec::new(),
        fingerprint: 0,
    };
    let mut found = [Totals::default(); WRITERS];
    let mut newest_commit = [0; WRITERS];
    let mut hasher = crc32fast::Hasher::new();
    for entry in snapshot.range(files, ..)? {
        let (key, value) = entry?;
        census.records += 1;
        hasher.update(&key);
        hasher.update(value);
        match FileRecord::decode(&key, value) {
            Ok(record) if (record.slot as usize) < WRITERS => {
                let slot = record.slot as usize;
                found[slot].add(&record, value);
                newest_commit[slot] = record.commit.max(newest_commit[slot]);
            }
            Ok(record) => census.torn.push(format!("a record names writer {}", record.slot)),
            Err(torn) => census.torn.push(torn.to_string()),
        }
    }
    for slot in 0..WRITERS {
        if let Some(value) = snapshot.get(totals, &Totals::key(slot)[..])? {
            hasher.update(value);
            match Totals::decode(value) {
                Ok(stored) => census.totals[slot] = stored,
                Err(torn) => census.torn.push(torn.to_string()),
            }
        }
        census.compare(slot, &found[slot], newest_commit[slot]);
    }
    census.fingerprint = hasher.finalize();
    Ok(census)
}

impl Census {
    fn compare(&mut self, slot: usize, found: &Totals, newest_commit: u64) {
        let stored = self.totals[slot];
        let txn = self.txn;
        let mut demand = |what: &str, found: u64, expected: u64| {
            if found != expected {
                self.violations
                    .push(format!("snapshot {txn}, writer {slot}: {what} is {found}, its totals say {expected}"));
            }
        };
        demand("the number of records", found.records, stored.records);
        demand("the sum of sizes", found.bytes, stored.bytes);
        demand("the sum of checksums", found.checksums, stored.checksums);
        demand("the number of records", found.records, stored.records_expected());
        // Every commit of a writer with files writes at least one record.
        if stored.files > 0 {
            demand("the newest commit among the records", newest_commit, stored.commits);
        }
    }
}
