//! The change feed of a connection. What a client may not read it does not hear of.
//!
//! A feed holds nothing of the store back: who falls behind gets `Lagged`. A transaction's last change is marked as such
//! among those that the client may read; so the newest one is held back until it is known whether another follows, which
//! is never waited for.

use super::answer::{Answer, REPLY_BYTES_MAX, Session, refuse_unless, reserve};
use super::policy::Rights;
use super::room::Share;
use super::write::SLICE;
use crate::limits::{PAGE_SIZE_MAX, key_len_max};
use crate::{Change, ChangeKind, Changes, Error, Result, Store, TxnId};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use untorn_wal::wire::{self, ChangeItem, Happened, List, PIECE_BYTES_MAX, PIECE_RECORDS_MAX, Reply};

/// How long a reply may be gathered for, once there is something to say or much that the client may not hear of.
const GATHERING: Duration = Duration::from_millis(500);

/// A connection's feed.
pub(super) struct OpenFeed<'s> {
    changes: Changes,
    feed: crate::Feed,
    keyspace: Option<String>,
    prefix: Vec<u8>,
    /// Where `changes` is to begin anew, since what it told was given up.
    again: Option<At>,
    /// Of the transaction that `changes` is in, the changes that it has told of.
    told: u64,
    /// So many changes were sent before, or left out.
    skip: u64,
    /// The newest change that the client may hear of, while its transaction goes on.
    held: Option<Taken>,
    /// What is to be sent next.
    ready: VecDeque<Taken>,
    ready_bytes: usize,
    /// The room that these take from one request to the next.
    kept_in: Option<Share<'s>>,
    /// Everything up to here was sent, or is not the client's to hear of.
    through: TxnId,
}

/// A change, and where it was found.
struct Taken {
    change: Change,
    /// What it would take in a reply. The value of one for which no reply has room is gone.
    bytes: usize,
    at: At,
}

/// A place in the feed: so many changes after everything of this transaction.
#[derive(Clone, Copy)]
struct At {
    txn: TxnId,
    after: u64,
}

impl<'s> Session<'s> {
    pub(super) fn open_feed(
        &mut self,
        rights: &Rights<'_>,
        from: Option<u64>,
        feed: wire::Feed,
        keyspace: Option<&str>,
        prefix: &[u8],
    ) -> Result<Answer<'s>> {
        if let Some(name) = keyspace {
            refuse_unless(rights.may_read(name), "following", "keyspace", name)?;
        }
        // A feed lasts as long as its connection: it keeps nothing longer than what it could find.
        refuse_longer("the length of a key in bytes", prefix.len(), key_len_max(PAGE_SIZE_MAX))?;
        let name_bytes = keyspace.map_or(0, str::len);
        refuse_longer("the length of a keyspace's name in bytes", name_bytes, wire::NAME_BYTES_MAX)?;
        self.feed = None;
        let feed = match feed {
            wire::Feed::Durable => crate::Feed::Durable,
            wire::Feed::Visible => crate::Feed::Visible,
        };
        let from = match (from, feed) {
            (Some(txn), _) => TxnId::from_u64(txn),
            (None, crate::Feed::Visible) => self.store.snapshot()?.txn_id(),
            (None, crate::Feed::Durable) => self.store.durable_snapshot()?.txn_id(),
        };
        let mut changes = self.store.changes(from, feed)?.prefix(prefix);
        if let Some(name) = keyspace {
            changes = changes.keyspace(name);
        }
        self.feed = Some(OpenFeed {
            changes,
            feed,
            keyspace: keyspace.map(str::to_string),
            prefix: prefix.to_vec(),
            again: None,
            told: 0,
            skip: 0,
            held: None,
            ready: VecDeque::new(),
            ready_bytes: 0,
            kept_in: None,
            through: from,
        });
        Answer::small(&Reply::Changes { through: from.as_u64(), changes: List(Vec::new()) })
    }

    pub(super) fn next_changes(&mut self, rights: &Rights<'_>, wait_ms: u32) -> Result<Answer<'s>> {
        let shared = self.shared;
        let feed = self.feed.as_mut().ok_or_else(|| Error::Protocol { what: "there is no feed open".into() })?;
        if let Some(name) = &feed.keyspace {
            refuse_unless(rights.may_read(name), "following", "keyspace", name)?;
        }
        let wait = Duration::from_millis(u64::from(wait_ms.min(wire::CHANGES_WAIT_MS_MAX)));
        feed.leave_out(rights);
        if feed.ready.is_empty() {
            let gathered = feed.gather(&self.store, rights, wait, || shared.is_closing());
            // An error comes again, and what came before it is not lost.
            if feed.ready.is_empty() {
                gathered?;
            }
        }
        let (count, bytes) = feed.piece();
        let answer = reserve(shared, self.user, bytes, count).and_then(|share| {
            let items = feed.ready.iter().take(count).map(|taken| as_item(&taken.change)).collect();
            let through = feed.through_after(count);
            let answer = Answer::new(&Reply::Changes { through: through.as_u64(), changes: List(items) }, share)?;
            Ok((answer, through))
        });
        if let Ok((_, through)) = &answer {
            feed.ready.drain(..count);
            feed.ready_bytes -= bytes;
            feed.through = *through;
        }
        // Nobody knows when the rest will be asked for. What there is no room for is taken again then.
        feed.kept_in = None;
        let rest =
            feed.ready.iter().chain(&feed.held).map(|taken| taken.bytes).filter(|bytes| *bytes <= REPLY_BYTES_MAX);
        match shared.kept.try_take(self.user, rest.sum()) {
            Some(share) => feed.kept_in = Some(share),
            None => feed.give_up(),
        }
        Ok(answer?.0)
    }
}

