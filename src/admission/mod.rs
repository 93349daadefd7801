//! The order in which commits get the writer lock.
//!
//! Each commit has a class, which follows from its durability ([`Durability::class`]). *Urgent*
//! commits must be durable at once or within a short time; all others are *bulk* commits. Urgent
//! commits go first. A bulk commit that has waited long enough counts as urgent, so that it gets
//! its turn. `docs/durability.md` has the analysis.
//!
//! ```text
//!  begin ──► ring share ──► local queue ──► writer lock ──► transaction ──► the next one
//!               ▲    1           2               3   │           4     leave
//!               └──── the share was used up ◄────────┘
//! ```
//!
//! 1. *Ring share*: a bulk commit waits here while urgent commits arrive and more than a share of
//!    the ring is not durable. It continues when the log is durable except for the share, or when
//!    its patience is over. Urgent commits do not wait here.
//! 2. *Local queue*: one thread of a process at a time contends for the lock. Urgent threads go
//!    first, and the head of the queue inherits the urgency of the threads behind it.
//! 3. *Writer lock*: urgent waiters of all processes go first. The lock of a dead owner is taken
//!    over.
//! 4. *Transaction*: when it ends, the lock goes to an urgent thread of the same process, else to
//!    an urgent waiter of another process, else to any waiter.
//!
//! A timeout ends the wait at 2 or 3: the commit leaves the queue and holds nothing.
//!
//! | rule | where |
//! |---|---|
//! | the class of a commit | [`Durability::class`] |
//! | a bulk commit counts as urgent after [`limits::BULK_PATIENCE`] | [`LockWait::class`] |
//! | in a process, one thread contends, urgent first; the head inherits urgency | `local_queue` |
//! | among processes, urgent waiters first | `shared/protocols/lock.rs` |
//! | the ring share of bulk commits, [`limits::BULK_SHARE_BYTES`] | `Admission::wait_for_share` |
//! | a release goes to an urgent thread of the same process first | `Admission::leave` |
//! | the logger's own transactions are bulk, and exempt from the share | [`admit_logger`] |
//!
//! The deadline by which a commit must be durable is not set here. The writer announces it when it
//! publishes the commit (`txn/commit.rs`), and the flush thread keeps it (`logger/flush.rs`).

mod local_queue;

use crate::participant::engine::Engine;
use crate::shared::protocols::lock;
use crate::shared::protocols::lock::CommitClass;
use crate::system::clock::now_ns;
use crate::{Durability, Error, Result, limits};
use local_queue::LocalQueue;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use untorn_wal::Lsn;

/// If an urgent commit has arrived within this time, bulk commits may fill only a share of the
/// ring.
const URGENT_RECENT_MAX: Duration = Duration::from_secs(1);

impl Durability {
    /// Returns the class of a commit of this durability.
    pub(crate) fn class(self) -> CommitClass {
        match self {
            Durability::Visible => CommitClass::Bulk,
            Durability::Within(time) if time >= limits::BULK_TIME_MIN => CommitClass::Bulk,
            Durability::Durable | Durability::Within(_) => CommitClass::Urgent,
        }
    }
}

/// A wait for the writer lock, including the time in the local queue.
pub(crate) struct LockWait {
    class: CommitClass,
    since_ns: u64,
    timeout: Option<Duration>,
    patience: Duration,
}

impl LockWait {
    /// Creates a wait that begins at `since_ns` and ends `timeout` later at the latest.
    pub(crate) fn new(class: CommitClass, since_ns: u64, timeout: Option<Duration>) -> LockWait {
        // A timeout of zero must not make the patience zero: a writer that does not wait does not
        // age.
        let patience = patience(timeout.filter(|timeout| !timeout.is_zero()));
        LockWait { class, since_ns, timeout, patience }
    }

    fn waited(&self) -> Duration {
        Duration::from_nanos(now_ns().saturating_sub(self.since_ns))
    }

    /// Returns what is left of the timeout.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.saturating_sub(self.waited()))
    }

    /// Returns the present class: a bulk wait becomes urgent with age.
    pub(crate) fn class(&self) -> CommitClass {
        if self.class == CommitClass::Urgent || self.waited() >= self.patience {
            CommitClass::Urgent
        } else {
            CommitClass::Bulk
        }
    }
}

