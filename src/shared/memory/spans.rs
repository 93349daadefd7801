//! A file that is mapped in spans: the first one when the file is opened, each other one when a
//! byte in it is first used.
//!
//! A span covers a fixed range of the file, and the spans together cover it to its greatest length.
//! Once mapped, a span stays at its address until the store is closed, since values that refer to
//! it may live as long. Each span is made from the last bytes of the one before it
//! ([`Mapping::duplicate`]), so all spans before a mapped one are mapped too. Together they take
//! little more address space than the file is long:
//!
//! | span | begins at | length |
//! |---|---|---|
//! | 0 to 7 | 0, f, 2 f, … 7 f, where f is the length of the first | f |
//! | 8 to 11 | 8 f, 10 f, 12 f, 14 f | 2 f |
//! | 12 to 15 | 16 f, 20 f, 24 f, 28 f | 4 f |
//! | and so on | | doubled for each four |
//!
//! So the table of spans is short even if the first one is short. A range of the file that crosses
//! the border of a span has a *bridge*: one more mapping, which covers the border and is as long as
//! the range requires.
#![allow(unsafe_code)]

use crate::shared::memory::fork;
use crate::shared::memory::mapping::{MAPPING_ALIGN, MapOptions, Mapping};
use crate::system::sync::Mutex;
use crate::{Error, Result};
use rustix::io::Errno;
use rustix::mm::Advice;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::OnceLock;

/// The number of spans that are as long as the first.
const EQUAL_SPANS: u64 = 8;
/// The number of spans of each longer length; the next length is double.
const SPANS_PER_LENGTH: u64 = EQUAL_SPANS / 2;
/// The shortest unit of bridges, each of which is two units long.
const BRIDGE_UNIT: u64 = MAPPING_ALIGN;

/// The mappings of one file with the same rights.
pub(crate) struct Spans {
    first: Mapping,
    /// The other spans, by their number minus one.
    others: Box<[OnceLock<Mapping>]>,
    /// The bridges. Also locked while a span is mapped.
    bridges: Mutex<Vec<Mapping>>,
    file_name: &'static str,
    /// The greatest length of the file.
    max_len: u64,
}

impl Spans {
    /// Maps the first bytes of `file`, called `file_name` in errors: as many as `options` say, or
    /// fewer where the process may not map them, but no fewer than `least`. The file may grow to
    /// `max_len` bytes. All three are multiples of [`MAPPING_ALIGN`].
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub(crate) fn new(
        file: impl AsFd,
        file_name: &'static str,
        options: MapOptions,
        least: u64,
        max_len: u64,
    ) -> Result<Spans> {
        let mut reserve = options.reserve;
        let first = loop {
            let half = (reserve / 2).next_multiple_of(MAPPING_ALIGN);
            if half < least || half == reserve {
                break Mapping::new(&file, file_name, MapOptions { reserve, ..options })?;
            }
            match Mapping::try_new(&file, file_name, MapOptions { reserve, ..options })? {
                Some(first) => break first,
                None => reserve = half,
            }
        };
        let len = first.range().end;
        let count = number_of((max_len - 1) / len);
        let others = (0..count).map(|_| OnceLock::new()).collect();
        Ok(Spans { first, others, bridges: Mutex::default(), file_name, max_len })
    }

    /// Maps a private copy of the first `file_len` bytes of `file`, with zeros behind them, in one
    /// span: see [`Mapping::private_copy`]. `None` if the process may not map that much.
    pub(crate) fn private_copy(
        file: impl AsFd,
        file_name: &'static str,
        file_len: u64,
        options: MapOptions,
    ) -> Result<Option<Spans>> {
        let Some(first) = Mapping::private_copy(file, file_name, file_len, options)? else { return Ok(None) };
        let max_len = first.range().end;
        Ok(Some(Spans { first, others: Box::default(), bridges: Mutex::default(), file_name, max_len }))
    }

    /// Returns the first span, which is always mapped.
    #[inline]
    pub(crate) fn first(&self) -> &Mapping {
        &self.first
    }

