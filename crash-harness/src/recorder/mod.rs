//! A file system in memory that records everything a disk would receive, in one total order:
//! writes, completed syncs of files and directories, and names that are created, renamed and
//! removed. Every state that a power cut could leave follows from this order. The recorder is
//! independent of the store on it.
//!
//! | module | its one job |
//! |---|---|
//! | [`event`] | the events of a record |
//! | `tree`, `server`, `slow` | the files, the kernel's requests, and syncs that take time |
//! | [`disk`], [`choice`] | the data in doubt after a cut, and a choice from it |
//! | [`image`] | the files after a cut |
//! | [`saved`] | a record in a file, to be replayed |
//!
//! One thread of this process serves the file system, so the order of the events is the real one.
//! Files are opened with the page cache, so they can be mapped shared. There is no write-back
//! cache: write calls arrive at once, and mapped pages arrive when the kernel writes them back.
//! Each write to the file [`MARK`] is recorded as a mark, so acknowledgements are part of the same
//! order.
//!
//! The process that serves the file system must not map its files. Unmapping locks the memory map
//! of the process and waits for the server. The server may wait for the same lock, to map memory of
//! its own. Only other processes map the files.
//!
//! A sync can be held and then made to fail. The data of the failed sync is lost unless it is
//! written again, although the page cache keeps it and later syncs succeed. Linux behaves like this
//! after a failed write-back.
//!
//! ```no_run
//! use crash_harness::recorder::{OfOneBoot, Recorder, SECTOR, choice::Choice};
//!
//! let recorder = Recorder::mount(OfOneBoot::names(&["control", "logger.sock"]), None)?;
//! // Other processes work in recorder.store() and write acknowledgements to recorder.mark().
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

/// Granularity at which disks tear a write, in bytes.
pub const SECTOR: usize = 512;
/// Only this server changes the files, so the kernel's cached attributes stay valid.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);

/// The sync that is to be held.
struct Order {
    /// Prefix of the file's path in the file system.
    prefix: String,
    /// Number of such syncs that pass before.
    skip: usize,
}

/// A sync that waits for its answer. If it is dropped, it fails.
pub struct Held {
    shared: Arc<Shared>,
    file: u64,
    before: usize,
    /// The thread that made the call.
    pub thread: u32,
    reply: Option<ReplyEmpty>,
}

impl Held {
    /// Makes the sync fail; the data that it covered is lost.
    pub fn fail(self) {
        drop(self);
    }

    /// Makes the sync succeed.
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

/// Moves this thread to a mount namespace of its own, once. Mounts by this thread, and by threads
/// and processes that it starts later, are invisible elsewhere. The mounts vanish when these
/// threads and processes end, however they end.
///
/// # Errors
/// If the system refuses.
pub fn own_mounts() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if !DONE.get() {
        // SAFETY: no descriptor table is unshared, and the working directory stays the same.
        #[allow(unsafe_code)]
        unsafe {
            unshare_unsafe(UnshareFlags::NEWNS)?;
        }
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        DONE.set(true);
    }
    Ok(())
}

/// A mounted recorder, unmounted when dropped. After [`own_mounts`], it also vanishes when this
/// process is killed.
pub struct Recorder {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    mount: Option<tempfile::TempDir>,
}

impl Recorder {
    /// Mounts an empty recorder, or one with files that are durable already.
    ///
    /// # Errors
    /// If the system refuses: no FUSE, or no permission to mount.
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

    /// Returns the mount point.
    pub fn root(&self) -> &Path {
        self.mount.as_ref().expect("mounted until dropped").path()
    }

    /// Returns the directory for a store.
    pub fn store(&self) -> PathBuf {
        self.root().join(STORE)
    }

    /// Returns the path of the file for marks. Each write call is one mark.
    pub fn mark(&self) -> PathBuf {
        self.root().join(MARK)
    }

    /// Makes each later sync of a file take one of these times, chosen at random, as on a disk.
    /// Otherwise a sync takes no time. Data that is written during a sync is not covered by it.
    /// Only the first call has an effect.
    pub fn slow_down_syncs(&self, takes: Vec<Duration>) {
        let _ = self.shared.slow.set(slow::Slow::start(takes, Arc::downgrade(&self.shared)));
    }

    /// Holds the next sync of a file whose path in the store begins with `prefix`, after `skip`
    /// such syncs have passed. Syncs that have nothing to sync do not count.
    pub fn hold_sync(&self, prefix: &str, skip: usize) {
        self.shared.lock().order = Some(Order { prefix: format!("{STORE}/{prefix}"), skip });
    }

    /// Waits for the sync that is to be held, for at most this time.
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

    /// Returns the number of recorded events.
    pub fn position(&self) -> usize {
        self.shared.lock().events.len()
    }

    /// Returns the number of marks that begin with `prefix`, after the position `from`.
    pub fn marks(&self, from: usize, prefix: &str) -> usize {
        let tree = self.shared.lock();
        let is_wanted = |event: &&Event| matches!(event, Event::Mark(said) if said.starts_with(prefix));
        tree.events.iter().skip(from).filter(is_wanted).count()
    }

    /// Returns the number of successful syncs of files whose path in the store begins with
    /// `prefix`, after the position `from`.
    pub fn syncs(&self, from: usize, prefix: &str) -> usize {
        let tree = self.shared.lock();
        let prefix = format!("{STORE}/{prefix}");
        let is_wanted = |event: &&Event| match event {
            Event::Synced { file, .. } => tree.path_of(*file).is_some_and(|path| path.starts_with(&prefix)),
            _ => false,
        };
        tree.events.iter().skip(from).filter(is_wanted).count()
    }

    /// Unmounts the recorder and returns the record. No process may use the store any more.
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
        // Dropping the held sync sends its answer, which takes the lock.
        drop(held);
        let Some(mount) = self.mount.take() else { return };
        // Forced and lazy: pending requests fail, so no process is kept from exiting.
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
