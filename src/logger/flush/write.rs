//! One flush: published bytes are written to the segment, synced, and acknowledged. Also the block
//! credit that the logger can grant afterwards.

use super::{Flusher, LOGGER_BLOCKS, Published};
use crate::files::dir;
use crate::files::log::log_error;
use crate::participant::engine::SLOW_OPERATION_MIN;
use crate::shared::control::{LogRing, Poison};
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::{Error, Result, TxnId};
use std::sync::atomic::Ordering;
use std::time::Duration;
use untorn_wal::{LogError, LogState, Lsn};

impl Flusher {
    /// Returns what is published now, or `None` if the image of `txn` was replaced meanwhile.
    fn published(&self, txn: TxnId) -> Result<Option<Published>> {
        let control = &self.logger.engine.control;
        let (reserved_blocks, tail) = control.fixed().stream.reserved_and_tail();
        let Some(image) = control.image(txn)? else { return Ok(None) };
        let reserved_blocks = reserved_blocks.max(image.blocks_reserved);
        let tail = image.log_tail.max(tail);
        // No writer publishes more than the ring has space for. A tail beyond that is damage, and
        // must not fill the log with zeros.
        if tail.bytes_since(self.log_state.durable) > self.logger.engine.geometry.ring_size {
            let what =
                format!("the log's tail {tail} is further from {} than the ring reaches", self.log_state.durable);
            return Err(Error::corrupt(dir::CONTROL, 0, what));
        }
        Ok(Some(Published { image, tail, reserved_blocks }))
    }

    /// Writes and syncs everything published, then acknowledges it. If nothing is published,
    /// `even_empty` writes an empty block, for the sake of its header.
    pub(in crate::logger) fn flush(&mut self, even_empty: bool) -> Result<()> {
        let logger = self.logger.clone();
        let deadlines = &logger.engine.control.fixed().deadlines;
        // The deadlines are taken before the published tail is loaded: see
        // `shared::protocols::deadline`.
        let taken = deadlines.take();
        let flushed = self.flush_published(even_empty);
        if flushed.is_err() {
            deadlines.give_back(taken);
        }
        flushed
    }

    /// Does the work of [`Flusher::flush`] after the deadlines were taken.
    fn flush_published(&mut self, even_empty: bool) -> Result<()> {
        let logger = self.logger.clone();
        let fixed = logger.engine.control.fixed();
        // A commit that is published after this time may miss this flush.
        let began_ns = now_ns();
        let (extent_bytes, _) = fixed.stream.extent_bytes();
        let (next, published) = loop {
            // Durable readers will read this transaction, so it is pinned before it is published as
            // durable.
            let next = logger.engine.control.pin_next_durable();
            if let Some(published) = self.published(next.txn)? {
                break (next, published);
            }
        };
        if published.tail == self.log_state.durable && !even_empty && self.log.written().is_some() {
            return Ok(());
        }
        logger.engine.control.fill_next_durable(next, &published.image);
        crash_point!("flush.before_write");
        if planted_bug!("acknowledge-before-fsync") {
            self.publish(next, &published);
        }
        self.logger.check_present()?;
        let durable_before = self.log_state.durable;
        self.has_started_segment = false;
        let begun = clock::now();
        self.sync_extents(published.tail)?;
        self.write(published.tail)?;
        crash_point!("flush.synced");
        let spent = clock::since(begun).as_nanos() as u64;
        fixed.counters.flush_ns.add(spent);
        fixed.latencies.flush.record(spent);
        fixed.counters.wal_bytes.add(published.tail.bytes_since(self.log_state.durable));
        self.publish(next, &published);
        fixed.stream.set_durable_extent_bytes(extent_bytes);
        self.note_durable_as_of(began_ns);
        self.note_flush(Duration::from_nanos(now_ns().saturating_sub(began_ns)));
        let (bytes, flush_ns) = (published.tail.bytes_since(durable_before), spent);
        if spent >= SLOW_OPERATION_MIN.as_nanos() as u64 {
            tracing::warn!(durable = self.durable_txn(), bytes, flush_ns, "a flush took long");
        } else {
            tracing::trace!(durable = self.durable_txn(), bytes, flush_ns, "flushed");
        }
        self.last_flush = clock::now();
        self.failing_since = None;
        // Commits published during the flush count as waiting since its start.
        (self.is_waiting, self.waiting_since, self.policy_since) = (true, begun, None);
        self.is_stated = false;
        Ok(())
    }

