//! The occupancy map leads a scan to the reader slots that may hold a pin, so that a scan costs
//! what is pinned now and not the most that ever was.
//!
//! Each slot has a bit, 64 of them in a word. Each *area*, a few such words, has a flag in a
//! summary word. The upper 48 bits of a summary word count the slots that were entered under it.
//!
//! **Invariant**: while a pin protects its transaction, the bit of its slot and the flag of its
//! area are set. The owner of a slot sets both before its first pin, and clears the bit after its
//! last one. Only the owner changes the bit. The flag belongs to a whole area, so a thread that
//! owns no slot there may clear it:
//!
//! | step | thread | action |
//! |---|---|---|
//! | E1 | the owner that enters the slot | sets the bit |
//! | E2 | the owner that enters the slot | adds one to the count in the summary word |
//! | E3 | the owner that enters the slot | sets the flag |
//! | C1 | a thread that clears the flag | loads the summary word |
//! | C2 | a thread that clears the flag | loads the area's words; stops if one is not 0 |
//! | C3 | a thread that clears the flag | compare-and-swap of the value of C1 to the same without the flag |
//!
//! A C3 after E3 in the summary word's modification order would hide the pin. It succeeds only if
//! C1 read the word's newest value, which includes E2. Reading E2 or a later value acquires E1, so
//! C2 finds the bit and stops. A C3 between E2 and E3 fails or comes from such a C1 as well, and E3
//! sets the flag again. The count keeps an old C1 from matching: it would have to run over 2^48
//! between C1 and C3.
//!
//! E1 to E3 are sequentially consistent and come before the pin, so the argument of
//! `shared::protocols::pins` includes them. If a scan misses one of them, the scan's fence came
//! before it. Then the reader's second load of the watermark returns the scan's horizon or a newer
//! value.
//!
//! A scan that finds a bit or a flag cleared is ordered after the reads of the slot's owner.
//! Clearing the bit and C2/C3 form a chain of acquire and release from the owner's unpin to the
//! scan. The read-modify-writes in between continue the release sequences.
//!
//! | a process dies | then |
//! |---|---|
//! | before E1 | the slot has an owner and no bit; it protects nothing; after a death, reaping checks all slots once |
//! | between E1 and E3 | the same, until another entry sets the flag |
//! | between the cleared bit and C3 | an empty area keeps its flag, which costs each scan a check until it is cleared |

use crate::shared::protocols::atomic::{Model, Word64};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// The number of flags in a summary word, in its low bits.
const FLAGS: usize = 16;
const FLAG_MASK: u64 = (1 << FLAGS) - 1;
/// One entry in the count above the flags.
const ONE_ENTRY: u64 = 1 << FLAGS;
/// The number of slots of a word.
const SLOTS: usize = 64;

/// The map of the slots that may hold a pin: `AREAS` areas of `WORDS` words each, under `SUMMARIES`
/// summary words.
#[repr(C, align(64))]
pub(crate) struct Occupancy<M: Model, const SUMMARIES: usize, const AREAS: usize, const WORDS: usize> {
    /// Flags, and the count of entries. Public for the planted bugs of the model.
    pub summaries: [M::U64; SUMMARIES],
    /// A bit for each slot. Public for the planted bugs of the model.
    pub areas: [[M::U64; WORDS]; AREAS],
}

/// The positions of a slot's bit and flag.
struct BitPosition {
    area: usize,
    word: usize,
    bit: u64,
}

impl<M: Model, const SUMMARIES: usize, const AREAS: usize, const WORDS: usize> Default
    for Occupancy<M, SUMMARIES, AREAS, WORDS>
{
    fn default() -> Self {
        let word = |_| M::U64::new(0);
        Occupancy { summaries: std::array::from_fn(word), areas: std::array::from_fn(|_| std::array::from_fn(word)) }
    }
}

impl<M: Model, const SUMMARIES: usize, const AREAS: usize, const WORDS: usize> Occupancy<M, SUMMARIES, AREAS, WORDS> {
    const FITS: () = assert!(SUMMARIES * FLAGS >= AREAS);

    fn position(index: usize) -> BitPosition {
        let () = Self::FITS;
        let word = index / SLOTS;
        BitPosition { area: word / WORDS, word: word % WORDS, bit: 1 << (index % SLOTS) }
    }

    fn summary(&self, area: usize) -> (&M::U64, u64) {
        (&self.summaries[area / FLAGS], 1 << (area % FLAGS))
    }

