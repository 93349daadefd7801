//! One process's use of one store: its identity, its pins, and its admission as a writer.
//!
//! All handles of a process to the same store (same device and inode) share one client, found in a
//! registry. In a child of `fork()` the client's copy is invalid. Every call and every drop first
//! checks a wipe-on-fork word, so a child can neither use nor release the resources of its parent.

use crate::admission::Admission;
use crate::error::reason::{LoggerFailure, MismatchKind, RecoveryReason};
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::dir::LockFileId;
use crate::files::header::CheckpointHeader;
use crate::participant::checked_pages::CheckedPages;
use crate::participant::engine::{Engine, has_clients, open_limit};
use crate::participant::options::Options;
use crate::participant::spawner::LoggerSpawner;
use crate::process::create;
use crate::process::{pin, waker};
use crate::shared::control::Control;
use crate::shared::liveness;
use crate::shared::liveness::{CLIENT_IDS, InitLock, LOGGER_OFFSET, Tester};
use crate::shared::memory::arena::Arena;
use crate::shared::memory::fork;
use crate::shared::memory::fork::ForkGuard;
use crate::shared::presence;
use crate::shared::presence::Presence;
use crate::shared::progress::{Patience, Progress};
use crate::shared::readers::StoreReader;
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::system::sync::Mutex;
use crate::{ClientId, Error, LimitKind, Result, limits};
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

/// How long an opener waits for the logger of a store that needs recovery to exit. A stopped logger
/// does not exit.
const LOGGER_EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client that closes the store waits until the logger that it spawned has begun.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes the region of a store that was left in order and that no process has open, if the client
/// may do that itself. Higher layers pass this function in, since it checks pages.
pub(crate) type RegionMaker = fn(&Dir, &CheckpointHeader, &Options) -> Option<Control>;

/// One process's use of one store.
pub(crate) struct DirectClient {
    /// The number that distinguishes the clients of this process.
    pub(super) serial: u64,
    pub(crate) engine: Engine,
    pub(super) fork: ForkGuard,
    /// The admission of this process's commits.
    pub(crate) admission: Admission,
    pub(crate) pool: pin::SlotPool,
    pub(crate) wakers: waker::Wakers,
    /// The index of its entry in the client table.
    entry: usize,
}

// A panic of the host can interrupt the same steps as the death of the process. Each protocol of
// the shared region leaves a state from which others continue. The locks of this process are
// released by a panic, and not poisoned.
impl std::panic::UnwindSafe for DirectClient {}
impl std::panic::RefUnwindSafe for DirectClient {}

/// The client of a store, for all handles of this process. Locked while the client is made, so a
/// process never makes two.
type ClientCell = Arc<Mutex<Weak<DirectClient>>>;

/// The key contains the process generation: a child of fork() inherits the map, whose cells may be
/// locked forever.
static REGISTRY: LazyLock<Mutex<HashMap<(u64, LockFileId), ClientCell>>> = LazyLock::new(Mutex::default);

/// Returns the cell of a store's client in this process.
fn client_cell(id: LockFileId) -> Result<ClientCell> {
    let generation = ForkGuard::new()?.generation();
    // A child must not inherit a locked map.
    fork::without_forks(|| {
        let mut registry = REGISTRY.lock();
        registry.retain(|(of, _), client_cell| {
            *of == generation && (Arc::strong_count(client_cell) > 1 || client_cell.lock().strong_count() > 0)
        });
        registry.entry((generation, id)).or_default().clone()
    })
}

impl DirectClient {
    /// Returns the client of this process for the store in `dir`; makes it if this is the first
    /// handle.
    pub(crate) fn join(dir: Dir, options: &Options, make_region: RegionMaker) -> Result<Arc<DirectClient>> {
        if options.create {
            dir.ensure_lock_file()?;
        } else if dir.open_file(dir::CHECKPOINT, false)?.is_none() {
            return Err(Error::NotFound { path: dir.path().into() });
        }
        let client_cell = client_cell(dir.with_fd(|fd| liveness::lock_file_id(fd))?)?;
        let mut client_cell = client_cell.lock();
        // A client that other processes consider dead is not reused.
        if let Some(client) = client_cell.upgrade().filter(|client| client.engine.presence.check().is_ok()) {
            options.refuse_other_geometry(&client.engine.geometry)?;
            return Ok(client);
        }
        let client = Arc::new(DirectClient::make(dir, options, make_region)?);
        let control = &client.engine.control;
        tracing::info!(path = %client.engine.dir.path().display(), committed = %control.committed(), "store opened");
        *client_cell = Arc::downgrade(&client);
        Ok(client)
    }

