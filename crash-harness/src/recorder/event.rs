//! What a recorder records: one total order of everything that a disk would be told, and of what
//! processes said.

use super::disk::Disk;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a page of the page cache, in which writes are recorded.
pub const PAGE: usize = 4096;

/// The bytes of a page. Equal pages of zeros are one.
pub type Page = Arc<[u8; PAGE]>;

/// The number of the root directory.
pub(super) const ROOT: u64 = 1;

/// The directory in the recorder's root in which that lies which is tested.
pub const STORE: &str = "store";

/// The file in the recorder's root to which processes write their marks.
pub const MARK: &str = ".mark";

/// One thing that a disk was told. Files and directories go by numbers that are never given twice;
/// the root is 1.
#[derive(Clone, Debug)]
pub enum Event {
    /// Whole pages as the page cache has them.
    Write {
        /// The file.
        file: u64,
        /// The number of the first page.
        first: u64,
        /// The pages, from that one on.
        pages: Vec<Page>,
        /// The file's size afterwards.
        size: u64,
        /// The kernel wrote back pages that a process had changed through a mapping. Otherwise it
        /// was a write call.
        is_write_back: bool,
    },
    /// The file was cut or extended.
    Resized {
        /// The file.
        file: u64,
        /// Its size from then on.
        size: u64,
    },
    /// A sync succeeded.
    Synced {
        /// The file.
        file: u64,
        /// What was recorded before this position is durable.
        before: usize,
    },
    /// A sync failed.
    SyncFailed {
        /// The file.
        file: u64,
        /// What was not durable yet and recorded before this position never will be.
        before: usize,
    },
    /// A directory's names changed.
    Name {
        /// The directory.
        dir: u64,
        /// How.
        change: NameChange,
    },
    /// A sync of a directory succeeded.
    DirSynced {
        /// The directory.
        dir: u64,
        /// What changed before this position is durable.
        before: usize,
    },
    /// A process said something.
    Mark(String),
}

/// How a directory's names changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NameChange {
    /// A file or directory was made.
    Made {
        /// Under this name.
        name: String,
        /// Its number.
        inode: u64,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// It got another name, and what bore that before is gone.
    Moved {
        /// Its name before.
        from: String,
        /// Its name now.
        to: String,
    },
    /// A name was removed.
    Removed {
        /// That name.
        name: String,
    },
}

/// The names of files that belong to one boot, by how they begin: their bytes are served but not
/// recorded, and after a cut they are not there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OfOneBoot(Vec<String>);

impl OfOneBoot {
    /// Names that begin so.
    pub fn names(beginnings: &[&str]) -> OfOneBoot {
        OfOneBoot(beginnings.iter().map(ToString::to_string).collect())
    }

    /// Whether a name is one of these. That of the marks always is.
    pub fn has(&self, name: &str) -> bool {
        name == MARK || self.0.iter().any(|beginning| name.starts_with(beginning))
    }
}

/// The time by the clock that all processes of a machine share and that never goes back
/// (CLOCK_MONOTONIC).
pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// All that a recorder recorded.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In the order in which it happened.
    pub events: Vec<Event>,
    /// When each of them happened, by the clock of [`now`]; nothing in a record that was read from
    /// a file.
    pub times: Vec<Duration>,
    /// What a cut takes away in any case.
    pub of_one_boot: OfOneBoot,
}

impl Record {
    /// An empty disk for these events, which tears writes at this many bytes.
    pub fn disk(&self, sector: usize) -> Disk {
        Disk::new(self.of_one_boot.clone(), sector)
    }

    /// The last path, from the recorder's root, of each file and directory that ever was there.
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
