//! The state of the store in the words of `control`: the newest and the durable transaction, the
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

/// The reason why a store refuses writes until it is opened again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Poison {
    /// The log can no longer be written.
    Log = 1,
    /// A sync of the arena failed: the page cache can no longer be trusted.
    Arena = 2,
    /// The checkpoint's header could not be written.
    Header = 3,
}

impl Control {
    /// Returns the incarnation of the next transactions: that of the newest one, or a later one
    /// after a loss.
    #[inline]
    pub(crate) fn incarnation(&self) -> Result<u32> {
        let word = unchecked(self.fixed().incarnation.current.load(Ordering::Relaxed));
        // An incarnation before that of the newest transaction would make the ids go backwards.
        word.filter(|incarnation| *incarnation >= self.committed().incarnation()).ok_or_else(|| {
            let what = format!("the incarnation of the store is damaged; {REOPEN_REMEDY}");
            Error::corrupt(dir::CONTROL, offset_of!(Fixed, incarnation) as u64, what)
        })
    }

    /// Begins with this incarnation. `is_stated` is whether the log states that it is used. Called
    /// by recovery. From then on, the region is begun: see [`Control::is_begun`].
    ///
    /// `current` is stored last, and released: a client that sees it finds everything that the
    /// logger did before.
    pub(crate) fn begin_incarnation(&self, incarnation: u32, is_stated: bool) {
        let words = &self.fixed().incarnation;
        words.stated.store(if is_stated { checked(incarnation) } else { 0 }, Ordering::Release);
        words.current.store(checked(incarnation), Ordering::Release);
    }

    /// Returns whether a logger has begun this region. If not, the first client of a store that was
    /// shut down in order has made the region. The header may still record that the store is in
    /// order, so no client may change anything that recovery would not find: see
    /// `api/left_in_order.rs`.
    ///
    /// A client stores no word of the log, the cells and the commits before this returns true.
    pub(crate) fn is_begun(&self) -> bool {
        self.fixed().incarnation.current.load(Ordering::Acquire) != 0
    }

    /// Returns whether the log states that the current incarnation is used. After a flipped bit in
    /// either word, returns false.
    pub(crate) fn is_incarnation_stated(&self) -> bool {
        let words = &self.fixed().incarnation;
        words.stated.load(Ordering::Acquire) == words.current.load(Ordering::Acquire)
    }

    /// Requests that the logger states that the current incarnation is used.
    pub(crate) fn want_incarnation_stated(&self) {
        let words = &self.fixed().incarnation;
        words.wanted.store(words.current.load(Ordering::Acquire), Ordering::SeqCst);
    }

    /// Returns the incarnation that the logger is to state.
    pub(crate) fn incarnation_to_state(&self) -> Option<u32> {
        let words = &self.fixed().incarnation;
        let current = words.current.load(Ordering::Acquire);
        let is_wanted = words.wanted.load(Ordering::SeqCst) == current && !self.is_incarnation_stated();
        unchecked(current).filter(|_| is_wanted)
    }

    /// Records that the incarnation is stated durably. Called by the logger.
    pub(crate) fn incarnation_stated(&self, incarnation: u32) {
        self.fixed().incarnation.stated.store(checked(incarnation), Ordering::SeqCst);
    }

    /// Returns the newest visible transaction.
    #[inline]
    pub(crate) fn committed(&self) -> TxnId {
        TxnId::from_u64(self.fixed().committed.load(Ordering::Acquire))
    }

    /// Initialises the state: the commit of `image` is the newest, is durable, and is both
    /// checkpoints C and K. Called by recovery; no other process has mapped the region.
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

    /// Publishes the commit of `txn`, whose slot is filled: the one store that makes it visible.
    /// Called by the owner of the writer lock. Fenced, so that a notification may follow.
    #[inline]
    pub(crate) fn publish_commit(&self, txn: TxnId) {
        slots::publish::<Native>(&self.fixed().committed, txn);
    }

    /// Pins the newest visible transaction in `slot`, which the caller owns.
    #[inline]
    pub(crate) fn pin_committed(&self, slot: &StoreReader) -> TxnId {
        slot.pin(&self.fixed().committed)
    }

    /// Returns the commit slots.
    #[inline]
    pub(crate) fn slots(&self) -> Slots<'_, Native, SLOT_WORDS> {
        Slots::new(&*self.fixed().slots)
    }

    /// Returns the image of the newest visible transaction, as of the call.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `committed` contains a transaction that its slot does not hold.
    pub(crate) fn newest(&self) -> Result<SlotImage> {
        loop {
            let committed = self.committed();
            if let Some(image) = self.image(committed)? {
                return Ok(image);
            }
        }
    }

    /// Returns the image of `txn`, or `None` if its slot is about to be used again.
    #[inline]
    pub(crate) fn image(&self, txn: TxnId) -> Result<Option<SlotImage>> {
        match self.slots().read(&self.fixed().committed, txn) {
            Some(words) => self.decode_image(&words).map(Some),
            // The slot of the newest transaction is not used again before 62 more commits. So the
            // slot, or the word that contains the transaction, is damaged, and retrying would never
            // end.
            None if self.committed() == txn => Err(Error::corrupt(
                dir::CONTROL,
                0,
                format!("the slot of transaction {txn} contains another transaction"),
            )),
            None => Ok(None),
        }
    }

    pub(crate) fn poison(&self) -> u32 {
        self.fixed().logger.poison()
    }

    /// Returns an error if the store refuses writes.
    pub(crate) fn refuse_poisoned(&self) -> Result<()> {
        match self.recovery_reason() {
            Some(reason) => Err(Error::NeedsRecovery { reason }),
            None => Ok(()),
        }
    }

    /// Returns the reason why the store refuses writes until it is recovered, if it does.
    pub(crate) fn recovery_reason(&self) -> Option<RecoveryReason> {
        let poison = self.poison();
        if poison == 0 {
            return None;
        }
        let errno = self.fixed().logger.poison_errno();
        Some(match poison {
            1 => RecoveryReason::Log { errno },
            2 => RecoveryReason::Arena { errno },
            3 => RecoveryReason::CheckpointHeader { errno },
            _ => RecoveryReason::Unknown { errno },
        })
    }
}
