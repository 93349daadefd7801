//! The message-passing client: a store used through the socket of its logger, without mapping
//! anything.
//!
//! - `connection`: one connection: requests, replies, and the loss of either
//! - `batch`: several changes as one transaction
//! - `cells`: cells and counters
//! - `changes`: the change feed
//! - `scan`: ranges, piece by piece
//! - `stats`: figures of the store
//!
//! The protocol is in `untorn_wal::wire` and `docs/protocol.md`; the server in `server`.

mod batch;
mod cells;
mod changes;
mod connection;
mod scan;
mod stats;

pub use batch::{Batch, CommitOutcome};
pub use changes::RemoteChanges;
pub use scan::Scan;

use crate::key_range::KeyRange;
use crate::shared::memory::fork::ForkGuard;
use crate::system::sync::Mutex;
use crate::{CasOutcome, Durability, Error, Result, TxnId};
use connection::{Kind, Link};
use scan::edge;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use untorn_wal::wire::{FoundValue, List, Reply, Request};

/// A message-passing client of a store, made by [`Client::connect`].
///
/// It sends each call to the store's logger over a Unix socket and waits for the reply. It maps
/// nothing of the store, so it can't corrupt it. It is for processes that are less trusted than
/// those that open the directory, or that see only the socket of the store, such as processes in
/// other containers. A call takes tens of microseconds; one of a direct [`crate::Store`] takes at
/// most one.
///
/// Threads may share a client; their calls are made one after the other. For concurrent calls,
/// connect once per thread.
///
/// # When the connection breaks
/// A read is sent again over a new connection, if one can be made within
/// [`ClientOptions::reconnect_timeout`]. A write whose reply is lost returns [`Error::InDoubt`]: it
/// is not sent again.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// # let store = untorn::Store::open(&path)?;
/// use untorn::{Batch, Client, CommitOutcome};
///
/// let remote = Client::connect(path.join("logger.sock"))?;
/// let alice = remote.put("users", b"alice", b"1")?; // durable on return
/// assert_eq!(remote.get("users", b"alice")?.as_deref(), Some(&b"1"[..]));
///
/// let mut batch = Batch::new();
/// batch.expect_version("users", b"alice", alice).put("users", b"alice", b"2").put("audit", b"1", b"alice: 2");
/// let CommitOutcome::Committed(txn) = remote.commit(&batch)? else { panic!("another client was faster") };
///
/// for record in remote.scan("users", ..)? {
///     let (key, value) = record?;
///     println!("{key:?} {value:?} as of {txn} or later");
/// }
/// # drop((remote, store));
/// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(10))?;
/// # Ok(())
/// # }
/// ```
pub struct Client {
    link: Mutex<Link>,
    durability: Durability,
    fork: ForkGuard,
}

/// Options of [`Client::connect`]; made by [`Client::options`].
#[derive(Clone, Debug)]
pub struct ClientOptions {
    durability: Durability,
    answer_timeout: Duration,
    reconnect_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            durability: Durability::Durable,
            answer_timeout: Duration::from_secs(60),
            reconnect_timeout: Duration::from_secs(5),
        }
    }
}

impl ClientOptions {
    /// Sets the durability of writes that do not name one. Default: [`Durability::Durable`].
    ///
    /// The server limits the time of a commit ([`Durability::Within`]) to its timeout for a peer,
    /// which is 10 s unless its access file sets another. A longer time returns [`Error::Limit`],
    /// and the commit has no effect.
    pub fn durability(&mut self, durability: Durability) -> &mut ClientOptions {
        self.durability = durability;
        self
    }

    /// Sets how long a call waits for its reply before the connection is given up, in addition to
    /// the time of a write at [`Durability::Within`]. Default: 60 s. The server itself stops
    /// waiting for the writer lock after 10 s, and for the disk after 30 s.
    pub fn answer_timeout(&mut self, timeout: Duration) -> &mut ClientOptions {
        self.answer_timeout = timeout;
        self
    }

