//! The words by which writers and followers tell the flush thread how urgent their bytes are.

use super::Event;
use crate::shared::protocols::atomic::{Model, Native, Word64};
use crate::shared::protocols::deadline;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use untorn_wal::Lsn;

/// By when what is published is to be durable. A commit stands in one of these, before its
/// publication.
#[repr(C)]
pub(crate) struct DeadlineWords {
    /// The end of the newest commit of which the flush policy decides when it is flushed; stored by
    /// the owner of the writer lock. An owner that dies before its publication leaves it further
    /// than the log reaches; the next owner that commits corrects it.
    policy_tail: AtomicU64,
    /// How urgent the most urgent of the others is that no flush has taken; see
    /// [`crate::shared::protocols::deadline`].
    urgency: AtomicU64,
    /// When an urgent commit last asked for the writer lock, on the monotonic clock.
    urgent_asked_ns: AtomicU64,
}

impl DeadlineWords {
    /// By the owner of the writer lock, before its publication: the flush policy decides when the
    /// commit that ends at `lsn` is flushed. Release: the publication that follows orders it for
    /// the flush thread, which reads the log's tail first.
    #[inline]
    pub(crate) fn announce_by_policy(&self, lsn: Lsn) {
        self.policy_tail.store(lsn.0, Ordering::Release);
    }

    /// As [`DeadlineWords::announce_by_policy`], for a commit that was published before. Fenced, so
    /// that a notification may follow.
    pub(crate) fn announce_published(&self, lsn: Lsn) {
        self.policy_tail.store_fenced(lsn.0);
    }

    /// By the owner of the writer lock, before its publication: a commit after `base`, where the
    /// log ends, is to be durable by `deadline_ns`. The owner calls
    /// [`DeadlineWords::announce`] after its publication.
    #[inline]
    pub(crate) fn announce_first(&self, deadline_ns: u64, base: Lsn) {
        // A writer that died before its publication has left it further than the log reaches.
        if self.policy_tail.load(Ordering::Relaxed) > base.0 {
            self.policy_tail.store(base.0, Ordering::Release);
        }
        self.announce(deadline_ns);
    }

    /// Announces that what is published is to be durable by `deadline_ns`. After a publication this
    /// comes once more: a flush that does not cover the commit may have taken the first
    /// announcement.
    #[inline]
    pub(crate) fn announce(&self, deadline_ns: u64) {
        deadline::announce::<Native>(&self.urgency, deadline::urgency(deadline_ns));
    }

    /// The earliest deadline that no flush has taken.
    pub(crate) fn earliest_ns(&self) -> Option<u64> {
        deadline::deadline(self.urgency())
    }

    /// The urgency of [`DeadlineWords::earliest_ns`], or 0.
    pub(crate) fn urgency(&self) -> u64 {
        deadline::peek::<Native>(&self.urgency)
    }

    /// By the flush thread: takes the deadlines of all commits that it is about to flush, before it
    /// reads how far the log is published. Returns their urgency.
    pub(crate) fn take(&self) -> u64 {
        deadline::take::<Native>(&self.urgency)
    }

    /// By the flush thread, after a flush that failed: announces again what it took. Without this,
    /// a commit that has little time would wait for another that has an hour.
    pub(crate) fn give_back(&self, taken: u64) {
        if taken != 0 {
            deadline::announce::<Native>(&self.urgency, taken);
        }
    }

    /// The end of the newest commit for which the flush policy decides.
    pub(crate) fn policy_tail(&self) -> Lsn {
        Lsn(self.policy_tail.load(Ordering::Acquire))
    }

    /// Records that an urgent commit asked for the writer lock. While that is not long ago, bulk
    /// commits publish no more than a share ahead of what is durable.
    #[inline]
    pub(crate) fn note_urgent(&self, asked_ns: u64) {
        self.urgent_asked_ns.store(asked_ns, Ordering::Relaxed);
    }

    /// See [`DeadlineWords::note_urgent`].
    #[inline]
    pub(crate) fn urgent_asked_ns(&self) -> u64 {
        self.urgent_asked_ns.load(Ordering::Relaxed)
    }
}

/// The followers of the log. Writers read nothing here: the flush thread notifies for them.
#[repr(C)]
pub(crate) struct FeedWords {
    /// Followers wait here.
    pub(crate) event: Event,
    _reserved: AtomicU32,
    /// Until then, on the monotonic clock, a follower of what is visible is to be woken for each
    /// commit, also for those that need no flush yet: the flush thread polls for them more often,
    /// and no writer does anything for it. A follower renews it at each wait, so it ends with the
    /// last of them.
    visible_until_ns: AtomicU64,
}

impl FeedWords {
    /// By a follower of what is visible, before it checks for commits: see `visible_until_ns`.
    pub(crate) fn follow_visible_until(&self, ns: u64) {
        self.visible_until_ns.fetch_max(ns, Ordering::SeqCst);
    }

    /// Whether a follower is to be woken for each commit. By the flush thread, after it has seen
    /// the commit: so either it finds the follower or the follower finds the commit.
    pub(crate) fn is_visible_followed(&self) -> bool {
        self.visible_until_ns.load(Ordering::SeqCst) > Native::now_ns()
    }
}
