//! Typed identifiers: no bare integer crosses a module.

use crate::{Error, LimitKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The number of a page in the arena; its byte offset is the number times the page size.
///
/// Page 0 identifies the file and is never handed out, so 0 means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
pub(crate) struct PageId(pub(crate) u32);

impl PageId {
    /// "No page": the root of an empty tree, the end of a list.
    pub(crate) const NONE: PageId = PageId(0);

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// The id of a transaction: an incarnation in the 20 high bits, a sequence number in the 44 low
/// bits.
///
/// Ids order transactions as they became visible. The first transaction after a recovery that may
/// have lost transactions raises the incarnation. So the id of a lost transaction never refers to
/// another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TxnId(u64);

/// The number of bits of a [`TxnId`] that count transactions.
const SEQUENCE_BITS: u32 = 44;
/// The last transaction that a store can have.
const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;
/// The last incarnation that a store can have.
pub(crate) const INCARNATION_MAX: u32 = (1 << (64 - SEQUENCE_BITS)) - 1;

impl TxnId {
    /// The id before the first transaction.
    pub const ZERO: TxnId = TxnId(0);

    /// Returns the id with these raw bits, as [`TxnId::as_u64`] returned them.
    pub const fn from_u64(bits: u64) -> TxnId {
        TxnId(bits)
    }

    /// Returns the raw bits, to be stored or sent elsewhere.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the number of recoveries after which the store was written to again.
    pub const fn incarnation(self) -> u32 {
        (self.0 >> SEQUENCE_BITS) as u32
    }

    /// Returns the position in the order of all transactions of the store; it is never reset.
    pub const fn sequence(self) -> u64 {
        self.0 & SEQUENCE_MAX
    }

    /// Returns the id of the next transaction in `incarnation`, which is this id's or a later one.
    ///
    /// # Errors
    /// [`Error::Limit`] if the next id would not be unique: a carry out of either field would
    /// repeat an id.
    pub(crate) fn next_in(self, incarnation: u32) -> Result<TxnId> {
        if incarnation > INCARNATION_MAX {
            let what = LimitKind::Incarnations;
            return Err(Error::Limit { what, found: incarnation.into(), limit: INCARNATION_MAX.into() });
        }
        if self.sequence() == SEQUENCE_MAX {
            let what = LimitKind::TransactionIds;
            return Err(Error::Limit { what, found: SEQUENCE_MAX + 1, limit: SEQUENCE_MAX });
        }
        Ok(TxnId(u64::from(incarnation) << SEQUENCE_BITS | (self.sequence() + 1)))
    }

    /// Returns whether `next` can be the id of the transaction after this one.
    pub(crate) const fn precedes(self, next: TxnId) -> bool {
        next.sequence() == self.sequence() + 1 && next.incarnation() >= self.incarnation()
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation(), self.sequence())
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The version of a cell's value: a number that grows with each value that the cell has.
///
/// A version refers to one value for ever, even if a power loss took that value back, or the cell
/// was dropped and another one of its name was created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(u64);

/// More values than a cell can have had since its last durable sample: ten million a second for
/// five days.
const UNSAMPLED_MAX: u64 = 1 << 42;

impl Version {
    /// Returns the version with these raw bits, as [`Version::as_u64`] returned them.
    pub const fn from_u64(bits: u64) -> Version {
        Version(bits)
    }

    /// Returns the raw bits, to be stored or sent elsewhere.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the next version; `None` after the last one.
    pub(crate) const fn next(self) -> Option<Version> {
        match self.0.checked_add(1) {
            Some(next) => Some(Version(next)),
            None => None,
        }
    }

    /// Returns the lowest version that a cell can have in `incarnation`. The newest known version
    /// of the cell is this one, and its newest record was committed in the incarnation
    /// `committed_in`.
    ///
    /// The result depends on durable facts alone. So each recovery in the same incarnation computes
    /// the same floor, whether or not any value was stored since the first of them. The floor is
    /// above every version that was assigned before:
    /// - In the incarnation of the record nothing is lost: the floor is at most this version.
    /// - Each later incarnation began after a loss. It took back less than [`UNSAMPLED_MAX`]
    ///   versions of this cell above those of the incarnation before, or versions below the first
    ///   one of this incarnation. The first case is for a cell that has had more values than an
    ///   incarnation has versions for.
    pub(crate) fn floor(self, committed_in: u32, incarnation: u32) -> Version {
        let losses = u64::from(incarnation.saturating_sub(committed_in));
        let reached = self.0.saturating_add(losses.saturating_mul(UNSAMPLED_MAX));
        let first = u64::from(incarnation).saturating_mul(1 << SEQUENCE_BITS);
        Version(reached.max(first))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> SEQUENCE_BITS, self.0 & ((1 << SEQUENCE_BITS) - 1))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One process's use of one store: a random number of 62 bits, never reused, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub(crate) struct ClientId(pub(crate) u64);

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The number of a keyspace; a name dropped and created again gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct KeyspaceId(pub(crate) u64);

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: ids end with an error at both limits, and before a field overflows into the other.
    #[test]
    fn the_last_ids() {
        let last = TxnId::from_u64(7 << SEQUENCE_BITS | (SEQUENCE_MAX - 1)).next_in(7).unwrap();
        assert_eq!((last.incarnation(), last.sequence()), (7, SEQUENCE_MAX));
        assert!(matches!(last.next_in(7), Err(Error::Limit { limit: SEQUENCE_MAX, .. })));
        let first = TxnId::ZERO.next_in(INCARNATION_MAX).unwrap();
        assert_eq!((first.incarnation(), first.sequence()), (INCARNATION_MAX, 1));
        assert!(matches!(first.next_in(INCARNATION_MAX + 1), Err(Error::Limit { limit: 0xf_ffff, .. })));
        assert!(!last.precedes(TxnId::from_u64(8 << SEQUENCE_BITS)));
    }

    /// Goal: the floor of a cell is above all versions that a loss can have taken back, and the
    /// same each time.
    #[test]
    fn floors_of_versions() {
        let of = |incarnation: u64, values: u64| Version(incarnation << SEQUENCE_BITS | values);
        // Nothing is lost: versions continue.
        assert_eq!(of(3, 9).floor(3, 3), of(3, 9));
        assert_eq!(of(0, 2).floor(0, 1), of(1, 0));
        // A cell that has had more values than its incarnation has versions for, or nearly as many.
        assert_eq!(of(2, 5).floor(1, 2), Version(of(2, 5).0 + UNSAMPLED_MAX));
        let nearly = of(0, SEQUENCE_MAX - 1);
        assert_eq!(nearly.floor(0, 1), Version(nearly.0 + UNSAMPLED_MAX));
        assert_eq!(Version(u64::MAX - 5).floor(0, 1), Version(u64::MAX));
        assert_eq!(of(0, 1).floor(0, INCARNATION_MAX + 1), Version(u64::MAX));
        assert_eq!(Version(u64::MAX).next(), None);
    }
}
