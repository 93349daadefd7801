//! Savepoints of a write transaction.

use crate::api::write_txn::WriteTxn;
use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// A state of a write transaction to which [`WriteTxn::rollback_to`] returns; made by
/// [`WriteTxn::savepoint`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Savepoint {
    /// The number of the transaction, unique in this process.
    txn: u64,
    /// Counts the savepoints of the transaction, from 1.
    number: u64,
}

impl WriteTxn<'_> {
    /// Records the present state of the transaction, so that [`WriteTxn::rollback_to`] can return
    /// to it.
    ///
    /// Savepoints nest: there may be several at once. Each one costs some memory until the
    /// transaction ends or is rolled back beyond it. Every page that is changed after it is copied
    /// once more.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let users = store.keyspace("users")?;
    /// let mut txn = store.begin()?;
    /// txn.put(&users, "alice", "1")?;
    /// let savepoint = txn.savepoint();
    /// txn.put(&users, "bob", "2")?;
    /// txn.delete(&users, "alice")?;
    /// txn.rollback_to(savepoint)?;
    /// txn.commit()?;
    /// assert!(users.contains_key("alice")? && !users.contains_key("bob")?);
    /// # drop(users);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn savepoint(&mut self) -> Savepoint {
        static TXNS: AtomicU64 = AtomicU64::new(1);
        let txn = *self.savepoint_txn.get_or_insert_with(|| TXNS.fetch_add(1, Ordering::Relaxed));
        // In a child of fork(), every call on the transaction is an error, and so is a rollback to
        // this savepoint.
        let number = self.write_mut().map_or(0, |write| write.savepoint());
        Savepoint { txn, number }
    }

    /// Undoes everything since a savepoint: puts, removals, and keyspaces that were created or
    /// dropped. The savepoint remains, and can be returned to again. Savepoints that were made
    /// after it are removed.
    ///
    /// What was undone is neither replayed nor delivered by a change feed. That also holds if the
    /// transaction is so large that its log was written ahead.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the savepoint, if a rollback to an earlier one has removed
    /// it, if it is of another transaction, or if the transaction was aborted by an earlier error.
    /// After [`Error::DiskFull`] and others the transaction can only be rolled back as a whole.
    pub fn rollback_to(&mut self, savepoint: Savepoint) -> Result<()> {
        let Savepoint { txn, number } = savepoint;
        let is_own = self.savepoint_txn == Some(txn);
        let write = self.write_mut()?;
        if !is_own {
            return Err(Error::Invalid { what: format!("savepoint {number} belongs to another transaction") });
        }
        write.roll_back_to(number)
    }
}
