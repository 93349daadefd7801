//! What a compare-and-swap found.

use crate::TxnId;

/// How [`Keyspace::compare_and_swap`](crate::Keyspace::compare_and_swap) ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a mismatch means that nothing was stored"]
pub enum CasOutcome {
    /// The version was the expected one; the change is this transaction.
    Swapped(TxnId),
    /// It was not, and nothing has changed.
    Mismatch {
        /// The key's version; `None` if it is absent.
        current: Option<TxnId>,
    },
}