    /// Sets how long a call tries to connect again after the connection broke, since a new logger
    /// may be starting. Default: 5 s.
    pub fn reconnect_timeout(&mut self, timeout: Duration) -> &mut ClientOptions {
        self.reconnect_timeout = timeout;
        self
    }

    /// Connects; see [`Client::connect`].
    ///
    /// # Errors
    /// Those of [`Client::connect`].
    pub fn connect(&self, socket: impl AsRef<Path>) -> Result<Client> {
        // Later connections start from the same path.
        let mut link =
            Link::new(crate::files::dir::absolute(socket.as_ref())?, self.answer_timeout, self.reconnect_timeout);
        link.connect()?;
        Ok(Client { link: Mutex::new(link), durability: self.durability, fork: ForkGuard::new()? })
    }
}

impl Client {
    /// Connects to the socket of a store. It is `logger.sock` in the store's directory, unless the
    /// store's access file names another.
    ///
    /// A logger must run. A direct client starts one when it opens the store. If there are no
    /// direct clients, a supervisor runs `untorn-logger STORE --idle never`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such file; [`Error::Disconnected`] if no server answers;
    /// [`Error::Invalid`] if the absolute form of the path is longer than system calls allow, or
    /// there is none; [`Error::NotAllowed`] if the store's access file does not admit this user;
    /// [`Error::Busy`]; [`Error::Protocol`] if the two sides have no version of the protocol in
    /// common.
    pub fn connect(socket: impl AsRef<Path>) -> Result<Client> {
        ClientOptions::default().connect(socket)
    }

    /// Returns the default options of a client.
    pub fn options() -> ClientOptions {
        ClientOptions::default()
    }

    /// Returns the notice that the server sent with its hello. To the store's owner, it reports an
    /// error in the access file.
    pub fn notice(&self) -> Option<String> {
        self.check_fork().ok()?;
        self.link.lock().notice().map(str::to_string)
    }

    fn check_fork(&self) -> Result<()> {
        if self.fork.is_child() { Err(Error::Forked) } else { Ok(()) }
    }

