//! What clients tell the logger through `control`: its policy, its patience, and that a checkpoint
//! is wanted.

use crate::participant::engine::{Engine, LOGGER_RECHECK_INTERVAL};
use crate::participant::options::FlushPolicy;
use crate::shared::control::Control;
use crate::shared::protocols::atomic::Word64;
use crate::{Result, TxnId};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use untorn_wal::Retention;

/// Idle time unless set otherwise.
pub(crate) const IDLE_DEFAULT: Duration = Duration::from_secs(5);
/// Log volume between checkpoints unless set otherwise, in bytes.
pub(crate) const CHECKPOINT_BYTES_DEFAULT: u64 = 64 << 20;
/// What a new store keeps of its log for those who follow it.
pub(crate) const RETENTION_DEFAULT: Retention = Retention { bytes: 64 << 20, age: Duration::MAX };

/// Sets when the logger syncs.
pub(crate) fn set_policy(engine: &Engine, policy: FlushPolicy) {
    let (kind, argument) = match policy {
        FlushPolicy::Every(interval) => (1, interval.as_nanos().min(u128::from(u64::MAX)) as u64),
        FlushPolicy::EveryBytes(bytes) => (2, bytes),
        _ => (0, 0),
    };
    let logger = &engine.control.fixed().logger;
    logger.policy_argument.store(argument, Ordering::Release);
    logger.policy.store_fenced(kind);
    engine.wake_logger();
}

/// Whether the policy in force has every commit flushed at once.
pub(crate) fn flushes_at_once(control: &Control) -> bool {
    control.fixed().logger.policy.load(Ordering::Relaxed) == 0
}

/// The policy in force.
pub(crate) fn policy(engine: &Engine) -> FlushPolicy {
    let logger = &engine.control.fixed().logger;
    let kind = logger.policy.load(Ordering::Acquire);
    let argument = logger.policy_argument.load(Ordering::Acquire);
    match kind {
        1 => FlushPolicy::Every(Duration::from_nanos(argument)),
        2 => FlushPolicy::EveryBytes(argument),
        _ => FlushPolicy::OnCommit,
    }
}

/// Sets how long the logger stays without clients.
pub(crate) fn set_idle(engine: &Engine, idle: Duration) {
    let ms = (idle.as_millis() as u64).max(1);
    engine.control.fixed().logger.idle_ms.store(ms, Ordering::Release);
}

/// Sets the time between samples of the cells.
pub(crate) fn set_sample_interval(engine: &Engine, interval: Duration) {
    let ns = interval.as_nanos().min(u128::from(u64::MAX)) as u64;
    engine.control.cells().interval_ns.store(ns, Ordering::Release);
}

/// How long the logger stays without clients.
pub(crate) fn idle(engine: &Engine) -> Duration {
    Duration::from_millis(engine.control.fixed().logger.idle_ms.load(Ordering::Acquire))
}

/// Sets the log volume between checkpoints.
pub(crate) fn set_checkpoint_bytes(engine: &Engine, bytes: u64) {
    engine.control.fixed().logger.checkpoint_bytes.store(bytes.max(1), Ordering::Release);
}

/// Sets what of the log is kept for those who follow it.
pub(crate) fn set_retention(engine: &Engine, retention: Retention) {
    store_retention(&engine.control, retention);
}

pub(crate) fn store_retention(control: &Control, retention: Retention) {
    let logger = &control.fixed().logger;
    let ms = u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX);
    logger.retain_bytes.store(retention.bytes, Ordering::Release);
    logger.retain_ms.store(ms, Ordering::Release);
}

/// What of the log is kept.
pub(crate) fn retention(control: &Control) -> Retention {
    let logger = &control.fixed().logger;
    let age = Duration::from_millis(logger.retain_ms.load(Ordering::Acquire));
    Retention { bytes: logger.retain_bytes.load(Ordering::Acquire), age }
}

/// Has a checkpoint taken that covers what is visible now, and waits for it; for a transaction that
/// holds its start up, no longer than `lock_timeout`.
pub(crate) fn wait_checkpoint(engine: &Engine, lock_timeout: Option<Duration>) -> Result<TxnId> {
    let wanted = engine.control.committed();
    let start = Instant::now();
    let mut watch = engine.watch_logger();
    let words = &engine.control.fixed().checkpoint;
    let failures = words.failures();
    engine.request_checkpoint(wanted);
    let is_finished = || Some(words.finished_by_waiter()).filter(|finished| *finished >= wanted);
    engine.control.wait_for_checkpoint(failures, LOGGER_RECHECK_INTERVAL, is_finished, || {
        watch.check(engine, start)?;
        engine.request_checkpoint(wanted);
        match lock_timeout {
            Some(timeout) => engine.refuse_long_transaction(start.elapsed(), timeout),
            None => Ok(()),
        }
    })
}
