//! The client table: one entry for each direct client. It grows in [`Control::grow_clients`].
//!
//! | state of the entry | its client dies here |
//! |---|---|
//! | free: no owner | – |
//! | claimed, its figures not stored yet | reaped; until then, it shows the previous client's |
//! | in use | reaped |

use super::Control;
use crate::shared::protocols::lock::ClientIdBits;
use std::sync::atomic::{AtomicU64, Ordering};

/// One client.
#[repr(C, align(64))]
pub(crate) struct ClientEntry {
    /// The client's id; 0 if the entry is free.
    owner: AtomicU64,
    pid: AtomicU64,
    since_ns: AtomicU64,
    commits: AtomicU64,
    /// The newest transaction when the client joined. It has no handle to anything that was dropped
    /// before that.
    since_txn: AtomicU64,
}

impl ClientEntry {
    /// Returns the client that the entry belongs to.
    pub(crate) fn owner(&self) -> Option<ClientIdBits> {
        Some(self.owner.load(Ordering::Acquire)).filter(|owner| *owner != 0)
    }

    /// Claims the entry for `me`, if it still belongs to `found`, which is no client or a dead one.
    /// Of several clients that try, one succeeds: a dead id does not come back.
    pub(crate) fn claim(&self, found: Option<ClientIdBits>, me: ClientIdBits) -> bool {
        self.owner.compare_exchange(found.unwrap_or(0), me, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Stores the client's figures. Called by the client that has claimed the entry. The newest
    /// transaction is read last: the client has no handle yet.
    pub(crate) fn join(&self, pid: u32, now_ns: u64, control: &Control) {
        self.pid.store(u64::from(pid), Ordering::Relaxed);
        self.since_ns.store(now_ns, Ordering::Relaxed);
        self.commits.store(0, Ordering::Relaxed);
        self.since_txn.store(control.committed().as_u64(), Ordering::Release);
    }

    /// Frees the entry. Called by its client.
    pub(crate) fn leave(&self) {
        self.owner.store(0, Ordering::Release);
    }

    /// Frees the entry of `dead`, a client that was found dead. Returns whether this call did it.
    pub(crate) fn reap(&self, dead: ClientIdBits) -> bool {
        self.owner.compare_exchange(dead, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Counts a commit of the client.
    #[inline]
    pub(crate) fn count_commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the client's process id, for display.
    pub(crate) fn pid(&self) -> u64 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Returns when the client joined, on its monotonic clock.
    pub(crate) fn since_ns(&self) -> u64 {
        self.since_ns.load(Ordering::Relaxed)
    }

    /// Returns the number of commits that the client has made.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

impl Control {
    /// Returns the entries that belong to a client, with its id.
    pub(crate) fn joined_clients(&self) -> impl Iterator<Item = (ClientIdBits, &ClientEntry)> {
        self.clients().iter().filter_map(|entry| Some((entry.owner()?, entry)))
    }

    /// Returns the process id of a client, for display; 0 if it is not in the table.
    pub(crate) fn client_pid(&self, id: ClientIdBits) -> u64 {
        self.joined_clients().find(|(owner, _)| *owner == id).map_or(0, |(_, entry)| entry.pid())
    }

    /// Returns the newest transaction when the oldest client joined. This is not a time, since
    /// clients may be in time namespaces whose clocks differ.
    pub(crate) fn oldest_client_txn(&self) -> u64 {
        let joined = self.joined_clients().map(|(_, entry)| entry.since_txn.load(Ordering::Acquire));
        joined.min().unwrap_or(0)
    }
}
