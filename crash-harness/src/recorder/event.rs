//! The events of a record: one total order of everything that a disk would receive and of the marks
//! that processes write.

use super::disk::Disk;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Size of a page of the page cache, the unit in which writes are recorded.
pub const PAGE: usize = 4096;

/// The bytes of a page. All pages of zeros share one allocation.
pub type Page = Arc<[u8; PAGE]>;

/// The number of the root directory.
pub(super) const ROOT: u64 = 1;

/// The directory in the recorder's root for the store under test.
pub const STORE: &str = "store";

/// The file in the recorder's root to which processes write their marks.
pub const MARK: &str = ".mark";

/// One event. Files and directories are identified by numbers that are never reused; the root is 1.
#[derive(Clone, Debug)]
pub enum Event {
    /// Whole pages with the content of the page cache.
    Write {
        /// The file.
        file: u64,
        /// The number of the first page.
        first: u64,
        /// The pages.
        pages: Vec<Page>,
        /// The file's size afterwards.
        size: u64,
        /// Whether the kernel wrote back pages that a process had changed through a mapping.
        /// Otherwise it was a write call.
        is_write_back: bool,
    },
    /// A file was truncated or extended.
    Resized {
        /// The file.
        file: u64,
        /// Its new size.
        size: u64,
    },
    /// A sync succeeded.
    Synced {
        /// The file.
        file: u64,
        /// Everything recorded before this position is durable.
        before: usize,
    },
    /// A sync failed.
    SyncFailed {
        /// The file.
        file: u64,
        /// Data that was recorded before this position and is not durable yet never will be.
        before: usize,
    },
    /// The names in a directory changed.
    Name {
        /// The directory.
        dir: u64,
        /// The change.
        change: NameChange,
    },
    /// A sync of a directory succeeded.
    DirSynced {
        /// The directory.
        dir: u64,
        /// Everything recorded before this position is durable.
        before: usize,
    },
    /// A process wrote a mark.
    Mark(String),
}

/// A change of the names in a directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NameChange {
    /// A file or directory was created.
    Made {
        /// Its name.
        name: String,
        /// Its number.
        inode: u64,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// A file or directory was renamed, and replaced a file of the new name if there was one.
    Moved {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// A name was removed.
    Removed {
        /// The removed name.
        name: String,
    },
}

/// Prefixes of the names of files that belong to one boot. Their bytes are served but not recorded,
/// and after a cut they do not exist.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OfOneBoot(Vec<String>);

impl OfOneBoot {
    /// Creates the list from prefixes.
    pub fn names(beginnings: &[&str]) -> OfOneBoot {
        OfOneBoot(beginnings.iter().map(ToString::to_string).collect())
    }

    /// Returns whether a name belongs to one boot. The name of the file of marks always does.
    pub fn has(&self, name: &str) -> bool {
        name == MARK || self.0.iter().any(|beginning| name.starts_with(beginning))
    }
}

/// Returns the time of CLOCK_MONOTONIC, which all processes of a machine share and which never goes
/// back.
pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Everything that a recorder recorded.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The events in order.
    pub events: Vec<Event>,
    /// The time of each event, by the clock of [`now`]. Empty in a record that was read from a
    /// file.
    pub times: Vec<Duration>,
    /// The files that do not survive a cut.
    pub of_one_boot: OfOneBoot,
}

impl Record {
    /// Returns an empty disk for these events that tears writes at multiples of `sector`.
    pub fn disk(&self, sector: usize) -> Disk {
        Disk::new(self.of_one_boot.clone(), sector)
    }

    /// Returns the last path, from the recorder's root, of each file and directory that ever
    /// existed.
    pub fn paths(&self) -> BTreeMap<u64, String> {
        let mut names: BTreeMap<(u64, String), u64> = BTreeMap::new();
        let mut paths = BTreeMap::from([(ROOT, String::new())]);
        for event in &self.events {
            let Event::Name { dir, change } = event else { continue };
            let (name, inode) = match change {
                NameChange::Made { name, inode, .. } => (name, Some(*inode)),
                NameChange::Moved { from, to } => (to, names.remove(&(*dir, from.clone()))),
                NameChange::Removed { name } => {
                    names.remove(&(*dir, name.clone()));
                    continue;
                }
            };
            if let Some(inode) = inode {
                names.insert((*dir, name.clone()), inode);
                let parent = paths.get(dir).map_or("", String::as_str);
                let path = if parent.is_empty() { name.clone() } else { format!("{parent}/{name}") };
                paths.insert(inode, path);
            }
        }
        paths
    }
}