    /// Makes every later scan check the slot. Called by its owner before it pins.
    pub(crate) fn enter(&self, index: usize) {
        let BitPosition { area, word, bit } = Self::position(index);
        let (summary, flag) = self.summary(area);
        self.areas[area][word].fetch_or(bit, Ordering::SeqCst);
        // In this order: see E2 and E3 above.
        summary.fetch_add(ONE_ENTRY, Ordering::SeqCst);
        summary.fetch_or(flag, Ordering::SeqCst);
    }

    /// Removes the slot from the map. Called by the slot's owner, which has unpinned.
    pub(crate) fn leave(&self, index: usize) {
        let BitPosition { area, word, bit } = Self::position(index);
        if self.areas[area][word].fetch_and(!bit, Ordering::AcqRel) & !bit == 0 {
            self.tidy(area);
        }
    }

    /// Clears the area's flag if the area is empty.
    fn tidy(&self, area: usize) {
        let (summary, flag) = self.summary(area);
        let seen = summary.load(Ordering::Acquire);
        if seen & flag != 0 && self.areas[area].iter().all(|word| word.load(Ordering::Acquire) == 0) {
            // If this fails, another slot was entered or another flag was changed: keeping this
            // flag does no harm.
            let _ = summary.compare_exchange(seen, seen & !flag, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Clears the flags that dead processes left in empty areas.
    pub(crate) fn tidy_all(&self) {
        (0..AREAS).for_each(|area| self.tidy(area));
    }

    /// Calls `visit` with every slot that was entered, in ascending order. The caller has fenced
    /// before.
    #[inline]
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize)) {
        for (at, summary) in self.summaries.iter().enumerate() {
            for flag in bits(summary.load(Ordering::SeqCst) & FLAG_MASK) {
                let area = at * FLAGS + flag;
                // A flag without an area is damage.
                let words = self.areas.get(area).into_iter().flatten();
                for (word, bits_of) in words.enumerate() {
                    let first = (area * WORDS + word) * SLOTS;
                    bits(bits_of.load(Ordering::SeqCst)).for_each(|bit| visit(first + bit));
                }
            }
        }
    }

    /// Offers the slots in `range`, whole words, that were not entered to `claim`, in ascending
    /// order, until it accepts one.
    pub(crate) fn claim_vacant<T>(&self, range: Range<usize>, mut claim: impl FnMut(usize) -> Option<T>) -> Option<T> {
        (range.start / SLOTS..range.end / SLOTS).find_map(|at| {
            let entered = self.areas[at / WORDS][at % WORDS].load(Ordering::Relaxed);
            bits(!entered).find_map(|bit| claim(at * SLOTS + bit))
        })
    }
}

/// Returns the numbers of the bits that are set, in ascending order.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::protocols::atomic::Native;

    type Small = Occupancy<Native, 2, 20, 2>;

    fn entered(map: &Small) -> Vec<usize> {
        let mut found = Vec::new();
        map.for_each(|index| found.push(index));
        found
    }

    #[test]
    fn visits_what_is_entered_and_nothing_else() {
        let map = Small::default();
        let slots = [0, 63, 64, 127, 128, 16 * 128 + 5, 20 * 128 - 1];
        slots.iter().rev().for_each(|slot| map.enter(*slot));
        assert_eq!(entered(&map), slots);
        map.leave(63);
        map.leave(16 * 128 + 5);
        assert_eq!(entered(&map), [0, 64, 127, 128, 20 * 128 - 1]);
    }

    #[test]
    fn an_empty_area_has_no_flag() {
        let map = Small::default();
        let flags = |map: &Small| map.summaries.each_ref().map(|word| word.load(Ordering::Relaxed) & FLAG_MASK);
        map.enter(3);
        map.enter(70);
        map.enter(17 * 128);
        assert_eq!(flags(&map), [1, 2]);
        map.leave(3);
        assert_eq!(flags(&map), [1, 2]);
        map.leave(70);
        map.leave(17 * 128);
        assert_eq!(flags(&map), [0, 0]);
    }

    #[test]
    fn offers_the_lowest_vacant_slot_of_a_range() {
        let map = Small::default();
        (0..130).for_each(|slot| map.enter(slot));
        map.leave(65);
        assert_eq!(map.claim_vacant(0..2560, Some), Some(65));
        assert_eq!(map.claim_vacant(0..2560, |slot| (slot != 65).then_some(slot)), Some(130));
        assert_eq!(map.claim_vacant(128..192, Some), Some(130));
        assert_eq!(map.claim_vacant(0..64, Some), None);
    }
}