    /// Updates the estimate of how long a flush takes. A flush that starts a segment takes several
    /// times as long as the others and is left out: with it, later flushes would begin too early. A
    /// logger's first flush is one of these.
    fn note_flush(&mut self, took: Duration) {
        self.lead_time.flushed(Some(took).filter(|_| !self.has_started_segment));
        let counters = &self.logger.engine.control.fixed().counters;
        counters.flush_estimate_ns.set(self.lead_time.flush().as_nanos() as u64);
        counters.wake_estimate_ns.set(self.lead_time.wake().as_nanos() as u64);
    }

    /// Makes the log durable up to `tail`, in new segments if necessary.
    fn write(&mut self, tail: Lsn) -> Result<()> {
        let logger = self.logger.clone();
        // The reach of this ring covers everything up to the tail: see `RingWords`.
        let ring = logger.engine.control.ring()?;
        let wrote = match self.log.written() {
            Some(_) if self.rolls(tail) => match self.start_segment(ring, tail, tail) {
                // The spare could not be opened, and the current segment is unchanged.
                Err(_) if self.log.written().is_some() => self.write_on(ring, tail),
                started => started,
            },
            Some(_) => self.write_on(ring, tail),
            None => self.start_segment(ring, self.log_state.durable, tail),
        };
        let Err(error) = wrote else { return Ok(()) };
        if self.log.written().is_some() {
            return Err(log_error(error));
        }
        crash_point!("flush.failed");
        // A failed sync is never retried on that file, and its unsynced bytes are not trusted.
        tracing::warn!(%error, "a flush failed; its bytes go to a new segment");
        self.start_segment(ring, self.log_state.durable, tail).map_err(log_error)
    }

    /// Returns whether the log continues in the last spare segment rather than in the current one.
    ///
    /// The last spare is reserved for a failed write. But if the device has no space for another
    /// file, and the current segment is nearly full, commits would wait for ever. After a
    /// checkpoint up to the tail, the current segment is not needed once the next one has started;
    /// it then serves as the spare. Until the checkpoint thread has recycled it, a failed write
    /// ends the log, as a second failure in a row does at any time.
    fn rolls(&self, tail: Lsn) -> bool {
        let is_all_covered = self.roll_at == Some(tail) && self.log_state.durable == tail;
        if !is_all_covered || self.logger.pool.stats().spares != 1 {
            return false;
        }
        let wanted = self.logger.engine.control.fixed().logger.requested_credit();
        let (left, whole) = self.log.blocks_left();
        let is_short =
            wanted > self.available_credit() || (self.logger.is_starved.load(Ordering::SeqCst) && left < whole / 2);
        // The header and at least one block of the current segment are used.
        is_short && left + 2 < whole
    }

    fn write_on(&mut self, ring: LogRing<'_>, tail: Lsn) -> Result<(), LogError> {
        let logger = self.logger.clone();
        let from = self.log.written().ok_or(LogError::NeedsSegment)?;
        let len = tail.bytes_since(from);
        let log_state = self.log_state;
        let appended = self.log.append(from, len, &log_state, &mut |lsn, bytes| copy_out(ring, lsn, bytes))?;
        crash_point!("flush.before_sync");
        #[cfg(untorn_instrumented)]
        if crate::crash::fails("wal.sync") {
            self.log.abandon();
            return Err(LogError::Io { what: "injected".into(), source: std::io::Error::from_raw_os_error(libc::EIO) });
        }
        let synced = self.log.sync()?;
        logger.engine.control.fixed().counters.fsyncs.add(1);
        if appended.full { self.start_segment(ring, synced, tail) } else { Ok(()) }
    }

    /// Starts new segments from `durable`, which is synced, until everything up to `tail` is
    /// durable.
    fn start_segment(&mut self, ring: LogRing<'_>, durable: Lsn, tail: Lsn) -> Result<(), LogError> {
        let logger = self.logger.clone();
        let mut durable = durable;
        self.has_started_segment = true;
        loop {
            crash_point!("segment.before_start");
            let log_state = LogState { durable, ..self.log_state };
            let len = tail.bytes_since(durable);
            let reached = self.log.start_segment(&log_state, len, &mut |lsn, bytes| copy_out(ring, lsn, bytes))?;
            crash_point!("segment.started");
            self.note_segment();
            logger.engine.control.fixed().counters.fsyncs.add(3);
            logger.count_segments();
            tracing::debug!(from = durable.0, to = reached.0, "log segment started");
            logger.engine.control.fixed().logger.background.notify_always();
            durable = reached;
            if durable >= tail {
                return Ok(());
            }
        }
    }

