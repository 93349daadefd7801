//! The public type of the change feed: every committed change, in order, from any process.

use crate::api::feed::{
    Admit, ChangeFilter, CursorStep, Delivery, KeyspaceNames, LogReader, ReadLimit, TransactionCursor,
    TransactionFilter, locate,
};
use crate::change::{Change, Feed};
use crate::files::dir;
use crate::process::client::DirectClient;
use crate::shared::protocols::event_count::EVENT_WAIT_MAX;
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::{Error, Result, TxnId};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use untorn_wal::record::RecordKind;

/// How long a follower's request to be notified of each visible commit remains valid. The follower
/// sleeps at most half of that.
const VISIBLE_REQUEST_NS: u64 = 2 * EVENT_WAIT_MAX.as_nanos() as u64;

/// An iterator over the changes of a store after a given transaction, in commit order; made by
/// [`Store::changes`].
///
/// Each changed key is one item, and so is each range that was removed. The changes of one
/// transaction come together, in the order in which they were made. The last of them is marked by
/// [`Change::last_in_txn`].
///
/// - A key that a transaction changed several times comes once, with its last state. If the
///   transaction changed more than 262,144 keys, such a key may come several times, in order.
/// - A key that a transaction changed and then removed with a range comes before the range.
/// - A transaction that rolled back yields nothing.
/// - Samples of cells and counters are changes of the keyspace `untorn.cells`.
///
/// As an iterator, it blocks and has no end.
///
/// # Resuming
/// Store [`Changes::resume_from`], the id of the last transaction that was processed as a whole,
/// together with the data derived from the changes. After a restart, begin at that id: nothing is
/// missing, and nothing comes twice.
///
/// # Falling behind
/// A consumer delays no writer, and nothing is retained for it beyond [`Options::retain_changes`].
/// If it falls further behind, it gets [`Error::Lagged`] with the oldest id from which it can
/// continue. It must read from the store itself what it missed.
///
/// A value of at least 64 KiB is retained until a checkpoint contains it, and from then on until it
/// is overwritten or deleted and its space reused. If it is gone, the consumer gets the same error.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// use std::time::Duration;
/// use untorn::{Feed, Store};
///
/// let store = Store::open(&path)?;
/// let users = store.keyspace("users")?;
/// let mut changes = store.changes(store.snapshot()?.txn_id(), Feed::Durable)?.keyspace("users").prefix(b"al");
/// users.put(b"alice", b"1")?;
/// users.put(b"bob", b"2")?;
///
/// let change = changes.try_next(Duration::from_secs(10))?.expect("it was put before");
/// assert_eq!((change.key(), change.value(), change.last_in_txn()), (&b"alice"[..], Some(&b"1"[..]), true));
/// assert!(changes.try_next(Duration::ZERO)?.is_none());
/// # drop((changes, users, store));
/// # untorn::logger::stop_logger(&path, Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
///
/// [`Store::changes`]: crate::Store::changes
/// [`Options::retain_changes`]: crate::Options::retain_changes
pub struct Changes {
    client: Arc<DirectClient>,
    feed: Feed,
    filter: ChangeFilter,
    names: KeyspaceNames,
    reader: LogReader,
    /// Every transaction up to this one was delivered, or did not match.
    position: TxnId,
    txn_cursor: Option<TransactionCursor>,
    /// The newest bound seen.
    bound: ReadLimit,
}

impl Changes {
    pub(crate) fn new(client: Arc<DirectClient>, from: TxnId, feed: Feed) -> Result<Changes> {
        client.check_usable()?;
        let at = locate::position_after(&client, from)?;
        Ok(Changes {
            client,
            feed,
            filter: ChangeFilter::default(),
            names: KeyspaceNames::default(),
            reader: LogReader::new(at),
            position: from,
            txn_cursor: None,
            bound: ReadLimit { txn: from, lsn: at },
        })
    }

    /// Selects only changes of the keyspace with this name, across drops and new creations. Call it
    /// before the first change is taken.
    #[must_use]
    pub fn keyspace(mut self, name: &str) -> Changes {
        self.filter.keyspace = Some(name.into());
        self
    }

