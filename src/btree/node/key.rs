//! Keys as pages store them: the head of a suffix, the parts of a key, and their comparison.
//!
//! Keys are short, so the comparisons here are inline: a call of `memcmp` or `memcpy` with a length
//! known only at run time costs more than the work itself.

use std::cmp::Ordering;

/// The length of a head in bytes.
pub(crate) const HEAD_LEN: usize = 8;

/// Returns the head of a suffix: its first 8 bytes as a big-endian number, padded with zeros.
#[inline(always)]
pub(crate) fn head_of(suffix: &[u8]) -> u64 {
    let len = suffix.len();
    if let Some(bytes) = suffix.first_chunk::<HEAD_LEN>() {
        return u64::from_be_bytes(*bytes);
    }
    // If the suffix is shorter than 8 bytes, the two halves overlap. They hold the same bytes where
    // they overlap.
    if let (Some(first), Some(last)) = (suffix.first_chunk::<4>(), suffix.last_chunk::<4>()) {
        let (first, last) = (u64::from(u32::from_be_bytes(*first)), u64::from(u32::from_be_bytes(*last)));
        return first << 32 | last << (8 * (HEAD_LEN - len));
    }
    let at = |index: usize| u64::from(suffix[index]) << (56 - 8 * index);
    if len == 0 { 0 } else { at(0) | at(len / 2) | at(len - 1) }
}

/// Returns whether two byte strings are equal.
#[inline(always)]
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let (words, other_words) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    if words.iter().zip(other_words).any(|(word, other)| u64::from_ne_bytes(*word) != u64::from_ne_bytes(*other)) {
        return false;
    }
    // Compare the last 8 bytes. The loop above may have compared some of them already.
    if let (Some(last), Some(other)) = (a.last_chunk::<8>(), b.last_chunk::<8>()) {
        return u64::from_ne_bytes(*last) == u64::from_ne_bytes(*other);
    }
    head_of(a) == head_of(b)
}

/// The key of an entry, in the parts in which the page stores it.
#[derive(Clone, Copy)]
pub(crate) struct KeyParts<'a> {
    pub(super) prefix: &'a [u8],
    pub(super) head: [u8; HEAD_LEN],
    /// The number of bytes of the head that belong to the key; at most [`HEAD_LEN`].
    pub(super) head_len: usize,
    pub(super) rest: &'a [u8],
}

impl KeyParts<'_> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.prefix.len() + self.head_len + self.rest.len()
    }

    /// Replaces the content of `key` with this key.
    pub(crate) fn key_into(&self, key: &mut Vec<u8>) {
        key.clear();
        self.append_to(key);
    }

    #[inline]
    pub(crate) fn append_to(&self, key: &mut Vec<u8>) {
        key.reserve(self.prefix.len() + HEAD_LEN + self.rest.len());
        key.extend_from_slice(self.prefix);
        self.append_suffix(key);
    }

    /// Appends the key without the prefix of its page.
    #[inline(always)]
    pub(crate) fn append_suffix(&self, key: &mut Vec<u8>) {
        let start = key.len();
        // Append all 8 bytes, a length that the compiler knows. Then remove those that do not
        // belong to the key.
        key.extend_from_slice(&self.head);
        key.truncate(start + self.head_len);
        if !self.rest.is_empty() {
            key.extend_from_slice(self.rest);
        }
    }

    #[inline]
    pub(crate) fn to_vec(self) -> Vec<u8> {
        // Allocate the whole capacity at once, since growing takes more instructions.
        let mut key = Vec::with_capacity(self.prefix.len() + HEAD_LEN + self.rest.len());
        key.extend_from_slice(self.prefix);
        self.append_suffix(&mut key);
        key
    }

    /// Compares two keys as byte strings.
    pub(crate) fn compare(&self, other: &KeyParts<'_>) -> Ordering {
        let mut ours = [self.prefix, &self.head[..self.head_len], self.rest];
        let mut others = [other.prefix, &other.head[..other.head_len], other.rest];
        let (mut part, mut other_part) = (0, 0);
        while part < ours.len() && other_part < others.len() {
            let len = ours[part].len().min(others[other_part].len());
            let (left, our_rest) = ours[part].split_at(len);
            let (right, other_rest) = others[other_part].split_at(len);
            match left.cmp(right) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
            (ours[part], others[other_part]) = (our_rest, other_rest);
            part += usize::from(our_rest.is_empty());
            other_part += usize::from(other_rest.is_empty());
        }
        self.len().cmp(&other.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn padded(suffix: &[u8]) -> u64 {
        let mut bytes = [0; HEAD_LEN];
        let len = suffix.len().min(HEAD_LEN);
        bytes[..len].copy_from_slice(&suffix[..len]);
        u64::from_be_bytes(bytes)
    }

    fn cut(key: &[u8], prefix_len: usize) -> KeyParts<'_> {
        let (prefix, suffix) = key.split_at(prefix_len.min(key.len()));
        KeyParts {
            prefix,
            head: padded(suffix).to_be_bytes(),
            head_len: suffix.len().min(HEAD_LEN),
            rest: suffix.get(HEAD_LEN..).unwrap_or(&[]),
        }
    }

    /// Generates strings of few different bytes, so that equal and nearly equal strings are
    /// frequent.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..28)
    }

    proptest! {
        #[test]
        fn the_head_is_the_padded_beginning(suffix in bytes()) {
            prop_assert_eq!(head_of(&suffix), padded(&suffix));
        }

        /// The strings are equal, of one length, or differ in any way.
        #[test]
        fn equal_strings_are_found(a in bytes(), other in bytes(), flipped in any::<prop::sample::Index>()) {
            prop_assert!(equal(&a, &a.clone()));
            prop_assert_eq!(equal(&a, &other), a == other);
            if !a.is_empty() {
                let mut changed = a.clone();
                changed[flipped.index(a.len())] ^= 1;
                prop_assert!(!equal(&a, &changed));
            }
        }

        #[test]
        fn parts_are_joined_and_compared(a in bytes(), b in bytes(), prefixes in (0usize..28, 0usize..28)) {
            let (left, right) = (cut(&a, prefixes.0), cut(&b, prefixes.1));
            prop_assert_eq!(left.to_vec(), a.clone());
            let mut key = b"before".to_vec();
            right.key_into(&mut key);
            prop_assert_eq!(key, b.clone());
            prop_assert_eq!(left.compare(&right), a.cmp(&b));
            prop_assert_eq!(left.compare(&cut(&a, prefixes.1)), Ordering::Equal);
        }
    }
}
