//! The change feed of a connection. What a client may not read it does not hear of.
//!
//! Rights come first: a value that the client may not read is never copied. One that it may read is
//! copied only when there is room for it, and all that a feed holds from one request to the next is
//! counted as messages are.
//!
//! A feed holds nothing of the store back: who falls behind gets `Lagged`. A transaction's last
//! change is marked as such among those that the client may read; so the newest one is held back
//! until it is known whether another follows, which is never waited for.

use crate::api::changes::Advance;
use crate::api::feed::Admission;
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

/// How long a reply may be gathered for, once there is something to say or much that the client may
/// not hear of.
const GATHER_TIMEOUT: Duration = Duration::from_millis(500);

/// How long it is gathered before others have their turn.
const TURN_TIME_MAX: Duration = Duration::from_millis(20);
/// What a change takes beside its bytes.
const FEED_ITEM_BYTES: usize = size_of::<FeedItem>();

/// Why no more changes are taken for now.
enum Enough {
    /// There are no more, or no more go into the piece.
    Nothing,
    /// The turn is over.
    ForATurn,
    /// There is no room for the next one, in the piece or in the server.
    NoRoom,
}

/// A connection's feed.
pub(super) struct OpenFeed<'s> {
    changes: Changes,
    feed: crate::Feed,
    keyspace: Option<String>,
    prefix: Vec<u8>,
    /// Where `changes` is to begin anew, since what it told was given up.
    again: Option<FeedPosition>,
    /// Of the transaction that `changes` is in, the changes that it has told of.
    told: u64,
    /// So many changes were sent before, or left out.
    skip: u64,
    /// The newest change that the client may hear of, while its transaction goes on.
    held: Option<FeedItem>,
    /// What is to be sent next.
    ready: VecDeque<FeedItem>,
    ready_bytes: usize,
    /// The room that these take, and between two requests what `changes` holds.
    permit: BufferPermit<'s>,
    /// Everything up to here was sent, or is not the client's to hear of.
    through: TxnId,
}

/// A change, and where it was found.
struct FeedItem {
    change: Change,
    /// What it would take in a reply. The value of one for which no reply has room is gone.
    bytes: usize,
    at: FeedPosition,
}

/// A place in the feed: so many changes after everything of this transaction.
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
        // A feed lasts as long as its connection: it keeps nothing longer than what it could find.
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
            // An error comes again, and what came before it is not lost.
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
        // It is not known when the rest will be asked for. What there is no room for is taken again
        // then.
        let rest = feed.changes.let_go() + feed.value_bytes();
        if !feed.permit.try_keep(0) || !feed.permit.try_keep(rest) {
            feed.give_up();
        }
        Ok(answer?.0)
    }
}

impl OpenFeed<'_> {
    /// Takes the next changes, waiting for the first no longer than `wait`.
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
                // What is there is sent; what comes after it has the room then.
                Enough::NoRoom if self.ready.is_empty() => return Err(too_many_bytes()),
                Enough::NoRoom => return Ok(()),
                _ if is_full || shared.is_closing() => return Ok(()),
                Enough::Nothing if !self.ready.is_empty() => return Ok(()),
                Enough::Nothing if is_over => return Ok(()),
                Enough::ForATurn if is_over && clock::since(start) > GATHER_TIMEOUT => return Ok(()),
                Enough::ForATurn => {
                    // What there is no room for between two turns is held in one.
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

    /// Takes the changes that are there, as many as go into a piece, for the time of a turn.
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
                    return Admission::WithoutValue;
                }
                follows = true;
                bytes = name.len() + key_bytes + value_bytes;
                let before = ready_bytes + held_bytes.unwrap_or(0);
                let is_last_of_piece = (ready_count > 0 || held_bytes.is_some()) && before + bytes > PIECE_BYTES_MAX;
                match bytes > REPLY_BYTES_MAX {
                    _ if is_last_of_piece => Admission::Later,
                    // No reply has room for it, which the client is told when its turn comes.
                    true => Admission::WithoutValue,
                    false if permit.try_resize(before + bytes + FEED_ITEM_BYTES * (ready_count + 2)) => {
                        Admission::Whole
                    }
                    false => Admission::Later,
                }
            })?;
            let change = match admitted {
                Advance::Change(change) => change,
                Advance::Nothing => return Ok(Enough::Nothing),
                Advance::Later => {
                    // One that it may read follows in the transaction, so the one that is held back
                    // is not the last.
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
                // Only its successor says whether one that is held back is the last.
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

    /// Bytes of what was taken and not sent.
    fn value_bytes(&self) -> usize {
        let taken = self.ready.iter().chain(&self.held);
        taken.map(|taken| FEED_ITEM_BYTES + if taken.bytes <= REPLY_BYTES_MAX { taken.bytes } else { 0 }).sum()
    }

    fn add(&mut self, taken: FeedItem) {
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
