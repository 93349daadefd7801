//! The ranges of keys that callers pass.

use std::ops::{Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

/// A range of keys: `..`, any range of the standard library, or a pair of [`Bound`]s, of anything
/// that is `AsRef<[u8]>`.
///
/// It is implemented for those types only. A range whose end is before its start is empty.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// # let store = untorn::Store::open(&path)?;
/// use std::ops::Bound;
///
/// let letters = store.keyspace("letters")?;
/// store.transact(|txn| ["a", "b", "c", "d"].iter().try_for_each(|key| txn.put(&letters, key, "")))?;
/// let count = |range: untorn::Result<untorn::Range>| range.map(Iterator::count);
///
/// assert_eq!(count(letters.range(..))?, 4);
/// assert_eq!(count(letters.range("b".."d"))?, 2);
/// assert_eq!(count(letters.range(b"b"..=b"d"))?, 3);
/// assert_eq!(count(letters.range(.."c"))?, 2);
/// assert_eq!(count(letters.range(..=String::from("c")))?, 3);
/// assert_eq!(count(letters.range(vec![b'c']..))?, 2);
/// let key = [b'b', b'x'];
/// assert_eq!(count(letters.range(&key[..1]..))?, 3);
/// assert_eq!(count(letters.range((Bound::Excluded("a"), Bound::Included("b"))))?, 1);
/// assert_eq!(count(letters.range((Bound::Excluded("a"), Bound::Unbounded)))?, 3);
///
/// // Both ends are of one type. Literals of unequal length are of two, so one is made a slice.
/// assert_eq!(count(letters.range(&b"a"[..]..b"bb"))?, 2);
/// // Two `Unbounded` bounds have no type of their own.
/// assert_eq!(count(letters.range::<(Bound<&str>, Bound<&str>)>((Bound::Unbounded, Bound::Unbounded)))?, 4);
/// # drop(letters);
/// # store.close()?;
/// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
pub trait KeyRange: sealed::Bounds {}

impl<R: sealed::Bounds> KeyRange for R {}

use sealed::Bounds;

mod sealed {
    use std::ops::Bound;

    pub trait Bounds {
        /// Returns the lower and the upper bound, as bytes.
        fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>);
    }
}

impl Bounds for RangeFull {
    #[inline]
    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (Bound::Unbounded, Bound::Unbounded)
    }
}

/// A range as in the log and the change feed: from `start` up to but not including `end`, or to the
/// last key.
///
/// Each set of keys that a range argument can select has one such form, except that several forms
/// select no key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HalfOpen {
    pub(crate) start: Vec<u8>,
    pub(crate) end: Option<Vec<u8>>,
}

impl HalfOpen {
    /// Returns the range of the keys between these bounds, in a store whose keys have at most
    /// `key_len_max` bytes.
    ///
    /// The least key above `k` is `k` and a zero byte. A bound that is longer than every key
    /// selects the same keys as its first `key_len_max + 1` bytes, which no key equals. So a bound
    /// has at most that many bytes.
    pub(crate) fn new(lower: Bound<&[u8]>, upper: Bound<&[u8]>, key_len_max: usize) -> HalfOpen {
        let cut = |key: &[u8], is_after: bool| match key.get(..=key_len_max) {
            Some(first) => first.to_vec(),
            None if is_after => [key, &[0]].concat(),
            None => key.to_vec(),
        };
        let start = match lower {
            Bound::Unbounded => Vec::new(),
            Bound::Included(key) => cut(key, false),
            Bound::Excluded(key) => cut(key, true),
        };
        let end = match upper {
            Bound::Unbounded => None,
            Bound::Included(key) => Some(cut(key, true)),
            Bound::Excluded(key) => Some(cut(key, false)),
        };
        HalfOpen { start, end }
    }
}

/// One implementation for each type, not one for all `RangeBounds<K>`: `..` is one for every `K`,
/// so its `K` could not be inferred.
macro_rules! bounds_of {
    ($($range:ty),*) => {
        $(
            impl<K: AsRef<[u8]>> Bounds for $range {
                #[inline]
                fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
                    let start = <Self as RangeBounds<K>>::start_bound(self);
                    let end = <Self as RangeBounds<K>>::end_bound(self);
                    (start.map(AsRef::as_ref), end.map(AsRef::as_ref))
                }
            }
        )*
    };
}

bounds_of!(Range<K>, RangeInclusive<K>, RangeFrom<K>, RangeTo<K>, RangeToInclusive<K>, (Bound<K>, Bound<K>));

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the half-open form selects the same keys as the bounds, also where those are longer
    /// than any key. Method: every pair of bounds over every key of at most two bytes of a small
    /// alphabet.
    #[test]
    fn half_open_ranges_select_the_same_keys() {
        let letters = [0, 1, 255];
        let of = |len: u32| -> Vec<Vec<u8>> {
            let key = |n: usize| (0..len).map(|at| letters[n / 3_usize.pow(at) % 3]).collect();
            (0..3_usize.pow(len)).map(key).collect()
        };
        let bounds: Vec<Vec<u8>> = (0..=4).flat_map(of).collect();
        let ends: Vec<Bound<&[u8]>> = bounds
            .iter()
            .flat_map(|key| [Bound::Included(&key[..]), Bound::Excluded(&key[..])])
            .chain([Bound::Unbounded])
            .collect();
        let keys: Vec<Vec<u8>> = (0..=2).flat_map(of).collect();
        for lower in &ends {
            for upper in &ends {
                let half_open = HalfOpen::new(*lower, *upper, 2);
                assert!(half_open.start.len() <= 3 && half_open.end.as_ref().is_none_or(|end| end.len() <= 3));
                for key in &keys {
                    let is_inside = (*lower, *upper).contains(&key[..]);
                    let is_selected = *key >= half_open.start && half_open.end.as_ref().is_none_or(|end| key < end);
                    assert_eq!(is_selected, is_inside, "{key:?} in {lower:?} to {upper:?}: {half_open:?}");
                }
            }
        }
    }
}