    /// Selects only changes of keys that begin with `prefix`, and drops of keyspaces. Of a range
    /// that was removed, only the part that begins with `prefix` is delivered. Call it before the
    /// first change is taken.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Changes {
        self.filter.prefix = prefix.as_ref().into();
        self
    }

    /// Returns the id to resume from. Everything up to this transaction has been delivered, or did
    /// not match.
    pub fn resume_from(&self) -> TxnId {
        self.position
    }

    /// Returns the next change, or `None` if none arrived within `timeout`. Once it has begun to
    /// deliver a transaction, it does not wait for more of it; but reading from disk what is no
    /// longer in memory takes time.
    ///
    /// A visible commit is noticed within a few milliseconds, or when the sync that the logger is
    /// making ends. The limit is 100 ms, also if the logger is stopped or dead.
    ///
    /// # Errors
    /// [`Error::Lagged`] if the feed fell behind what is retained; [`Error::Corrupt`] for damage,
    /// [`Error::Io`]; [`Error::Forked`]. A durable feed returns [`Error::LoggerStalled`] or
    /// [`Error::NeedsRecovery`] if there are commits that the logger does not make durable. An
    /// error skips no change. The call may be retried, and returns the same error while its cause
    /// lasts.
    pub fn try_next(&mut self, timeout: Duration) -> Result<Option<Change>> {
        // A timeout beyond the clock's range is no limit.
        self.next_until(clock::now().checked_add(timeout))
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Change>> {
        self.client.check_usable()?;
        loop {
            self.look()?;
            if let Advance::Change(change) = self.advance(&mut |_, _, _| Delivery::Whole)? {
                return Ok(Some(change));
            }
            // Also checked by the clock: if other processes keep committing changes that do not
            // match, there is always more to read.
            let is_late = deadline.is_some_and(|deadline| clock::now() >= deadline);
            if is_late || !self.wait(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Returns the next change that is available, if `admit` accepts it. Does not wait.
    pub(crate) fn next_admitted(&mut self, admit: Admit<'_>) -> Result<Advance> {
        self.client.check_usable()?;
        self.look()?;
        self.advance(admit)
    }

    /// Waits until there is more to read. Returns false if `deadline` came first.
    pub(crate) fn wait_for_more(&mut self, deadline: Instant) -> Result<bool> {
        self.wait(Some(deadline))
    }

    /// Frees memory whose contents can be read again, and returns the number of bytes still in use.
    pub(crate) fn let_go(&mut self) -> usize {
        self.reader = LogReader::new(self.reader.at());
        self.txn_cursor.as_mut().map_or(0, TransactionCursor::let_go)
    }

    /// Returns the next change before the bound.
    fn advance(&mut self, admit: Admit<'_>) -> Result<Advance> {
        let client = self.client.clone();
        let engine = &client.engine;
        loop {
            if let Some(txn_cursor) = &mut self.txn_cursor {
                let change = match txn_cursor.next(engine, &self.names, admit)? {
                    CursorStep::Change(change) => Some(change),
                    CursorStep::End => None,
                    CursorStep::Later => return Ok(Advance::Later),
                };
                // After the last change the transaction is delivered as a whole, and the consumer
                // may stop here.
                if change.as_ref().is_none_or(|change| change.last)
                    && let Some(txn_cursor) = self.txn_cursor.take()
                {
                    self.position = txn_cursor.end(&mut self.names);
                }
                if let Some(change) = change {
                    return Ok(Advance::Change(change));
                }
            }
            let Some(record) = self.reader.peek(engine, self.bound)? else { return Ok(Advance::Nothing) };
            if record.txn <= self.position || record.kind == RecordKind::Abort {
                self.reader.skip(&record);
                continue;
            }
            match record.kind {
                RecordKind::Frame => {
                    if !self.filter_stream()? {
                        return Ok(Advance::Nothing);
                    }
                }
                RecordKind::FrameCommit => {
                    let what = format!("transaction {} ends without having begun", record.txn);
                    return Err(Error::corrupt(dir::WAL, self.reader.at().0, what));
                }
                _ => {
                    let mut txn_filter = TransactionFilter::new();
                    let (at, payload) = (self.reader.at(), self.reader.payload(&record));
                    txn_filter.add(&client, &mut self.names, &self.filter, payload, at)?;
                    txn_filter.commit(&mut self.names);
                    let payload = if txn_filter.is_empty() { Vec::new() } else { payload.to_vec() };
                    self.txn_cursor =
                        Some(TransactionCursor::of_record(record.txn, txn_filter, self.filter.clone(), payload));
                    self.reader.skip(&record);
                }
            }
        }
    }

    /// Determines whether the streamed transaction that begins here commits, and builds its filter.
    /// Returns false if that is not known yet.
    fn filter_stream(&mut self) -> Result<bool> {
        let client = self.client.clone();
        let start = self.reader.at();
        let filtered = self.filter_stream_from(&client, start);
        if !matches!(filtered, Ok(true)) {
            self.reader = LogReader::new(start);
        }
        filtered
    }

    fn filter_stream_from(&mut self, client: &Arc<DirectClient>, start: untorn_wal::Lsn) -> Result<bool> {
        let mut txn_filter = TransactionFilter::new();
        let mut txn = None;
        while let Some(record) = self.reader.peek(&client.engine, self.bound)? {
            // The transaction was rolled back. A log that an earlier version recovered may lack the
            // abort record.
            let is_other = *txn.get_or_insert(record.txn) != record.txn;
            if is_other || matches!(record.kind, RecordKind::Abort | RecordKind::Commit) {
                return Ok(true);
            }
            txn_filter.add(client, &mut self.names, &self.filter, self.reader.payload(&record), start)?;
            self.reader.skip(&record);
            if record.kind == RecordKind::FrameCommit || planted_bug!("feed-open-stream") {
                txn_filter.commit(&mut self.names);
                let end = self.reader.at();
                self.txn_cursor = Some(if txn_filter.is_empty() {
                    TransactionCursor::of_record(record.txn, txn_filter, self.filter.clone(), Vec::new())
                } else {
                    TransactionCursor::of_stream(record.txn, txn_filter, self.filter.clone(), start, end)
                });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Loads the read limit. Returns whether it has advanced.
    fn look(&mut self) -> Result<bool> {
        let bound = bound_of(&self.client, self.feed)?;
        let moved = bound.is_some_and(|bound| bound.txn > self.bound.txn);
        if let Some(bound) = bound.filter(|_| moved) {
            self.bound = bound;
        }
        Ok(moved)
    }

    /// Waits until the read limit can advance. Returns false if the deadline came first.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let engine = &self.client.engine;
        let words = &engine.control.fixed().feed;
        let start = clock::now();
        let mut watch = engine.watch_logger();
        let seen = self.bound.txn;
        let ended = words.event.wait_until_by(
            deadline,
            EVENT_WAIT_MAX,
            || {
                if self.feed == Feed::Visible {
                    words.follow_visible_until(now_ns() + VISIBLE_REQUEST_NS);
                }
                match bound_of(&self.client, self.feed) {
                    Ok(bound) => bound.filter(|bound| bound.txn > seen).map(|_| Ok(())),
                    Err(error) => Some(Err(error)),
                }
            },
            || {
                let durable = engine.control.durable().map(|(txn, _)| txn);
                if self.feed == Feed::Visible || durable == Some(engine.control.committed()) {
                    watch = engine.watch_logger();
                    // No change can follow in a directory that was removed. Other reasons may pass.
                    return match engine.find_logger() {
                        Err(error @ Error::Detached { .. }) => Err(error),
                        _ => Ok(()),
                    };
                }
                engine.refuse_broken_log()?;
                watch.check(engine, start)
            },
        );
        Ok(ended?.is_some())
    }
}

/// The result of [`Changes::next_admitted`].
pub(crate) enum Advance {
    Change(Change),
    /// There is no more before the bound.
    Nothing,
    /// The next change was postponed.
    Later,
}

/// Returns the read limit of a feed, or `None` while the logger advances it.
fn bound_of(client: &DirectClient, feed: Feed) -> Result<Option<ReadLimit>> {
    let control = &client.engine.control;
    if feed == Feed::Visible || planted_bug!("feed-before-fsync") {
        let image = control.newest()?;
        return Ok(Some(ReadLimit { txn: image.txn, lsn: image.log_tail }));
    }
    Ok(control.durable().map(|(txn, lsn)| ReadLimit { txn, lsn }))
}

impl Iterator for Changes {
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

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("feed", &self.feed).field("position", &self.position).finish_non_exhaustive()
    }
}
