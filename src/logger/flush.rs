//! The flush thread: published ring bytes → segment → fsync → acknowledgement.
//!
//! **I4** `durable` advances only after an fsync has returned success for all bytes up to it. Every
//! acknowledgement derives from `durable`. In a running logger only [`Flusher::publish`] advances
//! it; `mend_published` restores it, and recovery initialises it.
//!
//! **I5** After a failed write or sync, nothing is retried on the same file: everything from
//! `durable` on is written to a new segment. If that also fails, the store is poisoned: it takes no
//! more writes, and every waiter gets the error.
//!
//! Large values in the arena belong to what must be durable before a record: see `extents`.
//!
//! **As late as allowed.** A commit with a deadline is flushed when the earliest deadline just
//! leaves time for it. Two running estimates decide when that is: how long a flush takes, and how
//! late a sleeping thread wakes up. A flush covers everything that is published when it begins.
//! [`Flusher::flush`] therefore takes the deadlines before it loads the published tail.
//!
//! This thread never takes the writer lock, so a writer that is stopped while it holds the lock
//! delays no flush.

mod extents;
mod write;

use extents::InheritedExtents;

use crate::files::header::CheckpointHeader;
use crate::files::slot::SlotImage;
use crate::logger::process::Logger;
use crate::participant::rest::LOGGER_POLL_INTERVAL;
use crate::participant::settings;
use crate::shared::control::FlusherSleep;
use crate::shared::protocols::atomic::Woken;
use crate::shared::protocols::deadline;
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::{Error, Result, TxnId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use untorn_wal::{Due, LeadTime, Log, LogState, Lsn, Pending, RealDisk, bytes_due, due};

/// After this time without a commit, the header of an empty block records the durable position.
const IDLE_HEADER_DELAY: Duration = Duration::from_millis(30);
/// Longest sleep if a follower reads visible commits, and commits arrive that need no flush yet.
const FOLLOWED_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long the flusher retries to get a new segment before it gives the log up.
const FLUSH_FAILURE_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline for a commit that has none because its writer died first. No caller waits for it.
const ORPHAN_COMMIT_DELAY: Duration = Duration::from_millis(50);
/// Deadline for the frames of a transaction that still streams. No caller waits for those either. A
/// writer that needs their space in the ring requests a flush, and half a ring of them is flushed
/// at once.
const STREAM_FLUSH_DELAY: Duration = Duration::from_secs(1);
/// The longest time that a commit with a deadline waits for a flush, by the logger's own clock. The
/// deadline itself may be of another time namespace, or damaged. There may also be no waiter that
/// would request a flush.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// Blocks never granted to writers: they are for the blocks that the logger writes for its own
/// headers.
const LOGGER_BLOCKS: u64 = 8;

/// The flush thread's state.
pub(super) struct Flusher {
    logger: Arc<Logger>,
    log: Log<RealDisk>,
    /// The contents of the next header. Its `durable` is the published position.
    log_state: LogState,
    /// The log blocks that commits had been charged when everything up to `durable` was written.
    reserved_blocks: u64,
    /// Commits up to this one were counted as acknowledged, by this logger or by one that died.
    counted_txn: u64,
    /// Whether commits wait for a flush.
    is_waiting: bool,
    waiting_since: Instant,
    policy_since: Option<Instant>,
    last_flush: Instant,
    /// How long before a deadline a flush begins.
    lead_time: LeadTime,
    /// A checkpoint covers the log up to this position. If everything is durable there, and the
    /// device has no space for more of the log, the flush in progress starts a segment. The segment
    /// before it can then be recycled.
    roll_at: Option<Lsn>,
    /// The flush in progress has started a segment, so its duration does not predict that of the
    /// next one.
    has_started_segment: bool,
    /// The tail of the log that followers were last notified of.
    seen_tail: u64,
    /// Since when no new segment could be started.
    failing_since: Option<Instant>,
    /// Whether the last header written records the newest durable position.
    is_stated: bool,
    broken: bool,
    inherited: InheritedExtents,
}

/// What is published and not yet durable.
struct Published {
    image: SlotImage,
    tail: Lsn,
    reserved_blocks: u64,
}

impl Flusher {
    /// Returns the flusher of a log that was just recovered. Everything up to `log_state.durable`
    /// is durable, and the next segment starts there.
    pub(super) fn new(logger: Arc<Logger>, log_state: LogState) -> Flusher {
        let log = Log::new(logger.pool.clone()).with_region(logger.engine.control.region());
        Flusher {
            logger,
            log,
            log_state,
            reserved_blocks: 0,
            counted_txn: 0,
            is_waiting: false,
            waiting_since: clock::now(),
            policy_since: None,
            last_flush: clock::now(),
            lead_time: LeadTime::default(),
            roll_at: None,
            has_started_segment: false,
            seen_tail: 0,
            failing_since: None,
            is_stated: false,
            broken: false,
            inherited: InheritedExtents::default(),
        }
    }

    /// Returns the flusher of a logger that continues a region. What its predecessor
    /// wrote past `durable` is not trusted: those bytes are copied from the ring to a new segment.
    ///
    /// # Errors
    /// An error that another logger may not meet. Other errors poison the region, unless no client
    /// lives (`is_alone`): then the store can be recovered.
    pub(super) fn attach(
        logger: Arc<Logger>,
        header: &CheckpointHeader,
        log_state: &LogState,
        is_alone: bool,
    ) -> Result<Flusher> {
        let fixed = logger.engine.control.fixed();
        let inherited_lsn = fixed.durable.inherited_lsn();
        // The transaction and the position must belong together, as they do in an image. Without a
        // usable image, the pair of the log state is used, which is older and consistent.
        let safe_start = match logger.engine.control.durable_image() {
            Some(image) if image.log_tail >= log_state.safe_start => (image.txn.as_u64(), image.log_tail),
            _ => (log_state.durable_txn, log_state.safe_start),
        };
        let (finished, finished_lsn) = (fixed.checkpoint.finished(), fixed.checkpoint.finished_lsn());
        let log_state = LogState {
            durable: inherited_lsn.max(log_state.durable),
            durable_txn: safe_start.0,
            safe_start: safe_start.1,
            // At most the checkpoint of which a header exists: a record in the log can't be taken
            // back.
            checkpoint_txn: finished.min(header.txn()).as_u64().max(log_state.checkpoint_txn),
            checkpoint_lsn: finished_lsn.min(header.log_position).max(log_state.checkpoint_lsn),
            // The predecessor may have recorded it last in a batch, which the segment catalog does
            // not read.
            incarnation: match logger.engine.control.incarnation() {
                Ok(incarnation) if logger.engine.control.is_incarnation_stated() => incarnation,
                _ => logger.engine.control.committed().incarnation(),
            }
            .max(log_state.incarnation),
        };
        // `publish` counts before its first store, so a half-published transaction was counted. The
        // minimum with the newest commit guards against a damaged word.
        let half_published = fixed.durable.half_published_txn();
        let counted_txn = half_published.min(logger.engine.control.committed()).as_u64();
        let mut flusher = Flusher { counted_txn, ..Flusher::new(logger, log_state) };
        flusher.inherited.is_first_flush = true;
        // The published position and transaction may disagree. This flush makes them agree: it
        // publishes both for what it made durable.
        match flusher.flush(true) {
            Ok(()) => {}
            // Another logger can do this, for example once the device has space.
            Err(error @ (Error::DiskFull { .. } | Error::Detached { .. })) => return Err(error),
            Err(error) if is_alone => return Err(error),
            // Waiting callers must get the error. A logger that ended here would be started again
            // and again.
            Err(error) => flusher.give_up(&error),
        }
        Ok(flusher)
    }

    /// Returns the newest transaction that the flusher has acknowledged.
    pub(super) fn durable_txn(&self) -> tracing::field::DisplayValue<TxnId> {
        tracing::field::display(TxnId::from_u64(self.log_state.durable_txn))
    }

    /// Restores the words that hold what was acknowledged, in case another process has overwritten
    /// them.
    fn mend_published(&self) {
        let words = &self.logger.engine.control.fixed().durable;
        words.mend(TxnId::from_u64(self.log_state.durable_txn), self.log_state.durable);
    }

    /// Flushes until the logger ends.
    pub(super) fn run(mut self) {
        let logger = self.logger.clone();
        let event = &logger.engine.control.fixed().logger.flusher;
        loop {
            crash_point!("flush.round_begun");
            logger.engine.control.fixed().logger.beat();
            let wait_key = event.prepare_wait();
            if self.logger.ending.load(Ordering::SeqCst) {
                break;
            }
            match self.round() {
                Ok(None) => logger.rest.stir(&logger.engine),
                Ok(Some(until_ns)) => {
                    // Nothing that was due has failed.
                    self.failing_since = None;
                    self.sleep(wait_key, until_ns);
                }
                // The log belongs to another logger now.
                Err(Error::Detached { .. }) => return,
                Err(error) => {
                    if !self.may_pass(&error) {
                        self.give_up(&error);
                    }
                    event.wait(wait_key, LOGGER_POLL_INTERVAL);
                }
            }
        }
        // Flush what is still published. If that fails, recovery reads it from the ring.
        let _ = self.flush(false);
    }

    /// Sleeps until `until_ns` on the monotonic clock, or until a commit needs an earlier flush.
    fn sleep(&mut self, wait_key: u32, until_ns: u64) {
        let logger = self.logger.clone();
        let control = &logger.engine.control;
        let words = &control.fixed().logger;
        let now = now_ns();
        // A broken log cannot meet any deadline. So neither a deadline that remains nor an
        // unreadable slot may keep the thread awake.
        if self.broken {
            let nap = Duration::from_nanos(until_ns.saturating_sub(now)).min(logger.rest.nap(LOGGER_POLL_INTERVAL));
            words.flusher.wait(wait_key, nap);
            return;
        }
        let longest =
            if self.waits_beside_a_follower() { FOLLOWED_POLL_INTERVAL } else { logger.rest.nap(LOGGER_POLL_INTERVAL) };
        // If the store was idle, any commit wakes the thread at once, whatever its deadline.
        let wants_any = longest > LOGGER_POLL_INTERVAL && !self.is_waiting;
        let until_ns = until_ns.min(now + longest.as_nanos() as u64);
        let policy_waits = self.policy_since.is_some();
        // An unreadable slot is reported by the next round, not by this sleep.
        let tail = || self.tail().unwrap_or(u64::MAX);
        let policy_tail = || {
            // Load the tail first: if a publication is visible there, its `policy_tail` is too.
            let tail = tail();
            if policy_waits { tail } else { self.policy_tail().min(tail) }
        };
        // A deadline without a published commit is ignored. Its writer notifies after publishing if
        // the word of this sleeper requires it; or the writer has died; or the deadline is stale.
        let more_urgent = || match tail() > self.log_state.durable.0 {
            true => control.fixed().deadlines.urgency(),
            false => 0,
        };
        let latest_ns = until_ns.saturating_add(self.lead_time.bound().as_nanos() as u64);
        let sleep = FlusherSleep {
            tail: self.wanted_tail(),
            current_tail: &policy_tail,
            // By its deadline, a commit notifies this thread only if it is more urgent than the
            // planned wake-up.
            urgency: if wants_any { 1 } else { deadline::urgency(latest_ns).saturating_add(1) },
            current_urgency: &more_urgent,
            timeout: Duration::from_nanos(until_ns.saturating_sub(now)),
        };
        match words.sleep(wait_key, &sleep) {
            Woken::TimedOut => self.lead_time.woke(Duration::from_nanos(now_ns().saturating_sub(until_ns))),
            Woken::Perhaps => logger.rest.stir(&logger.engine),
        }
    }

    /// Returns whether to retry before giving the log up. If the current segment is still intact,
    /// only a spare was missing or could not be opened: the process may lack descriptors. Nothing
    /// is lost meanwhile, but commits wait.
    fn may_pass(&mut self, error: &Error) -> bool {
        let is_outside = matches!(error, Error::DiskFull { .. } | Error::Io { .. });
        let since = *self.failing_since.get_or_insert_with(clock::now);
        is_outside && !self.broken && self.log.written().is_some() && clock::since(since) < FLUSH_FAILURE_TIMEOUT
    }

    /// Publishes, for `stats`, the time since which commits may not be durable.
    fn note_durable_as_of(&self, ns: u64) {
        self.logger.engine.control.fixed().logger.set_durable_as_of(ns);
    }

    /// Does the first thing that is due. Returns `None` if it did something, so that the caller
    /// calls it again. Otherwise returns the time on the monotonic clock until which to sleep.
    fn round(&mut self) -> Result<Option<u64>> {
        let after = |time: Duration| now_ns().saturating_add(time.as_nanos() as u64);
        if self.broken {
            if let Some((txn, _)) = self.logger.checkpoint_to_state() {
                self.logger.checkpoint_stated(txn, false);
            }
            self.logger.granted_again();
            return Ok(Some(u64::MAX));
        }
        if self.logger.wants_grant() {
            let wanted = self.logger.engine.control.fixed().logger.requested_credit();
            if wanted > self.available_credit() && self.tail()? > self.log_state.durable.0 {
                self.flush(false)?;
            }
            self.grant();
            self.logger.granted_again();
        }
        if let Some((txn, lsn)) = self.logger.checkpoint_to_state() {
            self.log_state.checkpoint_txn = txn.as_u64();
            self.log_state.checkpoint_lsn = lsn;
            self.roll_at = Some(lsn);
            let flushed = self.flush(true);
            self.roll_at = None;
            flushed?;
            self.logger.checkpoint_stated(txn, true);
            return Ok(None);
        }
        let logger = self.logger.clone();
        let engine = &logger.engine;
        let fixed = engine.control.fixed();
        if let Some(incarnation) = engine.control.incarnation_to_state() {
            self.state_incarnation(incarnation)?;
            fixed.durable.event.notify_always();
            return Ok(None);
        }
        let tail = self.tail()?;
        let bytes = tail.saturating_sub(self.log_state.durable.0);
        if bytes == 0 || !std::mem::replace(&mut self.is_waiting, bytes > 0) {
            self.note_durable_as_of(now_ns());
            self.waiting_since = clock::now();
        }
        if bytes == 0 {
            (self.is_waiting, self.policy_since) = (false, None);
            self.mend_published();
            self.grant();
            let is_idle = clock::since(self.last_flush) >= IDLE_HEADER_DELAY;
            if !self.is_stated && is_idle && self.may_state() {
                self.flush(true)?;
                self.is_stated = true;
            }
            // If no block is free for it now, a later notification comes with the next grant.
            return Ok(Some(if self.is_stated || is_idle { u64::MAX } else { after(IDLE_HEADER_DELAY) }));
        }
        if tail != self.seen_tail {
            self.seen_tail = tail;
            // Followers of visible commits are notified before the flush.
            if fixed.feed.is_visible_followed() {
                fixed.feed.event.notify();
            }
        }
        if self.policy_tail() > self.log_state.durable.0 {
            self.policy_since.get_or_insert_with(clock::now);
        }
        let deadlines = &fixed.deadlines;
        if self.policy_since.is_none() && deadlines.earliest_ns().is_none() {
            let is_commit = engine.control.newest()?.log_tail > self.log_state.durable;
            let time = if is_commit { ORPHAN_COMMIT_DELAY } else { STREAM_FLUSH_DELAY };
            deadlines.announce(after(time));
        }
        let now = now_ns();
        let latest_ns =
            now.saturating_add(DEADLINE_MAX.saturating_sub(clock::since(self.waiting_since)).as_nanos() as u64);
        let earliest_ns = deadlines.earliest_ns().map(|by| by.min(latest_ns));
        let start_in =
            |by_ns: u64| Duration::from_nanos(by_ns.saturating_sub(now)).saturating_sub(self.lead_time.bound());
        let pending = Pending {
            bytes,
            policy_age: self.policy_since.map(clock::since),
            start_in: earliest_ns.map(start_in),
            ring_len: engine.control.ring_reach()?,
            requested: fixed.logger.requested_flush() > self.log_state.durable,
        };
        match due(settings::policy(engine), &pending) {
            Due::Now => {
                self.flush(false)?;
                Ok(None)
            }
            Due::In(rest) => {
                self.grant();
                Ok(Some(now.saturating_add(rest.as_nanos() as u64)))
            }
            Due::Idle => Ok(Some(u64::MAX)),
        }
    }

    /// Records durably that `incarnation` is in use. Only then may commits use it.
    pub(super) fn state_incarnation(&mut self, incarnation: u32) -> Result<()> {
        self.log_state.incarnation = self.log_state.incarnation.max(incarnation);
        self.flush(true)?;
        self.logger.engine.control.incarnation_stated(incarnation);
        Ok(())
    }

    /// Returns the end of the newest commit whose flush the policy decides. The frames of a
    /// transaction that still streams are excluded: no caller waits for them, and the urgency of
    /// the transaction is known only when it commits.
    fn policy_tail(&self) -> u64 {
        self.logger.engine.control.fixed().deadlines.policy_tail().0
    }

    /// Returns whether commits wait for a flush while a follower reads visible commits. Writers do
    /// not wake this thread for a follower, so the thread polls.
    fn waits_beside_a_follower(&self) -> bool {
        self.is_waiting && self.logger.engine.control.fixed().feed.is_visible_followed()
    }

    /// Returns the end of the log's published bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a slot can't be read. The error ends the log; otherwise the slot would
    /// look like one without new commits.
    fn tail(&self) -> Result<u64> {
        let control = &self.logger.engine.control;
        let newest = control.newest()?.log_tail;
        Ok(newest.max(control.fixed().stream.tail_by_waiter()).0)
    }

    /// Returns the tail at which a writer wakes this thread. If the policy has no commit waiting,
    /// that is the first byte for which it decides; otherwise, as many bytes as the policy waits
    /// for. Until then a commit costs no system call.
    fn wanted_tail(&self) -> u64 {
        let engine = &self.logger.engine;
        if self.broken {
            return u64::MAX;
        }
        let ring_len = engine.control.ring_reach().unwrap_or(engine.geometry.ring_size);
        let bytes = match self.policy_since {
            None => 1,
            Some(_) => bytes_due(settings::policy(engine), ring_len),
        };
        self.log_state.durable.0.saturating_add(bytes)
    }
}
