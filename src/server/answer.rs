//! The requests: the rights that each needs, and the reads. Writes are in `write`, scans in
//! `scans`, cells in `cells`, changes in `feed`.
//!
//! A reply is complete before any of it is sent, so no snapshot is held while a peer receives it
//! slowly.

use crate::error::codec;
use crate::limits::PAGE_SIZE_MAX;
use crate::server::ServerState;
use crate::server::buffers::{BufferPermit, User};
use crate::server::feed::OpenFeed;
use crate::server::policy::Rights;
use crate::server::scans::Scans;
use crate::server::write::Awaited;
use crate::{Error, Keyspace, LimitKind, Result, Snapshot, Store, TxnId};
use std::time::Instant;
use untorn_wal::wire;
use untorn_wal::wire::{FoundValue, List, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, Operation, Reply, Request, WireError};

/// The most bytes of names, keys and values in one reply: a value of the maximum length, and its
/// names.
/// names it.
pub(super) const REPLY_BYTES_MAX: usize = wire::VALUE_BYTES_MAX + (32 << 10);
const _: () = assert!(REPLY_BYTES_MAX < MESSAGE_BYTES_MAX && PAGE_SIZE_MAX / 4 + NAME_BYTES_MAX < (32 << 10));

/// The encoding around an item of a reply, in bytes.
const ITEM_BYTES: usize = 24;

/// A reply, the memory that it uses until it is sent, and the commit that must be durable before.
pub(super) struct Answer<'s> {
    pub(super) awaited: Option<Awaited>,
    /// A reply that needs no permit.
    small: Vec<u8>,
    /// The permit of any other reply, whose buffer holds it.
    permit: Option<BufferPermit<'s>>,
}

