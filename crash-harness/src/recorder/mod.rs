//! A file system in memory that records, in one total order, everything a disk would be told:
//! writes, completed syncs of files and directories, names made, moved and removed. Whoever knows
//! this order knows every state that a power cut could have left. It knows nothing of what is
//! stored on it.
//!
//! | module | its one job |
//! |---|---|
//! | [`event`] | what is recorded |
//! | `tree`, `server`, `slow` | the files, the kernel's requests, and syncs that take their time |
//! | [`disk`], [`choice`] | what a cut leaves in doubt, and what of that is there |
//! | [`image`] | files as a cut left them |
//! | [`saved`] | a record in a file, to be looked at again |
//!
//! It is served by one thread of this process, so the order is real. Files are opened with the page
//! cache, so they can be mapped shared; there is no write-back cache, so write calls arrive at
//! once, and mapped pages when the kernel writes them back. What processes write to the file
//! [`MARK`] is recorded as a mark: so acknowledgements stand in the same order.
//!
//! The process that serves it must not map its files: unmapping waits for the server, which may
//! wait for the same memory map to grow its own. All that maps a file is done by other processes.
//!
//! A sync can be held, and then fail: what it was to make durable is lost unless it is written
//! again, although the page cache keeps it and later syncs succeed. That is what Linux does after a
//! failed write-back.
//!
//! ```no_run
//! use crash_harness::recorder::{OfOneBoot, Recorder, SECTOR, choice::Choice};
//!
//! let recorder = Recorder::mount(OfOneBoot::names(&["control", "logger.sock"]), None)?;
//! // Other processes work in recorder.store(), and write what they were told to recorder.mark().
//! let record = recorder.finish();
//! let mut disk = record.disk(SECTOR);
//! for (at, event) in record.events.iter().enumerate() {
//!     disk.apply(at, event);
//! }
//! disk.image(&Choice::Random(1)).lay_out("/tmp/state".as_ref())?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod choice;
pub mod disk;
pub mod event;
pub mod image;
pub mod saved;
mod server;
mod slow;
mod tree;

pub use event::{Event, MARK, NameChange, OfOneBoot, PAGE, Page, Record, STORE, now};

use fuser::{BackgroundSession, Config, Errno, MountOption, ReplyEmpty};
use image::Image;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tree::Tree;

/// Bytes at which disks tear a write.
pub const SECTOR: usize = 512;
/// Nobody but this server changes anything, so what the kernel knows stays true.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);

/// Which sync is to be held.
struct Order {
    /// How its path in the file system begins.
    prefix: String,
    /// So many are let pass before.
    skip: usize,
}

/// A sync that waits for its answer.
pub struct Held {
    shared: Arc<Shared>,
    file: u64,
    before: usize,
    /// The thread that called it.
    pub thread: u32,
    reply: Option<ReplyEmpty>,
}

impl Held {
    /// The sync fails, and what it covered is lost. So it also ends when it is dropped.
    pub fn fail(self) {
        drop(self);
    }

    /// The sync succeeds after all.
    pub fn succeed(mut self) {
        if let Some(reply) = self.reply.take() {
            let mut tree = self.shared.lock();
            tree.note(Event::Synced { file: self.file, before: self.before });
            drop(tree);
            reply.ok();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            let mut tree = self.shared.lock();
            tree.note(Event::SyncFailed { file: self.file, before: self.before });
            drop(tree);
            reply.error(Errno::EIO);
        }
    }
}

struct Shared {
    tree: Mutex<Tree>,
    has_held: Condvar,
    slow: OnceLock<slow::Slow>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Gives this thread mounts of its own, once: what it and the threads and processes that it starts
/// mount from then on, nobody else sees, and it vanishes with them, however they end.
///
/// # Errors
/// As the system refuses.
pub fn own_mounts() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if !DONE.get() {
        // SAFETY: no table of descriptors is unshared, and the working directory stays the same.
        #[allow(unsafe_code)]
        unsafe {
            unshare_unsafe(UnshareFlags::NEWNS)?;
        }
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        DONE.set(true);
    }
    Ok(())
}

/// A mounted recorder; unmounted when dropped. After [`own_mounts`], it also goes when this process
/// is killed.
pub struct Recorder {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    mount: Option<tempfile::TempDir>,
}