/// Returns how long a bulk commit lets urgent ones go first. A writer with a short timeout ages
/// faster; otherwise it would time out before its turn.
pub(crate) fn patience(timeout: Option<Duration>) -> Duration {
    timeout.map_or(limits::BULK_PATIENCE, |timeout| limits::BULK_PATIENCE.min(timeout / 2))
}

/// Admits the commits of one process.
#[derive(Default)]
pub(crate) struct Admission {
    queue: LocalQueue,
    /// The bits of a [`lock::Reservation`]: the last reservation of the writer lock that this
    /// process made for its own urgent threads; 0 if none.
    handed_over: AtomicU64,
}

impl Admission {
    /// Acquires the writer lock for this thread, for a commit of this class that has waited since
    /// `asked_ns`. The timeout counts from `asked_ns`, too. If a bulk commit waits for its ring
    /// share, the timeout counts from the end of that wait.
    ///
    /// # Errors
    /// [`Error::TransactionOpen`] if this thread has the lock; [`Error::LockTimeout`]; an error if
    /// other processes consider this one dead. This thread does not hold the lock after the last
    /// two errors.
    pub(crate) fn admit(
        &self,
        engine: &Engine,
        class: CommitClass,
        asked_ns: u64,
        timeout: Option<Duration>,
    ) -> Result<()> {
        if class == CommitClass::Urgent {
            engine.control.fixed().deadlines.note_urgent(asked_ns);
        }
        let since = |now_ns: u64| Duration::from_nanos(now_ns.saturating_sub(asked_ns));
        let share_patience = patience(timeout);
        let mut waits_for_share = class == CommitClass::Bulk;
        // The time at which the commit began to queue. It excludes the wait for the share: a slow
        // disk must not use up the commit's patience with other writers.
        let mut queued_ns = asked_ns;
        loop {
            if waits_for_share && let Some(needed) = bulk_waits_for(engine) {
                let left = share_patience.saturating_sub(since(now_ns()));
                waits_for_share = self.wait_for_share(engine, needed, left)?;
                queued_ns = now_ns();
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(since(queued_ns)));
            self.queue_and_lock(engine, &LockWait::new(class, queued_ns, left))?;
            // Check again, since the wait may have been long.
            if let Err(error) = engine.presence.check() {
                self.release(engine);
                return Err(error);
            }
            // The commits before this one may have used up the share.
            if !waits_for_share || bulk_waits_for(engine).is_none() || since(now_ns()) >= share_patience {
                note_wait(engine, class, asked_ns);
                return Ok(());
            }
            self.release(engine);
        }
    }

    /// Releases the writer lock, acquired for a commit of this class.
    pub(crate) fn leave(&self, engine: &Engine, class: CommitClass) {
        note_hold(engine, class);
        self.release(engine);
    }

    /// Returns an error if this thread has the writer lock.
    pub(crate) fn refuse_open_transaction(&self) -> Result<()> {
        if self.queue.is_this_threads() { Err(Error::TransactionOpen) } else { Ok(()) }
    }

    /// Waits until the log is durable up to `needed`, and returns whether the commit may wait for
    /// its share again. The wait ends after `patience` or at an error. The error is not returned
    /// here: callers that need a durable log report it.
    fn wait_for_share(&self, engine: &Engine, needed: Lsn, patience: Duration) -> Result<bool> {
        self.refuse_open_transaction()?;
        Ok(!patience.is_zero() && engine.wait_durable(needed, true, Some(patience)).unwrap_or(false))
    }

    fn queue_and_lock(&self, engine: &Engine, wait: &LockWait) -> Result<()> {
        let writer = &engine.control.fixed().writer;
        let boost = || {
            if writer.owner().is_none_or(|owner| owner.id() != engine.me.0) {
                writer.wake_bulk();
            }
        };
        if let Err(error) = self.queue.enter(wait, boost) {
            self.take_back_unused(engine);
            return Err(error);
        }
        let class = || if self.queue.boosts_holder() { CommitClass::Urgent } else { wait.class() };
        engine.acquire_as(writer, &class, wait.left()).inspect_err(|_| self.queue.leave())
    }

