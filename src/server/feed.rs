//! The change feed of a connection. It contains no change that the client may not read.
//!
//! Rights are checked first: a value that the client may not read is never copied. A value that it
//! may read is copied only if there is memory for it. Everything that a feed holds from one request
//! to the next is counted as messages are.
//!
//! A feed delays no writer: a client that falls behind gets `Lagged`. The last change of a
//! transaction is marked as such, among those that the client may read. So the newest change is
//! held back until it is known whether another follows; the reply does not wait for that.

use crate::api::feed::Delivery;
use crate::api::feed::changes::Advance;
use crate::limits::{PAGE_SIZE_MAX, key_len_max};
use crate::server::answer::{Answer, REPLY_BYTES_MAX, Session, refuse_unless, reserve, too_many_bytes};
use crate::server::buffers::{BufferPermit, User};
use crate::server::policy::Rights;
use crate::server::write::LOCK_WAIT_SLICE;
use crate::server::{ServerState, TURN_TIMEOUT};
use crate::system::clock;
use crate::{Change, ChangeKind, Changes, Error, LimitKind, Result, Store, TxnId};
use std::collections::VecDeque;
use std::time::Duration;
use untorn_wal::wire;
use untorn_wal::wire::{ChangeItem, Happened, List, PIECE_BYTES_MAX, PIECE_RECORDS_MAX, Reply};

/// How long a reply may be collected once it has changes, or once many changes were skipped that
/// the client may not read.
const GATHER_TIMEOUT: Duration = Duration::from_millis(500);

/// How long changes are collected before other connections get their turn.
const TURN_TIME_MAX: Duration = Duration::from_millis(20);
/// The memory of a change in addition to its bytes.
const FEED_ITEM_BYTES: usize = size_of::<FeedItem>();

/// The reason why no more changes are taken for now.
enum Enough {
    /// There are no more, or no more fit into the piece.
    Nothing,
    /// The turn is over.
    ForATurn,
    /// There is no memory for the next one, in the piece or in the server.
    NoRoom,
}

/// A connection's feed.
pub(super) struct OpenFeed<'s> {
    changes: Changes,
    feed: crate::Feed,
    keyspace: Option<String>,
    prefix: Vec<u8>,
    /// The position at which `changes` must begin again, since changes that it delivered were
    /// dropped.
    again: Option<FeedPosition>,
    /// The number of changes that `changes` has delivered of its present transaction.
    told: u64,
    /// The number of changes to skip because they were sent or left out before.
    skip: u64,
    /// The newest change that the client may read, while its transaction continues.
    held: Option<FeedItem>,
    /// The changes to be sent next.
    ready: VecDeque<FeedItem>,
    ready_bytes: usize,
    /// The memory that these use, and between two requests also what `changes` holds.
    permit: BufferPermit<'s>,
    /// Everything up to this transaction was sent, or may not be read by the client.
    through: TxnId,
}

/// A change and its position.
struct FeedItem {
    change: Change,
    /// Its bytes in a reply. If no reply can hold it, its value was dropped.
    bytes: usize,
    at: FeedPosition,
}

/// A position in the feed: this many changes after everything of this transaction.
#[derive(Clone, Copy)]
struct FeedPosition {
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
        // A feed lasts as long as its connection, so it stores no prefix longer than any key.
        refuse_longer(LimitKind::KeyLength, prefix.len(), key_len_max(PAGE_SIZE_MAX))?;
        let name_bytes = keyspace.map_or(0, str::len);
        refuse_longer(LimitKind::KeyspaceNameLength, name_bytes, wire::NAME_BYTES_MAX)?;
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
            permit: self.shared.buffers.permit(self.user),
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
            let gathered = feed.gather(shared, &self.store, self.user, rights, wait);
            // The next call returns the error again, and the changes before it are not lost.
            if feed.ready.is_empty() {
                gathered?;
            }
        }
        let (count, bytes) = feed.piece();
        let answer = reserve(shared, self.user, bytes, count).and_then(|permit| {
            let items = feed.ready.iter().take(count).map(|taken| as_item(&taken.change)).collect();
            let through = feed.through_after(count);
            let answer = Answer::new(&Reply::Changes { through: through.as_u64(), changes: List(items) }, permit)?;
            Ok((answer, through))
        });
        if let Ok((_, through)) = &answer {
            feed.ready.drain(..count);
            feed.ready_bytes -= bytes;
            feed.through = *through;
        }
        // The time of the next request is unknown. What does not fit into memory until then is
        // dropped and read again.
        let rest = feed.changes.let_go() + feed.value_bytes();
        if !feed.permit.try_keep(0) || !feed.permit.try_keep(rest) {
            feed.give_up();
        }
        Ok(answer?.0)
    }
}