impl<'s> Answer<'s> {
    pub(super) fn of_error(error: &Error) -> Answer<'s> {
        Answer { awaited: None, small: codec::encode_reply(error), permit: None }
    }

    pub(super) fn new(reply: &Reply<'_>, mut permit: BufferPermit<'s>) -> Result<Answer<'s>> {
        encode(reply, &mut permit.buffer)?;
        Ok(Answer { awaited: None, small: Vec::new(), permit: Some(permit) })
    }

    /// Returns a reply that is always short.
    pub(super) fn small(reply: &Reply<'_>) -> Result<Answer<'s>> {
        Answer::after(None, reply)
    }

    /// Returns a short reply to a commit, to be sent once that is durable.
    pub(super) fn after(awaited: Option<Awaited>, reply: &Reply<'_>) -> Result<Answer<'s>> {
        let mut small = Vec::new();
        encode(reply, &mut small)?;
        Ok(Answer { awaited, small, permit: None })
    }

    /// Returns the reply as it is sent.
    pub(super) fn frame(&self) -> &[u8] {
        self.permit.as_ref().map_or(&self.small, |permit| &permit.buffer)
    }
}

/// Checks the right to make a long request by its first bytes. They contain everything that a right
/// depends on: the kind of request, and the name of the keyspace or cell. Each operation of a batch
/// is checked again when the whole batch has arrived.
///
/// # Errors
/// [`Error::NotAllowed`]; [`Error::Protocol`] if they are not the beginning of a request.
pub(super) fn check_head(head: &[u8], rights: &Rights<'_>) -> Result<()> {
    let name = |at| name_at(head, at).ok_or_else(|| Error::Protocol { what: "a long request without a name".into() });
    let may = |is_write, kind, name: &str| match is_write {
        true => refuse_unless(rights.may_write(name), "writing", kind, name),
        false => refuse_unless(rights.may_read(name), "reading", kind, name),
    };
    match kind_of(head) {
        GET | MULTI_GET | SCAN => may(false, "keyspace", name(4)?),
        PUT | DELETE | DELETE_RANGE => may(true, "keyspace", name(4)?),
        CELL_STORE => may(true, "cell", name(4)?),
        // The first operation; the numbers of conditions come before those of changes.
        COMMIT => {
            let is_condition = head.get(12).is_some_and(|operation| *operation < 2);
            may(!is_condition, "keyspace", name(16)?)
        }
        CHANGES => Ok(()),
        _ => Err(Error::Protocol { what: "a request that is longer than any of its kind".into() }),
    }
}

/// Returns the number of items that the list of a request claims to have.
pub(super) fn items_of(message: &[u8]) -> u64 {
    let at = match kind_of(message) {
        MULTI_GET => name_at(message, 4).map(|name| 12 + name.len()),
        COMMIT => Some(4),
        _ => None,
    };
    at.and_then(|at| message.get(at..at + 8))
        .map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

/// Returns whether a short batch removes ranges, each of which can be as much work as a long batch.
/// A batch that can't be decoded removes none.
pub(super) fn has_range(message: &[u8]) -> bool {
    let is_range = |operation: &Operation<'_>| matches!(operation, Operation::DeleteRange { .. });
    matches!(wire::decode(message), Ok(Request::Commit { operations, .. }) if operations.0.iter().any(is_range))
}

/// The numbers of requests that can be long.
pub(super) const GET: u32 = 0;
pub(super) const MULTI_GET: u32 = 1;
pub(super) const PUT: u32 = 2;
pub(super) const DELETE: u32 = 3;
pub(super) const COMMIT: u32 = 4;
pub(super) const SCAN: u32 = 5;
pub(super) const SCAN_NEXT: u32 = 6;
pub(super) const CELL_STORE: u32 = 14;
pub(super) const CHANGES: u32 = 17;
pub(super) const DELETE_RANGE: u32 = 19;

/// Returns the number of a request.
pub(super) fn kind_of(message: &[u8]) -> u32 {
    message.first_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
}

fn name_at(bytes: &[u8], at: usize) -> Option<&str> {
    let length = u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let name = bytes.get(at + 8..)?.get(..usize::try_from(length).ok()?)?;
    std::str::from_utf8(name).ok()
}

fn encode(reply: &Reply<'_>, frame: &mut Vec<u8>) -> Result<()> {
    wire::encode_into(reply, frame).map_err(|error| match error {
        WireError::TooLong { bytes } => too_large(bytes),
        other => Error::Protocol { what: format!("a reply can't be sent: {other}") },
    })
}

/// The open scans and the feed of a connection.
pub(super) struct Session<'s> {
    pub(super) shared: &'s ServerState,
    pub(super) store: Store,
    pub(super) user: User,
    scans: Scans,
    pub(super) feed: Option<OpenFeed<'s>>,
}

impl<'s> Session<'s> {
    pub(super) fn new(shared: &'s ServerState, store: Store, user: User) -> Session<'s> {
        Session { shared, store, user, scans: Scans::default(), feed: None }
    }

    /// Returns when the next unused snapshot expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.scans.next_expiry()
    }

    pub(super) fn expire(&mut self) {
        self.scans.expire();
    }

    /// Executes a request.
    pub(super) fn answer(&mut self, request: &Request<'_>, rights: &Rights<'_>) -> Answer<'s> {
        self.scans.expire();
        self.try_answer(request, rights).unwrap_or_else(|error| Answer::of_error(&error))
    }

    fn try_answer(&mut self, request: &Request<'_>, rights: &Rights<'_>) -> Result<Answer<'s>> {
        match request {
            Request::Get { keyspace, key } => self.get(rights, keyspace, key),
            Request::MultiGet { keyspace, keys } => self.multi_get(rights, keyspace, &keys.0),
            Request::Put { keyspace, key, value, durability } => self.put(rights, keyspace, key, value, *durability),
            Request::Delete { keyspace, key, durability } => self.delete(rights, keyspace, key, *durability),
            Request::DeleteRange { keyspace, lower, upper, durability } => {
                self.delete_range(rights, keyspace, (*lower, *upper), *durability)
            }
            Request::Commit { operations, durability } => self.commit(rights, &operations.0, *durability),
            Request::Scan { keyspace, lower, upper, is_reverse, piece_bytes } => {
                let (snapshot, handle) = self.readable(rights, keyspace)?;
                let scan = self.scans.open(snapshot, handle, (*lower, *upper), *is_reverse, *piece_bytes)?;
                // A client that does not get the number can't close the scan.
                self.piece(scan).inspect_err(|_| self.scans.close(scan))
            }
            Request::ScanNext { scan } => {
                refuse_unless(
                    rights.may_read(self.scans.keyspace(*scan)?),
                    "reading",
                    "keyspace",
                    self.scans.keyspace(*scan)?,
                )?;
                self.piece(*scan)
            }
            Request::ScanClose { scan } => {
                self.scans.close(*scan);
                Answer::small(&Reply::Done)
            }
            Request::Keyspaces => self.keyspaces(rights),
            Request::Sync => {
                if !rights.may_write_some() {
                    return Err(Error::NotAllowed { what: "a sync, without the right to write anything".into() });
                }
                self.store.sync()?;
                Answer::small(&Reply::Done)
            }
            Request::Checkpoint => {
                if !rights.may_write_all() {
                    return Err(Error::NotAllowed {
                        what: "a checkpoint, without the right to write everything".into(),
                    });
                }
                Answer::small(&Reply::Committed { txn: self.store.checkpoint()?.as_u64() })
            }
            Request::Stats => {
                if !rights.may_read_all() {
                    return Err(Error::NotAllowed { what: "figures, without the right to read everything".into() });
                }
                self.stats()
            }
            Request::CellLoad { name } => self.cell_load(rights, name, None),
            Request::CellLoadVersion { name, version } => self.cell_load(rights, name, Some(*version)),
            Request::CellStore { name, value, is_durable } => self.cell_store(rights, name, value, *is_durable),
            Request::CounterAdd { name, amount } => self.counter_add(rights, name, *amount),
            Request::CounterGet { name } => self.counter_get(rights, name),
            Request::Changes { from, feed, keyspace, prefix } => {
                self.open_feed(rights, *from, *feed, *keyspace, prefix)
            }
            Request::ChangesNext { wait_ms } => self.next_changes(rights, *wait_ms),
        }
    }

    // ---- reading

    /// Returns a snapshot taken now, and a keyspace in it.
    fn readable(&self, rights: &Rights<'_>, name: &str) -> Result<(Snapshot, Keyspace)> {
        refuse_unless(rights.may_read(name), "reading", "keyspace", name)?;
        let snapshot = self.store.snapshot()?;
        match snapshot.find_keyspace(name)? {
            Some(keyspace) => Ok((snapshot, keyspace)),
            None => Err(Error::NoKeyspace { name: cut_name(name) }),
        }
    }

    fn get(&self, rights: &Rights<'_>, keyspace: &str, key: &[u8]) -> Result<Answer<'s>> {
        let (snapshot, keyspace) = self.readable(rights, keyspace)?;
        let found = snapshot.get_versioned(&keyspace, key)?;
        let permit = self.reserve(found.as_ref().map_or(0, |(value, _)| value.len()), 1)?;
        Answer::new(&Reply::Value(found.as_ref().map(as_found)), permit)
    }

    fn multi_get(&self, rights: &Rights<'_>, keyspace: &str, keys: &[&[u8]]) -> Result<Answer<'s>> {
        let (snapshot, keyspace) = self.readable(rights, keyspace)?;
        let mut found = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let value = snapshot.get_versioned(&keyspace, key)?;
            bytes += value.as_ref().map_or(0, |(value, _)| value.len());
            refuse_large(bytes)?;
            found.push(value);
        }
        let permit = self.reserve(bytes, found.len())?;
        let values = List(found.iter().map(|found| found.as_ref().map(as_found)).collect());
        Answer::new(&Reply::Values { txn: snapshot.txn_id().as_u64(), values }, permit)
    }

    fn piece(&mut self, scan: u32) -> Result<Answer<'s>> {
        let (shared, user) = (self.shared, self.user);
        self.scans.piece(scan, |bytes, count, reply| Answer::new(reply, reserve(shared, user, bytes, count)?))
    }

    fn keyspaces(&self, rights: &Rights<'_>) -> Result<Answer<'s>> {
        let names = self.store.keyspaces()?;
        let mut names: Vec<&str> = names.iter().map(String::as_str).filter(|name| rights.may_read(name)).collect();
        // The limit of a list; a message can't contain more.
        if names.len() > wire::LIST_ITEMS_MAX {
            return Err(Error::Limit {
                what: LimitKind::MessageKeyspaces,
                found: names.len() as u64,
                limit: wire::LIST_ITEMS_MAX as u64,
            });
        }
        names.shrink_to_fit();
        let permit = self.reserve(names.iter().map(|name| name.len()).sum(), names.len())?;
        Answer::new(&Reply::Names(List(names)), permit)
    }

    fn stats(&self) -> Result<Answer<'s>> {
        let stats = wire::encode_value(&self.store.stats()?)
            .map_err(|error| Error::Protocol { what: format!("a reply can't be sent: {error}") })?;
        let permit = self.reserve(stats.len(), 1)?;
        Answer::new(&Reply::Stats(&stats), permit)
    }

    /// Acquires the memory for a reply with this many bytes of values and this many items.
    fn reserve(&self, bytes: usize, items: usize) -> Result<BufferPermit<'s>> {
        reserve(self.shared, self.user, bytes, items)
    }
}