    /// Returns the address of a range of the file, which is contiguous there for as long as `self`
    /// lives.
    ///
    /// # Errors
    /// [`Error::Io`] if the process may not map it; [`Error::Corrupt`] if the range is beyond the
    /// file's greatest length.
    #[inline]
    pub(crate) fn map(&self, range: Range<u64>) -> Result<*mut u8> {
        match range.end <= self.first.range().end && range.start < range.end {
            true => Ok(self.first.address_of(range.start)),
            false => self.map_beyond(range),
        }
    }

    /// Maps as [`Spans::map`], for a range that is not in the first span.
    #[inline(never)]
    fn map_beyond(&self, range: Range<u64>) -> Result<*mut u8> {
        if range.end > self.max_len || range.start >= range.end {
            let Range { start, end } = range;
            let what = format!("bytes {start} to {end} are used, of {} that there can be", self.max_len);
            return Err(Error::corrupt(self.file_name, start, what));
        }
        match self.find_span(range.start) {
            Some(span) if span.covers(&range) => Ok(span.address_of(range.start)),
            _ => self.map_anew(range),
        }
    }

    /// Returns the address of a byte of the file if its span is mapped.
    #[inline]
    pub(crate) fn find(&self, offset: u64) -> Option<*const u8> {
        self.find_span(offset).map(|span| span.address_of(offset).cast_const())
    }

    fn find_span(&self, offset: u64) -> Option<&Mapping> {
        match number_of(offset / self.first.range().end) {
            0 => Some(&self.first),
            number => self.others.get(number - 1)?.get(),
        }
    }

    /// Maps the missing spans or the bridge for the range.
    #[cold]
    fn map_anew(&self, range: Range<u64>) -> Result<*mut u8> {
        let mut bridges = self.bridges.lock();
        let span = self.map_span(number_of(range.start / self.first.range().end))?;
        if span.covers(&range) {
            return Ok(span.address_of(range.start));
        }
        if let Some(bridge) = bridges.iter().find(|bridge| bridge.covers(&range)) {
            return Ok(bridge.address_of(range.start));
        }
        // Two units, beginning at a multiple of a unit, cover every range of up to one unit that
        // begins in the first of them.
        let unit = (range.end - range.start).next_power_of_two().max(BRIDGE_UNIT);
        let start = range.start - range.start % unit;
        let end = start.saturating_add(2 * unit).min(self.max_len);
        let span = self.find_span(start).expect("a span before one that is mapped");
        let bridge = span.duplicate(start - span.range().start, end - start)?;
        let address = bridge.address_of(range.start);
        // A forked child drops its copy of the list, so no fork may happen while the list changes.
        fork::without_forks(|| bridges.push(bridge))?;
        Ok(address)
    }

    /// Returns the span of this number, mapped together with all before it.
    fn map_span(&self, number: usize) -> Result<&Mapping> {
        let mut last = &self.first;
        for (index, span) in self.others[..number].iter().enumerate() {
            if span.get().is_none() {
                let start = last.range().end;
                let len = self.range_of(index + 1).end - start;
                // The byte before the span is mapped, so the duplicate begins there.
                let page = rustix::param::page_size() as u64;
                let overlap = last.duplicate(start - page - last.range().start, page + len)?;
                let _ = span.set(overlap);
            }
            last = span.get().expect("mapped just now");
        }
        Ok(last)
    }

    /// Returns the range of the file that the span of this number covers.
    fn range_of(&self, number: usize) -> Range<u64> {
        let first = self.first.range().end;
        let start = |number: usize| first.saturating_mul(start_of(number));
        start(number)..start(number + 1).min(self.max_len)
    }

