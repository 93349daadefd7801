//! The pinned transactions that one scan of the reader slots has found.

use crate::TxnId;

/// The pins that one scan has found.
#[derive(Debug, Default)]
pub(crate) struct PinScan {
    /// The newest commit before the scan.
    pub(crate) horizon: TxnId,
    /// Pinned transactions, ascending.
    pub(crate) pins: Vec<TxnId>,
    /// The number of pins found, each pin of the same transaction counted.
    pub(crate) slots: usize,
}

impl PinScan {
    /// Returns the scan of these pins, in any order, that was made when `horizon` was the newest
    /// commit.
    pub(crate) fn new(horizon: TxnId, mut pins: Vec<TxnId>) -> PinScan {
        let slots = pins.len();
        pins.sort_unstable();
        pins.dedup();
        PinScan { horizon, pins, slots }
    }

    /// Returns whether a pin protects a page that was created in `created_txn` and freed in
    /// `freed_txn`.
    pub(crate) fn protects(&self, created_txn: TxnId, freed_txn: TxnId) -> bool {
        let first = self.pins.partition_point(|pin| *pin < created_txn);
        self.pins.get(first).is_some_and(|pin| *pin < freed_txn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(sequence: u64) -> TxnId {
        TxnId::from_u64(sequence)
    }

    /// A pin protects what was created by then and freed after it. The scan decides nothing about a
    /// page freed after the horizon.
    #[test]
    fn protects_from_creation_to_freeing() {
        let scan = PinScan::new(txn(20), vec![txn(9), txn(5), txn(9)]);
        assert_eq!((scan.pins.as_slice(), scan.slots), (&[txn(5), txn(9)][..], 3));
        for (created_txn, freed_txn, protected) in
            [(5, 6, true), (1, 5, false), (6, 9, false), (6, 10, true), (9, 12, true), (10, 20, false)]
        {
            assert_eq!(scan.protects(txn(created_txn), txn(freed_txn)), protected, "{created_txn} to {freed_txn}");
        }
    }
}