    /// Opens the store as a client. Under the initialisation lock, the client joins the `control`
    /// that is in use. If no process has the store open and it was shut down in order, the client
    /// makes the region itself, and then spawns a logger without waiting for it. Otherwise the
    /// client releases the lock and spawns a logger. The logger recovers the store; the client then
    /// retries.
    fn make(dir: Dir, options: &Options, make_region: RegionMaker) -> Result<DirectClient> {
        let limit = open_limit(options.logger_timeout);
        let started = clock::now();
        let mut patience = Patience::new(limit);
        let spawner = LoggerSpawner::new(options);
        let tester = dir.with_fd(|fd| Tester::open(fd, None))?;
        loop {
            let init = lock_init(&dir, &mut patience, &Arc::default())?;
            if options.create {
                create::ensure_store(&dir, &options.geometry()?, &init)?;
            } else if dir.open_file(dir::CHECKPOINT, false)?.is_none() {
                return Err(Error::NotFound { path: dir.path().into() });
            }
            let (mut header, damage) = CheckpointHeader::read(&dir.need_file(dir::CHECKPOINT, false)?)?;
            // The damaged header may have been newer, and have recorded that the store was in use
            // again.
            header.clean &= damage.is_none();
            options.refuse_other_geometry(&header.geometry)?;
            let in_use = tester.is_held(LOGGER_OFFSET)? || has_clients(&tester);
            if in_use && let Some(control) = attach(&dir, &header)? {
                // A poisoned store must be closed by all processes and opened again. If no process
                // has it open any more, its logger is about to exit, and the next one recovers it.
                let is_left = control.poison() != 0 && !has_clients(&tester);
                // If this client is in that logger, the logger would wait for its own exit, and all
                // clients would wait for it.
                if is_left && options.is_of_logger {
                    return Err(Error::NeedsRecovery { reason: RecoveryReason::LoggerExiting });
                }
                if is_left && clock::since(started) < LOGGER_EXIT_TIMEOUT {
                    drop((control, init));
                    clock::sleep(Duration::from_millis(1));
                    continue;
                }
                let client = DirectClient::enter(dir, options, header, control, spawner, init.file_id())?;
                crash_point!("client.entered");
                // From here on the logger sees this client, and doesn't exit.
                drop(init);
                client.engine.ensure_logger()?;
                return Ok(client);
            }
            if !in_use {
                presence::refuse_others(&dir, init.file_id())?;
                if let Some(control) = make_region(&dir, &header, options) {
                    let client = DirectClient::enter(dir, options, header, control, spawner, init.file_id())?;
                    crash_point!("client.entered");
                    drop(init);
                    client.engine.start_logger_behind()?;
                    return Ok(client);
                }
            }
            if in_use && has_clients(&tester) {
                return Err(Error::Mismatch { file: dir::CONTROL.into(), what: MismatchKind::OtherBoot });
            }
            drop(init);
            if patience.is_over() {
                return Err(Error::LoggerUnavailable { reason: LoggerFailure::NotReady });
            }
            spawner.start(&dir, &tester, &mut patience)?;
            // A logger that has its byte may need the initialisation lock.
            clock::sleep(Duration::from_micros(500));
        }
    }

    /// Joins the store: locks a byte of `lock`, maps the arena, enters the client table. The caller
    /// holds the initialisation lock.
    fn enter(
        dir: Dir,
        options: &Options,
        header: CheckpointHeader,
        control: Control,
        spawner: LoggerSpawner,
        lock_file: LockFileId,
    ) -> Result<DirectClient> {
        let presence = Presence::take(&dir, CLIENT_IDS, lock_file)?;
        presence::refuse_others(&dir, lock_file)?;
        let me = presence.id();
        // Read-only handles, too, open the arena for writing. On a stacked file system, the first
        // open for writing copies a file of a lower layer, and an earlier mapping would be of the
        // original. `control` and `lock` are always opened for writing. A user without the right to
        // write relies on the logger, which has opened the file before any client can join.
        let arena_file = match dir.need_file(dir::ARENA, true) {
            Err(Error::Permission { .. }) if options.read_only => dir.need_file(dir::ARENA, false)?,
            opened => opened?,
        };
        control.know_arena(arena_file.metadata().map_err(Error::io("stat of arena"))?.len());
        let high_water = control.newest()?.high_water;
        let arena = Arc::new(Arena::open(&arena_file, header.store_id, &header.geometry, high_water)?);
        control.set_arena(arena.clone())?;
        let tester = dir.with_fd(|fd| Tester::open(fd, Some(lock_file)))?;
        let lock_reserve = dir.with_fd(|fd| liveness::open_reserve(fd, lock_file))?;
        let is_begun = control.is_begun();
        let entry = enter_table(&control, me, &tester, || dir.need_file(dir::CONTROL, true))?;
        // Wake the logger: without clients, it sleeps until it is time to exit.
        control.fixed().logger.background.notify_always();
        let engine = Engine {
            dir,
            store_id: header.store_id,
            geometry: header.geometry,
            control,
            arena,
            me,
            pid: std::process::id(),
            lock_file,
            lock_reserve,
            logger_timeout: options.logger_timeout,
            spawner: Some(spawner),
            awaits_begin: AtomicBool::new(!is_begun),
            has_failed: AtomicBool::new(false),
            pin_scan: Mutex::default(),
            checked_pages: CheckedPages::default(),
            progress: Arc::default(),
            logger_seen_ns: AtomicU64::new(0),
            presence,
        };
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Ok(DirectClient {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            engine,
            fork: ForkGuard::new()?,
            admission: Admission::default(),
            pool: pin::SlotPool::default(),
            wakers: waker::Wakers::default(),
            entry,
        })
    }

