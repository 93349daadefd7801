//! The histograms of a store. They start empty in each new region.

use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::histogram::Histogram;
use crate::shared::protocols::lock::CommitClass;
use std::ops::Index;

/// One value for each class of commits.
#[repr(C)]
pub(crate) struct ByClass<T> {
    urgent: T,
    bulk: T,
}

/// The kind of a caller's wait for durability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Acknowledged {
    /// A commit that is to be durable at once, and whose caller waits.
    Durable,
    /// A commit with a deadline, and whose caller waits. The logger delays its flush on purpose, so
    /// its latency shows nothing about the other commits.
    Within,
    /// A ticket of any commit that is waited for later; and [`crate::Store::sync`].
    Ticket,
}

/// One value for each kind of wait.
#[repr(C)]
pub(crate) struct ByAcknowledged<T> {
    durable: T,
    within: T,
    ticket: T,
}

impl<T> Index<Acknowledged> for ByAcknowledged<T> {
    type Output = T;
    fn index(&self, of: Acknowledged) -> &T {
        match of {
            Acknowledged::Durable => &self.durable,
            Acknowledged::Within => &self.within,
            Acknowledged::Ticket => &self.ticket,
        }
    }
}

impl<T> Index<CommitClass> for ByClass<T> {
    type Output = T;
    fn index(&self, class: CommitClass) -> &T {
        match class {
            CommitClass::Urgent => &self.urgent,
            CommitClass::Bulk => &self.bulk,
        }
    }
}

/// The histograms that each commit records into. They are one page, so that they cost one entry of
/// the processor's TLB.
#[repr(C, align(4096))]
pub(crate) struct LockTimes {
    /// From the request for the writer lock to its acquisition. Recorded by the new owner, so no
    /// other thread records at the same time.
    pub(crate) wait: Histogram<Native>,
    /// From the acquisition of the lock to its release. Recorded by the owner before it releases
    /// the lock, so no other thread records at the same time.
    pub(crate) hold: Histogram<Native>,
}

const _: () = assert!(size_of::<LockTimes>() == 4096);

/// All histograms of a store.
#[repr(C)]
pub(crate) struct LatencyHistograms {
    /// For a commit whose caller waits for durability: from the publication until the wait returns,
    /// once. For a ticket that is waited for later: from the beginning of that wait. Recorded by
    /// the waiting thread.
    pub(crate) acknowledgement: ByAcknowledged<Histogram<Native>>,
    /// The histograms of the writer lock.
    pub(crate) lock: ByClass<LockTimes>,
    /// The write and the fsync of one flush. Recorded by the flush thread.
    pub(crate) flush: Histogram<Native>,
    /// From the start of a checkpoint, when its transaction is recorded, until it is finished.
    /// Recorded by the checkpoint thread.
    pub(crate) checkpoint: Histogram<Native>,
    /// One round of sampling cells, including the wait for the writer lock. Recorded by the
    /// sampler.
    pub(crate) sample: Histogram<Native>,
}