/// Acquires the memory for a reply, without waiting: a snapshot is held meanwhile.
pub(super) fn reserve(shared: &ServerState, user: User, bytes: usize, items: usize) -> Result<BufferPermit<'_>> {
    refuse_large(bytes)?;
    shared.buffers.try_acquire(user, bytes + items * ITEM_BYTES).ok_or_else(too_many_bytes)
}

pub(super) fn too_many_bytes() -> Error {
    Error::Busy { what: "too many bytes of messages".into() }
}

fn refuse_large(bytes: usize) -> Result<()> {
    if bytes <= REPLY_BYTES_MAX { Ok(()) } else { Err(too_large(bytes as u64)) }
}

fn too_large(found: u64) -> Error {
    Error::Limit { what: LimitKind::ReplyLength, found, limit: REPLY_BYTES_MAX as u64 }
}

fn as_found<'v>((value, version): &(&'v [u8], TxnId)) -> FoundValue<'v> {
    FoundValue { version: version.as_u64(), value }
}

/// Returns an error unless the operation is allowed.
pub(super) fn refuse_unless(is_allowed: bool, doing: &str, kind: &str, name: &str) -> Result<()> {
    if is_allowed {
        return Ok(());
    }
    Err(Error::NotAllowed { what: format!("{doing} {kind} {:?}", cut_name(name)) })
}

