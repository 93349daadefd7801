//! The change feed as its users see it: every committed change, in order, from any process.

use crate::api::feed::{
    Admission, Admit, ChangeFilter, CursorStep, KeyspaceNames, ReadLimit, Reader, TransactionCursor, TransactionFilter,
    locate,
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

/// For how long a follower's wish to hear of each visible commit stands; it naps no longer than
/// half of that.
const VISIBLE_REQUEST_NS: u64 = 2 * EVENT_WAIT_MAX.as_nanos() as u64;

/// The changes of a store after some transaction, in the order in which they were committed; made
/// by [`Store::changes`].
///
/// Each changed key is one item, and so is each range that was removed; those of one transaction
/// come together, in the order in which they were made, the last of them marked by
/// [`Change::last_in_txn`]. A key that a transaction changed several times comes once, as the
/// transaction left it (but several times, in order, if it changed more than 262,144 keys). A key
/// that it changed and then removed with a range comes before the range. Of a transaction that
/// rolled back nothing comes. Samples of cells and counters are changes, too, of the keyspace
/// `untorn.cells`. As an
/// iterator it blocks and has no end.
///
/// # Resuming
/// Keep the id of the last transaction of which everything was processed, [`Changes::resume_from`],
/// beside what was made of it, and begin there after a restart: nothing is missing then, and
/// nothing comes twice.
///
/// # Falling behind
/// A consumer slows no writer: nobody waits for it, and nothing is kept for it beyond what
/// [`Options::retain_changes`] says. When that was overrun, it gets [`Error::Lagged`] with the
/// oldest id from which it can go on, and has to look at the store itself for what it missed.
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
    reader: Reader,
    /// Everything up to here was delivered, or is not wanted.
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
            reader: Reader::new(at),
            position: from,
            txn_cursor: None,
            bound: ReadLimit { txn: from, lsn: at },
        })
    }

    /// Only changes of the keyspace with this name, whenever it was created, dropped and created
    /// anew. To be said before the first change is taken.
    #[must_use]
    pub fn keyspace(mut self, name: &str) -> Changes {
        self.filter.keyspace = Some(name.into());
        self
    }

    /// Only changes of keys that begin with `prefix`, and drops of keyspaces. Of a range that was
    /// removed, only the part that begins with `prefix`. To be said before the first change is
    /// taken.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Changes {
        self.filter.prefix = prefix.as_ref().into();
        self
    }

    /// Where to resume: everything up to this transaction has been delivered, or did not match.
    pub fn resume_from(&self) -> TxnId {
        self.position
    }

    /// The next change, waiting for one no longer than `timeout`; `None` if none came. It never
    /// waits in the middle of a transaction, though reading what is no longer in memory takes its
    /// time.
    ///
    /// What is visible is noticed within a few milliseconds, or when the logger has ended the sync
    /// that it is in; within 100 ms at the latest, also when the logger is stopped or dead.
    ///
    /// # Errors
    /// [`Error::Lagged`] if retention was overrun; [`Error::Corrupt`] for damage, [`Error::Io`];
    /// [`Error::Forked`]. A durable feed answers [`Error::LoggerStalled`], or
    /// [`Error::NeedsRecovery`], when there are commits which the logger does not make durable.
    /// Nothing is skipped by an error; the call may be made again, and answers the same as long as
    /// the cause is there.
    pub fn try_next(&mut self, timeout: Duration) -> Result<Option<Change>> {
        // A time beyond the clock's range is no limit.
        self.next_until(clock::now().checked_add(timeout))
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Change>> {
        self.client.check_usable()?;
        loop {
            self.look()?;
            if let Advance::Change(change) = self.advance(&mut |_, _, _| Admission::Whole)? {
                return Ok(Some(change));
            }
            // Also by the clock: where others commit all the time what is not wanted, there is no
            // end of news.
            let is_late = deadline.is_some_and(|deadline| clock::now() >= deadline);
            if is_late || !self.wait(deadline)? {
                return Ok(None);
            }
        }
    }

    /// The next change that there is, if `admit` takes it. Does not wait.
    pub(crate) fn next_admitted(&mut self, admit: Admit<'_>) -> Result<Advance> {
        self.client.check_usable()?;
        self.look()?;
        self.advance(admit)
    }

    /// Waits until there is more to read. False if `deadline` came first.
    pub(crate) fn wait_for_more(&mut self, deadline: Instant) -> Result<bool> {
        self.wait(Some(deadline))
    }

    /// Lets go of memory that can be read again, and returns how many bytes are held still.
    pub(crate) fn let_go(&mut self) -> usize {
        self.reader = Reader::new(self.reader.at());
        self.txn_cursor.as_mut().map_or(0, TransactionCursor::let_go)
    }

    /// The next change before the bound.
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
                // With the last one all of it is delivered, and the consumer may stop here.
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

    /// Finds out whether the streamed transaction that begins here commits, and builds its filter.
    /// False if that can't be known yet.
    fn filter_stream(&mut self) -> Result<bool> {
        let client = self.client.clone();
        let start = self.reader.at();
        let filtered = self.filter_stream_from(&client, start);
        if !matches!(filtered, Ok(true)) {
            self.reader = Reader::new(start);
        }
        filtered
    }

    fn filter_stream_from(&mut self, client: &Arc<DirectClient>, start: untorn_wal::Lsn) -> Result<bool> {
        let mut txn_filter = TransactionFilter::new();
        let mut txn = None;
        while let Some(record) = self.reader.peek(&client.engine, self.bound)? {
            // It was rolled back. A log that an earlier version recovered may lack the abort
            // record.
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

    /// Looks how far the log goes. True if that is further than before.
    fn look(&mut self) -> Result<bool> {
        let bound = bound_of(&self.client, self.feed)?;
        let moved = bound.is_some_and(|bound| bound.txn > self.bound.txn);
        if let Some(bound) = bound.filter(|_| moved) {
            self.bound = bound;
        }
        Ok(moved)
    }

    /// Waits until the log goes further. False if the deadline came first.
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
                    engine.glance_at_logger();
                    return Ok(());
                }
                engine.refuse_broken_log()?;
                watch.check(engine, start)
            },
        );
        Ok(ended?.is_some())
    }
}

/// What [`Changes::next_admitted`] came to.
pub(crate) enum Advance {
    Change(Change),
    /// There is no more before the bound.
    Nothing,
    /// There is a change that was put off.
    Later,
}

/// How far a feed goes now; `None` while the logger moves it on.
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

    /// Blocks until there is a change. `None` never comes.
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
