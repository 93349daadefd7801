//! The flush deadline: one word of shared memory with the earliest deadline of all commits that no
//! flush has covered yet.
//!
//! The word holds an *urgency*, the complement of the deadline: 0 is none, larger is earlier. So
//! zeroed memory has no deadline, and the earlier of two deadlines is a maximum. The flush thread
//! can wait for an urgency as for any watermark
//! ([`crate::shared::protocols::event_count::wait_from`]).
//!
//! A writer announces its deadline before its publication, and again after it. The logger takes the
//! word (leaving 0) before it reads how far the log is published. If the flush does not cover a
//! commit, then the logger read the log's end before the commit's publication. The second
//! announcement follows that publication, so the word holds the deadline afterwards. The first
//! announcement ensures that no published commit is without its deadline: the logger would flush
//! such a commit early.
//!
//! | what happens | then |
//! |---|---|
//! | a flush covers a commit between its publication and its second announcement | the deadline has no commit: it is ignored while nothing waits; otherwise it makes one flush come early |
//! | a writer dies before its publication | the same |
//! | a writer dies after its publication, before it announces again | its deadline may be gone; no caller waits for that commit, and the logger gives it a deadline of its own |
//! | a flush fails that has taken the word | it announces again what it took |
//! | the logger dies, having taken the word | its successor begins by flushing everything |
//!
//! If the word is damaged, a flush comes early, or as late as the deadline that the logger gives to
//! commits without one.

use crate::shared::protocols::atomic::{Model, Word64};
use std::sync::atomic::Ordering;

/// Returns the urgency of a flush that must be done at `deadline_ns`.
#[inline]
pub(crate) fn urgency(deadline_ns: u64) -> u64 {
    !deadline_ns
}

/// Returns the deadline of an urgency; `None` for 0.
#[inline]
pub(crate) fn deadline(urgency: u64) -> Option<u64> {
    (urgency != 0).then_some(!urgency)
}

/// Announces that there is, or is about to be, a commit of this urgency. Fenced, so that the
/// caller's check of the logger's thresholds comes after it.
#[inline]
pub(crate) fn announce<M: Model>(word: &M::U64, urgency: u64) {
    word.fetch_max(urgency, Ordering::SeqCst);
    M::fence(Ordering::SeqCst);
}

/// Returns the urgency of the most urgent commit that no flush has taken.
#[inline]
pub(crate) fn peek<M: Model>(word: &M::U64) -> u64 {
    word.load(Ordering::SeqCst)
}

/// Takes the deadlines of all commits that the caller is about to flush. The caller must read how
/// far the log is published after this.
#[inline]
pub(crate) fn take<M: Model>(word: &M::U64) -> u64 {
    let taken = word.swap(0, Ordering::SeqCst);
    // Pairs with the fences of the publication and of `announce`.
    M::fence(Ordering::SeqCst);
    taken
}
