//! The words between the clients and the logger: requests, the sleep of the logger's threads, its
//! settings, and its life cycle.

use super::Event;
use super::state::Poison;
use crate::TxnId;
use crate::shared::protocols::atomic::{Native, Woken, Word64};
use crate::shared::protocols::deadline;
use crate::shared::protocols::event_count;
use crate::shared::protocols::event_count::Threshold;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use untorn_wal::{Lsn, Retention};

/// The requests of clients to the logger, and its reports.
#[repr(C)]
pub(crate) struct LoggerWords {
    /// The flush thread waits here.
    pub(crate) flusher: Event,
    /// The flush thread is woken when the log's tail reaches this position; see
    /// [`crate::shared::protocols::event_count::notify_from`].
    wake_from: AtomicU64,
    /// The flush thread is woken for a commit of at least this urgency; see
    /// [`crate::shared::protocols::deadline`].
    wake_urgency: AtomicU64,
    /// The background, the checkpoint and the main thread wait here.
    pub(crate) background: Event,
    /// The position up to which an immediate flush is requested.
    pub(super) flush_request: AtomicU64,
    /// The transaction that a requested checkpoint must cover.
    checkpoint_request: AtomicU64,
    /// Not 0 if the logger is to exit.
    stop: AtomicU32,
    pid: AtomicU32,
    pub(crate) settings: Settings,
    /// The number of requests to free log space that is kept for followers, and the newest request
    /// that was served. A process makes a request if it found the disk full.
    yield_request: AtomicU64,
    yielded: AtomicU64,
    /// The credit in log blocks that a waiting writer needs.
    log_request: AtomicU64,
    /// The number of the segment that was started last; stored after its header is durable.
    segment: AtomicU64,
    /// Counts the flush thread's rounds. A living logger that does not advance it is stalled.
    pub(super) heartbeat: AtomicU64,
    /// When the logger started, on the monotonic clock.
    started_ns: AtomicU64,
    /// A time on the monotonic clock such that every visible commit that is not durable is younger,
    /// or not much older: see [`Stats::lag_ns`](crate::Stats::lag_ns).
    durable_as_of_ns: AtomicU64,
    /// The number of times that the log could not grow, and the error number of the last one.
    log_failures: AtomicU32,
    log_errno: AtomicU32,
    /// Sticky: see [`Poison`].
    poison: AtomicU32,
    /// The error number of the failure that set `poison`.
    poison_errno: AtomicU32,
}

/// The conditions that end a sleep of the flush thread: the log's tail has reached `tail`, a commit
/// of `urgency` was announced, or `timeout` has passed.
pub(crate) struct FlusherSleep<'a> {
    pub(crate) tail: u64,
    /// Returns the present tail of the log.
    pub(crate) current_tail: &'a dyn Fn() -> u64,
    pub(crate) urgency: u64,
    /// Returns the urgency of the most urgent commit.
    pub(crate) current_urgency: &'a dyn Fn() -> u64,
    pub(crate) timeout: Duration,
}

/// The sleep of the flush thread.
impl LoggerWords {
    /// Wakes the flush thread if it sleeps until the log's tail reaches `tail`, which was stored
    /// fenced.
    #[inline]
    pub(crate) fn wake_flusher_at(&self, tail: Lsn) {
        event_count::notify_from::<Native>(&self.flusher.0, &self.wake_from, tail.0);
    }

    /// Wakes the flush thread if it sleeps and would wake too late for a commit that is to be
    /// durable by `deadline_ns`, which was announced.
    #[inline]
    pub(crate) fn wake_flusher_by(&self, deadline_ns: u64) {
        event_count::notify_from::<Native>(&self.flusher.0, &self.wake_urgency, deadline::urgency(deadline_ns));
    }

    /// Sleeps, unless one of the conditions holds already. Called by the flush thread, which has
    /// taken `key` from `flusher`. It announces both thresholds fenced and then checks both
    /// conditions; a writer stores its change fenced and then checks the thresholds.
    pub(crate) fn sleep(&self, key: u32, sleep: &FlusherSleep<'_>) -> Woken {
        let thresholds = [
            Threshold { word: &self.wake_from, at_least: sleep.tail, current: sleep.current_tail },
            Threshold { word: &self.wake_urgency, at_least: sleep.urgency, current: sleep.current_urgency },
        ];
        event_count::wait_from::<Native>(&self.flusher.0, key, &thresholds, sleep.timeout)
    }
}

/// Requests. Each is stored sequentially consistent, so that a notification may follow it.
/// Likewise, a thread of the logger that prepares its wait and then checks the request sees it.
impl LoggerWords {
    /// Requests a flush up to `lsn`, at once. The caller then wakes the flush thread.
    pub(crate) fn request_flush(&self, lsn: Lsn) {
        self.flush_request.fetch_max(lsn.0, Ordering::SeqCst);
    }

