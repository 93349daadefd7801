//! The flush thread: published ring bytes → segment → fsync → acknowledgement.
//!
//! **I4** `durable` moves only after an fsync has returned success for all bytes up to it, and
//! every acknowledgement derives from it: [`Flusher::publish`] is the only place that stores it.
//!
//! **I5** After a failed write or sync nothing is tried again on the same file: everything from
//! `durable` on is written to a new segment. If that fails too, the store takes no more writes, a
//! sticky mark says so, and every waiter gets the error.
//!
//! **As late as allowed.** Commits with a deadline are flushed when the earliest of them just
//! leaves time for it, by two running estimates: how long a flush takes, and how late a sleeping
//! thread wakes up. What a flush covers is everything that is published when it begins
//! ([`Flusher::flush`] takes the deadlines before it looks at that).
//!
//! This thread never takes the writer lock, so a writer that is stopped inside it stops nobody's
//! flush.

mod write;

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

/// After this time without a commit, an empty block states what has become durable.
const IDLE_HEADER_DELAY: Duration = Duration::from_millis(30);
/// Longest sleep while commits that need no flush yet come, and somebody follows what is visible.
const FOLLOWED_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long a new segment may be missing before the log is given up.
const FLUSH_FAILURE_TIMEOUT: Duration = Duration::from_secs(5);
/// The deadline of a commit whose writer died before it could say when; nobody waits for it.
const ORPHAN_COMMIT_DELAY: Duration = Duration::from_millis(50);
/// That of the frames of a transaction that still streams: nobody waits for those either. Whoever
/// needs their room in the ring asks for a flush, and half a ring of them is flushed at once.
const STREAM_FLUSH_DELAY: Duration = Duration::from_secs(1);
/// The longest time that a commit with a deadline waits for a flush by the logger's own clock,
/// whatever its deadline is: that may be of another time namespace, or damaged, and nothing may
/// wait for the commit that would request a flush.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// Blocks never granted to writers: the logger's own statements.
const LOGGER_BLOCKS: u64 = 8;

/// The flush thread's state.
pub(super) struct Flusher {
    logger: Arc<Logger>,
    log: Log<RealDisk>,
    /// What the next header states; its `durable` is the published one.
    log_state: LogState,
    /// Log blocks that commits had been charged when everything up to `durable` was written.
    reserved_blocks: u64,
    /// Commits up to this one were counted as acknowledged, also if a logger that died counted
    /// them.
    counted_txn: u64,
    /// Commits wait for a flush. Since when the flush policy has had some of them to decide about.
    is_waiting: bool,
    waiting_since: Instant,
    policy_since: Option<Instant>,
    last_flush: Instant,
    /// How long before a deadline a flush begins.
    lead_time: LeadTime,
    /// A checkpoint covers the log up to here. If everything is durable there and the device has no
    /// room for more of the log, the flush in progress starts a segment, so that the one before it
    /// can be recycled.
    roll_at: Option<Lsn>,
    /// The flush in progress has started a segment, and says nothing of how long the next one will
    /// take.
    has_started_segment: bool,
    /// The tail of the stream that followers were last told of.
    seen_tail: u64,
    /// Since when a new segment could not be had.
    failing_since: Option<Instant>,
    /// The last header written states the newest durable position.
    is_stated: bool,
    broken: bool,
}

/// What has been published and waits.
struct Published {
    image: SlotImage,
    tail: Lsn,
    reserved_blocks: u64,
}

