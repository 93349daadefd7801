//! Pages: the traits through which the tree sees them, their format, and which of them are free.
//!
//! - `format`: the header that every kind of page shares, and runs (large values)
//! - `workspace`: the pages of a running transaction
//! - `queue`: lists of freed pages
//! - `runs`: runs of contiguous pages for large values, by size class
//! - `protection`: rule I3: which freed pages may be reused
//! - `room`: what a writer does when the store is full; what is reserved for deletes
//! - `memory`: pages in memory, for tests

pub(crate) mod format;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod memory;
pub(crate) mod protection;
pub(crate) mod queue;
pub(crate) mod room;
pub(crate) mod runs;
pub(crate) mod workspace;

use crate::ids::PageId;
use crate::{Result, TxnId};

/// Where pages are read from.
///
/// A page's *body* is the page without its first 8 bytes: the checksum word is atomic and stays outside every
/// reference, so that a body is immutable for as long as a pin keeps it.
pub(crate) trait PageRead {
    /// Size of a page in bytes, a power of two.
    fn page_size(&self) -> usize;

    /// The body of page `id`: `page_size - 8` bytes.
    ///
    /// # Errors
    /// `Corrupt` unless 0 < id < high-water mark.
    fn body(&self, id: PageId) -> Result<&[u8]>;

    /// The body of the run of `pages` contiguous pages from `id`: one header, then bytes to the end of the run.
    ///
    /// # Errors
    /// `Corrupt` unless all pages lie below the high-water mark.
    fn run(&self, id: PageId, pages: u32) -> Result<&[u8]>;

    /// A hint that the first lines of the page will be read soon.
    fn prefetch(&self, _id: PageId) {}
}

/// Where pages are made: the working state of one write transaction.
pub(crate) trait PageWrite: PageRead {
    /// The id that the transaction will have; the birth of all pages it makes.
    fn txn_id(&self) -> TxnId;

    /// A page with undefined content.
    ///
    /// # Errors
    /// `DiskFull` and whatever stops the arena from growing.
    fn allocate(&mut self) -> Result<PageId>;

    /// A run of contiguous pages with undefined content.
    ///
    /// # Errors
    /// As [`PageWrite::allocate`].
    fn allocate_run(&mut self, pages: u32) -> Result<PageId>;

    /// Gives back `pages` pages from `id`, which were born in `birth`; at once reusable if that is this transaction.
    fn free(&mut self, id: PageId, pages: u32, birth: TxnId);

    /// The body of a page that was allocated in this transaction.
    ///
    /// # Errors
    /// `Corrupt` if the page is not there.
    fn body_mut(&mut self, id: PageId) -> Result<&mut [u8]>;

    /// The body of a run that was allocated in this transaction.
    ///
    /// # Errors
    /// `Corrupt` if the pages are not there.
    fn run_mut(&mut self, id: PageId, pages: u32) -> Result<&mut [u8]>;

    /// Copies the body of `from` into `to`, which was just allocated.
    ///
    /// # Errors
    /// `Corrupt` if `from` is not what was written.
    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<()>;

    /// Holds a page born in `birth` against its checksum, if it has one, before what stands in it goes elsewhere.
    ///
    /// # Errors
    /// `Corrupt` if it is not what was written.
    fn check(&self, _id: PageId, _birth: TxnId) -> Result<()> {
        Ok(())
    }
}
