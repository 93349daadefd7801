//! What the words of `control` say about the store: the newest and the durable transaction, the
//! incarnation, and poison.

use super::layout::{Fixed, checked, unchecked};
use super::{Control, REOPEN_REMEDY};
use crate::error::reason::RecoveryReason;
use crate::files::dir;
use crate::files::slot::{SLOT_WORDS, SlotImage};
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::slots;
use crate::shared::protocols::slots::Slots;
use crate::shared::readers::StoreReader;
use crate::{Error, Result, TxnId};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

/// Why a store refuses writes until it is opened anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Poison {
    /// The log can be written no more.
    Log = 1,
    /// A sync of the arena failed; what the page cache says of it can't be trusted.
    Arena = 2,
    /// The checkpoint's header could not be written.
    Header = 3,
}

impl Control {
    /// The incarnation of the transactions to come: that of the newest one, or a later one after a
    /// loss.
    #[inline]
    pub(crate) fn incarnation(&self) -> Result<u32> {
        let word = unchecked(self.fixed().incarnation.current.load(Ordering::Relaxed));
        // One before that of the newest transaction would give ids that go backwards.
        word.filter(|incarnation| *incarnation >= self.committed().incarnation()).ok_or_else(|| {
            let what = format!("the incarnation of the store is damaged; {REOPEN_REMEDY}");
            Error::corrupt(dir::CONTROL, offset_of!(Fixed, incarnation) as u64, what)
        })
    }

    /// By recovery: begins with this incarnation. `is_stated`: the log states that it is used.
    pub(crate) fn begin_incarnation(&self, incarnation: u32, is_stated: bool) {
        let words = &self.fixed().incarnation;
        words.current.store(checked(incarnation), Ordering::Release);
        words.stated.store(if is_stated { checked(incarnation) } else { 0 }, Ordering::Release);
    }

    /// Whether the log states that the current incarnation is used. A flipped bit in either word
    /// means no.
    pub(crate) fn is_incarnation_stated(&self) -> bool {
        let words = &self.fixed().incarnation;
        words.stated.load(Ordering::Acquire) == words.current.load(Ordering::Acquire)
    }

    /// Asks the logger to state that the current incarnation is used.
    pub(crate) fn want_incarnation_stated(&self) {
        let words = &self.fixed().incarnation;
        words.wanted.store(words.current.load(Ordering::Acquire), Ordering::SeqCst);
    }

    /// By the logger: the incarnation to state.
    pub(crate) fn incarnation_to_state(&self) -> Option<u32> {
        let words = &self.fixed().incarnation;
        let current = words.current.load(Ordering::Acquire);
        let is_wanted = words.wanted.load(Ordering::SeqCst) == current && !self.is_incarnation_stated();
        unchecked(current).filter(|_| is_wanted)
    }

    /// By the logger: it is stated, durably.
    pub(crate) fn incarnation_stated(&self, incarnation: u32) {
        self.fixed().incarnation.stated.store(checked(incarnation), Ordering::SeqCst);
    }

    /// The newest visible transaction.
    #[inline]
    pub(crate) fn committed(&self) -> TxnId {
        TxnId::from_u64(self.fixed().committed.load(Ordering::Acquire))
    }

    /// By recovery: the commit of `image` is the newest one, and durable, and both checkpoints are
    /// of it. No other process has mapped the region.
    pub(crate) fn begin_at(&self, image: &SlotImage) {
        let fixed = self.fixed();
        let words = image.encode();
        self.slots().write(&words);
        fixed.committed.store(image.txn.as_u64(), Ordering::Release);
        fixed.durable.begin_at(&fixed.logger_pins, image.txn, image.log_tail);
        fixed.durable_slots[0].fill(&words);
        fixed.stream.begin_at(image.log_tail);
        fixed.checkpoint.begin_at(image.txn, image.log_tail);
    }

    /// Publishes the commit of `txn`, whose slot is filled: the one store that makes it visible. By
    /// the owner of the writer lock. Fenced, so that a notification may follow.
    #[inline]
    pub(crate) fn publish_commit(&self, txn: TxnId) {
        slots::publish::<Native>(&self.fixed().committed, txn);
    }

    /// Pins the newest visible transaction in `slot`, which the caller owns.
    #[inline]
    pub(crate) fn pin_committed(&self, slot: &StoreReader) -> TxnId {
        slot.pin(&self.fixed().committed)
    }

    /// The commit slots.
    #[inline]
    pub(crate) fn slots(&self) -> Slots<'_, Native, SLOT_WORDS> {
        Slots::new(&*self.fixed().slots)
    }

    /// The image of the newest visible transaction, as of the call.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `committed` names a transaction that its slot does not hold.
    pub(crate) fn newest(&self) -> Result<SlotImage> {
        loop {
            let committed = self.committed();
            if let Some(image) = self.image(committed)? {
                return Ok(image);
            }
        }
    }

    /// The image of `txn`, or `None` if its slot is about to be used again.
    #[inline]
    pub(crate) fn image(&self, txn: TxnId) -> Result<Option<SlotImage>> {
        match self.slots().read(&self.fixed().committed, txn) {
            Some(words) => self.decode_image(&words).map(Some),
            // The slot of the newest transaction is not used again before 62 others: it, or the
            // word that names it, is damaged, and looking again would never end.
            None if self.committed() == txn => {
                Err(Error::corrupt(dir::CONTROL, 0, format!("the slot of transaction {txn} names another")))
            }
            None => Ok(None),
        }
    }

    pub(crate) fn poison(&self) -> u32 {
        self.fixed().logger.poison()
    }

    /// An error if the store refuses writes.
    pub(crate) fn refuse_poisoned(&self) -> Result<()> {
        let poison = self.poison();
        if poison == 0 {
            return Ok(());
        }
        let errno = self.fixed().logger.poison_errno();
        let reason = match poison {
            1 => RecoveryReason::Log { errno },
            2 => RecoveryReason::Arena { errno },
            3 => RecoveryReason::CheckpointHeader { errno },
            _ => RecoveryReason::Unknown { errno },
        };
        Err(Error::NeedsRecovery { reason })
    }
}
