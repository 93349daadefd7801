//! The write transaction.

use crate::Durability;
use crate::api::keyspace::{Keyspace, refuse_reserved};
use crate::api::snapshot::Key;
use crate::api::store::Store;
use crate::api::ticket::Ticket;
use crate::btree::cursor::RangeCursor;
use crate::btree::point_cursor::PointCursor;
use crate::key_range::KeyRange;
use crate::pages::workspace::Workspace;
use crate::prefix::{prefix_bounds, prefix_end};
use crate::process::client::DirectClient;
use crate::shared::protocols::lock::CommitClass;
use crate::system::clock::now_ns;
use crate::txn::write::Write;
use crate::{Error, Result, TxnId};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Bound;

/// The exclusive write transaction of a store: all of it becomes visible at once, or nothing.
///
/// It sees its own changes. Dropping it rolls it back. It belongs to the thread that began it, and
/// can't be passed to another one:
///
/// ```compile_fail,E0277
/// fn pass_on<T: Send>(_: T) {}
/// fn try_it(txn: untorn::WriteTxn<'_>) {
///     pass_on(txn);
/// }
/// ```
///
/// In a child of `fork()` its calls return [`Error::Forked`]. Dropping it there does not roll back:
/// the transaction continues in the parent.
///
/// A transaction may be larger than memory and than the log's ring: its pages go to the arena and
/// its log record is streamed. Only the disk and the store's maximum size limit it.
pub struct WriteTxn<'s> {
    store: &'s Store,
    /// `None` once committed.
    write: Option<Write<'s>>,
    durability: Durability,
    /// The number by which its savepoints refer to it; set with the first savepoint.
    pub(super) savepoint_txn: Option<u64>,
    /// Keeps the transaction on its thread, which owns the writer lock.
    _thread: PhantomData<*const ()>,
}

