//! The words in which writers and followers announce to the flush thread how urgent their bytes
//! are.

use super::Event;
use crate::shared::protocols::atomic::{Model, Native, Word64};
use crate::shared::protocols::deadline;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use untorn_wal::Lsn;

/// The deadlines of published commits. A commit is recorded in one of the first two words before
/// its publication.
#[repr(C)]
pub(crate) struct DeadlineWords {
    /// The end of the newest commit that is flushed when the flush policy decides; stored by the
    /// owner of the writer lock. If an owner dies before its publication, this may be beyond the
    /// log's end; the next owner that commits corrects it.
    policy_tail: AtomicU64,
    /// The urgency of the most urgent other commit that no flush has taken; see
    /// [`crate::shared::protocols::deadline`].
    urgency: AtomicU64,
    /// When an urgent commit last requested the writer lock, on the monotonic clock.
    urgent_asked_ns: AtomicU64,
}

impl DeadlineWords {
    /// Records that the flush policy decides when the commit that ends at `lsn` is flushed. Called
    /// by the owner of the writer lock before its publication. Release: the publication that
    /// follows orders it for the flush thread, which reads the log's tail first.
    #[inline]
    pub(crate) fn announce_by_policy(&self, lsn: Lsn) {
        self.policy_tail.store(lsn.0, Ordering::Release);
    }

    /// Records the same as [`DeadlineWords::announce_by_policy`], for a commit that was published
    /// before. Fenced, so that a notification may follow.
    pub(crate) fn announce_published(&self, lsn: Lsn) {
        self.policy_tail.store_fenced(lsn.0);
    }

    /// Announces that a commit after `base`, where the log ends, is to be durable by `deadline_ns`.
    /// Called by the owner of the writer lock before its publication. The owner calls
    /// [`DeadlineWords::announce`] after its publication.
    #[inline]
    pub(crate) fn announce_first(&self, deadline_ns: u64, base: Lsn) {
        // A writer that died before its publication may have left `policy_tail` beyond the log's
        // end.
        if self.policy_tail.load(Ordering::Relaxed) > base.0 {
            self.policy_tail.store(base.0, Ordering::Release);
        }
        self.announce(deadline_ns);
    }

    /// Announces that the published log is to be durable by `deadline_ns`. A writer calls this
    /// again after its publication: a flush that does not cover the commit may have taken the first
    /// announcement.
    #[inline]
    pub(crate) fn announce(&self, deadline_ns: u64) {
        deadline::announce::<Native>(&self.urgency, deadline::urgency(deadline_ns));
    }

    /// Returns the earliest deadline that no flush has taken.
    pub(crate) fn earliest_ns(&self) -> Option<u64> {
        deadline::deadline(self.urgency())
    }

    /// Returns the urgency of [`DeadlineWords::earliest_ns`], or 0.
    pub(crate) fn urgency(&self) -> u64 {
        deadline::peek::<Native>(&self.urgency)
    }

    /// Takes the deadlines of all commits that the flush thread is about to flush, and returns
    /// their urgency. The flush thread calls this before it reads how far the log is published.
    pub(crate) fn take(&self) -> u64 {
        deadline::take::<Native>(&self.urgency)
    }

    /// Announces again the deadlines that the flush thread took, after its flush failed. Without
    /// this, a commit with a near deadline could wait as long as one whose deadline is an hour
    /// away.
    pub(crate) fn give_back(&self, taken: u64) {
        if taken != 0 {
            deadline::announce::<Native>(&self.urgency, taken);
        }
    }

    /// Returns the end of the newest commit for which the flush policy decides.
    pub(crate) fn policy_tail(&self) -> Lsn {
        Lsn(self.policy_tail.load(Ordering::Acquire))
    }

    /// Records that an urgent commit requested the writer lock. If `asked_ns` is recent, bulk
    /// commits publish at most a share of the ring beyond the durable position.
    #[inline]
    pub(crate) fn note_urgent(&self, asked_ns: u64) {
        self.urgent_asked_ns.store(asked_ns, Ordering::Relaxed);
    }

    /// Returns the time that [`DeadlineWords::note_urgent`] recorded last.
    #[inline]
    pub(crate) fn urgent_asked_ns(&self) -> u64 {
        self.urgent_asked_ns.load(Ordering::Relaxed)
    }
}

/// The words of the log's followers. Writers do not access these words: the flush thread notifies
/// the followers for them.
#[repr(C)]
pub(crate) struct FeedWords {
    /// Followers wait here.
    pub(crate) event: Event,
    _reserved: AtomicU32,
    /// The time on the monotonic clock until which followers of visible commits are to be woken for
    /// each commit, including commits that need no flush yet. Until then the flush thread polls
    /// more often; writers do nothing for it. Each follower extends the time when it waits, so the
    /// time passes after the last follower has stopped.
    visible_until_ns: AtomicU64,
}

impl FeedWords {
    /// Extends `visible_until_ns`. Called by a follower of visible commits before it checks for
    /// commits.
    pub(crate) fn follow_visible_until(&self, ns: u64) {
        self.visible_until_ns.fetch_max(ns, Ordering::SeqCst);
    }

    /// Returns whether a follower is to be woken for each commit. The flush thread calls this after
    /// it has seen the commit: so either the flush thread sees the follower, or the follower sees
    /// the commit.
    pub(crate) fn is_visible_followed(&self) -> bool {
        self.visible_until_ns.load(Ordering::SeqCst) > Native::now_ns()
    }
}
