//! The flush policies: when what is written becomes durable. Pure arithmetic; the flush thread asks it each
//! time something changes.

use crate::limits::EVERY_BYTES_AGE_MAX;
use std::time::Duration;

/// When the log syncs on its own account. Whoever asks for a sync gets one under any policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum FlushPolicy {
    /// As soon as there is something: every commit is on its way to the disk, and one sync covers all that
    /// have gathered meanwhile (group commit).
    #[default]
    OnCommit,
    /// So often, if there is anything.
    Every(Duration),
    /// When so many bytes have gathered; at the latest after one second
    /// ([`EVERY_BYTES_AGE_MAX`]), and when the ring is half full.
    EveryBytes(u64),
}

/// What waits for a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// Published bytes that are not durable.
    pub bytes: u64,
    /// How long the oldest of them has waited; never longer than the time since the last flush.
    pub oldest_age: Duration,
    /// Size of the ring in bytes.
    pub ring_len: u64,
    /// How much of the ring cannot be reused yet.
    pub ring_used: u64,
    /// Somebody asks for a flush and waits.
    pub requested: bool,
}

/// When to flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// At once.
    Now,
    /// After this time, unless something changes.
    In(Duration),
    /// Nothing waits.
    Idle,
}

/// When to flush what is pending.
#[must_use]
pub fn due(policy: FlushPolicy, pending: &Pending) -> Due {
    if pending.bytes == 0 {
        return Due::Idle;
    }
    if pending.requested || pending.ring_used.max(pending.bytes) >= bytes_due(policy, pending.ring_len) {
        return Due::Now;
    }
    match policy {
        FlushPolicy::OnCommit => Due::Now,
        FlushPolicy::Every(interval) => at_age(interval, pending.oldest_age),
        FlushPolicy::EveryBytes(_) => at_age(EVERY_BYTES_AGE_MAX, pending.oldest_age),
    }
}

/// How many pending bytes are flushed at once, whatever their age. A half-full ring is flushed under any policy, so that
/// writers never wait for a policy.
#[must_use]
pub fn bytes_due(policy: FlushPolicy, ring_len: u64) -> u64 {
    match policy {
        FlushPolicy::OnCommit => 1,
        FlushPolicy::Every(_) => ring_len / 2,
        FlushPolicy::EveryBytes(bytes) => bytes.clamp(1, ring_len / 2),
    }
}

fn at_age(limit: Duration, age: Duration) -> Due {
    match limit.checked_sub(age) {
        Some(rest) if !rest.is_zero() => Due::In(rest),
        _ => Due::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pending(bytes: u64, age: Duration) -> Pending {
        Pending { bytes, oldest_age: age, ring_len: 1 << 20, ring_used: bytes, requested: false }
    }

    #[test]
    fn nothing_pending_is_idle_under_any_policy_even_if_requested() {
        for policy in [FlushPolicy::OnCommit, FlushPolicy::Every(MS), FlushPolicy::EveryBytes(1)] {
            assert_eq!(due(policy, &Pending { requested: true, ..pending(0, MS) }), Due::Idle);
        }
    }

    #[test]
    fn each_policy_waits_for_its_own_limit() {
        assert_eq!(due(FlushPolicy::OnCommit, &pending(8, Duration::ZERO)), Due::Now);
        assert_eq!(due(FlushPolicy::Every(10 * MS), &pending(8, 3 * MS)), Due::In(7 * MS));
        assert_eq!(due(FlushPolicy::Every(10 * MS), &pending(8, 10 * MS)), Due::Now);
        assert_eq!(due(FlushPolicy::EveryBytes(100), &pending(99, MS)), Due::In(EVERY_BYTES_AGE_MAX - MS));
        assert_eq!(due(FlushPolicy::EveryBytes(100), &pending(100, MS)), Due::Now);
        assert_eq!(due(FlushPolicy::EveryBytes(100), &pending(8, EVERY_BYTES_AGE_MAX)), Due::Now);
    }

    #[test]
    fn a_half_full_ring_or_a_request_overrules_the_policy() {
        let hour = FlushPolicy::Every(3600 * 1000 * MS);
        assert_eq!(due(hour, &pending(1 << 19, MS)), Due::Now);
        assert_eq!(due(hour, &Pending { requested: true, ..pending(8, MS) }), Due::Now);
        // The limit is larger than the ring, and would never be reached.
        assert_eq!(due(FlushPolicy::EveryBytes(u64::MAX), &pending(1 << 19, MS)), Due::Now);
    }
}
