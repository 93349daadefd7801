//! The store handle: opening, transactions, snapshots, durability, monitoring.

use crate::Durability;
use crate::api::cells::sampling;
use crate::api::feed::changes::Changes;
use crate::api::keyspace::{Keyspace, refuse_reserved};
use crate::api::left_in_order;
use crate::api::monitoring::verify;
use crate::api::monitoring::verify::VerifyReport;
use crate::api::snapshot::Snapshot;
use crate::api::ticket::Ticket;
use crate::api::write_txn::WriteTxn;
use crate::change::Feed;
use crate::files::dir::Dir;
use crate::participant::options::{FlushPolicy, Options};
use crate::participant::settings;
use crate::process::client::DirectClient;
use crate::shared::stats::Stats;
use crate::system::clock::now_ns;
use crate::txn::write::Write;
use crate::{Error, Result, TxnId};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A store: an ordered key-value map in a directory, which several processes use at once.
///
/// Cheap to clone; all handles of a process to one directory share one mapping. Threads may share
/// it and everything made from it, except a [`WriteTxn`], which stays on its thread.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// let store = untorn::Store::open(&path)?;
/// let users = store.keyspace("users")?;
/// users.put("alice", "1")?; // on return an fsync has covered it
/// assert_eq!(users.get("alice")?.unwrap(), "1");
/// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
///
/// # Fork and exec
/// A child of `fork()` can't use anything that its parent opened: each call returns
/// [`Error::Forked`], dropping does nothing, and the parent is unharmed, whatever its threads were
/// doing. The child may open the store for itself, at any depth. The bytes of a [`crate::Value`]
/// must not be read there: they are not mapped. This holds for the `fork()` of the C library, not
/// for a raw `clone` system call that copies memory. `exec`, like death, releases at once whatever
/// the process held.
#[derive(Clone)]
pub struct Store {
    client: Arc<DirectClient>,
    settings: HandleSettings,
}

/// What a handle adds to the client that it shares with the other handles.
#[derive(Clone, Copy)]
pub(crate) struct HandleSettings {
    durability: Durability,
    read_only: bool,
    lock_timeout: Option<Duration>,
}

