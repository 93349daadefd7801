//! A participant's interaction with the logger: it wakes the logger, waits until the log is
//! durable, and tests that the logger lives.

use super::{Engine, LOGGER_GLANCE_INTERVAL_NS, LOGGER_RECHECK_INTERVAL, open_limit};
use crate::error::reason::LoggerFailure;
use crate::shared::control::Poison;
use crate::shared::latencies::Acknowledged;
use crate::shared::progress::Patience;
use crate::shared::protocols::event_count;
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::{Error, Result};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use untorn_wal::Lsn;

/// Time between two looks at a region that no logger has begun.
const BEGIN_POLL_INTERVAL: Duration = Duration::from_micros(300);
/// How long a call that only reads waits for a logger that is starting.
const LOGGER_PREFERRED_TIMEOUT: Duration = Duration::from_secs(1);

impl Engine {
    /// Wakes the flush thread in two cases: it sleeps and would wake too late for a commit with the
    /// announced deadline `deadline_ns`; or the ring is half full with this commit.
    #[inline]
    pub(crate) fn tell_logger_by(&self, tail: Lsn, deadline_ns: u64) {
        let fixed = self.control.fixed();
        let words = &fixed.logger;
        words.wake_flusher_by(deadline_ns);
        // While the flush thread sleeps, this word does not change. The thread sleeps only if it
        // saw less than half a ring.
        let durable = fixed.durable.last_lsn();
        let half = self.control.ring_reach().unwrap_or(self.geometry.ring_size) / 2;
        if tail.bytes_since(durable) >= half {
            words.flusher.notify();
        }
    }

    /// Checks from time to time that a logger lives, so that visible commits don't remain
    /// unflushed.
    #[inline]
    pub(crate) fn glance_at_logger(&self) {
        // A caller that waits for durability gets the error.
        let _ = self.find_logger();
    }

    /// Does what [`Engine::glance_at_logger`] does, and returns the error.
    pub(crate) fn find_logger(&self) -> Result<()> {
        let now = now_ns();
        let seen = self.logger_seen_ns.load(Ordering::Relaxed);
        if now.saturating_sub(seen) > LOGGER_GLANCE_INTERVAL_NS {
            self.logger_seen_ns.store(now, Ordering::Relaxed);
            return self.ensure_logger();
        }
        Ok(())
    }

    /// Does what [`Engine::glance_at_logger`] does, for operations that are done a hundred million
    /// times a second: the coarse clock costs a few nanoseconds, and lags by a few milliseconds.
    #[inline]
    pub(crate) fn glance_by_coarse_clock(&self) {
        let now = clock::coarse_now_ns();
        if now.saturating_sub(self.logger_seen_ns.load(Ordering::Relaxed)) > LOGGER_GLANCE_INTERVAL_NS {
            self.glance_at_logger();
        }
    }

    /// Starts a logger if none lives.
    pub(crate) fn ensure_logger(&self) -> Result<()> {
        match &self.spawner {
            Some(spawner) => spawner.ensure(self),
            None => Ok(()),
        }
    }

    /// Spawns a logger for a region that this client has made, and does not wait for it.
    ///
    /// # Errors
    /// Those that are known before the logger has run.
    pub(crate) fn start_logger_behind(&self) -> Result<()> {
        match &self.spawner {
            Some(spawner) => spawner.start_behind(self),
            None => Ok(()),
        }
    }

    /// Returns once a logger has begun the region. Each call that changes anything in the region
    /// makes this call first. It waits only in a client that opened a store which was left in order
    /// before the logger was there.
    ///
    /// # Errors
    /// Those of starting a logger, and the error of a logger that can't serve.
    #[inline]
    pub(crate) fn await_begun(&self) -> Result<()> {
        self.await_begun_within(Patience::new(open_limit(self.logger_timeout)))
    }

    /// Waits for the logger as [`Engine::await_begun`] does, briefly, for a call that only reads:
    /// its figures are better afterwards.
    pub(crate) fn prefer_begun(&self) {
        let _ = self.await_begun_within(Patience::fixed(LOGGER_PREFERRED_TIMEOUT));
    }

    /// Does what [`Engine::await_begun`] does, within `patience`.
    #[inline]
    pub(crate) fn await_begun_within(&self, patience: Patience) -> Result<()> {
        if self.awaits_begin.load(Ordering::Relaxed) { self.await_begun_slowly(patience) } else { Ok(()) }
    }

