//! Which freed pages are protected from reuse.
//!
//! **I3**, the reuse rule, is enforced in [`Protected::is_reusable`], at each allocation. A freed
//! page is not reused while some protected transaction p has created_txn ≤ p < freed_txn, nor
//! before the transaction that freed it is committed. The protected transactions are all pins, the
//! newest started checkpoint C and the newest finished checkpoint K. So pages that are newer than
//! the last checkpoint and than the pin of a stalled reader are recycled at once, in spite of that
//! pin. They stay hot in the cache.
//!
//! **Logged extents.** The bytes of a logged extent are in the arena alone, so recovery needs them
//! as long as it may replay the record that refers to them: while K < created_txn. If the extent is
//! freed before K reaches created_txn, no checkpoint and no pin protects it by the rule above.
//! Therefore the entry of a freed logged extent has a bit, and such an extent waits until freed_txn
//! ≤ K. (While created_txn ≤ K < freed_txn, K itself protects it.) If a transaction rolls back, no
//! committed record refers to its extents. Their allocation was never published, so their pages are
//! free as before.
//!
//! **A scan of the pins stays valid.** A scan is made under the writer lock. Its horizon is the
//! newest commit at that time. A pin that the scan does not list is on the horizon or a later
//! commit, or is given up again (`shared::protocols::pins`). No such pin, whenever it is taken,
//! needs a page that the horizon or an earlier commit freed. So each process keeps its last scan
//! across transactions. It makes a new one only for pages that were freed later, or that a pin of
//! the old scan protects. A pin that ended after the scan still counts; that only delays reuse.
//!
//! A scan visits each slot in use. If there are many, a process scans at most once in
//! [`LARGE_SCAN_AGE`] transactions, as long as it finds pages elsewhere. Meanwhile at most the
//! pages that [`LARGE_SCAN_AGE`] transactions free wait for the scan.

use crate::pages::queue::FreeEntry;
use crate::pages::unreplayed::UnreplayedExtents;
use crate::participant::engine::Engine;
use crate::participant::pin_scan::PinScan;
use crate::{Result, TxnId};
use std::sync::Arc;

/// A scan of at least this many slots counts as large.
const LARGE_SCAN_SLOTS: usize = 256;
/// The number of transactions for which a large scan is not repeated unless the store is full.
const LARGE_SCAN_AGE: u64 = 64;

/// Selects which pins protect pages from reuse.
pub(crate) enum Protection {
    /// In a live store: all pins, C and K.
    Live,
    /// In recovery, where there are no readers: its checkpoint, and the extents to which the log
    /// refers.
    Recovery(TxnId, Arc<UnreplayedExtents>),
}

/// The checkpoints and pins that protect pages from reuse by one write transaction.
pub(crate) struct Protected<'e> {
    engine: &'e Engine,
    committed: TxnId,
    /// C and K.
    started: TxnId,
    finished: TxnId,
    scan: Arc<PinScan>,
    /// Whether the scan was made in this transaction.
    is_new: bool,
    is_thorough: bool,
}

