//! The logger's background thread: work that is done ahead of need, so that no commit waits for it.
//!
//! It preallocates log segments, grows the arena, and frees what dead processes held. It never
//! takes the writer lock, whose holder may be waiting for this thread. It takes no checkpoints,
//! which may take long.

use crate::files::log::log_error;
use crate::logger::process::Logger;
use crate::participant::engine::Engine;
use crate::participant::rest::LOGGER_POLL_INTERVAL;
use crate::shared::protocols::atomic::Woken;
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::{Error, Result, limits};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use untorn_wal::{LogError, RealDisk, SegmentPool};

/// Time between liveness tests of the clients.
const REAP_INTERVAL: Duration = Duration::from_millis(100);
/// Time between checks of the age of the segments that are kept for followers.
const LOG_EXPIRY_INTERVAL: Duration = Duration::from_millis(250);
/// Spare segments kept ahead. One of them is for a failed write.
pub(super) const SPARES_READY_MIN: usize = 2;
/// Time between attempts to make a spare as large as the current segment after the device had no
/// space for it.
const LARGER_SPARE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Blocks that a spare has beyond those that a writer waits for: the part of it that is not
/// granted.
const BLOCKS_BEYOND: u64 = 16;

/// Works until the logger ends.
pub(super) fn run(logger: &Logger) {
    let event = &logger.engine.control.fixed().logger.background;
    let (mut reaped, mut expired, mut larger_at) = (clock::now(), clock::now(), clock::now());
    loop {
        let wait_key = event.prepare_wait();
        if logger.background_ending.load(Ordering::SeqCst) {
            return;
        }
        crash_point!("background.round_begun");
        let is_starved = preallocate(logger, &mut larger_at);
        if logger.is_starved.swap(is_starved, Ordering::SeqCst) != is_starved {
            // A checkpoint may free segments.
            event.notify_always();
        }
        yield_kept(logger);
        grow_ahead(logger);
        if clock::since(expired) >= LOG_EXPIRY_INTERVAL {
            // What can't be deleted now stays a spare until it can.
            let _ = logger
                .pool
                .expire(logger.engine.control.fixed().logger.settings.retention(), || logger.count_segments());
            logger.count_segments();
            expired = clock::now();
        }
        if clock::since(reaped) >= REAP_INTERVAL {
            reap(logger);
            reaped = clock::now();
        }
        if event.wait(wait_key, logger.rest.nap(LOGGER_POLL_INTERVAL)) == Woken::Perhaps {
            logger.rest.stir(&logger.engine);
        }
    }
}

/// Makes spares until there are `count`. One is enough to continue: a full device must not prevent
/// opening and reading a store.
pub(super) fn ensure_spares(pool: &SegmentPool<RealDisk>, count: usize) -> Result<()> {
    while pool.stats().spares < count {
        match pool.add_spare() {
            Ok(()) => {}
            Err(LogError::DiskFull { .. }) if pool.yield_kept(false, || ()).map_err(log_error)? => {}
            Err(_) if pool.stats().spares > 0 => break,
            Err(error) => return Err(log_error(error)),
        }
    }
    Ok(())
}

/// Keeps spare segments ahead of what writers may need. Returns true if the device has no space for
/// them. A spare as large as the current segment is not retried before `larger_at`.
fn preallocate(logger: &Logger, larger_at: &mut Instant) -> bool {
    let fixed = logger.engine.control.fixed();
    let words = &fixed.logger;
    loop {
        let block_credit = fixed.durable.credit_by_waiter();
        let wanted = words.requested_credit();
        let spares = logger.pool.stats().spares;
        let is_wanted = wanted > block_credit;
        let needs_larger = || clock::now() >= *larger_at && logger.pool.lacks_successor();
        if spares >= SPARES_READY_MIN && !is_wanted && !needs_larger() {
            return false;
        }
        // If a writer waits for log, it gets larger spares first, until there is as much log as
        // full segments give. Until then, a commit forces neither a flush nor a checkpoint that its
        // durability does not require.
        if has_full_spares(&logger.pool) {
            request_flush(logger);
            return false;
        }
        // The next spare after a used one is twice as large.
        let blocks = match is_wanted || spares < SPARES_READY_MIN {
            true => wanted.saturating_sub(block_credit) + BLOCKS_BEYOND,
            false => 0,
        };
        let made = match blocks {
            0 => logger.pool.add_spare_of(0),
            blocks => logger.pool.add_spare_or_smaller(blocks),
        };
        match made {
            Ok(()) => {
                logger.count_segments();
                if is_wanted {
                    // The next round counts what was made.
                    logger.grant_again();
                } else {
                    words.flusher.notify_always();
                }
            }
            // A spare smaller than the segment limits what the segment takes. No writer waits for
            // it.
            Err(_) if spares >= SPARES_READY_MIN && !is_wanted => {
                *larger_at = clock::now() + LARGER_SPARE_RETRY_INTERVAL;
                return false;
            }
            // Delete what is kept for followers before reporting a full device.
            Err(LogError::DiskFull { .. }) if logger.pool.yield_kept(false, || ()).unwrap_or(false) => {
                logger.count_segments();
                logger.grant_again();
            }
            Err(error) => {
                // Grant what a flush or a checkpoint has freed before a writer gives up.
                logger.grant_again();
                if is_wanted && words.requested_credit() <= fixed.durable.credit_by_waiter() {
                    return matches!(error, LogError::DiskFull { .. });
                }
                let errno = match &error {
                    LogError::DiskFull { .. } => libc::ENOSPC,
                    LogError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
                    _ => libc::EIO,
                };
                // Report the failure to the writers that wait for log.
                words.note_log_failure(errno);
                fixed.durable.event.notify_always();
                return errno == libc::ENOSPC;
            }
        }
    }
}