    /// Releases the writer lock: urgent threads of this process are next, then urgent ones of other
    /// processes.
    fn release(&self, engine: &Engine) {
        let writer = &engine.control.fixed().writer;
        if self.queue.has_urgent() {
            let reservation = writer.release_to_urgent(engine.me.0);
            self.handed_over.store(reservation.map_or(0, lock::Reservation::to_bits), Ordering::SeqCst);
            // The thread of the reservation may have given up before it was recorded.
            self.take_back_unused(engine);
        } else {
            writer.release(engine.me.0);
        }
        self.queue.leave();
    }

    /// Takes back the writer lock's reservation for an urgent thread of this process, if all of
    /// them have given up.
    fn take_back_unused(&self, engine: &Engine) {
        if !self.queue.has_urgent()
            && let Some(reservation) = lock::Reservation::from_bits(self.handed_over.load(Ordering::SeqCst))
        {
            engine.control.fixed().writer.take_back(reservation);
        }
    }
}

/// The writer lock, held by a thread of the logger. Dropping it releases the lock, also during a
/// panic. The process survives the panic, so no other process would take the lock over.
pub(crate) struct LoggerAdmission<'e>(&'e Engine);

/// Acquires the writer lock for a transaction of the logger that has waited since `asked_ns`, for
/// at most `timeout`. The lock is owned by a process, so the threads of the logger must exclude
/// each other before they call this function.
///
/// # Errors
/// [`Error::LockTimeout`].
pub(crate) fn admit_logger(engine: &Engine, asked_ns: u64, timeout: Duration) -> Result<LoggerAdmission<'_>> {
    // A short timeout must not end each wait before the logger gets the lock.
    let wait = LockWait::new(CommitClass::Bulk, asked_ns, Some(timeout));
    engine.acquire_as(&engine.control.fixed().writer, &|| wait.class(), Some(timeout))?;
    note_wait(engine, CommitClass::Bulk, asked_ns);
    Ok(LoggerAdmission(engine))
}

impl Drop for LoggerAdmission<'_> {
    fn drop(&mut self) {
        note_hold(self.0, CommitClass::Bulk);
        self.0.control.fixed().writer.release(self.0.me.0);
    }
}

/// Returns the position up to which the log must be durable before a bulk commit may append to the
/// log; `None` if it may at once. While urgent commits arrive, one flush covers no more than a
/// share of the ring and one more commit. So no urgent commit waits for a longer flush.
fn bulk_waits_for(engine: &Engine) -> Option<Lsn> {
    let control = &engine.control;
    let fixed = control.fixed();
    let urgent_ns = fixed.deadlines.urgent_asked_ns();
    // A time in the future is damage.
    let ago = if urgent_ns == 0 { None } else { now_ns().checked_sub(urgent_ns) };
    if ago.is_none_or(|ago| u128::from(ago) >= URGENT_RECENT_MAX.as_nanos()) {
        return None;
    }
    // The frames of a transaction that streams lie after the newest commit.
    let streamed = fixed.stream.tail();
    let tail = control.newest().ok()?.log_tail.max(streamed);
    let (_, durable) = control.durable()?;
    let share = limits::BULK_SHARE_BYTES.min(control.ring_reach().ok()? / 4);
    // The flush of an urgent commit syncs the large values of the commits before it, too.
    let (extent_bytes, durable_extent_bytes) = fixed.stream.extent_bytes();
    if extent_bytes.saturating_sub(durable_extent_bytes) > share {
        return Some(tail.min(fixed.stream.extents_end())).filter(|end| *end > durable);
    }
    (tail.bytes_since(durable) > share).then(|| Lsn((tail.0 - share).next_multiple_of(8)))
}

/// Records how long a commit of this class has waited for the writer lock. The commit holds the
/// lock and does not give it back to wait for its ring share.
fn note_wait(engine: &Engine, class: CommitClass, asked_ns: u64) {
    let fixed = engine.control.fixed();
    let since_ns = fixed.writer.holder_since_ns();
    fixed.latencies.lock[class].wait.record_alone(since_ns.saturating_sub(asked_ns));
}

/// Records how long a commit of this class has held the writer lock, which it is about to release.
fn note_hold(engine: &Engine, class: CommitClass) {
    let fixed = engine.control.fixed();
    let since_ns = fixed.writer.holder_since_ns();
    fixed.latencies.lock[class].hold.record_alone(now_ns().saturating_sub(since_ns));
}