    /// Returns an error in a child of `fork()`, and if other processes consider this one dead.
    /// Costs two loads, and system calls only if liveness depends on a descriptor.
    #[inline(always)]
    pub(crate) fn check_usable(&self) -> Result<()> {
        if self.fork.is_child() || self.engine.presence.can_be_lost() { self.check_usable_slowly() } else { Ok(()) }
    }

    #[cold]
    fn check_usable_slowly(&self) -> Result<()> {
        if self.fork.is_child() { Err(Error::Forked) } else { self.engine.presence.check() }
    }

    /// Returns whether this is a copy in a child of `fork()`, which has no mappings.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.fork.is_child()
    }

    // ---- writing

    /// Counts a commit of this process.
    pub(crate) fn count_commit(&self) {
        self.engine.control.clients()[self.entry].count_commit();
    }

    // ---- pins

    /// Claims the lowest free reader slot of the shared table. Waits for no other process.
    ///
    /// # Errors
    /// [`Error::Limit`] if the maximum number of slots is in use, [`Error::DiskFull`] if there is
    /// no space for more slots.
    pub(crate) fn claim_reader(&self) -> Result<usize> {
        let engine = &self.engine;
        let claim = || engine.control.claim_reader(engine.me.0, |id| engine.is_alive(id), || engine.control_file());
        let index = engine.with_room(claim)?;
        self.reader(index).set_pid(engine.pid);
        Ok(index)
    }

    #[inline]
    pub(crate) fn reader(&self, index: usize) -> &StoreReader {
        self.engine.control.reader(index)
    }
}

impl Drop for DirectClient {
    fn drop(&mut self) {
        if self.fork.is_child() {
            return;
        }
        // Without this wait, a later call that stops the logger might not find it yet.
        let _ = self.engine.await_begun_within(Patience::fixed(CLOSE_TIMEOUT));
        let me = self.engine.me.0;
        self.engine.control.release_readers_of(me);
        self.engine.control.clients()[self.entry].leave();
        // The logger's idle time begins here.
        self.engine.control.fixed().logger.flusher.notify_always();
        tracing::info!(path = %self.engine.dir.path().display(), "store closed");
    }
}

/// Maps the `control` of a store if it belongs to this boot.
pub(crate) fn attach(dir: &Dir, header: &CheckpointHeader) -> Result<Option<Control>> {
    match dir.open_file(dir::CONTROL, true)? {
        None => Ok(None),
        Some(file) => Control::attach(&file, header.store_id, &header.geometry, dir::boot_id()?),
    }
}

/// Acquires the initialisation lock. While the lock is held, `progress` shows waiters that its
/// holder makes progress.
pub(crate) fn lock_init(dir: &Dir, patience: &mut Patience, progress: &Arc<Progress>) -> Result<InitLock> {
    match dir.with_fd(|fd| InitLock::acquire(fd, patience, progress))? {
        Some(init) => Ok(init),
        None => Err(Error::LoggerUnavailable { reason: LoggerFailure::Initializing { stalled_for: patience.limit() } }),
    }
}

/// Claims an entry of the client table, if necessary that of a dead client.
fn enter_table(
    control: &Control,
    me: ClientId,
    tester: &Tester<'_>,
    open_file: impl Fn() -> Result<File>,
) -> Result<usize> {
    let mut reap = false;
    loop {
        for (index, entry) in control.clients().iter().enumerate() {
            let found = entry.owner();
            if let Some(owner) = found
                && (!reap || tester.is_held(owner)?)
            {
                continue;
            }
            if entry.claim(found, me.0) {
                if found.is_some() {
                    // The dead client may have died between a store into a cell and the flag that
                    // the cell is dirty.
                    control.cells().set_dirty();
                    // Or between its claim of a reader slot and the bit in the occupancy map.
                    control.fixed().readers.note_death();
                }
                entry.join(std::process::id(), now_ns(), control);
                return Ok(index);
            }
        }
        // Reap dead clients first: a full device has no space for a larger table.
        if !std::mem::replace(&mut reap, true) {
            continue;
        }
        let file = open_file()?;
        control.refuse_other_file(&file)?;
        if !control.grow_clients(control.clients().len(), &file)? {
            break;
        }
    }
    Err(Error::Limit {
        what: LimitKind::Clients,
        found: limits::CLIENTS_MAX as u64 + 1,
        limit: limits::CLIENTS_MAX as u64,
    })
}
