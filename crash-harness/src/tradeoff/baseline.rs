//! The baseline: a file of fixed-size records that its writer maps, fills, and syncs at times. It
//! has no log, no logger and no transactions.
//!
//! A record consists of its number and bytes that are derived from the number, so a torn record is
//! detected. Recovery accepts the records from the front up to the first that is not whole.

use crate::outcome::{Finding, Kind};
use crate::processes::sealed::{sealed, unsealed};
use memmap2::{MmapMut, MmapOptions};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Length of a record in bytes.
pub const RECORD: usize = 100;
/// Size of a page in bytes. Syncs write whole pages.
const PAGE: usize = 4096;

/// The file, as its writer uses it.
pub struct Baseline {
    map: MmapMut,
    /// Number of records in the mapping, and of those that a sync has covered.
    count: usize,
    synced: usize,
}

fn file_in(directory: &Path) -> PathBuf {
    directory.join("records")
}

fn broken(what: &str) -> impl FnOnce(std::io::Error) -> Finding {
    move |error| Finding::new(Kind::Misbehaved, format!("the mapped file: {what}: {error}"))
}

impl Baseline {
    /// Creates a file with space for `records` records. It is written and synced completely, so
    /// that later syncs write data and no metadata.
    ///
    /// # Errors
    /// Those of the system.
    #[allow(unsafe_code)]
    pub fn create(directory: &Path, records: usize) -> Result<Baseline, Finding> {
        std::fs::create_dir_all(directory).map_err(broken("its directory"))?;
        let path = file_in(directory);
        let mut file =
            File::options().read(true).write(true).create_new(true).open(&path).map_err(broken("making it"))?;
        // Page by page: newer kernels keep large writes in large folios, and write a folio back as
        // a whole for each changed byte.
        for _ in 0..(records * RECORD).div_ceil(PAGE) {
            file.write_all(&[0; PAGE]).map_err(broken("zeros"))?;
        }
        file.sync_all().map_err(broken("the first sync"))?;
        for directory in [Some(directory), directory.parent()].into_iter().flatten() {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(broken("its name"))?;
        }
        // SAFETY: the file was created here, and no other process writes to it or truncates it
        // while this process lives.
        let map = unsafe { MmapOptions::new().map_mut(&file) }.map_err(broken("mapping it"))?;
        Ok(Baseline { map, count: 0, synced: 0 })
    }

    /// Adds the next record, whose number is one more than the number of earlier records.
    ///
    /// # Errors
    /// If the file is full.
    pub fn put(&mut self) -> Result<(), Finding> {
        let at = self.count * RECORD;
        let room = self.map.get_mut(at..at + RECORD);
        let room = room.ok_or_else(|| Finding::new(Kind::Misbehaved, "the mapped file is full"))?;
        room.copy_from_slice(&sealed(self.count as u64 + 1, RECORD));
        self.count += 1;
        Ok(())
    }

    /// Makes all records durable; blocks until then. Returns whether there was anything to do.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync(&mut self) -> Result<bool, Finding> {
        if self.synced == self.count {
            return Ok(false);
        }
        let from = self.synced * RECORD / PAGE * PAGE;
        self.map.flush_range(from, self.count * RECORD - from).map_err(broken("msync"))?;
        self.synced = self.count;
        Ok(true)
    }
}

/// Returns the number of whole records at the front, 0 if there is no file.
pub fn recovered(directory: &Path) -> u64 {
    let bytes = std::fs::read(file_in(directory)).unwrap_or_default();
    let is_whole = |(index, record): &(usize, &[u8])| unsealed(record).is_ok_and(|number| number == *index as u64 + 1);
    bytes.chunks_exact(RECORD).enumerate().take_while(is_whole).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: recovery finds all records and stops before a torn one, even if whole ones follow.
    #[test]
    fn recovery_counts_up_to_the_first_record_that_is_not_whole() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(recovered(directory.path()), 0);
        let mut file = Baseline::create(directory.path(), 50).unwrap();
        assert!(!file.sync().unwrap());
        for _ in 0..50 {
            file.put().unwrap();
        }
        assert!(file.sync().unwrap() && !file.sync().unwrap());
        assert_eq!(recovered(directory.path()), 50);
        let path = file_in(directory.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30 * RECORD + 50] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(recovered(directory.path()), 30);
    }
}