/// Returns a name as an error repeats it.
pub(super) fn cut_name(name: &str) -> String {
    name.chars().take(NAME_BYTES_MAX).collect()
}

/// Compares what the server derives from the first bytes of a request with the whole request. For
/// the fuzz target `request`.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_request(message: &[u8]) {
    use crate::server::policy::{Policy, Principal};
    let policy = Policy::parse(b"allow 8 read-write \"a\"", Principal { uid: 7, unmapped: None });
    let rights = policy.rights(8).expect("a rule for this uid");
    let checked = check_head(&message[..message.len().min(crate::server::buffers::SMALL_BYTES)], &rights);
    let items = items_of(message);
    let has_range = has_range(message);
    let (keyspace, is_allowed) = match wire::decode(message) {
        Ok(Request::Get { keyspace, .. } | Request::Scan { keyspace, .. }) => (keyspace, rights.may_read(keyspace)),
        Ok(Request::MultiGet { keyspace, keys }) => {
            assert_eq!(items, keys.0.len() as u64);
            (keyspace, rights.may_read(keyspace))
        }
        Ok(
            Request::Put { keyspace, .. } | Request::Delete { keyspace, .. } | Request::DeleteRange { keyspace, .. },
        ) => (keyspace, rights.may_write(keyspace)),
        Ok(Request::Commit { operations, .. }) => {
            assert_eq!(items, operations.0.len() as u64);
            match operations.0.first() {
                None => return,
                Some(Operation::ExpectVersion { keyspace, .. } | Operation::ExpectAbsent { keyspace, .. }) => {
                    (*keyspace, rights.may_read(keyspace))
                }
                Some(
                    Operation::Put { keyspace, .. }
                    | Operation::Delete { keyspace, .. }
                    | Operation::DeleteRange { keyspace, .. },
                ) => (*keyspace, rights.may_write(keyspace)),
            }
        }
        _ => {
            assert!(!has_range);
            return;
        }
    };
    // A longer name may extend beyond the first bytes.
    if keyspace.len() <= NAME_BYTES_MAX {
        assert_eq!(checked.is_ok(), is_allowed, "{checked:?}: {keyspace:?}");
    }
}
