//! The bytes of the log's ring in shared memory. Positions are LSNs. The ring holds position `p` at
//! offset `(p - base) % capacity`, where `base` is the position at which the log began to use the
//! ring. So the ring may grow until its first lap ends, and no position moves.
//!
//! The owner of the writer lock copies records in beyond the published tail. The publication of
//! `committed` (or the store of `stream_tail`) publishes them, and the logger and followers copy
//! them out. The words are relaxed atomics, because a follower may copy bytes that are being
//! overwritten: it must check afterwards whether its position was still valid. The callers decide
//! how much space there is and when to wait ([`crate::shared::protocols::event_count`]).

use crate::shared::protocols::atomic::{Model, Word64};
use std::sync::atomic::Ordering;

/// Bytes of one word: the unit of positions.
const WORD: usize = 8;

/// The error of a position before the ring's base or not a multiple of 8 bytes after it, or of more
/// bytes than the ring holds. The cause is damage or a caller's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfRing;

/// Contiguous words of the ring, in two pieces of the memory.
type Parts<'a, M> = (&'a [<M as Model>::U64], &'a [<M as Model>::U64]);

/// The ring's words.
pub(crate) struct Ring<'a, M: Model> {
    words: &'a [M::U64],
    base: u64,
}

impl<M: Model> Clone for Ring<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Model> Copy for Ring<'_, M> {}

impl<'a, M: Model> Ring<'a, M> {
    /// Returns the ring in these words, of which there is at least one. Its first lap begins at
    /// position `base`.
    pub(crate) fn new(words: &'a [M::U64], base: u64) -> Self {
        assert!(!words.is_empty(), "a ring without words");
        Ring { words, base }
    }

    /// Returns the number of bytes that the ring holds.
    pub(crate) fn capacity(&self) -> usize {
        self.words.len() * WORD
    }

    /// Returns the words of `len` bytes at `lsn`: up to the end of the memory, and then from its
    /// beginning.
    fn parts(&self, lsn: u64, len: usize) -> Result<Parts<'a, M>, OutOfRing> {
        let count = len.div_ceil(WORD);
        let offset = lsn.checked_sub(self.base).ok_or(OutOfRing)?;
        if !offset.is_multiple_of(WORD as u64) || count > self.words.len() {
            return Err(OutOfRing);
        }
        let start = (offset / WORD as u64 % self.words.len() as u64) as usize;
        let first = count.min(self.words.len() - start);
        Ok((&self.words[start..start + first], &self.words[..count - first]))
    }

    /// Writes `bytes` at `lsn`, padded with zeros to a multiple of 8. Called by the owner of the
    /// writer lock, into free space. Readers must not read the bytes before a release store has
    /// published them.
    ///
    /// The fence pairs with the one in [`Ring::copy_out`]: a reader that copies any of these bytes
    /// too early, and then loads a watermark, sees at least the value that the writer had seen.
    pub(crate) fn copy_in(&self, lsn: u64, bytes: &[u8]) -> Result<(), OutOfRing> {
        let (first, second) = self.parts(lsn, bytes.len())?;
        M::fence(Ordering::Release);
        let (head, tail) = bytes.split_at(bytes.len().min(first.len() * WORD));
        write_words::<M>(first, head);
        write_words::<M>(second, tail);
        Ok(())
    }

    /// Copies the bytes at `lsn` out. The caller has acquired a tail that covers them. The logger
    /// keeps them in place, since they are not yet durable; any other caller must check its
    /// position again afterwards.
    pub(crate) fn copy_out(&self, lsn: u64, bytes: &mut [u8]) -> Result<(), OutOfRing> {
        let (first, second) = self.parts(lsn, bytes.len())?;
        let (head, tail) = bytes.split_at_mut(bytes.len().min(first.len() * WORD));
        read_words::<M>(first, head);
        read_words::<M>(second, tail);
        M::fence(Ordering::Acquire);
        Ok(())
    }
}

fn write_words<M: Model>(words: &[M::U64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<WORD>();
    for (word, chunk) in words.iter().zip(whole) {
        word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
    if !rest.is_empty() {
        let mut padded = [0; WORD];
        padded[..rest.len()].copy_from_slice(rest);
        words[whole.len()].store(u64::from_le_bytes(padded), Ordering::Relaxed);
    }
}

fn read_words<M: Model>(words: &[M::U64], bytes: &mut [u8]) {
    let (whole, rest) = bytes.as_chunks_mut::<WORD>();
    for (word, chunk) in words.iter().zip(whole.iter_mut()) {
        *chunk = word.load(Ordering::Relaxed).to_le_bytes();
    }
    if !rest.is_empty() {
        let last = words[whole.len()].load(Ordering::Relaxed).to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::protocols::atomic::Native;
    use std::sync::atomic::AtomicU64;

    /// Every length at every position of a small ring comes out as it went in, and its padding is
    /// zero.
    #[test]
    fn what_goes_in_comes_out() {
        let words: Vec<AtomicU64> = (0..7).map(|_| AtomicU64::new(u64::MAX)).collect();
        let ring = Ring::<Native>::new(&words, 24);
        for lsn in (24..1024).step_by(WORD) {
            for len in 0..=ring.capacity() {
                let bytes: Vec<u8> = (0..len).map(|index| (index as u64 + lsn) as u8).collect();
                ring.copy_in(lsn, &bytes).unwrap();
                let mut out = vec![0xee; len.next_multiple_of(WORD)];
                ring.copy_out(lsn, &mut out).unwrap();
                assert_eq!(out[..len], bytes[..]);
                assert!(out[len..].iter().all(|&byte| byte == 0));
                let mut exact = vec![0xee; len];
                ring.copy_out(lsn, &mut exact).unwrap();
                assert_eq!(exact, bytes);
            }
        }
    }

    /// What a ring holds in its first lap is at the same place in a ring that has grown.
    #[test]
    fn a_ring_grows_in_its_first_lap() {
        let words: Vec<AtomicU64> = (0..16).map(|_| AtomicU64::new(0)).collect();
        let bytes: Vec<u8> = (1..=64).collect();
        Ring::<Native>::new(&words[..8], 40).copy_in(40, &bytes).unwrap();
        let grown = Ring::<Native>::new(&words, 40);
        grown.copy_in(40 + 64, &bytes).unwrap();
        for lsn in [40, 40 + 64] {
            let mut out = [0; 64];
            grown.copy_out(lsn, &mut out).unwrap();
            assert_eq!(out, bytes[..]);
        }
    }

    #[test]
    fn damage_is_an_error() {
        let words: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        let ring = Ring::<Native>::new(&words, 0);
        assert_eq!(ring.copy_in(4, &[0]), Err(OutOfRing));
        assert_eq!(ring.copy_in(0, &[0; 33]), Err(OutOfRing));
        assert_eq!(Ring::<Native>::new(&words, 8).copy_out(0, &mut [0]), Err(OutOfRing));
        assert_eq!(ring.copy_out(u64::MAX, &mut [0]), Err(OutOfRing));
        assert_eq!(ring.copy_out(u64::MAX - 7, &mut [0; 32]), Ok(()));
    }
}
