//! The change feed by message.

use crate::change::{Change, ChangeKind, Feed};
use crate::remote::Client;
use crate::remote::connection::{Kind, Link};
use crate::shared::memory::fork::ForkGuard;
use crate::system::clock;
use crate::{Error, Result, TxnId};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use untorn_wal::wire;
use untorn_wal::wire::{Happened, Reply, Request};

/// The longest wait of one request at the server.
const WAIT_MAX: Duration = Duration::from_millis(wire::CHANGES_WAIT_MS_MAX as u64);

/// An iterator over the changes of a store after a given transaction, in commit order; made by
/// [`Client::changes`].
///
/// As [`crate::Changes`], it blocks when it is used as an iterator, has no end, and delays no
/// writer. It has a connection of its own. Changes of keyspaces that the client may not read are
/// left out.
///
/// # When the connection breaks
/// If the connection breaks between two transactions, the feed continues over another one. In the
/// middle of a transaction it returns [`Error::Disconnected`], and then begins with that
/// transaction again. Another logger may have made that transaction durable since: see
/// [`RemoteChanges::resume_from`].
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// # let store = untorn::Store::open(&path)?;
/// use std::time::Duration;
/// use untorn::{Client, Feed};
///
/// let remote = Client::connect(path.join("logger.sock"))?;
/// let mut changes = remote.changes_from_now(Feed::Durable)?.keyspace("users");
/// remote.put("users", b"alice", b"1")?;
/// let change = changes.try_next(Duration::from_secs(10))?.expect("it was put before");
/// assert_eq!((change.key(), change.value()), (&b"alice"[..], Some(&b"1"[..])));
/// # drop((changes, remote, store));
/// # untorn::logger::stop_logger(&path, Duration::from_secs(10))?;
/// # Ok(())
/// # }
/// ```
pub struct RemoteChanges {
    link: Link,
    fork: ForkGuard,
    feed: Feed,
    keyspace: Option<String>,
    prefix: Vec<u8>,
    /// Whether this feed is open at the server on this connection.
    is_open: bool,
    /// Everything up to this transaction was delivered.
    position: TxnId,
    /// Everything up to this transaction is delivered once `pending` is.
    through: TxnId,
    pending: VecDeque<Change>,
    /// Whether the change that was delivered last was not the last of its transaction.
    is_inside: bool,
}

impl Client {
    /// Returns the changes of all transactions after `from`, as they become visible or durable. See
    /// [`crate::Store::changes`].
    ///
    /// # Errors
    /// [`Error::Lagged`] if what follows `from` is no longer retained; [`Error::Diverged`] if there
    /// is no transaction `from`, or a power loss took it back; [`Error::Disconnected`];
    /// [`Error::Busy`] if there can be no further connection.
    pub fn changes(&self, from: TxnId, feed: Feed) -> Result<RemoteChanges> {
        self.open_changes(Some(from), feed)
    }

    /// Returns the changes of all transactions after those that are visible, or durable, now.
    ///
    /// # Errors
    /// Those of [`Client::changes`].
    pub fn changes_from_now(&self, feed: Feed) -> Result<RemoteChanges> {
        self.open_changes(None, feed)
    }

    fn open_changes(&self, from: Option<TxnId>, feed: Feed) -> Result<RemoteChanges> {
        self.check_fork()?;
        let mut link = self.link.lock().another();
        link.connect()?;
        let mut changes = RemoteChanges {
            link,
            fork: self.fork,
            feed,
            keyspace: None,
            prefix: Vec::new(),
            is_open: false,
            position: TxnId::ZERO,
            through: TxnId::ZERO,
            pending: VecDeque::new(),
            is_inside: false,
        };
        changes.open(from)?;
        Ok(changes)
    }
}

impl RemoteChanges {
    /// Selects only changes of the keyspace with this name. Call it before the first change is
    /// taken.
    #[must_use]
    pub fn keyspace(mut self, name: &str) -> RemoteChanges {
        self.keyspace = Some(name.into());
        self.is_open = false;
        self
    }

