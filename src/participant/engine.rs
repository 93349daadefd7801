//! The parts that every participant of a store uses, client and logger alike: the directory, the
//! shared region, the arena, and an identity whose liveness others can test.

mod logger_link;

use crate::error::Result;
use crate::error::reason::{LockHolder, LockKind, Space};
use crate::files::descriptor::Descriptor;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::dir::LockFileId;
use crate::files::geometry::Geometry;
use crate::participant::checked_pages::CheckedPages;
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
use crate::{ClientId, Error, limits};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// The longest sleep of a participant before it tests again that the process it waits for is alive.
pub(crate) const LOGGER_RECHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Time between checks that a logger lives, by a process that commits or stores without waiting.
const LOGGER_GLANCE_INTERVAL_NS: u64 = 10_000_000;

/// How long a writer that finds the device full waits for the logger to delete files. That takes
/// milliseconds, but the logger may be stopped.
const LOG_YIELD_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a waiter continues while it can't determine whether the owner of a lock lives.
const UNCLEAR_OWNER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a thread of the logger waits for the growth lock.
const LOGGER_GROWTH_TIMEOUT: Duration = Duration::from_secs(2);

/// A flush, or a wait for a lock, that takes longer is logged.
pub(crate) const SLOW_OPERATION_MIN: Duration = Duration::from_secs(1);

/// The least time that opening waits for other processes that make no visible progress.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns how long an open waits for others that make no visible progress.
pub(crate) fn open_limit(logger_timeout: Duration) -> Duration {
    // A day is practically unlimited, and within the clock's range.
    logger_timeout.clamp(open_timeout(), Duration::from_secs(86_400))
}

fn open_timeout() -> Duration {
    #[cfg(untorn_instrumented)]
    if let Some(ms) = crate::environment::variable("UNTORN_OPEN_TIMEOUT_MS").and_then(|ms| ms.into_string().ok()) {
        return Duration::from_millis(ms.parse().expect("UNTORN_OPEN_TIMEOUT_MS is a number"));
    }
    OPEN_TIMEOUT
}

/// Returns whether a client lives. If that is unclear, it counts as alive.
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
    /// The process id, for display. Getting it is a system call each time.
    pub(crate) pid: u32,
    /// Device and inode of `lock`. Liveness tests on any other file are rejected.
    pub(crate) lock_file: LockFileId,
    /// `lock`, kept open for liveness tests: a process that has used up its descriptors can still
    /// test which participants are dead.
    pub(crate) lock_reserve: Descriptor,
    /// How long to wait for a living logger that makes no progress.
    pub(crate) logger_timeout: Duration,
    /// Starts a logger if there is none; `None` in the logger's own engine.
    pub(crate) spawner: Option<crate::participant::spawner::LoggerSpawner>,
    /// No logger had begun the region when this client entered: see [`Engine::await_begun`].
    pub(crate) awaits_begin: AtomicBool,
    /// Set if one of this logger's threads has panicked: the other threads' waits for the logger
    /// end. Never set in a client.
    pub(crate) has_failed: AtomicBool,
    /// The newest scan of the pins by this participant: see [`crate::pages::protection`].
    pub(crate) pin_scan: Mutex<Arc<PinScan>>,
    /// The pages that this participant has checked. For the owner of the writer lock.
    pub(crate) checked_pages: CheckedPages,
    /// The progress mark that this participant moves while it holds the initialisation lock.
    pub(crate) progress: Arc<Progress>,
    /// When this participant last saw that the logger was alive, on [`now_ns`]'s clock.
    pub(crate) logger_seen_ns: AtomicU64,
    /// Dropped last: as long as it exists, other processes see this participant as alive.
    pub(crate) presence: Presence,
}

// For the same reason as for `Client`, which owns it.
impl std::panic::UnwindSafe for Engine {}
impl std::panic::RefUnwindSafe for Engine {}

impl Engine {
    /// Returns whether the participant with this id lives. If that is unclear, it counts as alive.
    pub(crate) fn is_alive(&self, id: u64) -> bool {
        self.liveness(id).unwrap_or(true)
    }