/// Returns whether writers that wait for log get no more spares.
pub(super) fn has_full_spares(pool: &SegmentPool<RealDisk>) -> bool {
    let whole = u64::from(pool.shape().segment_blocks()) - 2;
    pool.stats().spares >= SPARES_READY_MIN + 2 && pool.countable_blocks() >= (SPARES_READY_MIN as u64 + 1) * whole
}

/// Requests a flush, to free log space. Each small commit is charged a block, in case it is flushed
/// alone; a flush of many commits together uses few blocks. The flush policy must not delay this
/// flush: while a writer waits for log under the writer lock, no checkpoint frees segments.
fn request_flush(logger: &Logger) {
    let fixed = logger.engine.control.fixed();
    let Ok(newest) = logger.engine.control.newest() else { return };
    let words = &fixed.logger;
    words.request_flush(newest.log_tail.max(fixed.stream.tail_by_waiter()));
    words.flusher.notify_always();
}

/// Deletes what is kept for followers, if a writer found the device full.
fn yield_kept(logger: &Logger) {
    let words = &logger.engine.control.fixed().logger;
    let Some(request) = words.yield_to_serve() else { return };
    let _ = logger.pool.yield_kept(true, || logger.count_segments());
    logger.count_segments();
    words.set_yielded(request);
}

/// Grows the arena ahead of need. A full disk is reported by the writers.
fn grow_ahead(logger: &Logger) {
    let engine = &logger.engine;
    let Ok(image) = engine.control.newest() else { return };
    let used = u64::from(image.high_water) * engine.geometry.page_size as u64;
    // A small arena doubles.
    let least = used.min(limits::GROWTH_PIECE);
    let ahead = (used / 16).clamp(least, 32 * limits::GROWTH_PIECE);
    let have = engine.control.arena_bytes().unwrap_or(0);
    if have < used + ahead / 2 {
        let target = (used + ahead).min(engine.geometry.max_size);
        // Bounded: the lock's holder may be stopped, and this thread also makes log files.
        if let Err(Error::DiskFull { .. }) = engine.grow_arena(target, LOGGER_POLL_INTERVAL) {
            let _ = logger.pool.yield_kept(true, || logger.count_segments());
            logger.count_segments();
        }
    }
}

/// Returns whether a client has died that [`reap`] has not found yet. Also records since when the
/// living clients hold their pins.
pub(super) fn look_for_the_dead(engine: &Engine) -> bool {
    let Ok(tester) = engine.tester() else { return false };
    let now = now_ns();
    engine.control.for_each_reader(|_, slot| slot.observe(now));
    engine.control.fixed().readers.has_death()
        || engine.control.joined_clients().any(|(owner, _)| !engine.is_alive_by(&tester, owner))
}

/// Frees the table entries and reader slots of dead clients, and records since when the others hold
/// their pins. Idempotent. Locks of dead owners are taken over by the next owners. Costs one system
/// call per client.
fn reap(logger: &Logger) {
    let engine = &logger.engine;
    let fixed = engine.control.fixed();
    let Ok(tester) = engine.tester() else { return };
    let mut known = HashMap::new();
    let mut is_alive = |owner: u64| *known.entry(owner).or_insert_with(|| engine.is_alive_by(&tester, owner));
    let mut found = fixed.readers.take_death();
    for (owner, entry) in engine.control.joined_clients() {
        if !is_alive(owner) && entry.reap(owner) {
            fixed.counters.reaped_clients.add(1);
            tracing::warn!(pid = entry.pid(), "a process died with the store open");
            found = true;
        }
    }
    let now = now_ns();
    engine.control.for_each_reader(|_, slot| slot.observe(now));
    // After a death, check all slots: a slot that was claimed and not entered is found in no other
    // way.
    engine.control.reap_readers(
        found,
        engine.me.0,
        |owner| !is_alive(owner),
        |slot| {
            fixed.counters.reaped_readers.add(1);
            tracing::debug!(pid = slot.pid(), "the reader slot of a dead process was freed");
            found = true;
        },
    );
    if found {
        // A process may have died between a store and the notification that was to follow it.
        engine.wake_waiters();
        // Or between a store into a cell and the flag that the cell is dirty.
        crate::api::cells::sampling::mark_dirty(engine);
        fixed.logger.flusher.notify_always();
        fixed.writer.wake_urgent();
        fixed.writer.wake_bulk();
        fixed.growth.wake_bulk();
    }
}
