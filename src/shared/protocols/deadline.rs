//! By when the log is to be flushed: one word of shared memory with the earliest deadline of all
//! commits that no flush has covered yet.
//!
//! The word holds an *urgency*, the complement of the deadline: 0 is none, larger is earlier. So a
//! fresh region says that nobody waits, the earliest of two deadlines is a maximum, and the flush
//! thread can wish to be woken *from* an urgency on, as from any watermark
//! ([`crate::shared::protocols::event_count::wait_from`]).
//!
//! A writer announces its deadline before its publication and again after it. The logger takes the
//! word (leaving 0) before it looks how far the log is published. So whatever the order, a commit
//! that the flush does not cover has its deadline in the word afterwards: the logger's look came
//! before the publication then, and the second announcement comes after that. The first one is
//! there so that nobody ever sees a commit without its deadline, and flushes it early for want of
//! one.
//!
//! | what happens | then |
//! |---|---|
//! | a flush covers a commit between its publication and its second announcement | a deadline without a commit: nobody's while nothing waits; else it makes one flush of what there is come early |
//! | a writer dies before its publication | the same |
//! | a writer dies after its publication, before it announces again | its deadline may be gone; nobody waits for that commit, and the logger gives it a deadline of its own |
//! | a flush fails that has taken the word | it announces again what it took |
//! | the logger dies, having taken the word | its successor begins by flushing everything |
//!
//! A damaged word makes a flush early, or as late as the deadline that the logger gives whatever
//! has none.

use crate::shared::protocols::atomic::{Model, Word64};
use std::sync::atomic::Ordering;

/// How urgent a flush is that must be done at `deadline_ns`.
#[inline]
pub(crate) fn urgency(deadline_ns: u64) -> u64 {
    !deadline_ns
}

/// The deadline of an urgency; `None` for 0.
#[inline]
pub(crate) fn deadline(urgency: u64) -> Option<u64> {
    (urgency != 0).then_some(!urgency)
}

/// Says that there is, or will be at once, a commit of this urgency. Fenced, so that a look at what
/// the logger wishes to hear of comes after it.
#[inline]
pub(crate) fn announce<M: Model>(word: &M::U64, urgency: u64) {
    word.fetch_max(urgency, Ordering::SeqCst);
    M::fence(Ordering::SeqCst);
}

/// The urgency of the most urgent commit that no flush has taken.
#[inline]
pub(crate) fn peek<M: Model>(word: &M::U64) -> u64 {
    word.load(Ordering::SeqCst)
}

/// Takes the deadlines of all commits that the caller is about to flush. It looks how far the log
/// is published only after this.
#[inline]
pub(crate) fn take<M: Model>(word: &M::U64) -> u64 {
    let taken = word.swap(0, Ordering::SeqCst);
    // Pairs with the fences of the publication and of `announce`.
    M::fence(Ordering::SeqCst);
    taken
}
