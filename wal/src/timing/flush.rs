//! Computes when the log is flushed: by policy, or by deadline. The functions are pure arithmetic.
//! The flush thread calls them after each change of the pending bytes, deadlines or requests.

use crate::limits::EVERY_BYTES_AGE_MAX;
use std::time::Duration;

/// The flush policy: when the log is synced without a request. A requested sync happens under any
/// policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum FlushPolicy {
    /// As soon as there is a commit. One sync covers all commits that were published meanwhile
    /// (group commit).
    #[default]
    OnCommit,
    /// At this interval, if there are commits.
    Every(Duration),
    /// When this many bytes are pending; at the latest after one second ([`EVERY_BYTES_AGE_MAX`]),
    /// and when the ring is half full.
    EveryBytes(u64),
}

/// The bytes that wait for a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// The number of published bytes that are not durable, so that the ring cannot reuse their
    /// space yet.
    pub bytes: u64,
    /// How long the oldest commit without a deadline has waited, or the time since the last flush
    /// if that is less. `None` if every waiting commit has a deadline of its own.
    pub policy_age: Option<Duration>,
    /// The time within which a flush must begin to meet the earliest deadline; zero if that has
    /// passed. `None` if no waiting commit has a deadline.
    pub start_in: Option<Duration>,
    /// The size of the ring in bytes.
    pub ring_len: u64,
    /// Whether a caller has requested a flush and waits.
    pub requested: bool,
}

/// The time of the next flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// At once.
    Now,
    /// After this time, unless something changes.
    In(Duration),
    /// Not yet: there is no waiting commit, or no waiting commit determines a time.
    Idle,
}

/// Returns when to flush the pending bytes: as late as all waiting commits allow. One flush covers
/// all published bytes, so it is due at the earliest time that the policy, a deadline, a request or
/// the ring requires.
///
/// For deadlines alone this is the greedy algorithm for stabbing intervals with the fewest points.
/// Each commit is an interval, from its publication to the last instant at which its flush can
/// begin. Waiting each time for the first interval to end needs the fewest flushes (a test compares
/// it with the best of all choices).
#[must_use]
pub fn due(policy: FlushPolicy, pending: &Pending) -> Due {
    if pending.bytes == 0 {
        return Due::Idle;
    }
    if pending.requested || pending.bytes >= half(pending.ring_len) {
        return Due::Now;
    }
    let by_policy = pending.policy_age.map(|age| match policy {
        _ if pending.bytes >= bytes_due(policy, pending.ring_len) => Duration::ZERO,
        FlushPolicy::OnCommit => Duration::ZERO,
        FlushPolicy::Every(interval) => interval.saturating_sub(age),
        FlushPolicy::EveryBytes(_) => EVERY_BYTES_AGE_MAX.saturating_sub(age),
    });
    match by_policy.into_iter().chain(pending.start_in).min() {
        None => Due::Idle,
        Some(Duration::ZERO) => Due::Now,
        Some(rest) => Due::In(rest),
    }
}

/// Returns the number of pending bytes from which on they are flushed at once, whatever their age,
/// if the policy decides. A half-full ring is flushed under any policy, so that writers never wait
/// for a policy.
#[must_use]
pub fn bytes_due(policy: FlushPolicy, ring_len: u64) -> u64 {
    match policy {
        FlushPolicy::OnCommit => 1,
        FlushPolicy::Every(_) => half(ring_len),
        FlushPolicy::EveryBytes(bytes) => bytes.clamp(1, half(ring_len)),
    }
}