    /// Returns the position up to which a flush is requested.
    pub(crate) fn requested_flush(&self) -> Lsn {
        Lsn(self.flush_request.load(Ordering::SeqCst))
    }

    /// Requests a checkpoint that covers `txn`, and wakes the background thread.
    pub(crate) fn request_checkpoint(&self, txn: TxnId) {
        self.checkpoint_request.fetch_max(txn.as_u64(), Ordering::SeqCst);
        self.background.notify();
    }

    /// Returns the transaction that a requested checkpoint must cover.
    pub(crate) fn requested_checkpoint(&self) -> TxnId {
        TxnId::from_u64(self.checkpoint_request.load(Ordering::SeqCst))
    }

    /// Forgets the requests of clients that have all died. Called by a logger before any client can
    /// join.
    pub(crate) fn forget_requests(&self) {
        for word in [&self.flush_request, &self.checkpoint_request, &self.log_request] {
            word.store(0, Ordering::SeqCst);
        }
        self.yielded.store(self.yield_request.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Requests that the logger exits, and wakes its main thread.
    pub(crate) fn request_stop(&self) {
        self.stop.store(1, Ordering::SeqCst);
        self.background.notify_always();
    }

    /// Returns whether the logger is to exit.
    pub(crate) fn is_stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire) != 0
    }

    /// Requests that the logger frees log space that is kept for followers; returns the number of
    /// the request. The caller then wakes the background thread.
    pub(crate) fn request_yield(&self) -> u64 {
        self.yield_request.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Returns whether the background thread has served this request.
    pub(crate) fn has_yielded(&self, request: u64) -> bool {
        self.yielded.load(Ordering::SeqCst) >= request
    }

    /// Returns the newest request for log space that the background thread has not served.
    pub(crate) fn yield_to_serve(&self) -> Option<u64> {
        let requested = self.yield_request.load(Ordering::SeqCst);
        (requested != self.yielded.load(Ordering::SeqCst)).then_some(requested)
    }

    /// Records that the background thread has served all requests up to this one.
    pub(crate) fn set_yielded(&self, request: u64) {
        self.yielded.store(request, Ordering::SeqCst);
    }

    /// Requests a credit of `blocks`, and wakes the threads that flush the log and make its
    /// segments. Called by the owner of the writer lock, which then waits for the credit.
    pub(crate) fn request_credit(&self, blocks: u64) {
        self.log_request.store_fenced(blocks);
        self.flusher.notify();
        self.background.notify();
    }

    /// Ends the request for a credit, so that a large request that was refused does not keep
    /// causing new files and checkpoints.
    pub(crate) fn end_credit_request(&self) {
        self.log_request.store(0, Ordering::SeqCst);
    }

    /// Returns the credit that a writer needs.
    pub(crate) fn requested_credit(&self) -> u64 {
        self.log_request.load(Ordering::SeqCst)
    }
}

/// Reports of the logger.
impl LoggerWords {
    /// Records a logger that starts, and clears a stop request to the previous logger.
    pub(crate) fn enter(&self, pid: u32, now_ns: u64) {
        self.pid.store(pid, Ordering::Relaxed);
        self.started_ns.store(now_ns, Ordering::Relaxed);
        self.stop.store(0, Ordering::Relaxed);
    }

    /// Records that the logger exits.
    pub(crate) fn leave(&self) {
        self.pid.store(0, Ordering::Relaxed);
    }

    /// Returns the logger's process id, for display; 0 if it has exited in order.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Returns when the logger started, on the monotonic clock.
    pub(crate) fn started_ns(&self) -> u64 {
        self.started_ns.load(Ordering::Relaxed)
    }

