//! A checksum that depends on every word and on its position. Both sides of a transfer compute it,
//! so each word is read.

/// Fletcher's two sums, over words of 64 bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Digest {
    sum: u64,
    sum_of_sums: u64,
}

impl Digest {
    /// Returns the digest of these words.
    pub(crate) fn of(words: &[u64]) -> Digest {
        let mut digest = Digest::default();
        words.iter().for_each(|word| digest.add(*word));
        digest
    }

    #[inline]
    pub(crate) fn add(&mut self, word: u64) {
        self.sum = self.sum.wrapping_add(word);
        self.sum_of_sums = self.sum_of_sums.wrapping_add(self.sum);
    }

    /// Returns the digest of the same `len` words after `by` is added to the first word.
    pub(crate) fn with_first_raised(self, by: u64, len: usize) -> Digest {
        Digest {
            sum: self.sum.wrapping_add(by),
            sum_of_sums: self.sum_of_sums.wrapping_add(by.wrapping_mul(len as u64)),
        }
    }

    /// Returns the digest in one word.
    pub(crate) fn folded(self) -> u64 {
        self.sum ^ self.sum_of_sums.rotate_left(32)
    }
}
