//! The steps of a commit, in order.
//!
//! **I1** Before the publication, nothing of the commit is visible; after it, everything is. If a
//! writer is killed here, what it leaves (pages, queue entries, ring bytes, a filled slot) is
//! beyond the published state. The next owner of the lock starts from the published slot.
//!
//! **I2** The order in the log is the order of commits and of ids. Each record is copied in behind
//! the published tail, under the lock, and the publication publishes record and pages together.

use crate::txn::write::Write;
use crate::{Result, TxnId};
use untorn_wal::Lsn;

/// A commit that has become visible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Committed {
    pub(crate) txn: TxnId,
    /// The log position up to which the log must be durable for this commit to be.
    pub(crate) lsn: Lsn,
}

impl Write<'_> {
    /// Makes the transaction visible. The caller then releases the lock and wakes the logger.
    ///
    /// `deadline_ns`, on the monotonic clock, is the time by which it is to be durable; without it
    /// the flush policy decides. A transaction that changed nothing takes no id: this returns the
    /// commit that it began from.
    ///
    /// # Errors
    /// On an error, nothing of the transaction is committed.
    pub(crate) fn commit(mut self, deadline_ns: Option<u64>) -> Result<Committed> {
        self.refuse_failed()?;
        if !self.changed {
            self.want_base_durable(deadline_ns);
            return Ok(Committed { txn: self.base.txn, lsn: self.base.log_tail });
        }
        // 1. The new pages: no page that a committed root reaches is modified.
        self.store_trees()?;
        self.work.return_freed()?;
        crash_point!("commit.pages_written");
        // 2. The log record, into the ring beyond the published tail.
        let early_publish = planted_bug!("swing-before-record");
        if early_publish {
            self.publish(self.base.log_tail, self.base.blocks_reserved, deadline_ns);
        }
        let stream = self.stream.as_mut().expect("a live transaction has a log record");
        let (lsn, reserved_blocks) = stream.finish(self.engine)?;
        crash_point!("commit.record_written");
        // No commit of an incarnation is visible before the log states that the incarnation is
        // used. So an id that a crash takes back is never given again.
        if self.begins_incarnation() {
            self.engine.state_incarnation()?;
        }
        // If this process has lost its presence, another one may have taken the lock over while the
        // pages and the record were written.
        self.engine.presence.check()?;
        // 3. and 4. The next slot, and the publication.
        self.publish(lsn, reserved_blocks, deadline_ns);
        crash_point!("commit.deadline_announced");
        Ok(Committed { txn: self.txn, lsn })
    }

    /// Makes a replayed transaction visible. Its record ends at `lsn` in the log.
    pub(crate) fn commit_replayed(mut self, lsn: Lsn) -> Result<()> {
        self.refuse_failed()?;
        self.store_trees()?;
        self.work.return_freed()?;
        self.publish(lsn, 0, None);
        Ok(())
    }

    /// Gives the base commit the deadline of this commit, which is empty. The caller may wait for
    /// the durability of what it read, and the base commit's own deadline may be later. The caller
    /// holds the writer lock, so no other process stores to `policy_tail`.
    fn want_base_durable(&self, deadline_ns: Option<u64>) {
        let control = &self.engine.control;
        let base = self.base.log_tail;
        if control.durable().is_some_and(|(_, durable)| durable >= base) {
            return;
        }
        let waiting = &control.fixed().deadlines;
        match deadline_ns {
            None => waiting.announce_published(base),
            Some(by) => waiting.announce(by),
        }
    }

    fn publish(&mut self, lsn: Lsn, reserved_blocks: u64, deadline_ns: Option<u64>) {
        let image = &mut self.work.image;
        image.txn = self.txn;
        image.log_tail = lsn;
        image.blocks_reserved = reserved_blocks;
        image.commits = image.commits.saturating_add(1);
        let control = &self.engine.control;
        let waiting = &control.fixed().deadlines;
        control.slots().write(&image.encode());
        match deadline_ns {
            None => waiting.announce_by_policy(lsn),
            Some(by) => waiting.announce_first(by, self.base.log_tail),
        }
        crash_point!("commit.before_publish");
        control.publish_commit(self.txn);
        crash_point!("commit.published");
        if let Some(by) = deadline_ns {
            waiting.announce(by);
        }
    }
}
