//! Ranges of keys as callers write them.

use std::ops::{Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

/// A range of keys: `..`, any range of the standard library, or a pair of [`Bound`]s, of anything that is
/// `AsRef<[u8]>`.
///
/// It is implemented for those types alone. A range whose end is before its start is empty.
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
        /// The lower and the upper bound, as bytes.
        fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>);
    }
}

impl Bounds for RangeFull {
    #[inline]
    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (Bound::Unbounded, Bound::Unbounded)
    }
}

/// Not one implementation for all `RangeBounds<K>`: `..` is one for every `K`, so its `K` could not be inferred.
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
