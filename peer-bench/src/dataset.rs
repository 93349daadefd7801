//! Keys and values. A key depends on its index alone. A value depends on index and salt, so that no
//! write repeats a value: SQLite and libmdbx skip a write that does not change the value.

use crate::store::Entry;

/// The entries that a run stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dataset {
    pub(crate) entries: u64,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
}

/// Longer values differ from each other only in one word of each [`STAMP_INTERVAL`] bytes, because
/// generating 16 MiB of noise would take longer than storing them.
const NOISE_LIMIT: usize = 8192;
const STAMP_INTERVAL: usize = 512;

impl Dataset {
    /// Writes the key of `index` to `key`. Keys ascend with their index: four bytes of it, big
    /// endian, then noise.
    pub(crate) fn key_into(&self, index: u64, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(&(index as u32).to_be_bytes());
        let mut state = index;
        while key.len() < self.key_bytes {
            let word = mix(&mut state).to_le_bytes();
            let rest = self.key_bytes - key.len();
            key.extend_from_slice(&word[..rest.min(8)]);
        }
    }

    /// Writes a value that no other salt gives to `value`.
    pub(crate) fn value_into(&self, index: u64, salt: u64, value: &mut Vec<u8>) {
        fill(self.value_bytes, index, salt, value);
    }

    /// Returns the key and the value of `index`.
    pub(crate) fn entry(&self, index: u64, salt: u64) -> Entry {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        self.key_into(index, &mut key);
        self.value_into(index, salt, &mut value);
        (key, value)
    }

    /// Bytes of all keys and values after the load.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries * (self.key_bytes + self.value_bytes) as u64
    }
}

/// Fills `value` with `length` bytes of noise, or, if it is long, changes a word of each block.
pub(crate) fn fill(length: usize, index: u64, salt: u64, value: &mut Vec<u8>) {
    let mut state = index.rotate_left(32) ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if length > NOISE_LIMIT && value.len() == length {
        for block in value.chunks_mut(STAMP_INTERVAL).filter(|block| block.len() >= 8) {
            block[..8].copy_from_slice(&mix(&mut state).to_le_bytes());
        }
        return;
    }
    value.clear();
    while value.len() < length {
        let word = mix(&mut state).to_le_bytes();
        let rest = length - value.len();
        value.extend_from_slice(&word[..rest.min(8)]);
    }
}

/// Returns the next number of a sequence (splitmix64, by Steele, Lea and Flood).
#[inline]
pub(crate) fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATASET: Dataset = Dataset { entries: 1000, key_bytes: 24, value_bytes: 150 };

    #[test]
    fn keys_ascend_and_have_their_size() {
        for key_bytes in [8, 16, 24] {
            let dataset = Dataset { key_bytes, ..DATASET };
            let keys: Vec<_> = (0..1000).map(|index| dataset.entry(index, 1).0).collect();
            assert!(keys.is_sorted_by(|left, right| left < right));
            assert!(keys.iter().all(|key| key.len() == key_bytes));
        }
    }

    #[test]
    fn values_differ_by_salt_and_by_index() {
        let value = |index, salt| DATASET.entry(index, salt).1;
        assert_eq!(value(1, 1), value(1, 1));
        assert_ne!(value(1, 1), value(1, 2));
        assert_ne!(value(1, 1), value(2, 1));
        assert_eq!(value(1, 1).len(), 150);
    }

    #[test]
    fn long_values_differ_in_every_block() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        fill(1 << 20, 1, 1, &mut first);
        second.clone_from(&first);
        fill(1 << 20, 1, 2, &mut second);
        assert_eq!(second.len(), 1 << 20);
        assert!(first.chunks(STAMP_INTERVAL).zip(second.chunks(STAMP_INTERVAL)).all(|(left, right)| left != right));
    }
}