impl Recorder {
    /// Mounts an empty one, or one with files that are durable already.
    ///
    /// # Errors
    /// As the system refuses: no FUSE, or not allowed to mount.
    pub fn mount(of_one_boot: OfOneBoot, image: Option<&Image>) -> io::Result<Recorder> {
        let mut tree = Tree::new(of_one_boot);
        if let Some(image) = image {
            tree.load(image);
        }
        let shared = Arc::new(Shared { tree: Mutex::new(tree), has_held: Condvar::new(), slow: OnceLock::new() });
        let mount = tempfile::Builder::new().prefix("recorder-").tempdir()?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("recorder".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount(server::Server { shared: shared.clone() }, mount.path(), &config)?;
        Ok(Recorder { shared, session: Some(session), mount: Some(mount) })
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        self.mount.as_ref().expect("mounted until dropped").path()
    }

    /// Where a store may be made.
    pub fn store(&self) -> PathBuf {
        self.root().join(STORE)
    }

    /// The file to which processes write their marks, one with each write call.
    pub fn mark(&self) -> PathBuf {
        self.root().join(MARK)
    }

    /// From now on each sync of a file takes as long as one of these, chosen at random, as on a
    /// disk; in memory it would take no time. What is written meanwhile is not covered by it. It
    /// can be said once.
    pub fn slow_down_syncs(&self, takes: Vec<Duration>) {
        let _ = self.shared.slow.set(slow::Slow::start(takes, Arc::downgrade(&self.shared)));
    }

    /// Holds the next sync of a file whose path in the store begins so and that has something to
    /// sync; `skip` of them pass before.
    pub fn hold_sync(&self, prefix: &str, skip: usize) {
        self.shared.lock().order = Some(Order { prefix: format!("{STORE}/{prefix}"), skip });
    }

    /// Waits for the sync that was to be held.
    pub fn held(&self, at_most: Duration) -> Option<Held> {
        let end = Instant::now() + at_most;
        let mut tree = self.shared.lock();
        loop {
            if let Some(held) = tree.held.take() {
                return Some(held);
            }
            let left = end.checked_duration_since(Instant::now())?;
            tree = self.shared.has_held.wait_timeout(tree, left).unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    /// How much has been recorded.
    pub fn position(&self) -> usize {
        self.shared.lock().events.len()
    }

    /// How many marks begin so, after the position `from`.
    pub fn marks(&self, from: usize, prefix: &str) -> usize {
        let tree = self.shared.lock();
        let is_wanted = |event: &&Event| matches!(event, Event::Mark(said) if said.starts_with(prefix));
        tree.events.iter().skip(from).filter(is_wanted).count()
    }

    /// How many syncs of a file whose path in the store begins so have succeeded, after the
    /// position `from`.
    pub fn syncs(&self, from: usize, prefix: &str) -> usize {
        let tree = self.shared.lock();
        let prefix = format!("{STORE}/{prefix}");
        let is_wanted = |event: &&Event| match event {
            Event::Synced { file, .. } => tree.path_of(*file).is_some_and(|path| path.starts_with(&prefix)),
            _ => false,
        };
        tree.events.iter().skip(from).filter(is_wanted).count()
    }

    /// Unmounts, and returns all that was recorded. Nobody uses the store any more.
    pub fn finish(mut self) -> Record {
        self.unmount();
        let mut tree = self.shared.lock();
        let (events, times) = (std::mem::take(&mut tree.events), std::mem::take(&mut tree.times));
        Record { events, times, of_one_boot: tree.of_one_boot.clone() }
    }

    fn unmount(&mut self) {
        let held = {
            let mut tree = self.shared.lock();
            tree.order = None;
            tree.held.take()
        };
        // Answered without the lock, which answering takes.
        drop(held);
        let Some(mount) = self.mount.take() else { return };
        // By force and lazily: whoever still waits for an answer gets an error, and nobody is kept
        // from ending.
        let how = rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH;
        if let Err(error) = rustix::mount::unmount(mount.path(), how) {
            eprintln!("unmounting {}: {error}", mount.path().display());
        }
        drop(self.session.take());
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.unmount();
    }
}
