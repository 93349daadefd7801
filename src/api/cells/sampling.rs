//! What clients ask of the sampler: to look at what they have stored, and to say when it is
//! committed.

use crate::error::reason::Space;
use crate::participant::engine::{Engine, LOGGER_RECHECK_INTERVAL};
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::{cell, event_count};
use crate::{Error, Result};
use std::cell::Cell;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Says that a cell has a new value. The caller's store of it was fenced.
#[inline]
pub(crate) fn mark_dirty(engine: &Engine) {
    let head = engine.control.cells();
    if cell::mark_dirty::<Native>(&head.dirty) {
        wake(engine);
    } else {
        glance_now_and_then(engine);
    }
}

/// Somebody has said that something is dirty since the sampler last began. The logger may have died
/// or left since, and who does nothing but store would never hear of it.
#[inline]
fn glance_now_and_then(engine: &Engine) {
    thread_local! {
        static STORES: Cell<u8> = const { Cell::new(0) };
    }
    // Even the coarse clock takes as long as an addition to a counter.
    let stores = STORES.get().wrapping_add(1);
    STORES.set(stores);
    if stores.is_multiple_of(8) {
        engine.glance_by_coarse_clock();
    }
}

/// Once in each round of sampling. Like a visible commit, it looks now and then whether a logger
/// lives.
#[cold]
fn wake(engine: &Engine) {
    event_count::notify::<Native>(&engine.control.cells().event);
    engine.glance_at_logger();
}

/// Waits until all that cells and counters held at the call is committed: visible as records, and
/// durable as soon as the log is so up to here.
///
/// The sampler commits a transaction, so one that is open for longer than `lock_timeout` is an
/// error.
///
/// # Errors
/// Those of the sampler's commit; [`Error::LockTimeout`]; [`Error::LoggerStalled`].
pub(crate) fn wait_round(engine: &Engine, lock_timeout: Option<Duration>) -> Result<()> {
    let head = engine.control.cells();
    let failures = head.failures.load(Ordering::SeqCst);
    let wanted = head.ask();
    event_count::notify::<Native>(&head.event);
    let start = Instant::now();
    let mut watch = engine.watch_logger();
    let ended = event_count::wait_until::<Native, _, _>(
        &head.done_event,
        None,
        LOGGER_RECHECK_INTERVAL,
        || {
            if head.done().is_some_and(|done| done >= wanted) {
                return Some(Ok(()));
            }
            if head.failures.load(Ordering::SeqCst) != failures {
                return Some(Err(last_failure(engine)));
            }
            engine.refuse_poisoned().err().map(Err)
        },
        || {
            watch.check(engine, start)?;
            event_count::notify::<Native>(&head.event);
            match lock_timeout {
                Some(timeout) => engine.refuse_long_transaction(start.elapsed(), timeout),
                None => Ok(()),
            }
        },
    );
    match ended {
        Ok(found) => found,
        Err(event_count::WaitError::Stopped(error)) => Err(error),
        Err(event_count::WaitError::TimedOut) => unreachable!("there is no deadline"),
    }
}

fn last_failure(engine: &Engine) -> Error {
    if let Err(error) = engine.refuse_poisoned() {
        return error;
    }
    match engine.control.cells().errno.load(Ordering::Relaxed) as i32 {
        libc::ENOSPC => Error::DiskFull { what: Space::CellSample },
        0 => Error::corrupt(crate::files::dir::ARENA, 0, "a cell or the cells' keyspace can't be read"),
        errno => Error::io("a sample of the cells")(io::Error::from_raw_os_error(errno)),
    }
}