impl Store {
    /// Opens the store in the directory `path` and creates it if there is none. Starts a logger
    /// process if none runs.
    ///
    /// Blocks while another process initialises or recovers the store. Recovery takes time in
    /// proportion to the log since the last checkpoint.
    ///
    /// If the store was left in order, that is, by all processes and at last by its logger, the
    /// call may return before the logger serves. Reads do not wait for the logger. The first write
    /// does, and returns [`Error::LoggerUnavailable`], or the error that the logger reported, if
    /// none serves; later writes try again. Dropping the last handle waits up to 2 s for a logger
    /// that is still starting.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Permission`], [`Error::UnsupportedFileSystem`] if the
    /// directory can't be used; [`Error::Corrupt`] and [`Error::Mismatch`] for files that are
    /// damaged or are no store of this version; [`Error::LoggerUnavailable`] if no logger could be
    /// started, as far as the call waits for that.
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        Options::default().open(path)
    }

    /// Returns the default options, to be changed before a store is opened with them.
    pub fn options() -> Options {
        Options::default()
    }

    pub(crate) fn open_with(path: &Path, options: &Options) -> Result<Store> {
        Store::open_in(Dir::open(path, options.create, options.any_file_system, options.ownership())?, options)
    }

    pub(crate) fn open_in(dir: Dir, options: &Options) -> Result<Store> {
        let client = DirectClient::join(dir, options, left_in_order::make_region)?;
        let store = Store {
            client,
            settings: HandleSettings {
                durability: options.durability,
                read_only: options.read_only,
                lock_timeout: options.lock_timeout,
            },
        };
        if let Some(policy) = options.flush_policy {
            store.set_flush_policy(policy)?;
        }
        let engine = &store.client.engine;
        if let Some(idle) = options.logger_idle {
            engine.control.fixed().logger.settings.set_idle(idle);
        }
        if let Some(interval) = options.sample_interval {
            engine.control.cells().set_interval(interval);
        }
        if let Some(bytes) = options.checkpoint_bytes {
            engine.control.fixed().logger.settings.set_checkpoint_bytes(bytes);
        }
        if let Some(retention) = options.retention {
            engine.control.fixed().logger.settings.set_retention(retention);
        }
        Ok(store)
    }

    #[inline]
    pub(crate) fn client(&self) -> &Arc<DirectClient> {
        &self.client
    }

    /// Returns a handle of a client with these settings.
    pub(crate) fn from_parts(client: Arc<DirectClient>, settings: HandleSettings) -> Store {
        Store { client, settings }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.settings.read_only
    }

    /// Returns a handle to the same store with another default durability.
    pub(crate) fn with_durability(&self, durability: Durability) -> Store {
        Store { client: self.client.clone(), settings: HandleSettings { durability, ..self.settings } }
    }

    pub(crate) fn lock_timeout(&self) -> Option<Duration> {
        self.settings.lock_timeout
    }

    fn refuse_read_only(&self) -> Result<()> {
        self.client.check_usable()?;
        if self.settings.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    // ---- keyspaces

    /// Returns the keyspace of this name. If there is none, creates it in a transaction of its own.
    ///
    /// # Errors
    /// [`Error::Limit`] if the name is longer than 255 bytes, [`Error::NoKeyspace`] if the store
    /// was opened read-only and there is none; those of a commit.
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        if let Some(keyspace) = self.find_keyspace(name)? {
            return Ok(keyspace);
        }
        if self.settings.read_only {
            return Err(Error::NoKeyspace { name: name.into() });
        }
        refuse_reserved(name)?;
        let mut txn = self.begin()?;
        let keyspace = txn.keyspace(name)?;
        txn.commit()?;
        Ok(keyspace)
    }

    /// Returns the keyspace of this name, if there is one.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Forked`].
    pub fn find_keyspace(&self, name: &str) -> Result<Option<Keyspace>> {
        self.snapshot()?.find_keyspace(name)
    }

    /// Returns the names of all keyspaces, in the order in which they were created.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Forked`].
    pub fn keyspaces(&self) -> Result<Vec<String>> {
        self.snapshot()?.keyspaces()
    }

    /// Drops a keyspace with all its entries, as one transaction at the store's default durability.
    /// Returns whether the keyspace existed. Takes time in proportion to the keyspace's pages,
    /// under the writer lock.
    ///
    /// # Errors
    /// Those of [`Store::begin`] and [`WriteTxn::commit`].
    pub fn drop_keyspace(&self, name: &str) -> Result<bool> {
        let mut txn = self.begin()?;
        let found = txn.drop_keyspace(name)?;
        txn.commit()?;
        Ok(found)
    }

    // ---- transactions

    /// Begins the exclusive write transaction at the store's default durability. It rolls back when
    /// dropped.
    ///
    /// Waits for the writer lock, which one transaction of all processes holds from `begin` to
    /// commit. If the holder was killed, its transaction is undone. Its death is noticed within
    /// milliseconds of the release of its memory, which takes the kernel some 90 ms per GiB. A
    /// holder that is stopped keeps the lock.
    ///
    /// # Errors
    /// [`Error::TransactionOpen`] if this thread has one open already, [`Error::LockTimeout`] if
    /// [`Options::lock_timeout`] was set, [`Error::ReadOnly`], [`Error::NeedsRecovery`],
    /// [`Error::Forked`].
    pub fn begin(&self) -> Result<WriteTxn<'_>> {
        self.begin_within(self.settings.durability, self.settings.lock_timeout)
    }

    /// Begins a transaction as [`Store::begin`] does, at `durability` instead of the store's
    /// default. The durability decides when [`WriteTxn::commit`] returns and by when the logger
    /// flushes. It also decides the class in which the transaction waits for the lock: a
    /// [`Durability::Visible`] one gives way to those that wait for the disk.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// # let users = store.keyspace("users")?;
    /// use untorn::Durability;
    /// let mut txn = store.begin_with(Durability::Visible)?;
    /// txn.put(&users, b"alice", b"1")?;
    /// let ticket = txn.commit()?; // does not wait for the disk
    /// # drop((ticket, users));
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Store::begin`].
    pub fn begin_with(&self, durability: Durability) -> Result<WriteTxn<'_>> {
        self.begin_within(durability, self.settings.lock_timeout)
    }

    /// Begins a transaction as [`Store::begin`] does, waiting for the lock at most `timeout`; with
    /// [`Duration::ZERO`], it does not wait. Before its first transaction, a process may in addition
    /// wait for the logger that it started when it [opened](Store::open) the store.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// use std::time::Duration;
    /// use untorn::Error;
    /// let held = store.begin()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| assert!(matches!(store.begin_timeout(Duration::ZERO), Err(Error::LockTimeout { .. }))));
    /// });
    /// # drop(held);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Store::begin`]; [`Error::LockTimeout`] names the holder of the lock.
    pub fn begin_timeout(&self, timeout: Duration) -> Result<WriteTxn<'_>> {
        self.begin_within(self.settings.durability, Some(timeout))
    }

    fn begin_within(&self, durability: Durability, timeout: Option<Duration>) -> Result<WriteTxn<'_>> {
        self.begin_since(now_ns(), durability, timeout)
    }

    /// Begins a transaction as [`Store::begin_with`] does, for a caller that has waited since
    /// `asked_ns` on the monotonic clock and waits at most `timeout` in all. A caller that waits in
    /// slices passes the original start, so aging and latency count the whole wait.
    pub(crate) fn begin_since(
        &self,
        asked_ns: u64,
        durability: Durability,
        timeout: Option<Duration>,
    ) -> Result<WriteTxn<'_>> {
        self.refuse_read_only()?;
        self.client.engine.await_begun()?;
        self.client.admission.admit(&self.client.engine, durability.class(), asked_ns, timeout)?;
        match Write::begin(&self.client.engine) {
            Ok(write) => Ok(WriteTxn::new(self, write, durability)),
            Err(error) => {
                self.client.admission.leave(&self.client.engine, durability.class());
                Err(error)
            }
        }
    }

    // ---- snapshots and durability

    /// Returns a repeatable view of everything that is visible now. Never waits.
    ///
    /// # Errors
    /// [`Error::Forked`]; [`Error::Limit`] when 65,536 snapshots are pinned.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let pin = self.client.pin()?;
        Ok(Snapshot::new(self.settings, pin))
    }

    /// Returns a repeatable view of what survives a power loss: [`Store::snapshot`] without the
    /// commits that no fsync has covered yet. Never waits, except for the successor of a logger
    /// that has just died.
    ///
    /// # Errors
    /// Those of [`Store::snapshot`].
    pub fn durable_snapshot(&self) -> Result<Snapshot> {
        let pin = self.client.pin_durable()?;
        Ok(Snapshot::new(self.settings, pin))
    }

    /// Returns when everything that was visible at the call is durable, cells and counters
    /// included. The logger flushes at once under any policy.
    ///
    /// # Errors
    /// Those of [`Ticket::wait`]. If the store has cells, which a transaction samples:
    /// [`Error::TransactionOpen`] if this thread has one open; [`Error::LockTimeout`] if another
    /// one is open for longer than [`Options::lock_timeout`], if that was set.
    pub fn sync(&self) -> Result<()> {
        self.client.check_usable()?;
        if self.client.engine.control.cell_bound()? > 0 {
            self.client.admission.refuse_open_transaction()?;
            return self.sync_cells();
        }
        self.sync_records()
    }

    /// Returns when all values that cells and counters held at the call are durable.
    pub(crate) fn sync_cells(&self) -> Result<()> {
        sampling::wait_round(&self.client.engine, self.settings.lock_timeout)?;
        self.sync_records()
    }

    fn sync_records(&self) -> Result<()> {
        let newest = self.client.engine.control.newest()?;
        Ticket::new(self.client.clone(), newest.txn, newest.log_tail).wait_hurrying(None)?;
        Ok(())
    }

    /// Takes a checkpoint and returns when it is finished. It covers everything that was visible at
    /// the call, so recovery need not replay it. Returns the newest transaction that it covers.
    ///
    /// It begins between two write transactions. A transaction that is open for long, or whose
    /// process is stopped, delays it.
    ///
    /// # Errors
    /// [`Error::TransactionOpen`] if this thread has one open; [`Error::LockTimeout`] if another
    /// one is open for longer than [`Options::lock_timeout`], if that was set;
    /// [`Error::LoggerStalled`] and those of starting a logger; [`Error::NeedsRecovery`] if the
    /// arena can't be synced.
    pub fn checkpoint(&self) -> Result<TxnId> {
        self.client.check_usable()?;
        self.client.admission.refuse_open_transaction()?;
        self.client.engine.await_begun()?;
        settings::wait_checkpoint(&self.client.engine, self.settings.lock_timeout)
    }

    /// Sets when the logger syncs, from now on, for all processes of the store.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn set_flush_policy(&self, policy: FlushPolicy) -> Result<()> {
        self.client.check_usable()?;
        settings::set_policy(&self.client.engine, policy);
        Ok(())
    }

    // ---- following the changes

    /// Returns the changes of all transactions after `from`, as they become visible or durable,
    /// whichever process makes them.
    ///
    /// [`TxnId::ZERO`] stands for the beginning, `store.snapshot()?.txn_id()` for now. Returns at
    /// once.
    ///
    /// # Errors
    /// [`Error::Lagged`] if what follows `from` is no longer retained, with the oldest id from
    /// which it can begin; [`Error::Diverged`] if there is no transaction `from`, or a power loss
    /// took it back; [`Error::Corrupt`], [`Error::Io`], [`Error::Forked`].
    pub fn changes(&self, from: TxnId, feed: Feed) -> Result<Changes> {
        self.client.engine.prefer_begun();
        Changes::new(self.client.clone(), from, feed)
    }

    // ---- monitoring and checking

    /// Returns figures of the store as of now, for display and for monitoring. To count the pages
    /// that each pinned snapshot protects, it reads the lists of pages that wait for reuse. That
    /// takes time in proportion to their number. Waits up to 1 s for a logger that is starting.
    ///
    /// # Errors
    /// [`Error::Forked`]; [`Error::Corrupt`].
    pub fn stats(&self) -> Result<Stats> {
        self.client.check_usable()?;
        self.client.engine.prefer_begun();
        Stats::gather(&self.client)
    }

    /// Checks the whole store as of now, while writers run. Each page must be reachable, free or
    /// waiting for reuse, and exactly one of these. Order, counts, checksums and the log are
    /// checked as well. Damage is listed in the report, not returned as an error.
    ///
    /// # Errors
    /// Only those that prevent the check: [`Error::Forked`], [`Error::Io`].
    pub fn verify(&self) -> Result<VerifyReport> {
        self.client.check_usable()?;
        self.client.engine.prefer_begun();
        verify::verify(&self.client)
    }

    /// Closes this handle; the last one of the process leaves the store. Dropping does the same.
    ///
    /// Visible commits remain visible, and become durable by the flush policy. Call [`Store::sync`]
    /// first to wait for that.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn close(self) -> Result<()> {
        self.client.check_usable()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.client.engine.dir.path()).finish_non_exhaustive()
    }
}
