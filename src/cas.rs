//! The outcome of a compare-and-swap.

use crate::TxnId;

/// The outcome of [`Keyspace::compare_and_swap`](crate::Keyspace::compare_and_swap).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a mismatch means that nothing was stored"]
pub enum CasOutcome {
    /// The version was the expected one; this transaction made the change.
    Swapped(TxnId),
    /// The version was another one, and nothing has changed.
    Mismatch {
        /// The key's version; `None` if it is absent.
        current: Option<TxnId>,
    },
}