impl<'s> WriteTxn<'s> {
    pub(crate) fn new(store: &'s Store, write: Write<'s>, durability: Durability) -> WriteTxn<'s> {
        WriteTxn { store, write: Some(write), durability, savepoint_txn: None, _thread: PhantomData }
    }

    fn write(&self) -> Result<&Write<'s>> {
        self.store.client().check_usable()?;
        Ok(self.write.as_ref().expect("open until commit"))
    }

    pub(crate) fn write_mut(&mut self) -> Result<&mut Write<'s>> {
        self.store.client().check_usable()?;
        Ok(self.write.as_mut().expect("open until commit"))
    }

    /// Returns the transaction from which this one began: it sees that state, and its own changes.
    pub fn base_txn_id(&self) -> TxnId {
        self.write.as_ref().expect("open until commit").base()
    }

    /// Returns the keyspace of this name. If there is none, creates it in this transaction. If the
    /// transaction is rolled back, handles to a keyspace that it created return
    /// [`Error::NoKeyspace`].
    ///
    /// # Errors
    /// [`Error::Limit`] if the name is longer than 255 bytes or there are 1,048,576 keyspaces: the
    /// transaction can continue.
    pub fn keyspace(&mut self, name: &str) -> Result<Keyspace> {
        let store = self.store.clone();
        let write = self.write_mut()?;
        let id = match write.find_keyspace(name)? {
            Some(id) => id,
            None => {
                refuse_reserved(name)?;
                write.create_keyspace(name)?
            }
        };
        Ok(Keyspace::new(store, id, name))
    }

    /// Drops a keyspace with all its entries. Returns whether it existed.
    ///
    /// # Errors
    /// [`Error::DiskFull`]; [`Error::Corrupt`].
    pub fn drop_keyspace(&mut self, name: &str) -> Result<bool> {
        refuse_reserved(name)?;
        let write = self.write_mut()?;
        match write.find_keyspace(name)? {
            Some(id) => write.drop_keyspace(id).map(|()| true),
            None => Ok(false),
        }
    }

    /// Stores a value under a key.
    ///
    /// # Errors
    /// [`Error::Limit`] for a key or value that is too long: the transaction can continue. After
    /// [`Error::DiskFull`], [`Error::Corrupt`] and others, it can only be rolled back.
    #[inline]
    pub fn put(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.put_bytes(keyspace, key.as_ref(), value.as_ref())
    }

    fn put_bytes(&mut self, keyspace: &Keyspace, key: &[u8], value: &[u8]) -> Result<()> {
        keyspace.belongs_to(self.store.client())?;
        refuse_reserved(keyspace.name())?;
        self.write_mut()?.put(keyspace.id(), key, value).map_err(|error| named(error, keyspace))
    }

    /// Returns the value of a key as this transaction sees it.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`]; [`Error::Corrupt`].
    #[inline]
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<&[u8]>> {
        self.get_bytes(keyspace, key.as_ref())
    }

    fn get_bytes(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<&[u8]>> {
        keyspace.belongs_to(self.store.client())?;
        self.write()?.get(keyspace.id(), key).map_err(|error| named(error, keyspace))
    }

    /// Returns the value of a key as this transaction sees it, and its version: the id of the
    /// transaction that wrote it last. For a key that this transaction wrote, that is the id that
    /// its commit will have.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    #[inline]
    pub fn get_versioned(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<(&[u8], TxnId)>> {
        self.get_versioned_bytes(keyspace, key.as_ref())
    }

    fn get_versioned_bytes(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<(&[u8], TxnId)>> {
        keyspace.belongs_to(self.store.client())?;
        self.write()?.get_versioned(keyspace.id(), key).map_err(|error| named(error, keyspace))
    }

    /// Removes a key. Returns whether it was present.
    ///
    /// # Errors
    /// Those of [`WriteTxn::put`].
    #[inline]
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        self.delete_bytes(keyspace, key.as_ref())
    }

    fn delete_bytes(&mut self, keyspace: &Keyspace, key: &[u8]) -> Result<bool> {
        keyspace.belongs_to(self.store.client())?;
        refuse_reserved(keyspace.name())?;
        self.write_mut()?.delete(keyspace.id(), key).map_err(|error| named(error, keyspace))
    }

    /// Removes all keys of a range. Returns the number of keys that were removed.
    ///
    /// Pages that lie within the range are freed as a whole: see [`Keyspace::delete_range`] for the
    /// cost. A bound may be longer than a key.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let readings = store.keyspace("readings")?;
    /// let mut txn = store.begin()?;
    /// for hour in ["08:00", "09:00", "10:00", "11:00"] {
    ///     txn.put(&readings, hour, "21.5")?;
    /// }
    /// assert_eq!(txn.delete_range(&readings, "09".."11")?, 2);
    /// txn.commit()?;
    /// assert_eq!(readings.len()?, 2);
    /// # drop(readings);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`WriteTxn::put`].
    pub fn delete_range<R: KeyRange>(&mut self, keyspace: &Keyspace, range: R) -> Result<u64> {
        self.delete_bounds(keyspace, range.bounds())
    }

    /// Removes all keys of a keyspace, which remains. Returns the number of keys that were removed.
    /// See [`WriteTxn::delete_range`].
    ///
    /// # Errors
    /// Those of [`WriteTxn::put`].
    pub fn clear(&mut self, keyspace: &Keyspace) -> Result<u64> {
        self.delete_bounds(keyspace, (Bound::Unbounded, Bound::Unbounded))
    }

    fn delete_bounds(&mut self, keyspace: &Keyspace, (lower, upper): (Bound<&[u8]>, Bound<&[u8]>)) -> Result<u64> {
        keyspace.belongs_to(self.store.client())?;
        refuse_reserved(keyspace.name())?;
        self.write_mut()?.delete_bounds(keyspace.id(), lower, upper).map_err(|error| named(error, keyspace))
    }

    /// Returns an iterator over the entries of a range as this transaction sees them, in key order,
    /// from both ends.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn range<R: KeyRange>(&self, keyspace: &Keyspace, range: R) -> Result<TxnRange<'_, 's>> {
        self.range_of_bounds(keyspace, range.bounds())
    }

    /// Returns an iterator over the entries whose keys begin with `prefix`, as this transaction
    /// sees them.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Result<TxnRange<'_, 's>> {
        let prefix = prefix.as_ref();
        let end = prefix_end(prefix);
        self.range_of_bounds(keyspace, prefix_bounds(prefix, end.as_deref()))
    }

    fn range_of_bounds(
        &self,
        keyspace: &Keyspace,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<TxnRange<'_, 's>> {
        keyspace.belongs_to(self.store.client())?;
        let write = self.write()?;
        let cursor = write.cursor(keyspace.id(), lower, upper).map_err(|error| named(error, keyspace))?;
        Ok(TxnRange { txn: self, cursor })
    }

    pub(super) fn point_cursor(&self, keyspace: &Keyspace) -> Result<PointCursor> {
        keyspace.belongs_to(self.store.client())?;
        self.write()?.point_cursor(keyspace.id()).map_err(|error| named(error, keyspace))
    }

    /// Returns the pages as the transaction sees them.
    pub(super) fn work(&self) -> Result<&Workspace<'s>> {
        // In a child of fork() the pages are not mapped.
        Ok(self.write()?.work())
    }

    /// Commits, and returns when the durability that the transaction began with is reached: at once
    /// for [`Durability::Visible`], after an fsync for the others. The [`Ticket`] contains the id.
    /// A visible commit can then be waited for, polled or awaited by its ticket. A transaction that
    /// changed nothing takes no id: its ticket has that of the transaction it began from.
    ///
    /// ```
    /// use untorn::Durability;
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// # let readings = store.keyspace("readings")?;
    /// let mut txn = store.begin()?; // at the store's default
    /// txn.put(&readings, b"10:00", b"21.5")?;
    /// assert!(txn.commit()?.is_durable());
    ///
    /// let mut txn = store.begin_with(Durability::Visible)?;
    /// txn.put(&readings, b"10:01", b"21.6")?;
    /// let ticket = txn.commit()?; // other processes see it
    /// ticket.wait()?; // it survives a power loss
    /// # drop((ticket, readings));
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotDurable`], or an [`Error::LoggerStalled`] that names the transaction: it is
    /// visible, and in doubt. After [`Error::DiskFull`], an [`Error::LoggerStalled`] that names
    /// none, and all others, the transaction has had no effect.
    pub fn commit(self) -> Result<Ticket> {
        self.commit_then(|| {})
    }

    /// Commits as [`WriteTxn::commit`] does, and runs `then` between the publication and the
    /// release of the lock.
    pub(crate) fn commit_then(self, then: impl FnOnce()) -> Result<Ticket> {
        let durability = self.durability;
        let ticket = self.make_visible(then)?;
        match durability {
            Durability::Visible => ticket.glance(),
            Durability::Within(_) if planted_bug!("within-answered-before-sync") => {}
            Durability::Durable | Durability::Within(_) => {
                ticket.wait_ref()?;
                ticket.count_acknowledged();
            }
        }
        Ok(ticket)
    }

    /// Commits, and returns at visibility whatever the durability. The logger flushes no later than
    /// the durability that the transaction began with requires. So one thread can have many commits
    /// in flight, each with its ticket and deadline.
    ///
    /// [`Stats::deadlines`](crate::Stats::deadlines) does not count whether the deadline was met,
    /// since the caller may never wait for it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use untorn::Durability;
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// # let readings = store.keyspace("readings")?;
    /// let mut tickets = Vec::new();
    /// for n in 0..100_u8 {
    ///     let mut txn = store.begin_with(Durability::Within(Duration::from_millis(20)))?;
    ///     txn.put(&readings, &[n], b"21.5")?;
    ///     tickets.push(txn.submit()?);
    /// }
    /// tickets[99].wait()?; // some 20 ms later, and the others with it
    /// assert!(tickets.iter().all(|ticket| ticket.is_durable()));
    /// # drop((tickets, readings));
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`WriteTxn::commit`] that occur before visibility: the transaction has had no
    /// effect.
    pub fn submit(self) -> Result<Ticket> {
        let ticket = self.make_visible(|| {})?.counted_from(None);
        ticket.glance();
        Ok(ticket)
    }

    /// Commits, and requests the flush that the durability requires. Neither waits for the flush
    /// nor checks that a logger lives.
    pub(crate) fn make_visible(mut self, then: impl FnOnce()) -> Result<Ticket> {
        let client = self.store.client().clone();
        client.check_usable()?;
        let durability = self.durability;
        let deadline_ns = durability.deadline_ns();
        let write = self.write.take().expect("open until commit");
        let base = write.base();
        let unlock = Unlock(&client, durability.class());
        let committed = write.commit(deadline_ns);
        let published_ns = (durability != Durability::Visible).then(now_ns);
        let committed = committed.inspect(|_| then());
        // The lock is released at the publication; the wait for durability does not hold it.
        drop(unlock);
        let committed = committed?;
        match deadline_ns {
            None => client.engine.control.fixed().logger.wake_flusher_at(committed.lsn),
            Some(by) => client.engine.tell_logger_by(committed.lsn, by),
        }
        let (deadline_ns, published_ns) =
            if committed.txn == base { (None, None) } else { (deadline_ns, published_ns) };
        if committed.txn != base {
            client.count_commit();
            if deadline_ns.is_some() {
                client.engine.control.fixed().counters.deadline_commits.add(1);
            }
        }
        let ticket = Ticket::new(client, committed.txn, committed.lsn);
        Ok(ticket.with_deadline(deadline_ns).counted_from(published_ns))
    }

    /// Undoes all changes of the transaction. Dropping does the same.
    pub fn rollback(self) {}
}

/// Releases the writer lock, also if a commit panics. This process lives on, so no other process
/// would take the lock over. Before the publication nothing has happened, after it everything has,
/// so the next owner can continue in either case.
struct Unlock<'c>(&'c DirectClient, CommitClass);

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        self.0.admission.leave(&self.0.engine, self.1);
    }
}

fn named(error: Error, keyspace: &Keyspace) -> Error {
    match error {
        Error::NoKeyspace { .. } => Error::NoKeyspace { name: keyspace.name().into() },
        other => other,
    }
}

impl Drop for WriteTxn<'_> {
    fn drop(&mut self) {
        if self.write.take().is_some() && !self.store.client().is_forked() {
            let client = self.store.client();
            client.admission.leave(&client.engine, self.durability.class());
        }
    }
}

impl fmt::Debug for WriteTxn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTxn").field("base", &self.base_txn_id()).finish_non_exhaustive()
    }
}

/// An iterator over the entries of a range as a write transaction sees them.
pub struct TxnRange<'t, 's> {
    txn: &'t WriteTxn<'s>,
    cursor: RangeCursor,
}

impl<'t> TxnRange<'t, '_> {
    fn step(&mut self, back: bool) -> Result<Option<(Key, &'t [u8])>> {
        let work = self.txn.work()?;
        let found = if back { self.cursor.next_back(work)? } else { self.cursor.next(work)? };
        Ok(found.map(|entry| {
            let mut key = Vec::new();
            entry.key.key_into(&mut key);
            (Key(key), entry.value)
        }))
    }
}

impl<'t> Iterator for TxnRange<'t, '_> {
    type Item = Result<(Key, &'t [u8])>;
    fn next(&mut self) -> Option<Self::Item> {
        self.step(false).transpose()
    }
}

impl DoubleEndedIterator for TxnRange<'_, '_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(true).transpose()
    }
}