    /// Sends a request and reads its reply.
    fn call<T>(&self, kind: Kind, request: &Request<'_>, read: impl FnOnce(Reply<'_>) -> Option<T>) -> Result<T> {
        // Before the lock, which a child may have inherited locked.
        self.check_fork()?;
        self.link.lock().call(kind, request, read)
    }

    // ---- reading

    /// Returns the visible value of a key.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`]; [`Error::NotAllowed`]; [`Error::Limit`] for a value longer than 16
    /// MiB; [`Error::Disconnected`]; [`Error::Busy`]; [`Error::Corrupt`].
    pub fn get(&self, keyspace: &str, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        Ok(self.get_versioned(keyspace, key)?.map(|(value, _)| value))
    }

    /// Returns the visible value of a key and its version: the transaction that wrote it.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn get_versioned(&self, keyspace: &str, key: impl AsRef<[u8]>) -> Result<Option<(Vec<u8>, TxnId)>> {
        // Before the lock, which a child may have inherited locked.
        self.check_fork()?;
        let found = self.link.lock().call_for_value(&Request::Get { keyspace, key: key.as_ref() })?;
        Ok(found.map(|(value, version)| (value, TxnId::from_u64(version))))
    }

    /// Returns the visible values of several keys, all as of the same transaction.
    ///
    /// # Errors
    /// Those of [`Client::get`]; [`Error::Limit`] for more than 65,536 keys, or 16 MiB of keys or
    /// values.
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: &str,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let keys: Vec<K> = keys.into_iter().collect();
        let request = Request::MultiGet { keyspace, keys: List(keys.iter().map(AsRef::as_ref).collect()) };
        self.call(Kind::Read, &request, |reply| match reply {
            Reply::Values { values, .. } if values.0.len() == keys.len() => {
                Some(values.0.into_iter().map(|found| found.map(|found| owned(found).0)).collect())
            }
            _ => None,
        })
    }

    /// Returns the visible records of a range, in key order, as of one transaction. They arrive in
    /// pieces of up to 1 MiB.
    ///
    /// The server keeps the scan's snapshot between pieces: up to 10 s for each, and 10 min in all.
    /// A later request for the next piece returns [`Error::Stale`].
    ///
    /// # Errors
    /// Those of [`Client::get`]; [`Error::Limit`] if this client has 8 scans open.
    pub fn scan<R: KeyRange>(&self, keyspace: &str, range: R) -> Result<Scan<'_>> {
        Scan::open(self, keyspace, range.bounds(), false)
    }

    /// Returns the records of [`Client::scan`] in reverse key order.
    ///
    /// # Errors
    /// Those of [`Client::scan`].
    pub fn scan_back<R: KeyRange>(&self, keyspace: &str, range: R) -> Result<Scan<'_>> {
        Scan::open(self, keyspace, range.bounds(), true)
    }

    /// Returns the visible records whose keys begin with `prefix`; see [`Client::scan`].
    ///
    /// # Errors
    /// Those of [`Client::scan`].
    pub fn prefix(&self, keyspace: &str, prefix: impl AsRef<[u8]>) -> Result<Scan<'_>> {
        let prefix = prefix.as_ref();
        let end = crate::prefix::prefix_end(prefix);
        self.scan(keyspace, crate::prefix::prefix_bounds(prefix, end.as_deref()))
    }

    /// Returns the names of the keyspaces that this client may read, in the order in which they
    /// were created.
    ///
    /// # Errors
    /// [`Error::Disconnected`]; [`Error::Corrupt`].
    pub fn keyspaces(&self) -> Result<Vec<String>> {
        self.call(Kind::Read, &Request::Keyspaces, |reply| match reply {
            Reply::Names(names) => Some(names.0.into_iter().map(str::to_string).collect()),
            _ => None,
        })
    }

    // ---- writing

    /// Stores a value under a key, as one transaction at the client's default durability; creates
    /// the keyspace if there is none.
    ///
    /// # Errors
    /// [`Error::InDoubt`] if the reply was lost: the transaction may have happened.
    /// [`Error::NotDurable`], and an [`Error::LoggerStalled`] that names the transaction: it has
    /// happened. After all others it has not: [`Error::NotAllowed`]; [`Error::Limit`] for a key or
    /// value that is too long, here 16 MiB; [`Error::LockTimeout`]; [`Error::DiskFull`].
    pub fn put(&self, keyspace: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<TxnId> {
        self.put_with(keyspace, key, value, self.durability)
    }

    /// Stores a value as [`Client::put`] does, at `durability`.
    ///
    /// # Errors
    /// Those of [`Client::put`].
    pub fn put_with(
        &self,
        keyspace: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        durability: Durability,
    ) -> Result<TxnId> {
        let (key, value) = (key.as_ref(), value.as_ref());
        let request = Request::Put { keyspace, key, value, durability: connection::durability(durability) };
        self.call(Kind::Write, &request, |reply| match reply {
            Reply::Committed { txn } => Some(TxnId::from_u64(txn)),
            _ => None,
        })
    }

    /// Removes a key, as one transaction at the client's default durability. Returns whether the
    /// key was present.
    ///
    /// # Errors
    /// Those of [`Client::put`]; [`Error::NoKeyspace`].
    pub fn delete(&self, keyspace: &str, key: impl AsRef<[u8]>) -> Result<bool> {
        let key = key.as_ref();
        let request = Request::Delete { keyspace, key, durability: connection::durability(self.durability) };
        self.call(Kind::Write, &request, |reply| match reply {
            Reply::Deleted { was_there, .. } => Some(was_there),
            _ => None,
        })
    }

    /// Removes all keys of a range, as one transaction at the client's default durability. Returns
    /// the number of keys that were removed. A keyspace remains when its last key is removed.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let remote = untorn::Client::connect(path.join("logger.sock"))?;
    /// for hour in ["08:00", "09:00", "10:00"] {
    ///     remote.put("readings", hour, "21.5")?;
    /// }
    /// assert_eq!(remote.delete_range("readings", .."09:30")?, 2);
    /// assert_eq!(remote.delete_range("readings", ..)?, 1);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Client::put`]; [`Error::NoKeyspace`]; [`Error::Busy`] if other long writes are
    /// being served.
    pub fn delete_range<R: KeyRange>(&self, keyspace: &str, range: R) -> Result<u64> {
        let (lower, upper) = range.bounds();
        let durability = connection::durability(self.durability);
        let request = Request::DeleteRange { keyspace, lower: edge(lower), upper: edge(upper), durability };
        self.call(Kind::Write, &request, |reply| match reply {
            Reply::RangeDeleted { removed, .. } => Some(removed),
            _ => None,
        })
    }

    /// Commits a batch as one transaction at the client's default durability, if all of its
    /// conditions are met.
    ///
    /// # Errors
    /// Those of [`Client::put`]; [`Error::NoKeyspace`] for a deletion in a keyspace that does not
    /// exist.
    pub fn commit(&self, batch: &Batch) -> Result<CommitOutcome> {
        self.commit_with(batch, self.durability)
    }

    /// Commits a batch as [`Client::commit`] does, at `durability`.
    ///
    /// # Errors
    /// Those of [`Client::commit`].
    pub fn commit_with(&self, batch: &Batch, durability: Durability) -> Result<CommitOutcome> {
        let operations = List(batch.operations().collect());
        let request = Request::Commit { operations, durability: connection::durability(durability) };
        self.call(Kind::Write, &request, |reply| match reply {
            Reply::Committed { txn } => Some(CommitOutcome::Committed(TxnId::from_u64(txn))),
            Reply::Unmet { index, current } => {
                Some(CommitOutcome::Mismatch { index: index as usize, current: current.map(TxnId::from_u64) })
            }
            _ => None,
        })
    }

    /// Stores a value only if the key's version is the expected one; `None` expects the key to be
    /// absent.
    ///
    /// # Errors
    /// Those of [`Client::put`].
    pub fn compare_and_swap(
        &self,
        keyspace: &str,
        key: impl AsRef<[u8]>,
        expected: Option<TxnId>,
        value: impl AsRef<[u8]>,
    ) -> Result<CasOutcome> {
        let (key, value) = (key.as_ref(), value.as_ref());
        let mut batch = Batch::new();
        match expected {
            Some(version) => batch.expect_version(keyspace, key, version),
            None => batch.expect_absent(keyspace, key),
        };
        Ok(match self.commit(batch.put(keyspace, key, value))? {
            CommitOutcome::Committed(txn) => CasOutcome::Swapped(txn),
            CommitOutcome::Mismatch { current, .. } => CasOutcome::Mismatch { current },
        })
    }

    /// Returns when everything that was visible at the call is durable. The logger flushes at once
    /// under any policy. Needs the right to write at least one name.
    ///
    /// # Errors
    /// [`Error::NotAllowed`]; [`Error::Disconnected`]; [`Error::NotDurable`];
    /// [`Error::LoggerStalled`].
    pub fn sync(&self) -> Result<()> {
        self.call(Kind::Read, &Request::Sync, done)
    }

    // ---- the store as a whole

    /// Takes a checkpoint and returns when it is finished. Returns the newest transaction that it
    /// covers. Needs the right to write everything.
    ///
    /// # Errors
    /// [`Error::NotAllowed`]; [`Error::LockTimeout`] if a transaction delays it for 10 s;
    /// [`Error::NeedsRecovery`]; [`Error::Disconnected`].
    pub fn checkpoint(&self) -> Result<TxnId> {
        self.call(Kind::Read, &Request::Checkpoint, |reply| match reply {
            Reply::Committed { txn } => Some(TxnId::from_u64(txn)),
            _ => None,
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("durability", &self.durability).finish_non_exhaustive()
    }
}

fn done(reply: Reply<'_>) -> Option<()> {
    matches!(reply, Reply::Done).then_some(())
}

fn owned(found: FoundValue<'_>) -> (Vec<u8>, TxnId) {
    (found.value.to_vec(), TxnId::from_u64(found.version))
}