    #[cold]
    fn await_begun_slowly(&self, mut patience: Patience) -> Result<()> {
        while !self.control.is_begun() {
            self.ensure_logger()?;
            if let Ok(tester) = self.tester() {
                patience.look(&tester);
            }
            if patience.is_over() {
                return Err(Error::LoggerUnavailable { reason: LoggerFailure::NotReady });
            }
            clock::sleep(BEGIN_POLL_INTERVAL);
        }
        // The word stays: only damage clears it, and that is not waited for.
        self.awaits_begin.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the log is durable up to `lsn`. With `hurry`, requests a flush at once.
    ///
    /// # Errors
    /// [`Error::LoggerStalled`] if a living logger makes no progress for the set time; the error of
    /// the poison.
    pub(crate) fn wait_durable(&self, lsn: Lsn, hurry: bool, timeout: Option<Duration>) -> Result<bool> {
        self.wait_durable_looking(lsn, hurry, timeout, LOGGER_RECHECK_INTERVAL)
    }

    /// Waits as [`Engine::wait_durable`] does, for a commit that need not be durable before
    /// `deadline_ns`. A caller with more time tests the logger less often.
    pub(crate) fn wait_durable_by(&self, lsn: Lsn, deadline_ns: u64, timeout: Option<Duration>) -> Result<bool> {
        let began = clock::now();
        let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        let patience = timeout.map_or(left, |timeout| timeout.min(left));
        let nap = (left / 4).clamp(LOGGER_RECHECK_INTERVAL, event_count::EVENT_WAIT_MAX);
        if self.wait_durable_looking(lsn, false, Some(patience), nap)? {
            return Ok(true);
        }
        // The deadline has passed by the clock of this process. The logger may be in another time
        // namespace, where the deadline is far away, or the word that holds it may be damaged. A
        // requested flush depends on neither.
        match timeout.map(|timeout| timeout.saturating_sub(clock::since(began))) {
            Some(Duration::ZERO) => Ok(false),
            rest => self.wait_durable_looking(lsn, true, rest, LOGGER_RECHECK_INTERVAL),
        }
    }

    /// Requests a flush up to `lsn`, at once.
    pub(crate) fn request_flush(&self, lsn: Lsn) {
        self.control.fixed().logger.request_flush(lsn);
        self.control.fixed().logger.flusher.notify();
    }

    /// Waits for durability, and tests the logger once in each `nap`.
    fn wait_durable_looking(&self, lsn: Lsn, hurry: bool, timeout: Option<Duration>, nap: Duration) -> Result<bool> {
        let start = clock::now();
        let durable = || self.control.durable().map(|(_, durable)| durable);
        if durable().is_some_and(|durable| durable >= lsn) {
            return Ok(true);
        }
        if hurry {
            self.request_flush(lsn);
        }
        let mut watch = self.watch_logger();
        let ended = self.control.fixed().durable.event.wait_until_by(
            timeout.and_then(|timeout| start.checked_add(timeout)),
            nap,
            || match durable() {
                Some(durable) if durable >= lsn => Some(Ok(())),
                _ => self.refuse_broken_log().err().map(Err),
            },
            || watch.check(self, start),
        );
        Ok(ended?.is_some())
    }

    /// Records that a commit was acknowledged, for which a caller has waited since `began_ns`.
    pub(crate) fn note_acknowledgement(&self, of: Acknowledged, began_ns: u64) {
        let latency = &self.control.fixed().latencies.acknowledgement[of];
        latency.record(now_ns().saturating_sub(began_ns));
    }

    /// Sleeps briefly while the logger repairs the words that it publishes. Call it again with the
    /// same `waited`.
    ///
    /// # Errors
    /// Those of [`Watch::check`].
    pub(crate) fn await_mended(&self, waited: &mut Option<(Instant, u32, Watch)>) -> Result<()> {
        let (start, looks, watch) = waited.get_or_insert_with(|| (clock::now(), 0, self.watch_logger()));
        *looks += 1;
        if *looks < 100 {
            std::thread::yield_now();
            return Ok(());
        }
        if clock::since(*start) > self.logger_timeout {
            return Err(Error::LoggerStalled { waited: clock::since(*start), visible: None });
        }
        watch.check(self, *start)?;
        clock::sleep(Duration::from_millis(1));
        Ok(())
    }

    /// Returns once the log records durably that the current incarnation is in use.
    ///
    /// An incarnation begins with the first transaction or cell value of a run of the store after a
    /// loss. A run that commits nothing uses no incarnation, however often it is repeated. The
    /// record is durable before the publication, and before the cell's version moves. So after the
    /// next loss it is known which incarnation was in use. If the process dies in between, the
    /// incarnation is used and empty.
    ///
    /// # Errors
    /// [`Error::Limit`] if no incarnation is left; [`Error::LoggerStalled`]; the error that ended
    /// the log.
    #[cold]
    pub(crate) fn state_incarnation(&self) -> Result<()> {
        self.control.committed().next_in(self.control.incarnation()?)?;
        if self.control.is_incarnation_stated() {
            return Ok(());
        }
        let ask = || {
            self.control.want_incarnation_stated();
            self.control.fixed().logger.flusher.notify();
        };
        ask();
        let start = clock::now();
        let mut watch = self.watch_logger();
        self.control.fixed().durable.event.wait_until(
            LOGGER_RECHECK_INTERVAL,
            || match self.control.is_incarnation_stated() {
                true => Some(Ok(())),
                false => self.refuse_broken_log().err().map(Err),
            },
            || {
                ask();
                watch.check(self, start)
            },
        )
    }

    /// Begins to watch whether the logger makes progress.
    pub(crate) fn watch_logger(&self) -> Watch {
        Watch { heartbeat: self.control.fixed().logger.heartbeat(), patience: Patience::new(self.logger_timeout) }
    }

    /// Returns the seed of the checksums of this store's log records.
    pub(crate) fn record_seed(&self) -> u32 {
        untorn_wal::StoreId(self.store_id).seed()
    }

    /// Returns an error if the log can no longer become durable. A poison of the arena or of the
    /// header does not end the log: what was visible before it still becomes durable.
    pub(crate) fn refuse_broken_log(&self) -> Result<()> {
        let poison = self.control.poison();
        if poison == Poison::Arena as u32 || poison == Poison::Header as u32 {
            return Ok(());
        }
        self.control.refuse_poisoned()
    }

    /// Poisons the store: no writes until all clients have closed it and it is recovered.
    pub(crate) fn set_poison(&self, poison: Poison, errno: i32) {
        let is_new = self.control.fixed().logger.set_poison(poison, errno);
        self.wake_waiters();
        if is_new && let Err(error) = self.control.refuse_poisoned() {
            tracing::error!(needs_recovery = %error, "the store takes no more writes");
        }
    }

    /// Wakes all threads that wait for the log or a checkpoint.
    pub(crate) fn wake_waiters(&self) {
        let fixed = self.control.fixed();
        fixed.durable.event.notify_always();
        fixed.checkpoint.event.notify_always();
        fixed.cells.done_event.notify_always();
    }
}

/// Watches the progress of the logger during a wait for it.
pub(crate) struct Watch {
    heartbeat: u64,
    patience: Patience,
}

impl Watch {
    /// Starts a logger if none lives. If the heartbeat has moved since the last check, no test is
    /// made, which costs no system call. If it has not moved, the logger is woken. A logger that
    /// does not serve yet moves the progress mark of `lock` instead.
    ///
    /// # Errors
    /// [`Error::LoggerStalled`] if it lives and has not moved for the set time.
    pub(crate) fn check(&mut self, engine: &Engine, start: Instant) -> Result<()> {
        if engine.has_failed.load(Ordering::Acquire) {
            return Err(Error::LoggerUnavailable { reason: LoggerFailure::Panicked });
        }
        let heartbeat = engine.control.fixed().logger.heartbeat();
        if heartbeat != self.heartbeat {
            self.heartbeat = heartbeat;
            self.patience.begin_anew();
            return Ok(());
        }
        engine.ensure_logger()?;
        if self.patience.waited() >= event_count::EVENT_WAIT_MAX
            && let Ok(tester) = engine.tester()
        {
            self.patience.look(&tester);
        }
        // The logger may rest for long. A notification may be lost because its sender died.
        engine.control.fixed().logger.flusher.notify();
        if self.patience.is_over() {
            return Err(Error::LoggerStalled { waited: clock::since(start), visible: None });
        }
        Ok(())
    }
}
