//! The open scans of a connection: each has a snapshot and the rest of a range.
//!
//! The snapshot makes all pieces of a scan one view. It is kept between two pieces, but for a
//! bounded time, in case the peer does not continue. It is dropped [`SCAN_IDLE_TIMEOUT`] after the
//! last piece, or [`SCAN_LIFETIME_MAX`] after the first; the request for the next piece then fails
//! with `Stale`.

use crate::limits::{PAGE_SIZE_MAX, key_len_max};
use crate::system::clock;
use crate::{Error, Keyspace, LimitKind, Result, Snapshot};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};
use untorn_wal::wire::{Edge, List, PIECE_BYTES_MAX, PIECE_RECORDS_MAX, RangeRecord, Reply};

/// How long a snapshot is kept for the next piece.
const SCAN_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest duration of a scan.
const SCAN_LIFETIME_MAX: Duration = Duration::from_secs(600);
/// The most scans that a connection may have open.
const SCANS_MAX: usize = 8;

#[derive(Default)]
pub(super) struct Scans {
    last: u32,
    open: BTreeMap<u32, OpenScan>,
}

struct OpenScan {
    snapshot: Snapshot,
    keyspace: Keyspace,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    is_reverse: bool,
    piece_bytes: usize,
    ends: Instant,
    expires: Instant,
}

impl Scans {
    /// Opens a scan and returns its number.
    pub(super) fn open(
        &mut self,
        snapshot: Snapshot,
        keyspace: Keyspace,
        (lower, upper): (Edge<'_>, Edge<'_>),
        is_reverse: bool,
        piece_bytes: u32,
    ) -> Result<u32> {
        if self.open.len() >= SCANS_MAX {
            return Err(Error::Limit { what: LimitKind::Scans, found: SCANS_MAX as u64 + 1, limit: SCANS_MAX as u64 });
        }
        let now = clock::now();
        let scan = OpenScan {
            snapshot,
            keyspace,
            lower: lower_bound(lower),
            upper: upper_bound(upper),
            is_reverse,
            piece_bytes: (piece_bytes as usize).clamp(1, PIECE_BYTES_MAX),
            ends: now + SCAN_LIFETIME_MAX,
            expires: now + SCAN_IDLE_TIMEOUT,
        };
        // Not 0, which means that there are no more pieces, nor the number of an open scan.
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.open.contains_key(&self.last) {
                break;
            }
        }
        self.open.insert(self.last, scan);
        Ok(self.last)
    }

    /// Returns the name of the keyspace of a scan.
    pub(super) fn keyspace(&self, scan: u32) -> Result<&str> {
        self.open.get(&scan).map(|scan| scan.keyspace.name()).ok_or(Error::Stale)
    }

    pub(super) fn close(&mut self, scan: u32) {
        self.open.remove(&scan);
    }

    /// Passes the next piece to `send`, with the number of its bytes and of its records.
    pub(super) fn piece<T>(
        &mut self,
        number: u32,
        send: impl FnOnce(usize, usize, &Reply<'_>) -> Result<T>,
    ) -> Result<T> {
        let scan = self.open.get_mut(&number).ok_or(Error::Stale)?;
        let range = (scan.lower.as_ref().map(|key| &key[..]), scan.upper.as_ref().map(|key| &key[..]));
        if is_empty(range) {
            let reply = Reply::Piece { scan: 0, txn: scan.snapshot.txn_id().as_u64(), records: List(Vec::new()) };
            self.open.remove(&number);
            return send(0, 0, &reply);
        }
        let mut range = scan.snapshot.range(&scan.keyspace, range)?;
        let (mut records, mut bytes, mut is_last) = (Vec::new(), 0, false);
        while records.len() < PIECE_RECORDS_MAX {
            let next = if scan.is_reverse { range.next_back() } else { range.next() };
            let Some(record) = next else {
                is_last = true;
                break;
            };
            let (key, value) = record?;
            if !records.is_empty() && bytes + key.len() + value.len() > scan.piece_bytes {
                break;
            }
            bytes += key.len() + value.len();
            records.push((key, value));
        }
        let list = List(records.iter().map(|(key, value)| RangeRecord { key, value }).collect());
        let reply = Reply::Piece {
            scan: if is_last { 0 } else { number },
            txn: scan.snapshot.txn_id().as_u64(),
            records: list,
        };
        let sent = send(bytes, records.len(), &reply)?;
        if is_last {
            self.open.remove(&number);
        } else if let Some((key, _)) = records.last() {
            let reached = Bound::Excluded(key.to_vec());
            if scan.is_reverse {
                scan.upper = reached;
            } else {
                scan.lower = reached;
            }
            scan.expires = scan.ends.min(clock::now() + SCAN_IDLE_TIMEOUT);
        }
        Ok(sent)
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.open.values().map(|scan| scan.expires).min()
    }

    pub(super) fn expire(&mut self) {
        if !self.open.is_empty() {
            let now = clock::now();
            self.open.retain(|_, scan| scan.expires > now);
        }
    }
}

/// The longest key that any store can hold. Longer edges are cut to it.
const KEY_BYTES_MAX: usize = key_len_max(PAGE_SIZE_MAX);

fn lower_bound(edge: Edge<'_>) -> Bound<Vec<u8>> {
    match edge {
        Edge::Open => Bound::Unbounded,
        // Every key beyond the first bytes of such an edge is beyond the edge.
        Edge::With(key) | Edge::Without(key) if key.len() > KEY_BYTES_MAX => {
            Bound::Excluded(key[..KEY_BYTES_MAX].to_vec())
        }
        Edge::With(key) => Bound::Included(key.to_vec()),
        Edge::Without(key) => Bound::Excluded(key.to_vec()),
    }
}

fn upper_bound(edge: Edge<'_>) -> Bound<Vec<u8>> {
    match edge {
        Edge::Open => Bound::Unbounded,
        // As above; the first bytes themselves are a key before the edge.
        Edge::With(key) | Edge::Without(key) if key.len() > KEY_BYTES_MAX => {
            Bound::Included(key[..KEY_BYTES_MAX].to_vec())
        }
        Edge::With(key) => Bound::Included(key.to_vec()),
        Edge::Without(key) => Bound::Excluded(key.to_vec()),
    }
}

/// Returns whether the range can hold no key, also if its edges are in the wrong order.
fn is_empty(range: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match range {
        (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
        (Bound::Included(lower) | Bound::Excluded(lower), Bound::Included(upper) | Bound::Excluded(upper)) => {
            lower >= upper
        }
        _ => false,
    }
}
