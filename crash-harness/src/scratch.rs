//! Temporary directories that are removed with their owner. If an owner was killed, the next owner
//! removes its directory.
//!
//! An owner holds a lock on its directory as long as it lives. The lock distinguishes live owners
//! from dead ones, in any namespace.

use rustix::fs::{FlockOperation, flock, statvfs};
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Prefix of the names. The owner of such a directory holds a lock on it.
const PREFIX: &str = "crash-harness.";
/// A younger directory may not be locked yet.
const AGE_MIN: Duration = Duration::from_secs(60);

/// A temporary directory, removed when dropped.
pub struct Scratch {
    directory: TempDir,
    _lock: File,
}

impl Scratch {
    /// Creates a directory in `parent` and removes abandoned ones there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(parent: &Path) -> io::Result<Scratch> {
        sweep(parent, AGE_MIN);
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::open(directory.path())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Scratch { directory, _lock: lock })
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the number of free bytes in it.
    pub fn free(&self) -> u64 {
        statvfs(self.path()).map_or(0, |of| of.f_bavail.saturating_mul(of.f_frsize))
    }
}

/// Removes the directories of dead owners, as far as permissions allow.
fn sweep(parent: &Path, age_min: Duration) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_ours = is_directory && entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let age = entry.metadata().and_then(|of| of.modified()).ok().and_then(|made| made.elapsed().ok());
        if !is_ours || age.is_none_or(|age| age < age_min) {
            continue;
        }
        let lock = File::open(entry.path());
        if lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_goes_and_what_is_in_use_stays() {
        let directory = tempfile::tempdir().unwrap();
        let used = Scratch::new(directory.path()).unwrap();
        let left = directory.path().join(format!("{PREFIX}abcdef"));
        let records = directory.path().join("crash-harness-records");
        std::fs::create_dir_all(left.join("store")).unwrap();
        std::fs::create_dir(&records).unwrap();
        sweep(directory.path(), AGE_MIN);
        assert!(left.exists());
        sweep(directory.path(), Duration::ZERO);
        assert!(used.path().exists() && records.exists() && !left.exists());
    }
}
