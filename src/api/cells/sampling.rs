//! The client's side of the sampler: requests to sample what was stored, and waits for the commit.

use crate::error::reason::Space;
use crate::participant::engine::{Engine, LOGGER_RECHECK_INTERVAL};
use crate::system::clock;
use crate::{Error, Result};
use std::cell::Cell;
use std::io;
use std::time::Duration;

/// Marks that a cell has a new value. The caller has issued a fence after the store.
#[inline]
pub(crate) fn mark_dirty(engine: &Engine) {
    let head = engine.control.cells();
    if head.mark_dirty() {
        wake(engine);
    } else {
        glance_now_and_then(engine);
    }
}

/// Checks from time to time that a logger lives. The flag was set since the sampler last began, so
/// the sampler is not notified again. The logger may have died or exited since, and a process that
/// only stores would not notice.
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

/// Wakes the sampler, once in each round of sampling. As after a visible commit, checks from time
/// to time whether a logger lives.
#[cold]
fn wake(engine: &Engine) {
    engine.control.cells().sampler.notify();
    engine.glance_at_logger();
}

/// Waits until all values that cells and counters held at the call are committed. They are then
/// visible as records, and durable when the log is durable up to here.
///
/// The sampler commits a transaction, so a transaction that is open for longer than `lock_timeout`
/// is an error.
///
/// # Errors
/// Those of the sampler's commit; [`Error::LockTimeout`]; [`Error::LoggerStalled`].
pub(crate) fn wait_round(engine: &Engine, lock_timeout: Option<Duration>) -> Result<()> {
    let head = engine.control.cells();
    let failures = head.failures();
    let wanted = head.ask();
    head.sampler.notify();
    let start = clock::now();
    let mut watch = engine.watch_logger();
    head.done_event.wait_until(
        LOGGER_RECHECK_INTERVAL,
        || {
            if head.done().is_some_and(|done| done >= wanted) {
                return Some(Ok(()));
            }
            if head.failures() != failures {
                return Some(Err(last_failure(engine)));
            }
            engine.control.refuse_poisoned().err().map(Err)
        },
        || {
            watch.check(engine, start)?;
            head.sampler.notify();
            match lock_timeout {
                Some(timeout) => engine.refuse_long_transaction(clock::since(start), timeout),
                None => Ok(()),
            }
        },
    )
}

fn last_failure(engine: &Engine) -> Error {
    if let Err(error) = engine.control.refuse_poisoned() {
        return error;
    }
    match engine.control.cells().errno() {
        libc::ENOSPC => Error::DiskFull { what: Space::CellSample },
        0 => Error::corrupt(crate::files::dir::ARENA, 0, "a cell or the cells' keyspace can't be read"),
        errno => Error::io("a sample of the cells")(io::Error::from_raw_os_error(errno)),
    }
}