    /// Advances the heartbeat. Called by the flush thread when it begins a round.
    pub(crate) fn beat(&self) {
        self.heartbeat.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of rounds of the flush thread.
    pub(crate) fn heartbeat(&self) -> u64 {
        self.heartbeat.load(Ordering::Relaxed)
    }

    /// Publishes, for statistics, the time that bounds the age of commits that are not durable.
    pub(crate) fn set_durable_as_of(&self, ns: u64) {
        self.durable_as_of_ns.store(ns, Ordering::Relaxed);
    }

    /// Returns the time of [`LoggerWords::set_durable_as_of`].
    pub(crate) fn durable_as_of_ns(&self) -> u64 {
        self.durable_as_of_ns.load(Ordering::Relaxed)
    }

    /// Records the number of a segment whose header is durable: see
    /// [`Control::is_of_log`](super::Control::is_of_log).
    pub(crate) fn set_segment(&self, number: u64) {
        self.segment.store(number, Ordering::Release);
    }

    /// Returns the number of the segment that was started last. Only a process that holds the
    /// initialisation lock compares it with the log.
    pub(super) fn segment(&self) -> u64 {
        self.segment.load(Ordering::Relaxed)
    }

    /// Sets the number of the segment that was started last, in a region that no other process has
    /// mapped.
    pub(super) fn begin_with_segment(&self, number: u64) {
        self.segment.store(number, Ordering::Relaxed);
    }

    /// Records that the log could not grow. Called by the background thread, which then wakes the
    /// waiters for the log.
    pub(crate) fn note_log_failure(&self, errno: i32) {
        self.log_errno.store(errno as u32, Ordering::Relaxed);
        self.log_failures.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns the number of times that the log could not grow. A waiter compares it before and
    /// after its wait.
    pub(crate) fn log_failures(&self) -> u32 {
        self.log_failures.load(Ordering::SeqCst)
    }

    /// Returns the error number of the last failure that [`LoggerWords::log_failures`] counts.
    pub(crate) fn log_errno(&self) -> i32 {
        self.log_errno.load(Ordering::Relaxed) as i32
    }

    /// Returns the mark after which the store takes no writes: a [`Poison`], or 0.
    pub(super) fn poison(&self) -> u32 {
        self.poison.load(Ordering::Acquire)
    }

    /// Returns the error number of the failure that set the mark, for the message.
    pub(super) fn poison_errno(&self) -> i32 {
        self.poison_errno.load(Ordering::Relaxed) as i32
    }

    /// Sets the mark. The log's mark replaces others, and is never replaced, since the waiters for
    /// the log rely on it. Returns whether the mark is new. The caller then wakes all waiters.
    pub(crate) fn set_poison(&self, poison: Poison, errno: i32) -> bool {
        let marks = |now: u32| now == 0 || (poison == Poison::Log && now != poison as u32);
        let replace = |now| marks(now).then_some(poison as u32);
        let is_new = self.poison.fetch_update(Ordering::AcqRel, Ordering::Acquire, replace).is_ok();
        if is_new {
            self.poison_errno.store(errno as u32, Ordering::Relaxed);
        }
        is_new
    }
}

/// The settings of the logger, which clients store.
#[repr(C)]
pub(crate) struct Settings {
    /// The kind of flush policy and its argument.
    policy: AtomicU64,
    policy_argument: AtomicU64,
    idle_ms: AtomicU64,
    checkpoint_bytes: AtomicU64,
    /// How much of the log is kept for followers.
    retain_bytes: AtomicU64,
    retain_ms: AtomicU64,
}

impl Settings {
    /// Sets the flush policy. The argument is stored first, so that a reader of the kind finds its
    /// argument or a later one. The kind is stored fenced: the caller then wakes the flush thread.
    pub(crate) fn set_policy(&self, kind: u64, argument: u64) {
        self.policy_argument.store(argument, Ordering::Release);
        self.policy.store_fenced(kind);
    }

    /// Returns the kind of flush policy and its argument.
    pub(crate) fn policy(&self) -> (u64, u64) {
        let kind = self.policy.load(Ordering::Acquire);
        (kind, self.policy_argument.load(Ordering::Acquire))
    }

    /// Returns the kind of flush policy alone.
    pub(crate) fn policy_kind(&self) -> u64 {
        self.policy.load(Ordering::Relaxed)
    }

    /// Sets how long the logger runs without clients.
    pub(crate) fn set_idle(&self, idle: Duration) {
        self.idle_ms.store((idle.as_millis() as u64).max(1), Ordering::Release);
    }

    /// Returns how long the logger runs without clients.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms.load(Ordering::Acquire))
    }

    /// Sets the log volume between checkpoints.
    pub(crate) fn set_checkpoint_bytes(&self, bytes: u64) {
        self.checkpoint_bytes.store(bytes.max(1), Ordering::Release);
    }

    /// Returns the log volume between checkpoints.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint_bytes.load(Ordering::Acquire)
    }

    /// Sets how much of the log is kept for followers.
    pub(crate) fn set_retention(&self, retention: Retention) {
        let ms = u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX);
        self.retain_bytes.store(retention.bytes, Ordering::Release);
        self.retain_ms.store(ms, Ordering::Release);
    }

    /// Returns how much of the log is kept for followers.
    pub(crate) fn retention(&self) -> Retention {
        let age = Duration::from_millis(self.retain_ms.load(Ordering::Acquire));
        Retention { bytes: self.retain_bytes.load(Ordering::Acquire), age }
    }
}
