//! Typed identifiers: no bare integer crosses a module.

use serde::Serialize;
use std::fmt;

/// The number of a page in the arena; its byte offset is the number times the page size.
///
/// Page 0 identifies the file and is never handed out, so that 0 stands for "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
pub(crate) struct PageId(pub(crate) u32);

impl PageId {
    /// "No page": the root of an empty tree, the end of a list.
    pub(crate) const NONE: PageId = PageId(0);

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// The id of a transaction: an incarnation in the 20 high bits, a sequence number in the 44 low bits.
///
/// Ids order transactions as they became visible. Each recovery that may have lost a future raises the
/// incarnation, so that an id of the lost future never names something else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct TxnId(u64);

/// Bits of a [`TxnId`] that count transactions.
const SEQUENCE_BITS: u32 = 44;

impl TxnId {
    /// Before the first transaction.
    pub const ZERO: TxnId = TxnId(0);

    /// The id with these raw bits, as [`TxnId::as_u64`] gave them.
    pub const fn from_u64(bits: u64) -> TxnId {
        TxnId(bits)
    }

    /// The raw bits, to be stored or sent elsewhere.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// How many recoveries came before.
    pub const fn incarnation(self) -> u32 {
        (self.0 >> SEQUENCE_BITS) as u32
    }

    /// The position in the order of all transactions of the store; it is never reset.
    pub const fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }

    pub(crate) const fn next(self) -> TxnId {
        TxnId(self.0 + 1)
    }

    /// The first id of the incarnation after this one.
    pub(crate) const fn next_incarnation(self) -> TxnId {
        TxnId(((self.incarnation() as u64 + 1) << SEQUENCE_BITS) | (self.sequence() + 1))
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
/// A version that was lost in a power cut never names another value: after a recovery versions go on from a number
/// that depends on the store's incarnation, above all that could have been given before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Version(u64);

/// More values than a cell can have had since its last durable sample, unless that was days ago.
const UNSAMPLED_MAX: u64 = 1 << 40;

impl Version {
    /// The version with these raw bits, as [`Version::as_u64`] gave them.
    pub const fn from_u64(bits: u64) -> Version {
        Version(bits)
    }

    /// The raw bits, to be stored or sent elsewhere.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Version {
        Version(self.0.wrapping_add(1))
    }

    /// The lowest version for values stored in `incarnation`, into a cell whose recovered value has this version.
    pub(crate) fn floor(self, incarnation: u32) -> Version {
        let first = Version(u64::from(incarnation) << SEQUENCE_BITS);
        // A cell that has had more values than an incarnation has room for runs ahead of these.
        if self <= first { first } else { Version(self.0.saturating_add(UNSAMPLED_MAX)) }
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