    /// Records the number of the newest segment whose header is durable: see
    /// [`crate::shared::control::Control::is_of_log`].
    fn note_segment(&self) {
        if let Some(number) = self.log.number() {
            self.logger.engine.control.fixed().logger.set_segment(number.0);
        }
    }

    /// Writes the first segments after recovery: `bytes` are the log from `log_state.durable` on.
    /// The first `read` of them come from the log and may have been acknowledged, so one segment
    /// must take them.
    pub(in crate::logger) fn start_recovered(&mut self, bytes: &[u8], read: usize) -> Result<Lsn> {
        let from = self.log_state.durable;
        self.log.ensure_successor(read.min(bytes.len()) as u64).map_err(log_error)?;
        let mut durable = from;
        loop {
            let log_state = LogState { durable, ..self.log_state };
            let done = durable.bytes_since(from) as usize;
            let rest = (bytes.len() - done) as u64;
            let mut fill = |lsn: Lsn, buffer: &mut [u8]| {
                let at = lsn.bytes_since(from) as usize;
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
            };
            let start = durable.0;
            durable = self.log.start_segment(&log_state, rest, &mut fill).map_err(log_error)?;
            self.note_segment();
            tracing::debug!(from = start, to = durable.0, "log segment started");
            if durable.bytes_since(from) as usize >= bytes.len() {
                // The log ends with a whole record there.
                self.log_state.durable = durable;
                self.log_state.safe_start = durable;
                self.log_state.durable_txn = self.logger.engine.control.committed().as_u64();
                return Ok(durable);
            }
        }
    }

    /// Acknowledges what was synced (**I4**).
    fn publish(&mut self, next: crate::shared::protocols::pins::NextDurable, published: &Published) {
        let control = &self.logger.engine.control;
        let fixed = control.fixed();
        let counted_txn = TxnId::from_u64(self.log_state.durable_txn.max(self.counted_txn));
        let acknowledged = next.txn.sequence().saturating_sub(counted_txn.sequence());
        if acknowledged > 0 {
            fixed.counters.acknowledged.add(acknowledged);
            fixed.counters.flushes.add(1);
        }
        self.log_state.durable = published.tail;
        self.log_state.durable_txn = next.txn.as_u64();
        // Not the tail: frames of a transaction that still streams may lie below it.
        self.log_state.safe_start = published.image.log_tail;
        self.log_state.incarnation = self.log_state.incarnation.max(next.txn.incarnation());
        self.reserved_blocks = published.reserved_blocks;
        control.publish_durable(next, published.tail);
        self.set_grant();
        crash_point!("flush.before_wake");
        fixed.durable.event.notify();
        fixed.feed.event.notify();
    }

    /// Returns the total of blocks that may be charged: those charged up to `durable`, and those
    /// free after it.
    pub(super) fn available_credit(&self) -> u64 {
        self.reserved_blocks + self.log.free_blocks().saturating_sub(LOGGER_BLOCKS)
    }

    fn set_grant(&self) {
        self.logger.engine.control.fixed().durable.set_credit(self.available_credit());
    }

    /// Publishes the block credit if it has grown, and wakes the writers that wait for it.
    pub(super) fn grant(&self) {
        let words = &self.logger.engine.control.fixed().durable;
        if self.available_credit() > words.credit() {
            self.set_grant();
            words.event.notify_always();
        }
    }

    /// Returns whether an empty block can be written without using a block that was granted.
    pub(super) fn may_state(&self) -> bool {
        self.reserved_blocks + self.log.free_blocks() > self.logger.engine.control.fixed().durable.credit()
    }

    /// Marks the log as broken: the store is poisoned, and nothing more is written.
    pub(super) fn give_up(&mut self, error: &Error) {
        self.broken = true;
        self.logger.engine.set_poison(Poison::Log, error.errno());
        if let Some((txn, _)) = self.logger.checkpoint_to_state() {
            self.logger.checkpoint_stated(txn, false);
        }
    }
}

fn copy_out(ring: LogRing<'_>, lsn: Lsn, bytes: &mut [u8]) {
    // This does not fail: the caller asks for at most a batch, which fits in the ring, at positions
    // that are multiples of 8.
    if ring.copy_out(lsn.0, bytes).is_err() {
        bytes.fill(0);
    }
}
