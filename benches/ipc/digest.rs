//! A checksum that depends on every word and on its place: both sides of a hand-over compute it, so
//! each word is read.

/// Fletcher's two sums, over words of 64 bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Digest {
    sum: u64,
    sum_of_sums: u64,
}

impl Digest {
    /// That of so many words.
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

    /// That of the same words, `len` of them, if the first were more by so much.
    pub(crate) fn with_first_raised(self, by: u64, len: usize) -> Digest {
        Digest {
            sum: self.sum.wrapping_add(by),
            sum_of_sums: self.sum_of_sums.wrapping_add(by.wrapping_mul(len as u64)),
        }
    }

    /// In one word.
    pub(crate) fn folded(self) -> u64 {
        self.sum ^ self.sum_of_sums.rotate_left(32)
    }
}