    /// Returns what [`Engine::is_alive`] does, or why that is unclear.
    ///
    /// # Errors
    /// The error that prevents the test.
    fn liveness(&self, id: u64) -> Result<bool> {
        if planted_bug!("liveness-by-pid") && CLIENT_IDS.contains(&id) {
            let pid = rustix::process::Pid::from_raw(self.control.client_pid(id) as i32);
            return Ok(pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()));
        }
        self.tester()?.is_alive(id)
    }

    /// Returns what [`Engine::is_alive`] does, for tests of several participants in a row.
    pub(crate) fn is_alive_by(&self, tester: &Tester<'_>, id: u64) -> bool {
        if planted_bug!("liveness-by-pid") { self.is_alive(id) } else { tester.is_alive(id).unwrap_or(true) }
    }

    /// Returns whether a logger lives.
    ///
    /// # Errors
    /// The error that prevents the test.
    pub(crate) fn has_logger(&self) -> Result<bool> {
        self.tester()?.is_held(liveness::LOGGER_OFFSET)
    }

    /// Returns whether a client lives.
    pub(crate) fn has_clients(&self) -> bool {
        self.tester().map_or(true, |tester| has_clients(&tester))
    }

    /// Returns whether a client other than `own` lives.
    pub(crate) fn has_clients_beside(&self, own: ClientId) -> bool {
        let Ok(tester) = self.tester() else { return true };
        [CLIENT_IDS.start..own.0, own.0 + 1..CLIENT_IDS.end]
            .into_iter()
            .any(|ids| tester.any_held(ids).map_or(true, |held| held.is_some()))
    }

    /// Returns a tester with a fresh descriptor of `lock`, which detects whether the file is still
    /// there. A process that can't open it uses the descriptor that it keeps.
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

    /// Opens the arena's file afresh for writing.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another file has replaced it.
    pub(crate) fn arena_file(&self) -> Result<std::fs::File> {
        let file = self.dir.need_file(dir::ARENA, true)?;
        self.arena.refuse_other_file(&file)?;
        Ok(file)
    }

    /// Opens the file of the shared region afresh, to grow it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another file has replaced it.
    pub(crate) fn control_file(&self) -> Result<std::fs::File> {
        let file = self.dir.need_file(dir::CONTROL, true)?;
        self.control.refuse_other_file(&file)?;
        Ok(file)
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

    /// Returns the newest scan of this process.
    pub(crate) fn last_pin_scan(&self) -> Arc<PinScan> {
        self.pin_scan.lock().clone()
    }

    /// Acquires one of the shared locks; a timeout of `None` waits without limit.
    ///
    /// Only one thread of a process may try at a time: the lock is owned by a process, not by a
    /// thread.
    pub(crate) fn acquire(&self, word: &LockWord, timeout: Option<Duration>) -> Result<()> {
        self.acquire_as(word, &|| CommitClass::Bulk, timeout)
    }

    /// Acquires a lock as [`Engine::acquire`] does, for a commit of the class that `class` returns
    /// before each attempt.
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
        // A timeout beyond the clock's range is no limit.
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        let acquired = self
            .acquire_while_clear(deadline, |alive, until| word.acquire_as(class, self.me.0, alive, until))?
            .map_err(|_| self.lock_timeout(word, clock::since(start)))?;
        if let Acquired::TakenOver(_) = acquired {
            // The pid of a dead owner, if it lived long enough to record that.
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

    /// Acquires a lock by `acquire`, which is called repeatedly with a test for the owner's
    /// liveness and a limit.
    ///
    /// # Errors
    /// The error that prevents the liveness test, if it lasts: otherwise the caller would wait for
    /// a dead owner for ever.
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

    /// Returns an error if one owner has held the writer lock for longer than `timeout`, and the
    /// caller has waited as long (`waited`).
    pub(crate) fn refuse_long_transaction(&self, waited: Duration, timeout: Duration) -> Result<()> {
        let writer = &self.control.fixed().writer;
        let age = now_ns().saturating_sub(writer.holder_since_ns());
        if writer.owner().is_some() && waited >= timeout && u128::from(age) > timeout.as_nanos() {
            return Err(self.lock_timeout(writer, waited));
        }
        Ok(())
    }

    /// Returns the error for a lock that was not free. A new holder may not have stored its pid
    /// yet.
    fn lock_timeout(&self, word: &LockWord, waited: Duration) -> Error {
        let is_growth = std::ptr::eq(word, &raw const *self.control.fixed().growth);
        let lock = if is_growth { LockKind::Growth } else { LockKind::Writer };
        let age = now_ns().saturating_sub(word.holder_since_ns());
        let pid = word.holder_pid();
        let holder = (pid != 0).then_some(LockHolder::Process { pid, held_for: Some(Duration::from_nanos(age)) });
        Error::LockTimeout { lock, waited, holder }
    }

    /// Makes sure that the first `bytes` of the arena are backed by written blocks.
    ///
    /// # Errors
    /// [`Error::DiskFull`], or [`Error::LockTimeout`] if the process that grows it makes no
    /// progress. The call then had no effect.
    pub(crate) fn ensure_arena(&self, bytes: u64) -> Result<()> {
        match self.control.arena_bytes() {
            Some(_) if bytes <= self.control.checked_arena_bytes()? => Ok(()),
            _ => {
                // A thread of the logger waits for a stopped process no longer than for a lock: the
                // logger must be able to end.
                let patience = if self.spawner.is_some() { self.logger_timeout } else { LOGGER_GROWTH_TIMEOUT };
                self.with_room(|| self.grow_arena(bytes, patience))
            }
        }
    }

    /// Runs `work`, which needs space on the device. Retries it as long as the device is full and
    /// some of the log that is kept for followers only can be deleted.
    pub(crate) fn with_room<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(Error::DiskFull { .. }) if self.reclaim_kept_log() => {}
                done => return done,
            }
        }
    }

    /// Makes the logger delete some of the log that it keeps for followers only, because the device
    /// is full. Returns whether it did.
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
    /// [`limits::arena_size_for`] returns. If a process dies in this, it has handed out no page.
    /// The next one writes the same zeros at the same position.
    ///
    /// The writer grows the arena only when the logger did not do it ahead of need. This lock is
    /// separate from the writer lock, so a commit never waits for the logger's zeros.
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
        // The holder may be the logger, and may be stopped.
        self.acquire(&fixed.growth, Some(patience))?;
        /// Releases the lock, even if the growth panics: this process lives on, so no other process
        /// would take the lock over.
        struct Release<'e>(&'e Engine);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.control.fixed().growth.release(self.0.me.0);
            }
        }
        let _release = Release(self);
        (|| {
            let have = match self.control.arena_bytes() {
                Some(_) => self.control.checked_arena_bytes()?,
                // The word is damaged; use the file's length. A last part that is not whole was
                // never handed out.
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