impl OpenFeed<'_> {
    /// Takes the next changes, waiting for the first at most `wait`.
    fn gather(
        &mut self,
        shared: &ServerState,
        store: &Store,
        user: User,
        rights: &Rights<'_>,
        wait: Duration,
    ) -> Result<()> {
        let start = clock::now();
        if let Some(at) = self.again {
            let changes = store.changes(at.txn, self.feed)?.prefix(&self.prefix);
            self.changes = match &self.keyspace {
                Some(name) => changes.keyspace(name),
                None => changes,
            };
            (self.again, self.told, self.skip) = (None, 0, at.after);
        }
        let mut turn = None;
        loop {
            if turn.is_none() {
                turn = shared.reads.take(user, clock::now() + TURN_TIMEOUT, || shared.is_closing());
                if turn.is_none() {
                    return Ok(());
                }
            }
            let taken = self.take_some(rights)?;
            let is_over = clock::since(start) > if self.ready.is_empty() { wait } else { wait.min(GATHER_TIMEOUT) };
            let is_full = self.ready_bytes >= PIECE_BYTES_MAX || self.ready.len() >= PIECE_RECORDS_MAX;
            match taken {
                // The changes that were taken are sent; those that follow can then use their
                // memory.
                Enough::NoRoom if self.ready.is_empty() => return Err(too_many_bytes()),
                Enough::NoRoom => return Ok(()),
                _ if is_full || shared.is_closing() => return Ok(()),
                Enough::Nothing if !self.ready.is_empty() => return Ok(()),
                Enough::Nothing if is_over => return Ok(()),
                Enough::ForATurn if is_over && clock::since(start) > GATHER_TIMEOUT => return Ok(()),
                Enough::ForATurn => {
                    // If there is no memory for these between two turns, the feed keeps its turn.
                    let rest = self.changes.let_go() + self.value_bytes();
                    if self.permit.try_keep(rest) {
                        turn = None;
                    }
                }
                Enough::Nothing => {
                    let rest = self.changes.let_go() + self.value_bytes();
                    if !self.permit.try_keep(rest) {
                        return Err(too_many_bytes());
                    }
                    turn = None;
                    self.changes
                        .wait_for_more(clock::now() + LOCK_WAIT_SLICE.min(wait.saturating_sub(clock::since(start))))?;
                }
            }
        }
    }

    /// Takes the available changes, as many as fit into a piece, for the duration of a turn.
    fn take_some(&mut self, rights: &Rights<'_>) -> Result<Enough> {
        let start = clock::now();
        while self.ready_bytes < PIECE_BYTES_MAX && self.ready.len() < PIECE_RECORDS_MAX {
            if clock::since(start) > TURN_TIME_MAX {
                return Ok(Enough::ForATurn);
            }
            let before = self.changes.resume_from();
            let (permit, is_skipped) = (&mut self.permit, self.skip > 0);
            let (ready_bytes, ready_count) = (self.ready_bytes, self.ready.len());
            let held_bytes = self.held.as_ref().map(|held| held.bytes);
            let (mut follows, mut bytes) = (false, 0);
            let admitted = self.changes.next_admitted(&mut |name, key_bytes, value_bytes| {
                if is_skipped || !rights.may_read(name) {
                    return Delivery::WithoutValue;
                }
                follows = true;
                bytes = name.len() + key_bytes + value_bytes;
                let before = ready_bytes + held_bytes.unwrap_or(0);
                let is_last_of_piece = (ready_count > 0 || held_bytes.is_some()) && before + bytes > PIECE_BYTES_MAX;
                match bytes > REPLY_BYTES_MAX {
                    _ if is_last_of_piece => Delivery::Later,
                    // No reply can hold it; the client gets an error when it is next.
                    true => Delivery::WithoutValue,
                    false if permit.try_resize(before + bytes + FEED_ITEM_BYTES * (ready_count + 2)) => Delivery::Whole,
                    false => Delivery::Later,
                }
            })?;
            let change = match admitted {
                Advance::Change(change) => change,
                Advance::Nothing => return Ok(Enough::Nothing),
                Advance::Later => {
                    // A change that the client may read follows in the transaction, so the one that
                    // is held back is not the last.
                    if let Some(held) = self.held.take_if(|_| follows) {
                        self.add(held);
                    }
                    return Ok(Enough::NoRoom);
                }
            };
            let at = FeedPosition { txn: before, after: self.told };
            let is_last = change.last;
            self.told = if is_last { 0 } else { self.told + 1 };
            let is_new = self.skip == 0;
            self.skip = self.skip.saturating_sub(1);
            if is_new && rights.may_read(&change.keyspace) {
                // Only the next change shows whether the one that is held back is the last.
                if let Some(before) = self.held.replace(FeedItem { change, bytes, at }) {
                    self.add(before);
                }
            }
            if is_last && let Some(mut last) = self.held.take() {
                last.change.last = true;
                self.add(last);
            }
        }
        Ok(Enough::Nothing)
    }

    /// Returns the bytes of what was taken and not sent.
    fn value_bytes(&self) -> usize {
        let taken = self.ready.iter().chain(&self.held);
        taken.map(|taken| FEED_ITEM_BYTES + if taken.bytes <= REPLY_BYTES_MAX { taken.bytes } else { 0 }).sum()
    }

    fn add(&mut self, taken: FeedItem) {
        self.ready_bytes += taken.bytes;
        self.ready.push_back(taken);
    }

    /// Removes what was taken and what the client may no longer read.
    fn leave_out(&mut self, rights: &Rights<'_>) {
        self.ready.retain(|taken| rights.may_read(&taken.change.keyspace));
        self.ready_bytes = self.ready.iter().map(|taken| taken.bytes).sum();
        self.held.take_if(|held| !rights.may_read(&held.change.keyspace));
    }

    /// Drops what was taken and not sent, to read it again.
    fn give_up(&mut self) {
        self.again = self.ready.front().or(self.held.as_ref()).map(|taken| taken.at);
        self.ready = VecDeque::new();
        self.ready_bytes = 0;
        self.held = None;
    }

    /// Returns the number of changes in the next reply, and their bytes. A large one is sent alone.
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

    /// Returns the transaction up to which everything is sent once `count` more changes are.
    fn through_after(&self, count: usize) -> TxnId {
        if count == self.ready.len() {
            return self.changes.resume_from();
        }
        let last = self.ready.iter().take(count).rfind(|taken| taken.change.last);
        last.map_or(self.through, |taken| taken.change.txn)
    }
}

fn refuse_longer(what: LimitKind, found: usize, limit: usize) -> Result<()> {
    if found <= limit { Ok(()) } else { Err(Error::Limit { what, found: found as u64, limit: limit as u64 }) }
}

fn as_item(change: &Change) -> ChangeItem<'_> {
    ChangeItem {
        txn: change.txn.as_u64(),
        keyspace: &change.keyspace,
        key: &change.key,
        what: match (change.kind, &change.value) {
            (ChangeKind::Put, Some(value)) => Happened::Put(value),
            (ChangeKind::DropKeyspace, _) => Happened::DropKeyspace,
            (ChangeKind::DeleteRange, _) => Happened::DeleteRange { end: change.end.as_deref() },
            _ => Happened::Delete,
        },
        is_last_in_txn: change.last,
    }
}
