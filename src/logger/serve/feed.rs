//! The change feed of a connection. What a client may not read it does not hear of.
//!
//! A feed holds nothing of the store back: who falls behind gets `Lagged`. A transaction's last change is marked as such
//! among those that the client may read; so the newest one is held back until it is known whether another follows, which
//! is never waited for.

use super::answer::{Answer, Session, refuse_unless, reserve};
use super::policy::Rights;
use super::write::SLICE;
use crate::{Change, ChangeKind, Changes, Error, Result, TxnId};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use untorn_wal::wire::{self, ChangeItem, Happened, List, PIECE_BYTES_MAX, PIECE_RECORDS_MAX, Reply};

/// How long a reply may be gathered for, once there is something to say or much that the client may not hear of.
const GATHERING: Duration = Duration::from_millis(500);

/// A connection's feed.
pub(super) struct OpenFeed {
    changes: Changes,
    keyspace: Option<String>,
    /// The newest change that the client may hear of, while its transaction goes on.
    held: Option<Change>,
    /// What is to be sent next. It stays here if there is no room for a reply.
    ready: VecDeque<Change>,
    ready_bytes: usize,
    /// Everything up to here was sent, or is not the client's to hear of.
    through: TxnId,
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
            keyspace: keyspace.map(str::to_string),
            held: None,
            ready: VecDeque::new(),
            ready_bytes: 0,
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
        if feed.ready.is_empty() {
            let gathered = feed.gather(rights, wait, || shared.is_closing());
            // An error comes again, and what came before it is not lost.
            if feed.ready.is_empty() {
                gathered?;
            }
        }
        let (count, bytes) = feed.piece();
        let share = reserve(shared, bytes)?;
        let items = feed.ready.iter().take(count).map(as_item).collect();
        let through = feed.through_after(count);
        let answer = Answer::new(&Reply::Changes { through: through.as_u64(), changes: List(items) }, share)?;
        feed.ready.drain(..count);
        feed.ready_bytes -= bytes;
        feed.through = through;
        Ok(answer)
    }
}

impl OpenFeed {
    /// Takes the next changes, waiting for the first no longer than `wait`.
    fn gather(&mut self, rights: &Rights<'_>, wait: Duration, is_closing: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while self.ready_bytes < PIECE_BYTES_MAX && self.ready.len() < PIECE_RECORDS_MAX {
            let left = if self.ready.is_empty() { wait.saturating_sub(start.elapsed()) } else { Duration::ZERO };
            let Some(change) = self.changes.try_next(left.min(SLICE))? else {
                if left.is_zero() || is_closing() {
                    break;
                }
                continue;
            };
            let is_last = change.last;
            if rights.may_read(&change.keyspace) {
                // Only its successor says whether one that is held back is the last.
                if let Some(before) = self.held.replace(change) {
                    self.add(before);
                }
            }
            if is_last && let Some(mut last) = self.held.take() {
                last.last = true;
                self.add(last);
            }
            if start.elapsed() > wait.max(GATHERING) {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, change: Change) {
        self.ready_bytes += len(&change);
        self.ready.push_back(change);
    }

    /// How many changes go into one reply, and their bytes: a large one goes alone.
    fn piece(&self) -> (usize, usize) {
        let mut bytes = 0;
        for (count, change) in self.ready.iter().enumerate() {
            if count > 0 && bytes + len(change) > PIECE_BYTES_MAX {
                return (count, bytes);
            }
            bytes += len(change);
        }
        (self.ready.len(), bytes)
    }

    /// How far everything has been sent when so many more are.
    fn through_after(&self, count: usize) -> TxnId {
        if count == self.ready.len() {
            return self.changes.resume_from();
        }
        let last = self.ready.iter().take(count).rfind(|change| change.last);
        last.map_or(self.through, |change| change.txn)
    }
}

fn len(change: &Change) -> usize {
    change.keyspace.len() + change.key.len() + change.value.as_ref().map_or(0, Vec::len)
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