impl<'e> Protected<'e> {
    /// Returns the protection during the transaction after `committed`. The caller holds the writer
    /// lock.
    pub(crate) fn new(engine: &'e Engine, committed: TxnId, protection: &Protection) -> Protected<'e> {
        let ((started, finished), scan, is_new) = match protection {
            Protection::Live => {
                (engine.control.fixed().checkpoint.started_and_finished(), engine.last_pin_scan(), false)
            }
            Protection::Recovery(checkpoint, _) => {
                ((*checkpoint, *checkpoint), Arc::new(PinScan::new(committed, Vec::new())), true)
            }
        };
        Protected { engine, committed, started, finished, scan, is_new, is_thorough: false }
    }

    /// Reads which checkpoints were started or finished, and which pins have ended. A new pin is on
    /// the base commit of the transaction; it needs no page that was already free in that commit.
    ///
    /// # Errors
    /// As [`Engine::scan_pins`].
    pub(crate) fn refresh(&mut self) -> Result<()> {
        (self.started, self.finished) = self.engine.control.fixed().checkpoint.started_and_finished();
        self.scan = self.engine.scan_pins()?;
        self.is_new = true;
        Ok(())
    }

    /// Enables a scan of the pins as soon as a page waits for one, however many slots there are.
    /// Returns true if this was not enabled before.
    pub(crate) fn become_thorough(&mut self) -> bool {
        !std::mem::replace(&mut self.is_thorough, true)
    }

    /// Returns whether the usual bounded search found no page in this transaction.
    pub(crate) fn is_thorough(&self) -> bool {
        self.is_thorough
    }

    /// Returns C, the newest started checkpoint.
    pub(crate) fn started(&self) -> TxnId {
        self.started
    }

    /// Returns K, the newest finished checkpoint.
    pub(crate) fn finished(&self) -> TxnId {
        self.finished
    }

    /// Returns the pins that a scan in this transaction found, ascending: all that protect a page
    /// which was free when the transaction began.
    ///
    /// # Errors
    /// As [`Engine::scan_pins`].
    pub(crate) fn pins(&mut self) -> Result<&[TxnId]> {
        if !self.is_new {
            self.scan = self.engine.scan_pins()?;
            self.is_new = true;
        }
        Ok(&self.scan.pins)
    }

    fn is_held_by_checkpoint(&self, entry: &FreeEntry) -> bool {
        let holds = |checkpoint: TxnId| entry.created_txn <= checkpoint && checkpoint < entry.freed_txn;
        if planted_bug!("reuse-running-checkpoint") {
            return holds(self.finished);
        }
        let is_replayed =
            entry.is_logged && self.finished < entry.freed_txn && !planted_bug!("reuse-referenced-extent");
        is_replayed || holds(self.started) || holds(self.finished)
    }

    /// Returns whether rule I3 allows reuse of a page. Also returns false if only a new scan could
    /// decide that, and none is due.
    ///
    /// # Errors
    /// As [`Engine::scan_pins`].
    pub(crate) fn is_reusable(&mut self, entry: &FreeEntry) -> Result<bool> {
        if planted_bug!("reuse-one-txn-early") {
            return Ok(!self.is_held_by_checkpoint(entry));
        }
        if entry.freed_txn > self.committed || self.is_held_by_checkpoint(entry) {
            return Ok(false);
        }
        let mut is_free = self.is_free_of_pins(entry);
        if !is_free && self.may_scan() {
            self.pins()?;
            is_free = self.is_free_of_pins(entry);
        }
        Ok(is_free)
    }

    /// Returns whether the present scan shows that no pin protects the page.
    fn is_free_of_pins(&self, entry: &FreeEntry) -> bool {
        entry.freed_txn <= self.scan.horizon && !self.scan.protects(entry.created_txn, entry.freed_txn)
    }

    fn may_scan(&self) -> bool {
        let scan = &self.scan;
        let is_old = || {
            let age = self.committed.sequence().saturating_sub(scan.horizon.sequence());
            age >= LARGE_SCAN_AGE || scan.horizon.incarnation() != self.committed.incarnation()
        };
        !self.is_new && (scan.slots < LARGE_SCAN_SLOTS || self.is_thorough || is_old())
    }

    /// Returns whether a page that is not reusable now, and all pages freed after it, become
    /// reusable without the end of any pin.
    pub(crate) fn waits(&self, entry: &FreeEntry) -> bool {
        entry.freed_txn > self.committed.min(self.scan.horizon) || self.is_held_by_checkpoint(entry)
    }

    /// Returns whether the newest checkpoint contains a page that `created_txn` created. Selects
    /// the queue of a freed page.
    pub(crate) fn is_in_checkpoint(&self, created_txn: TxnId) -> bool {
        created_txn <= if planted_bug!("reuse-running-checkpoint") { self.finished } else { self.started }
    }
}
