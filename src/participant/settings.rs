//! The settings and requests that clients pass to the logger through `control`: flush policy,
//! timeouts, checkpoint requests.

use crate::participant::engine::{Engine, LOGGER_RECHECK_INTERVAL};
use crate::participant::options::FlushPolicy;
use crate::shared::control::Control;
use crate::system::clock;
use crate::{Result, TxnId};
use std::time::Duration;
use untorn_wal::Retention;

/// Idle time unless set otherwise.
pub(crate) const IDLE_DEFAULT: Duration = Duration::from_secs(5);
/// Log volume between checkpoints unless set otherwise, in bytes.
pub(crate) const CHECKPOINT_BYTES_DEFAULT: u64 = 64 << 20;
/// Time between two samples of the cells unless set otherwise.
pub(crate) const SAMPLE_INTERVAL_DEFAULT: Duration = Duration::from_millis(10);
/// The part of the log that a new store keeps for followers.
pub(crate) const RETENTION_DEFAULT: Retention = Retention { bytes: 16 << 20, age: Duration::MAX };

/// Sets when the logger syncs.
pub(crate) fn set_policy(engine: &Engine, policy: FlushPolicy) {
    let (kind, argument) = match policy {
        FlushPolicy::Every(interval) => (1, interval.as_nanos().min(u128::from(u64::MAX)) as u64),
        FlushPolicy::EveryBytes(bytes) => (2, bytes),
        _ => (0, 0),
    };
    engine.control.fixed().logger.settings.set_policy(kind, argument);
    engine.control.fixed().logger.flusher.notify();
}

/// Returns whether the policy in force flushes every commit at once.
pub(crate) fn flushes_at_once(control: &Control) -> bool {
    control.fixed().logger.settings.policy_kind() == 0
}

/// Returns the policy in force.
pub(crate) fn policy(engine: &Engine) -> FlushPolicy {
    let (kind, argument) = engine.control.fixed().logger.settings.policy();
    match kind {
        1 => FlushPolicy::Every(Duration::from_nanos(argument)),
        2 => FlushPolicy::EveryBytes(argument),
        _ => FlushPolicy::OnCommit,
    }
}

/// Requests a checkpoint that covers what is visible now, and waits for it. If a transaction delays
/// its start, it waits at most `lock_timeout`.
pub(crate) fn wait_checkpoint(engine: &Engine, lock_timeout: Option<Duration>) -> Result<TxnId> {
    let wanted = engine.control.committed();
    let start = clock::now();
    let mut watch = engine.watch_logger();
    let words = &engine.control.fixed().checkpoint;
    let failures = words.failures();
    engine.control.fixed().logger.request_checkpoint(wanted);
    let is_finished = || Some(words.finished_by_waiter()).filter(|finished| *finished >= wanted);
    engine.control.wait_for_checkpoint(failures, LOGGER_RECHECK_INTERVAL, is_finished, || {
        watch.check(engine, start)?;
        engine.control.fixed().logger.request_checkpoint(wanted);
        match lock_timeout {
            Some(timeout) => engine.refuse_long_transaction(clock::since(start), timeout),
            None => Ok(()),
        }
    })
}