    /// Returns whether the file has the byte before `end`. This queries the kernel through the
    /// mapping, so it needs no descriptor. A kernel before Linux 5.14 cannot tell; then this
    /// returns true.
    ///
    /// # Errors
    /// As [`Spans::map`].
    pub(crate) fn reaches(&self, end: u64) -> Result<bool> {
        // The planted bug accepts any number; this check would reject it.
        if planted_bug!("number-without-complement") {
            return Ok(true);
        }
        let page = rustix::param::page_size();
        let last = end.saturating_sub(1) / page as u64 * page as u64;
        let address = self.map(last..last + page as u64)?;
        // SAFETY: the page is mapped, as just checked, and loading it changes no byte.
        let loaded = unsafe { rustix::mm::madvise(address.cast(), page, Advice::LinuxPopulateRead) };
        // `EFAULT` means that a load would be a SIGBUS.
        Ok(loaded != Err(Errno::FAULT))
    }

    /// Maps `file` in place of the file that was mapped, at the same addresses: see
    /// [`Mapping::replace`].
    pub(crate) fn replace(&self, file: impl AsFd) -> Result<()> {
        let bridges = self.bridges.lock();
        let others = self.others.iter().filter_map(OnceLock::get);
        for mapping in std::iter::once(&self.first).chain(others).chain(bridges.iter()) {
            mapping.replace(&file)?;
        }
        Ok(())
    }
}

/// Returns the number of the span with the byte that is `units` first-span lengths from the file's
/// beginning.
fn number_of(units: u64) -> usize {
    if units < EQUAL_SPANS {
        return units as usize;
    }
    let doubled = u64::from(units.ilog2() - EQUAL_SPANS.ilog2()) + 1;
    (SPANS_PER_LENGTH * doubled + (units >> doubled)) as usize
}