    /// Selects only changes of keys that begin with `prefix`, and drops of keyspaces. Of a range
    /// that was removed, only the part that begins with `prefix` is delivered. Call it before the
    /// first change is taken.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> RemoteChanges {
        self.prefix = prefix.as_ref().into();
        self.is_open = false;
        self
    }

    /// Returns the id to resume from. Everything up to this transaction has been delivered, or did
    /// not match.
    pub fn resume_from(&self) -> TxnId {
        self.position
    }

    /// Returns the next change, or `None` if none arrived within `timeout`.
    ///
    /// # Errors
    /// Those of [`crate::Changes::try_next`]; [`Error::NotAllowed`]; [`Error::Disconnected`];
    /// [`Error::Limit`] for a value longer than 16 MiB, which only a direct client can follow.
    pub fn try_next(&mut self, timeout: Duration) -> Result<Option<Change>> {
        self.next_until(clock::now().checked_add(timeout))
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Change>> {
        if self.fork.is_child() {
            return Err(Error::Forked);
        }
        loop {
            if let Some(change) = self.pending.pop_front() {
                self.is_inside = !change.last_in_txn();
                if change.last_in_txn() {
                    self.position = change.txn_id();
                }
                self.settle();
                return Ok(Some(change));
            }
            if !self.is_open {
                self.open(Some(self.position))?;
            }
            let left = deadline.map_or(WAIT_MAX, |deadline| deadline.saturating_duration_since(clock::now()));
            let wait = left.min(WAIT_MAX).min(self.link.answer_timeout() / 2);
            let request = Request::ChangesNext { wait_ms: wait.as_millis() as u32 };
            match self.link.call(Kind::Bound, &request, read) {
                Ok((through, changes)) => {
                    (self.through, self.pending) = (through, changes);
                    self.settle();
                    if self.pending.is_empty() && deadline.is_some_and(|deadline| clock::now() >= deadline) {
                        return Ok(None);
                    }
                }
                Err(error @ Error::Disconnected { .. }) => {
                    self.is_open = false;
                    // The timeout also ends the calls to a server that disconnects each time.
                    let is_over = deadline.is_some_and(|deadline| clock::now() >= deadline);
                    if std::mem::take(&mut self.is_inside) || is_over {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Records how far everything has been delivered.
    fn settle(&mut self) {
        if self.pending.is_empty() && !self.is_inside {
            self.position = self.position.max(self.through);
        }
    }

    /// Opens the feed at the server, over another connection if necessary.
    fn open(&mut self, from: Option<TxnId>) -> Result<()> {
        let request = Request::Changes {
            from: from.map(TxnId::as_u64),
            feed: match self.feed {
                Feed::Durable => wire::Feed::Durable,
                Feed::Visible => wire::Feed::Visible,
            },
            keyspace: self.keyspace.as_deref(),
            prefix: &self.prefix,
        };
        let (through, _) = self.link.call(Kind::Read, &request, read)?;
        (self.position, self.through, self.is_open) = (through, through, true);
        Ok(())
    }
}

fn read(reply: Reply<'_>) -> Option<(TxnId, VecDeque<Change>)> {
    let Reply::Changes { through, changes } = reply else { return None };
    let mut keyspace: Arc<str> = "".into();
    let read = |item: wire::ChangeItem<'_>| {
        if *keyspace != *item.keyspace {
            keyspace = item.keyspace.into();
        }
        let (kind, value, end) = match item.what {
            Happened::Put(value) => (ChangeKind::Put, Some(value.to_vec()), None),
            Happened::Delete => (ChangeKind::Delete, None, None),
            Happened::DropKeyspace => (ChangeKind::DropKeyspace, None, None),
            // No server sends the removal of an empty or inverted range.
            Happened::DeleteRange { end: Some(end) } if end <= item.key => return None,
            Happened::DeleteRange { end } => (ChangeKind::DeleteRange, None, end),
        };
        Some(Change {
            txn: TxnId::from_u64(item.txn),
            keyspace: keyspace.clone(),
            kind,
            key: item.key.to_vec(),
            end: end.map(<[u8]>::to_vec),
            value,
            last: item.is_last_in_txn,
        })
    };
    let changes = changes.0.into_iter().map(read).collect::<Option<_>>()?;
    Some((TxnId::from_u64(through), changes))
}

impl Iterator for RemoteChanges {
    type Item = Result<Change>;

    /// Blocks until there is a change. Never returns `None`.
    fn next(&mut self) -> Option<Result<Change>> {
        loop {
            match self.next_until(None) {
                Ok(None) => {}
                Ok(Some(change)) => return Some(Ok(change)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl fmt::Debug for RemoteChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteChanges")
            .field("feed", &self.feed)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