impl OpenFeed<'_> {
    /// Takes the next changes, waiting for the first no longer than `wait`.
    fn gather(
        &mut self,
        store: &Store,
        rights: &Rights<'_>,
        wait: Duration,
        is_closing: impl Fn() -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        if let Some(at) = self.again {
            let changes = store.changes(at.txn, self.feed)?.prefix(&self.prefix);
            self.changes = match &self.keyspace {
                Some(name) => changes.keyspace(name),
                None => changes,
            };
            (self.again, self.told, self.skip) = (None, 0, at.after);
        }
        while self.ready_bytes < PIECE_BYTES_MAX && self.ready.len() < PIECE_RECORDS_MAX {
            let left = if self.ready.is_empty() { wait.saturating_sub(start.elapsed()) } else { Duration::ZERO };
            let before = self.changes.resume_from();
            let Some(change) = self.changes.try_next(left.min(SLICE))? else {
                if left.is_zero() || is_closing() {
                    break;
                }
                continue;
            };
            let at = At { txn: before, after: self.told };
            let is_last = change.last;
            self.told = if is_last { 0 } else { self.told + 1 };
            let is_new = self.skip == 0;
            self.skip = self.skip.saturating_sub(1);
            if is_new && rights.may_read(&change.keyspace) {
                // Only its successor says whether one that is held back is the last.
                if let Some(before) = self.held.replace(Taken::new(change, at)) {
                    self.add(before);
                }
            }
            if is_last && let Some(mut last) = self.held.take() {
                last.change.last = true;
                self.add(last);
            }
            if start.elapsed() > wait.max(GATHERING) {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, taken: Taken) {
        self.ready_bytes += taken.bytes;
        self.ready.push_back(taken);
    }

    /// Leaves out what was taken while the client might still read it.
    fn leave_out(&mut self, rights: &Rights<'_>) {
        self.ready.retain(|taken| rights.may_read(&taken.change.keyspace));
        self.ready_bytes = self.ready.iter().map(|taken| taken.bytes).sum();
        self.held.take_if(|held| !rights.may_read(&held.change.keyspace));
    }

    /// Forgets what was taken and not sent, to take it again.
    fn give_up(&mut self) {
        self.again = self.ready.front().or(self.held.as_ref()).map(|taken| taken.at);
        self.ready = VecDeque::new();
        self.ready_bytes = 0;
        self.held = None;
    }

    /// How many changes go into one reply, and their bytes: a large one goes alone.
    fn piece(&self) -> (usize, usize) {
        let mut bytes = 0;
        for (count, taken) in self.ready.iter().enumerate() {
            if count > 0 && bytes + taken.bytes > PIECE_BYTES_MAX {
                return (count, bytes);
            }
            bytes += taken.bytes;
        }
        (self.ready.len(), bytes)
    }

    /// How far everything has been sent when so many more are.
    fn through_after(&self, count: usize) -> TxnId {
        if count == self.ready.len() {
            return self.changes.resume_from();
        }
        let last = self.ready.iter().take(count).rfind(|taken| taken.change.last);
        last.map_or(self.through, |taken| taken.change.txn)
    }
}

fn refuse_longer(what: &'static str, found: usize, limit: usize) -> Result<()> {
    if found <= limit { Ok(()) } else { Err(Error::Limit { what, found: found as u64, limit: limit as u64 }) }
}

impl Taken {
    fn new(mut change: Change, at: At) -> Taken {
        let value_bytes = change.value.as_ref().map_or(0, Vec::len);
        let bytes = change.keyspace.len() + change.key.len() + value_bytes;
        if bytes > REPLY_BYTES_MAX {
            change.value = None;
        }
        Taken { change, bytes, at }
    }
}

fn as_item(change: &Change) -> ChangeItem<'_> {
    ChangeItem {
        txn: change.txn.as_u64(),
        keyspace: &change.keyspace,
        key: &change.key,
        what: match (change.kind, &change.value) {
            (ChangeKind::Put, Some(value)) => Happened::Put(value),
            (ChangeKind::DropKeyspace, _) => Happened::DropKeyspace,
            _ => Happened::Delete,
        },
        is_last_in_txn: change.last,
    }
}
