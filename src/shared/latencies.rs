//! The histograms of a store: what is measured, and by whom. They begin anew with the region.

use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::histogram::Histogram;
use crate::shared::protocols::lock::CommitClass;
use std::ops::Index;

/// The same for each class of commits.
#[repr(C)]
pub(crate) struct ByClass<T> {
    urgent: T,
    bulk: T,
}

/// Of whom it is that somebody waits for durability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Acknowledged {
    /// A commit that is to be durable at once, and whose caller waits.
    Durable,
    /// A commit that has time, and whose caller waits. It is put off by intent, so it says nothing
    /// of how the others fare.
    Within,
    /// A ticket that is waited for later, whatever it is of; and [`crate::Store::sync`].
    Ticket,
}

/// The same for each of these.
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

/// What each commit records. One page, so that it costs one entry of the processor's page tables'
/// cache.
#[repr(C, align(4096))]
pub(crate) struct LockTimes {
    /// From asking for the writer lock to having it. By who has just taken it: nobody else records
    /// meanwhile.
    pub(crate) wait: Histogram<Native>,
    /// From having it to letting it go. By who is about to let it go: nobody else records
    /// meanwhile.
    pub(crate) hold: Histogram<Native>,
}

const _: () = assert!(size_of::<LockTimes>() == 4096);

/// All of them.
#[repr(C)]
pub(crate) struct Latencies {
    /// Of a commit whose caller waits for durability: from the publication to its knowing, once. Of
    /// a ticket that is waited for later: from the beginning of that wait. By whoever waits.
    pub(crate) acknowledgement: ByAcknowledged<Histogram<Native>>,
    /// The writer lock.
    pub(crate) lock: ByClass<LockTimes>,
    /// Write and fsync of what one flush acknowledges. By the flush thread.
    pub(crate) flush: Histogram<Native>,
    /// From noting what a checkpoint is to cover until it is finished. By the checkpoint thread.
    pub(crate) checkpoint: Histogram<Native>,
    /// One round of sampling cells, the wait for the writer lock included. By the sampler.
    pub(crate) sample: Histogram<Native>,
}