/// Returns where a span begins, in lengths of the first span. The inverse of [`number_of`].
fn start_of(number: usize) -> u64 {
    let number = number as u64;
    if number < EQUAL_SPANS {
        return number;
    }
    let doubled = number / SPANS_PER_LENGTH - 1;
    (number - SPANS_PER_LENGTH * doubled) << doubled
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const UNIT: u64 = MAPPING_ALIGN;

    /// Returns a file whose 8-byte words contain their position, and `mark`.
    fn file_of(len: u64, mark: u64) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len / 8).flat_map(|word| (word * 8 + mark).to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    fn spans(file: &std::fs::File, max_len: u64) -> Spans {
        let options = MapOptions { reserve: UNIT, writable: false, in_core_dumps: false };
        Spans::new(file, "arena", options, UNIT, max_len).unwrap()
    }

    /// Returns the words of a range, all of which the file has.
    fn read(spans: &Spans, range: Range<u64>) -> Result<Vec<u64>> {
        let address = spans.map(range.clone())?;
        // SAFETY: the range is mapped, as just checked, and within the file, which nothing changes.
        let words =
            unsafe { std::slice::from_raw_parts(address.cast::<u64>(), (range.end - range.start) as usize / 8) };
        Ok(words.to_vec())
    }

    fn words(range: Range<u64>, mark: u64) -> Vec<u64> {
        range.step_by(8).map(|at| at + mark).collect()
    }

    /// Each unit belongs to one span, and spans follow one another.
    #[test]
    fn spans_partition_the_file() {
        for number in 0..200 {
            let (start, end) = (start_of(number), start_of(number + 1));
            assert!(start < end);
            for units in [start, (start + end) / 2, end - 1] {
                assert_eq!(number_of(units), number, "{units}");
            }
            // Less than a quarter of the length before it.
            assert!(number < EQUAL_SPANS as usize || (end - start) * 4 <= start, "{number}");
        }
        assert_eq!(
            (0..200).map(start_of).take(14).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]
        );
        assert_eq!(number_of(u64::MAX) + 1, number_of(u64::MAX >> 1) + 1 + SPANS_PER_LENGTH as usize);
    }

    /// Ranges in each span, and across borders of every kind, are contiguous, and stay where they
    /// are.
    #[test]
    fn every_range_is_mapped_whole() {
        let len = 13 * UNIT;
        let file = file_of(len, 0);
        let spans = spans(&file, len);
        drop(file);
        assert_eq!(spans.others.len(), 10);
        let mut kept = Vec::new();
        for (at, size) in
            [(0, 64), (UNIT - 64, 64), (UNIT, 4096), (UNIT - 8, 16), (5 * UNIT / 2, 64), (12 * UNIT, UNIT)]
        {
            kept.push((at..at + size, spans.map(at..at + size).unwrap()));
        }
        for (units, size) in [(1, 4096), (1, UNIT), (4, 64), (3, 3 * UNIT), (8, 5 * UNIT), (12, 2 * UNIT)] {
            let range = units * UNIT - size / 2..units * UNIT + size / 2;
            assert_eq!(read(&spans, range.clone()).unwrap(), words(range.clone(), 0), "{range:?}");
            kept.push((range.clone(), spans.map(range).unwrap()));
        }
        for (range, address) in kept {
            assert_eq!(spans.map(range.clone()).unwrap(), address);
            assert_eq!(read(&spans, range.clone()).unwrap(), words(range, 0));
        }
        assert_eq!(spans.bridges.lock().len(), 4, "a bridge serves all ranges that it covers");
        assert_eq!(read(&spans, 0..len).unwrap(), words(0..len, 0));
    }

    /// A range beyond the greatest length, or an invalid one, is an error.
    #[test]
    fn what_can_not_be_there_is_refused() {
        let len = 3 * UNIT;
        let spans = spans(&file_of(len, 0), len);
        let (end, top) = (len, u64::MAX);
        let last = UNIT - 8;
        for (start, end) in [(end - 8, end + 8), (end, end + 8), (top - 8, top), (UNIT, last), (top, 0)] {
            let range = start..end;
            let error = spans.map(range.clone()).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{range:?}: {error}");
        }
        assert_eq!(spans.find(top), None);
        assert_eq!(spans.find(UNIT), None, "nothing was mapped for it");
        assert_eq!(read(&spans, end - 8..end).unwrap(), words(end - 8..end, 0));
        assert!(spans.find(UNIT).is_some());
    }

    /// The end of the file is found in each span, without a descriptor, also when the file grows.
    #[test]
    fn the_end_of_the_file_is_found() {
        let page = rustix::param::page_size() as u64;
        let file = file_of(page, 0);
        let spans = spans(&file, 3 * UNIT);
        let found = |end: u64| spans.reaches(end).unwrap();
        assert!(found(1) && found(page) && !found(page + 1) && !found(UNIT) && !found(2 * UNIT + 8));
        file.set_len(2 * UNIT + 8).unwrap();
        assert!(found(UNIT) && found(2 * UNIT + 8) && !found(3 * UNIT));
        assert!(spans.reaches(3 * UNIT + 1).is_err());
    }

    /// A first span that can't be mapped is halved, down to the least length.
    #[test]
    fn a_first_span_shrinks_to_what_can_be_had() {
        let file = file_of(UNIT, 0);
        let options = MapOptions { reserve: 1 << 60, writable: false, in_core_dumps: false };
        let spans = Spans::new(&file, "arena", options, UNIT, 1 << 60).unwrap();
        assert!((1 << 30..1 << 60).contains(&spans.first.range().end));
        let error = Spans::new(&file, "arena", options, 1 << 59, 1 << 60).err().unwrap();
        assert!(error.to_string().contains("no address space for"), "{error}");
    }

    /// All present and later mappings are of the new file.
    #[test]
    fn another_file_takes_the_place() {
        let len = 4 * UNIT;
        let old = spans(&file_of(len, 0), len);
        let ranges = [0..64, UNIT + 64..UNIT + 128, UNIT - 64..UNIT + 64];
        let before = ranges.clone().map(|range| old.map(range).unwrap());
        old.replace(file_of(len, 1)).unwrap();
        assert_eq!(ranges.clone().map(|range| old.map(range).unwrap()), before);
        for range in ranges.into_iter().chain(std::iter::once(3 * UNIT..4 * UNIT)) {
            assert_eq!(read(&old, range.clone()).unwrap(), words(range, 1));
        }
    }
}
