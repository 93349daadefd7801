//! What every participant of a store works with, client and logger alike: the directory, the shared
//! region, the arena, and an identity whose life others can test.

mod logger_link;

use crate::error::Result;
use crate::error::reason::{LockHolder, LockKind, Space};
use crate::files::descriptor::Descriptor;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::dir::LockFileId;
use crate::files::geometry::Geometry;
use crate::participant::pin_scan::PinScan;
use crate::shared::control::{Control, LockWord};
use crate::shared::liveness;
use crate::shared::liveness::{CLIENT_IDS, Tester};
use crate::shared::memory::arena::Arena;
use crate::shared::presence::Presence;
use crate::shared::progress::Progress;
use crate::shared::protocols::lock::{Acquired, CommitClass, Owner};
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::system::sync::Mutex;
use crate::{ClientId, Error, TxnId, limits};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// Longest time that a participant sleeps before it looks again whether whom it waits for is alive.
pub(crate) const LOGGER_RECHECK_INTERVAL: Duration = Duration::from_millis(5);

/// How often whoever commits or stores without waiting looks whether a logger lives.
const LOGGER_GLANCE_INTERVAL_NS: u64 = 10_000_000;

/// How long a writer that finds the device full waits for the logger to give room back: files are
/// deleted in milliseconds, and it may be stopped.
const LOG_YIELD_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a waiter goes on while it cannot tell whether the owner of a lock lives.
const UNCLEAR_OWNER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a thread of the logger waits for the growth lock.
const LOGGER_GROWTH_TIMEOUT: Duration = Duration::from_secs(2);

/// A flush, or a wait for a lock, that takes longer is told of.
pub(crate) const SLOW_OPERATION_MIN: Duration = Duration::from_secs(1);

/// Whether a client lives; whatever is unclear means that one does.
pub(crate) fn has_clients(tester: &Tester<'_>) -> bool {
    tester.any_held(CLIENT_IDS).map_or(true, |held| held.is_some())
}

/// One participant's view of a store.
pub(crate) struct Engine {
    pub(crate) dir: Dir,
    pub(crate) store_id: [u8; 16],
    pub(crate) geometry: Geometry,
    pub(crate) control: Control,
    pub(crate) arena: Arc<Arena>,
    pub(crate) me: ClientId,
    /// This process, for people to read; asking for it is a system call each time.
    pub(crate) pid: u32,
    /// Which file `lock` is: liveness is asked of no other.
    pub(crate) lock_file: LockFileId,
    /// `lock`, kept open for liveness tests: a process that has used up its descriptors can still
    /// tell who is dead.
    pub(crate) lock_reserve: Descriptor,
    /// How long to wait for a living logger that makes no progress.
    pub(crate) logger_timeout: Duration,
    /// Starts a logger if there is none; the logger's own engine has nothing to start.
    pub(crate) spawner: Option<crate::participant::spawner::LoggerSpawner>,
    /// One of this logger's threads has panicked: waits of the others for the logger end. Never set
    /// in a client.
    pub(crate) has_failed: AtomicBool,
    /// The newest scan of the pins by this participant: see [`crate::pages::protection`].
    pub(crate) pin_scan: Mutex<Arc<PinScan>>,
    /// What this participant shows of its progress while it holds the initialisation lock.
    pub(crate) progress: Arc<Progress>,
    /// When this participant last saw the logger alive, on [`now_ns`]'s clock.
    pub(crate) logger_seen_ns: AtomicU64,
    /// Dropped last: while it is there, this participant is not taken for dead.
    pub(crate) presence: Presence,
}

// As for `Client`, which owns it.
impl std::panic::UnwindSafe for Engine {}
impl std::panic::RefUnwindSafe for Engine {}

impl Engine {
    /// Whether the participant with this id lives. Whatever is unclear means that it does.
    pub(crate) fn is_alive(&self, id: u64) -> bool {
        self.liveness(id).unwrap_or(true)
    }