impl Flusher {
    /// The flusher of a log that was just recovered: everything up to `log_state.durable` is
    /// durable, and the next segment starts there with what `fill` gives.
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
        }
    }

    /// The flusher of a logger that takes over beside living clients: whatever its predecessor
    /// wrote past `durable` is not trusted; a new segment takes those bytes from the ring.
    pub(super) fn attach(logger: Arc<Logger>, header: &CheckpointHeader, log_state: &LogState) -> Result<Flusher> {
        let fixed = logger.engine.control.fixed();
        let inherited_lsn = fixed.durable.inherited_lsn();
        // These two belong together, as an image has them; else what the log states is older, and
        // true.
        let safe_start = match logger.engine.control.durable_image() {
            Some(image) if image.log_tail >= log_state.safe_start => (image.txn.as_u64(), image.log_tail),
            _ => (log_state.durable_txn, log_state.safe_start),
        };
        let (finished, finished_lsn) = (fixed.checkpoint.finished(), fixed.checkpoint.finished_lsn());
        let log_state = LogState {
            durable: inherited_lsn.max(log_state.durable),
            durable_txn: safe_start.0,
            safe_start: safe_start.1,
            // Not more than there is a header of: what is stated here can't be taken back.
            checkpoint_txn: finished.min(header.txn()).as_u64().max(log_state.checkpoint_txn),
            checkpoint_lsn: finished_lsn.min(header.log_position).max(log_state.checkpoint_lsn),
            // What the predecessor stated last may be in a batch, which the survey does not read.
            incarnation: match logger.engine.control.incarnation() {
                Ok(incarnation) if logger.engine.control.is_incarnation_stated() => incarnation,
                _ => logger.engine.control.committed().incarnation(),
            }
            .max(log_state.incarnation),
        };
        // `publish` counts before its first store: what is only half published was counted. Not
        // more than there is, for the word may be damaged.
        let half_published = fixed.durable.half_published_txn();
        let counted_txn = half_published.min(logger.engine.control.committed()).as_u64();
        let mut flusher = Flusher { counted_txn, ..Flusher::new(logger, log_state) };
        // If the words disagree, they do so until this flush publishes what it made durable:
        // position and transaction become known together.
        match flusher.flush(true) {
            Ok(()) => {}
            // Once there is room, another logger can do it.
            Err(error @ (Error::DiskFull { .. } | Error::Detached { .. })) => return Err(error),
            // Whoever waits is to hear of it; a logger that ended here would be started again and
            // again.
            Err(error) => flusher.give_up(&error),
        }
        Ok(flusher)
    }

    /// The newest transaction that it has acknowledged.
    pub(super) fn durable_txn(&self) -> tracing::field::DisplayValue<TxnId> {
        tracing::field::display(TxnId::from_u64(self.log_state.durable_txn))
    }

    /// Publishes again what was acknowledged, if somebody else has written to those words.
    fn mend_published(&self) {
        let words = &self.logger.engine.control.fixed().durable;
        words.mend(TxnId::from_u64(self.log_state.durable_txn), self.log_state.durable);
    }

    /// Flushes until the logger ends.
    pub(super) fn run(mut self) {
        let logger = self.logger.clone();
        let event = &logger.engine.control.fixed().logger.flusher;
        loop {
            crash_point!("flush.looked");
            logger.engine.control.fixed().logger.beat();
            let wait_key = event.prepare_wait();
            if self.logger.ending.load(Ordering::SeqCst) {
                break;
            }
            match self.round() {
                Ok(None) => logger.rest.stir(&logger.engine),
                Ok(Some(until_ns)) => {
                    // Nothing was to be done that could have failed.
                    self.failing_since = None;
                    self.sleep(wait_key, until_ns);
                }
                // The log is another logger's now.
                Err(Error::Detached { .. }) => return,
                Err(error) => {
                    if !self.may_pass(&error) {
                        self.give_up(&error);
                    }
                    event.wait(wait_key, LOGGER_POLL_INTERVAL);
                }
            }
        }
        // What is still published goes out; a failure leaves it to recovery, which reads the ring.
        let _ = self.flush(false);
    }

    /// Sleeps until `until_ns` on the monotonic clock, or until there is a commit for which that is
    /// too late.
    fn sleep(&mut self, wait_key: u32, until_ns: u64) {
        let logger = self.logger.clone();
        let control = &logger.engine.control;
        let words = &control.fixed().logger;
        let now = now_ns();
        // Nobody's wish can be met then: a deadline that stays, or a slot that can't be read, is no
        // reason to stay awake.
        if self.broken {
            let nap = Duration::from_nanos(until_ns.saturating_sub(now)).min(logger.rest.nap(LOGGER_POLL_INTERVAL));
            words.flusher.wait(wait_key, nap);
            return;
        }
        let longest =
            if self.waits_beside_a_follower() { FOLLOWED_POLL_INTERVAL } else { logger.rest.nap(LOGGER_POLL_INTERVAL) };
        // The first commit after a rest is heard of at once, whatever time it has.
        let wants_any = longest > LOGGER_POLL_INTERVAL && !self.is_waiting;
        let until_ns = until_ns.min(now + longest.as_nanos() as u64);
        let policy_waits = self.policy_since.is_some();
        // A slot that can't be read is not for this sleep to find out.
        let tail = || self.tail().unwrap_or(u64::MAX);
        let policy_tail = || {
            // The log's tail first: whose publication is seen there, its `policy_tail` is seen too.
            let tail = tail();
            if policy_waits { tail } else { self.policy_tail().min(tail) }
        };
        // A deadline without a commit is nobody's: its writer is still on its way to its
        // publication, and rings after that if the word tells it to; or it has died, or the word is
        // stale.
        let more_urgent = || match tail() > self.log_state.durable.0 {
            true => control.fixed().deadlines.urgency(),
            false => 0,
        };
        let latest_ns = until_ns.saturating_add(self.lead_time.bound().as_nanos() as u64);
        let sleep = FlusherSleep {
            tail: self.wanted_tail(),
            current_tail: &policy_tail,
            // A commit that has as little time as the one that this was planned for need not wake
            // the thread.
            urgency: if wants_any { 1 } else { deadline::urgency(latest_ns).saturating_add(1) },
            current_urgency: &more_urgent,
            timeout: Duration::from_nanos(until_ns.saturating_sub(now)),
        };
        match words.sleep(wait_key, &sleep) {
            Woken::TimedOut => self.lead_time.woke(Duration::from_nanos(now_ns().saturating_sub(until_ns))),
            Woken::Perhaps => logger.rest.stir(&logger.engine),
        }
    }

    /// Whether to try again before giving the log up: the current segment is as it was, since a
    /// spare was missing or could not be opened (a process may be short of descriptors). Nothing is
    /// lost meanwhile, but others wait.
    fn may_pass(&mut self, error: &Error) -> bool {
        let is_outside = matches!(error, Error::DiskFull { .. } | Error::Io { .. });
        let since = *self.failing_since.get_or_insert_with(clock::now);
        is_outside && self.log.written().is_some() && clock::since(since) < FLUSH_FAILURE_TIMEOUT
    }

    /// Publishes, for `stats`, how old a commit can be that is not durable.
    fn note_durable_as_of(&self, ns: u64) {
        self.logger.engine.control.fixed().logger.set_durable_as_of(ns);
    }

    /// Looks once what is due. `None`: something was done, look again; else until when to sleep, on
    /// the monotonic clock.
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
            // If no block can be spared, the next grant comes with other news.
            return Ok(Some(if self.is_stated || is_idle { u64::MAX } else { after(IDLE_HEADER_DELAY) }));
        }
        if tail != self.seen_tail {
            self.seen_tail = tail;
            // Followers of what is visible hear of it before the flush.
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

    /// States durably that an incarnation is used, which then may be.
    pub(super) fn state_incarnation(&mut self, incarnation: u32) -> Result<()> {
        self.log_state.incarnation = self.log_state.incarnation.max(incarnation);
        self.flush(true)?;
        self.logger.engine.control.incarnation_stated(incarnation);
        Ok(())
    }

    /// The end of the newest commit for which the flush policy decides. Not the frames of a
    /// transaction that still streams: nobody waits for them, and how urgent the whole is shows
    /// only when it commits.
    fn policy_tail(&self) -> u64 {
        self.logger.engine.control.fixed().deadlines.policy_tail().0
    }

    /// Whether commits wait for their flush while somebody wants to hear of each. The writers are
    /// not to wake this thread for that, so it looks by itself.
    fn waits_beside_a_follower(&self) -> bool {
        self.is_waiting && self.logger.engine.control.fixed().feed.is_visible_followed()
    }

    /// The end of the log's published bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a slot that can't be read: it ends the log, rather than looking like
    /// one without news.
    fn tail(&self) -> Result<u64> {
        let control = &self.logger.engine.control;
        let newest = control.newest()?.log_tail;
        Ok(newest.max(control.fixed().stream.tail_by_waiter()).0)
    }

    /// Where the log's tail must come to for this thread to be woken: the first byte of the
    /// policy's after a rest, then as many as the policy waits for. Until then a commit costs no
    /// system call.
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