fn half(ring_len: u64) -> u64 {
    (ring_len / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn pending(bytes: u64, age: Duration) -> Pending {
        Pending { bytes, policy_age: Some(age), start_in: None, ring_len: 1 << 20, requested: false }
    }

    /// Returns a pending commit with a deadline, and none for which the policy decides.
    fn within(bytes: u64, start_in: Duration) -> Pending {
        Pending { policy_age: None, start_in: Some(start_in), ..pending(bytes, MS) }
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
    fn a_half_full_ring_or_a_request_overrules_the_policy_and_deadlines() {
        let hour = FlushPolicy::Every(3600 * 1000 * MS);
        assert_eq!(due(hour, &pending(1 << 19, MS)), Due::Now);
        assert_eq!(due(hour, &Pending { requested: true, ..pending(8, MS) }), Due::Now);
        // This limit is larger than the ring, so the pending bytes would never reach it.
        assert_eq!(due(FlushPolicy::EveryBytes(u64::MAX), &pending(1 << 19, MS)), Due::Now);
        assert_eq!(due(FlushPolicy::OnCommit, &within(1 << 19, 1000 * MS)), Due::Now);
        assert_eq!(due(FlushPolicy::OnCommit, &Pending { requested: true, ..within(8, MS) }), Due::Now);
    }

    #[test]
    fn a_deadline_is_waited_for_under_every_policy() {
        for policy in [FlushPolicy::OnCommit, FlushPolicy::Every(MS), FlushPolicy::EveryBytes(1)] {
            assert_eq!(due(policy, &within(8, 30 * MS)), Due::In(30 * MS));
            assert_eq!(due(policy, &within(8, Duration::ZERO)), Due::Now);
        }
    }

    #[test]
    fn of_the_policy_and_a_deadline_the_earlier_counts() {
        let both = |age, start_in| Pending { start_in: Some(start_in), ..pending(8, age) };
        assert_eq!(due(FlushPolicy::Every(10 * MS), &both(4 * MS, 30 * MS)), Due::In(6 * MS));
        assert_eq!(due(FlushPolicy::Every(10 * MS), &both(4 * MS, 2 * MS)), Due::In(2 * MS));
        assert_eq!(due(FlushPolicy::OnCommit, &both(Duration::ZERO, 30 * MS)), Due::Now);
        assert_eq!(due(FlushPolicy::EveryBytes(100), &both(MS, 30 * MS)), Due::In(30 * MS));
    }

    #[test]
    fn bytes_without_a_policy_or_deadline_are_idle() {
        let orphan = Pending { policy_age: None, ..pending(8, MS) };
        assert_eq!(due(FlushPolicy::OnCommit, &orphan), Due::Idle);
    }

    /// A commit: the times at which it is published and must be durable, in ms.
    type Commit = (u64, u64);

    /// Simulates a logger that calls [`due`] at each instant. Its flushes take `flush` ms each, and
    /// it expects `estimate` ms. Returns when its flushes begin.
    fn flushes(commits: &[Commit], flush: u64, estimate: u64) -> Vec<u64> {
        let mut begun: Vec<u64> = Vec::new();
        let last = commits.iter().map(|&(_, deadline)| deadline).max().unwrap_or(0);
        let mut now = 0;
        while now <= last {
            let covered = begun.last().copied();
            let waits = |&&(at, _): &&Commit| at <= now && covered.is_none_or(|covered| at > covered);
            let earliest = commits.iter().filter(waits).map(|&(_, deadline)| deadline).min();
            let start_in = earliest.map(|deadline| (deadline.saturating_sub(estimate).saturating_sub(now)) as u32 * MS);
            let bytes = if earliest.is_some() { 8 } else { 0 };
            let pending = Pending { bytes, policy_age: None, start_in, ring_len: 1 << 20, ..Pending::default() };
            match due(FlushPolicy::OnCommit, &pending) {
                Due::Now => {
                    begun.push(now);
                    now += flush.max(1);
                }
                Due::In(_) | Due::Idle => now += 1,
            }
        }
        begun
    }

    /// Returns the least number of instants such that each commit has one between its publication
    /// and the last instant at which its flush can begin, by trying all choices.
    fn fewest(commits: &[Commit], estimate: u64) -> usize {
        let mut instants: Vec<u64> = commits.iter().map(|&(_, deadline)| deadline - estimate).collect();
        instants.sort_unstable();
        instants.dedup();
        (0_u32..1 << instants.len())
            .filter(|choice| {
                commits.iter().all(|&(at, deadline)| {
                    let chosen = (0..instants.len()).filter(|bit| choice & (1 << bit) != 0);
                    chosen.map(|bit| instants[bit]).any(|instant| at <= instant && instant <= deadline - estimate)
                })
            })
            .map(u32::count_ones)
            .min()
            .unwrap_or(0) as usize
    }

    proptest! {
        /// Goal: if no flush takes longer than estimated, no deadline is missed that leaves time
        /// for one flush in progress and its own. No schedule needs fewer flushes, even with
        /// knowledge of all later commits.
        #[test]
        fn deadlines_are_met_with_the_fewest_flushes(
            arrivals in proptest::collection::vec((0_u64..60, 0_u64..40), 0..9),
            estimate in 1_u64..6,
            saved in 0_u64..6,
        ) {
            let commits: Vec<Commit> = arrivals.iter().map(|&(at, slack)| (at, at + 2 * estimate + slack)).collect();
            let flush = estimate.saturating_sub(saved);
            let begun = flushes(&commits, flush, estimate);
            for &(at, deadline) in &commits {
                let met = begun.iter().any(|&begin| begin >= at && begin + flush <= deadline);
                prop_assert!(met, "{commits:?}: flushes at {begun:?} miss ({at}, {deadline})");
            }
            prop_assert_eq!(begun.len(), fewest(&commits, estimate), "{:?}: {:?}", commits, begun);
        }
    }
}