    /// As [`Engine::is_alive`].
    ///
    /// # Errors
    /// What keeps this process from telling.
    fn liveness(&self, id: u64) -> Result<bool> {
        if planted_bug!("liveness-by-pid") && CLIENT_IDS.contains(&id) {
            let pid = rustix::process::Pid::from_raw(self.control.client_pid(id) as i32);
            return Ok(pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()));
        }
        self.tester()?.is_alive(id)
    }

    /// As [`Engine::is_alive`], of several participants one after the other.
    pub(crate) fn is_alive_by(&self, tester: &Tester<'_>, id: u64) -> bool {
        if planted_bug!("liveness-by-pid") { self.is_alive(id) } else { tester.is_alive(id).unwrap_or(true) }
    }

    /// Whether a logger lives.
    ///
    /// # Errors
    /// What keeps this process from telling.
    pub(crate) fn has_logger(&self) -> Result<bool> {
        self.tester()?.is_held(liveness::LOGGER_OFFSET)
    }

    /// Whether a client lives.
    pub(crate) fn has_clients(&self) -> bool {
        self.tester().map_or(true, |tester| has_clients(&tester))
    }

    /// Whether a client lives other than `own`.
    pub(crate) fn has_clients_beside(&self, own: ClientId) -> bool {
        let Ok(tester) = self.tester() else { return true };
        [CLIENT_IDS.start..own.0, own.0 + 1..CLIENT_IDS.end]
            .into_iter()
            .any(|ids| tester.any_held(ids).map_or(true, |held| held.is_some()))
    }

    /// Tests through a fresh descriptor of `lock`, which finds out whether the file is still there.
    /// A process that cannot open it tests through the one that it keeps.
    pub(crate) fn tester(&self) -> Result<Tester<'_>> {
        let opened = self.dir.with_fd(|fd| Tester::open(fd, Some(self.lock_file)));
        let is_short = match &opened {
            Err(Error::Io { source, .. }) => {
                matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
            }
            Err(Error::Permission { .. }) => true,
            _ => false,
        };
        if is_short && let Some(tester) = Tester::with(&self.lock_reserve) {
            return Ok(tester);
        }
        opened
    }

    /// An error if `lock` or the directory was removed: see [`Dir::check_lock`].
    pub(crate) fn refuse_cut_off(&self) -> Result<()> {
        self.dir.check_lock(self.lock_file)
    }

    /// The arena's file, opened afresh for writing.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another one stands in its place.
    pub(crate) fn arena_file(&self) -> Result<std::fs::File> {
        let file = self.dir.need_file(dir::ARENA, true)?;
        self.arena.refuse_other_file(&file)?;
        Ok(file)
    }

    /// The file of the shared region, opened afresh for growing it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another one stands in its place.
    pub(crate) fn control_file(&self) -> Result<std::fs::File> {
        let file = self.dir.need_file(dir::CONTROL, true)?;
        self.control.refuse_other_file(&file)?;
        Ok(file)
    }

    /// C and K: the newest started and the newest finished checkpoint.
    pub(crate) fn checkpoints(&self) -> (TxnId, TxnId) {
        self.control.fixed().checkpoint.started_and_finished()
    }

    /// Whether a checkpoint has started and is not finished.
    pub(crate) fn runs_checkpoint(&self) -> bool {
        self.control.fixed().checkpoint.is_running()
    }

    /// Scans for all pinned transactions. The caller holds the writer lock.
    ///
    /// The logger's pins are read before the readers': a durable reader pins what the logger pins
    /// and then checks that the logger still does, so one of the two is always seen
    /// (`shared::protocols::pins`).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if damage in `control` could hide one.
    pub(crate) fn scan_pins(&self) -> Result<Arc<PinScan>> {
        let mut found = Vec::new();
        let horizon = self.control.scan_pins(|txn| found.push(txn))?;
        let scan = Arc::new(PinScan::new(horizon, found));
        *self.pin_scan.lock() = scan.clone();
        Ok(scan)
    }

    /// The newest scan of this process.
    pub(crate) fn last_pin_scan(&self) -> Arc<PinScan> {
        self.pin_scan.lock().clone()
    }

    /// Takes one of the shared locks; `None` waits without limit.
    ///
    /// Only one thread of a process may try at a time: the lock knows owners, not threads.
    pub(crate) fn acquire(&self, word: &LockWord, timeout: Option<Duration>) -> Result<()> {
        self.acquire_as(word, &|| CommitClass::Bulk, timeout)
    }

    /// As [`Engine::acquire`], for a commit of the class that `class` returns before each look.
    pub(crate) fn acquire_as(
        &self,
        word: &LockWord,
        class: &dyn Fn() -> CommitClass,
        timeout: Option<Duration>,
    ) -> Result<()> {
        if !word.try_acquire(class, self.me.0) {
            self.wait_for_lock(word, class, timeout)?;
        }
        word.set_holder(self.pid, now_ns());
        Ok(())
    }

    #[cold]
    fn wait_for_lock(&self, word: &LockWord, class: &dyn Fn() -> CommitClass, timeout: Option<Duration>) -> Result<()> {
        let start = clock::now();
        // A time beyond the clock's range is no limit.
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        let acquired = self
            .acquire_while_clear(deadline, |alive, until| word.acquire_as(class, self.me.0, alive, until))?
            .map_err(|_| self.lock_timeout(word, clock::since(start)))?;
        if let Acquired::TakenOver(_) = acquired {
            // The dead owner's, if it lived long enough to record it.
            let pid = word.holder_pid();
            tracing::warn!(pid, "a lock was taken over from a process that died");
            self.control.fixed().counters.lock_take_overs.add(1);
        }
        let waited = clock::since(start);
        if waited >= SLOW_OPERATION_MIN {
            tracing::warn!(waited_ms = waited.as_millis() as u64, "waited long for a lock");
        }
        Ok(())
    }

    /// Acquires a lock by `acquire`, which is called again and again with a test for the owner's
    /// life and a limit.
    ///
    /// # Errors
    /// What keeps this process from telling whether the owner lives, if that lasts: it would wait
    /// for a dead one for ever.
    pub(crate) fn acquire_while_clear(
        &self,
        deadline: Option<Instant>,
        acquire: impl Fn(&dyn Fn(u64) -> bool, Option<Instant>) -> std::result::Result<Acquired, Owner>,
    ) -> Result<std::result::Result<Acquired, Owner>> {
        loop {
            let unclear = RefCell::new(None);
            let alive = |owner: u64| {
                let found = self.liveness(owner);
                let is_alive = *found.as_ref().unwrap_or(&true);
                unclear.replace(found.err());
                is_alive
            };
            let soon = clock::now() + UNCLEAR_OWNER_TIMEOUT;
            match acquire(&alive, Some(deadline.map_or(soon, |deadline| deadline.min(soon)))) {
                Ok(acquired) => return Ok(Ok(acquired)),
                Err(owner) => match unclear.take() {
                    Some(error) => return Err(error),
                    None if deadline.is_some_and(|deadline| clock::now() >= deadline) => return Ok(Err(owner)),
                    None => {}
                },
            }
        }
    }

    pub(crate) fn release(&self, word: &LockWord) {
        word.release(self.me.0);
    }

    /// An error if the writer lock has been held for longer than `timeout` by one owner, while the
    /// caller has `waited`.
    pub(crate) fn refuse_long_transaction(&self, waited: Duration, timeout: Duration) -> Result<()> {
        let writer = &self.control.fixed().writer;
        let age = now_ns().saturating_sub(writer.holder_since_ns());
        if writer.owner().is_some() && waited >= timeout && u128::from(age) > timeout.as_nanos() {
            return Err(self.lock_timeout(writer, waited));
        }
        Ok(())
    }

    /// The error of a lock that was not free. A new holder may not have stored its number yet.
    fn lock_timeout(&self, word: &LockWord, waited: Duration) -> Error {
        let is_growth = std::ptr::eq(word, &raw const *self.control.fixed().growth);
        let lock = if is_growth { LockKind::Growth } else { LockKind::Writer };
        let age = now_ns().saturating_sub(word.holder_since_ns());
        let pid = word.holder_pid();
        let holder = (pid != 0).then_some(LockHolder::Process { pid, held_for: Some(Duration::from_nanos(age)) });
        Error::LockTimeout { lock, waited, holder }
    }

    /// Sees to it that the first `bytes` of the arena are backed by written blocks.
    ///
    /// # Errors
    /// [`Error::DiskFull`], or [`Error::LockTimeout`] if whoever is growing it makes no progress;
    /// nothing has changed then.
    pub(crate) fn ensure_arena(&self, bytes: u64) -> Result<()> {
        match self.control.arena_bytes() {
            Some(_) if bytes <= self.control.checked_arena_bytes()? => Ok(()),
            _ => {
                // A thread of the logger waits for a stopped process no longer than for a lock: it
                // must be able to end.
                let patience = if self.spawner.is_some() { self.logger_timeout } else { LOGGER_GROWTH_TIMEOUT };
                self.with_room(|| self.grow_arena(bytes, patience))
            }
        }
    }

    /// Does what takes room on the device, again and again while the device is full and some of the
    /// log is kept for followers only.
    pub(crate) fn with_room<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(Error::DiskFull { .. }) if self.reclaim_kept_log() => {}
                done => return done,
            }
        }
    }

    /// The device is full: has the logger give back some of the log that it keeps for followers
    /// only. Whether it did.
    #[cold]
    fn reclaim_kept_log(&self) -> bool {
        let fixed = self.control.fixed();
        let words = &fixed.logger;
        if self.spawner.is_none() || fixed.counters.wal_kept() == 0 {
            return false;
        }
        let request = words.request_yield();
        let start = clock::now();
        while !words.has_yielded(request) {
            if clock::since(start) > LOG_YIELD_TIMEOUT || self.ensure_logger().is_err() {
                return false;
            }
            words.background.notify_always();
            clock::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Grows the arena to at least `bytes` by writing zeros, under the growth lock, to a size that
    /// [`limits::arena_size_for`] gives. A process that dies in it has handed nothing out: the next
    /// one writes the same zeros from the same place.
    ///
    /// The writer grows only when the logger did not do it ahead of need, so this lock is apart
    /// from the writer lock: a commit never waits for the logger's zeros.
    #[cold]
    pub(crate) fn grow_arena(&self, bytes: u64, patience: Duration) -> Result<()> {
        if let Some(max) = self.arena.scratch_len() {
            let target = limits::arena_size_for(bytes);
            if target > max {
                return Err(Error::DiskFull { what: Space::Arena { bytes: target - max } });
            }
            self.control.set_arena_bytes(target);
            return Ok(());
        }
        let fixed = self.control.fixed();
        // Its holder may be the logger, and stopped.
        self.acquire(&fixed.growth, Some(patience))?;
        /// Releases the lock, also when growing panics: this process lives on, so its lock would
        /// not be taken over.
        struct Release<'e>(&'e Engine);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.release(&self.0.control.fixed().growth);
            }
        }
        let _release = Release(self);
        (|| {
            let have = match self.control.arena_bytes() {
                Some(_) => self.control.checked_arena_bytes()?,
                // The word is damaged; the file knows. What is not whole was never handed out.
                None => {
                    let len = self.arena_file()?.metadata().map_err(Error::io("stat of arena"))?.len();
                    self.control.set_arena_bytes(len);
                    len - len % limits::ARENA_SIZE_INITIAL
                }
            };
            let target = limits::arena_size_for(bytes).min(self.geometry.max_size);
            if target > have {
                crash_point!("grow.before_zeros");
                crate::shared::control::write_zeros(&self.arena_file()?, have, target - have, dir::ARENA)?;
                self.control.set_arena_bytes(target);
            }
            Ok(())
        })()
    }
}
