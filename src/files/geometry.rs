//! The sizes that are fixed when a store is created.

use crate::limits;

/// The sizes that are fixed when a store is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    pub(crate) page_size: usize,
    pub(crate) max_size: u64,
    pub(crate) ring_size: u64,
    pub(crate) segment_size: u64,
}

/// The sizes in a [`Geometry`], in the order in which a header contains them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parameter {
    Page,
    Max,
    Ring,
    Segment,
}

impl Geometry {
    /// Returns the first invalid parameter, and what is wrong with it. Both creation and opening
    /// check this, so that sizes and offsets computed from a geometry never overflow, whatever a
    /// file contains.
    pub(crate) fn problem(&self) -> Option<(Parameter, String)> {
        let Geometry { page_size, max_size, ring_size, segment_size } = *self;
        if !page_size.is_power_of_two() || !(limits::PAGE_SIZE_MIN..=limits::PAGE_SIZE_MAX).contains(&page_size) {
            let what = format!("page size {page_size} is not a power of two from 4096 to 65536");
            return Some((Parameter::Page, what));
        }
        if !ring_size.is_power_of_two() || !(limits::RING_SIZE_MIN..=limits::RING_SIZE_MAX).contains(&ring_size) {
            let what = format!("ring size {ring_size} is not a power of two from 64 KiB to 256 MiB");
            return Some((Parameter::Ring, what));
        }
        let fits = (4 * ring_size..=limits::SEGMENT_SIZE_MAX).contains(&segment_size);
        if !segment_size.is_multiple_of(4096) || !fits {
            let what = format!(
                "segment size {segment_size} is not a multiple of 4096 from four times the ring size {ring_size} to 1 GiB"
            );
            return Some((Parameter::Segment, what));
        }
        let fits = (limits::MAX_SIZE_MIN..=self.max_size_max()).contains(&max_size);
        if !max_size.is_multiple_of(limits::GROWTH_PIECE) || !fits {
            let what = format!(
                "maximum size {max_size} is not a multiple of {} from {} to {}",
                limits::GROWTH_PIECE,
                limits::MAX_SIZE_MIN,
                self.max_size_max()
            );
            return Some((Parameter::Max, what));
        }
        None
    }

    /// Returns the largest arena that page numbers can address, in bytes.
    pub(crate) fn max_size_max(&self) -> u64 {
        (self.page_size as u64) << 32
    }

    /// Returns the number of pages in an arena of the greatest size.
    pub(crate) fn pages_max(&self) -> u64 {
        self.max_size / self.page_size as u64
    }
}
