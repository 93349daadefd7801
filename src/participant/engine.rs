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
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::lock::{Acquired, CommitClass, Owner};
use crate::shared::protocols::{event_count, lock};
use crate::{ClientId, Error, TxnId, limits};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use untorn_wal::Lsn;

/// Longest time that a participant sleeps before it looks again whether whom it waits for is alive.
pub(crate) const LOGGER_RECHECK_INTERVAL: Duration = Duration::from_millis(5);

/// While an urgent commit has come within this time, bulk ones leave the log to it but for a share.
const URGENT_RECENT_MAX: Duration = Duration::from_secs(1);

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
            let client = self.control.clients().iter().find(|client| client.owner.load(Ordering::Acquire) == id);
            let pid = client.map_or(0, |client| client.pid.load(Ordering::Relaxed));
            let pid = rustix::process::Pid::from_raw(pid as i32);
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
        let words = &self.control.fixed().checkpoint;
        // K is read first: if both move in between, the older K protects too much, never too
        // little.
        let finished = words.finished.load(Ordering::Acquire);
        let started = words.started.load(Ordering::Acquire);
        (TxnId::from_u64(started.max(finished)), TxnId::from_u64(finished))
    }

    /// Whether a checkpoint has started and is not finished: what was noted of it must not change.
    pub(crate) fn runs_checkpoint(&self) -> bool {
        let words = &self.control.fixed().checkpoint;
        let (started, finished) = self.checkpoints();
        started != finished || words.again.load(Ordering::SeqCst) != 0
    }

    /// What the last attempt at a checkpoint met that failed.
    pub(crate) fn last_checkpoint_failure(&self) -> Error {
        let words = &self.control.fixed().checkpoint;
        match words.failure_errno.load(Ordering::Relaxed) as i32 {
            0 => {
                let offset = words.failure_offset.load(Ordering::Relaxed);
                Error::corrupt(dir::ARENA, offset, "a checkpoint met damage here; `verify` says more")
            }
            libc::ENOSPC => Error::DiskFull { what: Space::Checkpoint },
            errno => Error::Io { what: "checkpoint".into(), source: std::io::Error::from_raw_os_error(errno) },
        }
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
        self.take(word, &|| CommitClass::Bulk, timeout)
    }

    /// Takes the writer lock, as what `class` says before each look. A bulk one may become urgent
    /// while it waits.
    pub(crate) fn acquire_writer(&self, class: &dyn Fn() -> CommitClass, timeout: Option<Duration>) -> Result<()> {
        self.take(&self.control.fixed().writer, class, timeout)
    }

    /// Notes how long a commit of this class, which has the writer lock and will keep it, has
    /// waited for it.
    pub(crate) fn note_lock_wait(&self, class: CommitClass, asked_ns: u64) {
        let fixed = self.control.fixed();
        let since_ns = fixed.writer.holder_since_ns.load(Ordering::Relaxed);
        fixed.latencies.lock[class].wait.record_alone(since_ns.saturating_sub(asked_ns));
    }

    /// Notes for how long a commit of this class, which is about to let go of the writer lock, has
    /// had it.
    pub(crate) fn note_lock_hold(&self, class: CommitClass) {
        let fixed = self.control.fixed();
        let since_ns = fixed.writer.holder_since_ns.load(Ordering::Relaxed);
        fixed.latencies.lock[class].hold.record_alone(now_ns().saturating_sub(since_ns));
    }

    /// How far the log must be durable before a bulk commit may add to what waits for its flush;
    /// `None`: it may at once. While urgent commits come, one flush covers no more than a share of
    /// the ring and one more commit, so that nobody urgent waits for more.
    pub(crate) fn bulk_waits_for(&self) -> Option<Lsn> {
        let fixed = self.control.fixed();
        let urgent_ns = fixed.deadlines.urgent_asked_ns.load(Ordering::Relaxed);
        // A time in the future is damage.
        let ago = if urgent_ns == 0 { None } else { now_ns().checked_sub(urgent_ns) };
        if ago.is_none_or(|ago| u128::from(ago) >= URGENT_RECENT_MAX.as_nanos()) {
            return None;
        }
        // Frames of a transaction that streams lie behind the newest commit.
        let streamed = Lsn(fixed.stream.tail.load(Ordering::Relaxed));
        let tail = self.control.newest().ok()?.log_tail.max(streamed);
        let (_, durable) = self.control.durable()?;
        let share = limits::BULK_SHARE_BYTES.min(self.control.ring_reach().ok()? / 4);
        (tail.bytes_since(durable) > share).then(|| Lsn((tail.0 - share).next_multiple_of(8)))
    }

    fn take(&self, word: &LockWord, class: &dyn Fn() -> CommitClass, timeout: Option<Duration>) -> Result<()> {
        // Nearly always free, and then nobody's class matters.
        if lock::try_acquire::<Native>(&word.word, self.me.0).is_err()
            && lock::try_acquire_as::<Native>(&word.word, class(), self.me.0).is_err()
        {
            self.wait_for_lock(word, class, timeout)?;
        }
        word.holder_pid.store(self.pid, Ordering::Relaxed);
        word.holder_since_ns.store(now_ns(), Ordering::Relaxed);
        Ok(())
    }

    #[cold]
    fn wait_for_lock(&self, word: &LockWord, class: &dyn Fn() -> CommitClass, timeout: Option<Duration>) -> Result<()> {
        let start = Instant::now();
        // A time beyond the clock's range is no limit.
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        let acquired = self
            .acquire_while_clear(deadline, |alive, until| {
                lock::acquire_as::<Native>(&word.word, &word.events(), class, self.me.0, alive, until)
            })?
            .map_err(|_| self.lock_timeout(word, start.elapsed()))?;
        if let lock::Acquired::TakenOver(_) = acquired {
            // Nobody has written there since, so this is the dead one's, if it lived long enough to
            // write it.
            let pid = word.holder_pid.load(Ordering::Relaxed);
            tracing::warn!(pid, "a lock was taken over from a process that died");
            self.control.fixed().counters.lock_take_overs.fetch_add(1, Ordering::Relaxed);
        }
        let waited = start.elapsed();
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
            let soon = Instant::now() + UNCLEAR_OWNER_TIMEOUT;
            match acquire(&alive, Some(deadline.map_or(soon, |deadline| deadline.min(soon)))) {
                Ok(acquired) => return Ok(Ok(acquired)),
                Err(owner) => match unclear.take() {
                    Some(error) => return Err(error),
                    None if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(Err(owner)),
                    None => {}
                },
            }
        }
    }

    pub(crate) fn release(&self, word: &LockWord) {
        lock::release_and_wake_next::<Native>(&word.word, &word.events(), self.me.0);
    }

    /// An error if the writer lock has been held for longer than `timeout` by one owner, while the
    /// caller has `waited`.
    pub(crate) fn refuse_long_transaction(&self, waited: Duration, timeout: Duration) -> Result<()> {
        let writer = &self.control.fixed().writer;
        let age = now_ns().saturating_sub(writer.holder_since_ns.load(Ordering::Relaxed));
        if lock::owner::<Native>(&writer.word).is_some() && waited >= timeout && u128::from(age) > timeout.as_nanos() {
            return Err(self.lock_timeout(writer, waited));
        }
        Ok(())
    }

    /// The error of a lock that was not free. A holder that has just come may not have stored its
    /// number yet.
    fn lock_timeout(&self, word: &LockWord, waited: Duration) -> Error {
        let is_growth = std::ptr::eq(word, &raw const *self.control.fixed().growth);
        let lock = if is_growth { LockKind::Growth } else { LockKind::Writer };
        let age = now_ns().saturating_sub(word.holder_since_ns.load(Ordering::Relaxed));
        let pid = word.holder_pid.load(Ordering::Relaxed);
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
        if self.spawner.is_none() || fixed.counters.wal_kept.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let request = words.yield_request.fetch_add(1, Ordering::SeqCst) + 1;
        let start = Instant::now();
        while words.yielded.load(Ordering::SeqCst) < request {
            if start.elapsed() > LOG_YIELD_TIMEOUT || self.ensure_logger().is_err() {
                return false;
            }
            event_count::notify_always::<Native>(&words.background);
            std::thread::sleep(Duration::from_millis(1));
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

/// Nanoseconds of the monotonic clock: the same in all processes of one boot that are in one time
/// namespace.
#[inline]
pub(crate) fn now_ns() -> u64 {
    clock_ns(rustix::time::ClockId::Monotonic)
}

#[inline]
fn clock_ns(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
