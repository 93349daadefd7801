//! Logged extents in the arena's file: their write, their sync, and reads through a descriptor.
//!
//! An extent is written with `pwrite`, which copies into the page cache without a fault for each
//! page of the mapping. The mapping shows the same bytes at once, since both use the page cache.

use super::{Arena, KERNEL_PAGE};
use crate::files::dir;
use crate::files::extent::{LoggedExtent, VALUE_AT};
use crate::files::page::CHECKSUM_LEN;
use crate::shared::control::blocks::write_blocks;
use crate::system::write_back;
use crate::{Error, PageId, Result, TxnId};
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;

impl Arena {
    /// Returns whether the process may write these pages through a descriptor. Beyond its limit of
    /// file size, the kernel would kill it by SIGXFSZ, whose disposition belongs to the host.
    pub(crate) fn may_write_file(&self, page: PageId, pages: u32) -> bool {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        limit.is_none_or(|limit| self.range_of(page, pages).end <= limit)
    }

    /// Writes a whole extent: its header, the value, and zeros up to the end of its last page.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`].
    pub(crate) fn write_extent(
        &self,
        file: &File,
        extent: &LoggedExtent,
        created_txn: TxnId,
        value: &[u8],
    ) -> Result<()> {
        let start = self.offset(extent.page);
        let len = u64::from(extent.pages(self.page_size)) * self.page_size as u64;
        let write = |at: u64, bytes: &[u8]| write_blocks(file, start + at, bytes, dir::ARENA, len - at);
        write(0, &extent.head(self.page_size, created_txn))?;
        write(VALUE_AT as u64, value)?;
        let end = VALUE_AT + value.len();
        write(end as u64, &vec![0; len as usize - end])
    }

    /// Reads the value of an extent through a descriptor, since its pages may be reused meanwhile.
    /// Returns `None` unless the extent holds the value that `created_txn` wrote.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn read_extent(
        &self,
        file: &File,
        extent: &LoggedExtent,
        created_txn: TxnId,
    ) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; VALUE_AT - CHECKSUM_LEN + extent.len as usize];
        match file.read_exact_at(&mut bytes, self.offset(extent.page) + CHECKSUM_LEN as u64) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(Error::io("read of arena")(error)),
        }
        if extent.find_value(&bytes, self.page_size, created_txn, &mut || ()).is_none() {
            return Ok(None);
        }
        bytes.drain(..VALUE_AT - CHECKSUM_LEN);
        Ok(Some(bytes))
    }

    /// Marks each of the kernel's pages of an extent dirty, so that the next sync writes it,
    /// whatever an earlier failed sync left. The kernel writes the bytes that the pages hold.
    pub(crate) fn redirty_extent(&self, file: &File, extent: &LoggedExtent) -> Result<()> {
        let (page, pages) = (extent.page, extent.pages(self.page_size));
        let body = self.pages(extent.page_range(self.page_size).end).body_of(page, pages)?;
        file.write_all_at(&body[..1], self.range_of(page, 1).start).map_err(Error::io("write of arena"))?;
        self.redirty_interior(file, page, body)
    }

    /// Makes the bytes of the file that these pages take durable, and no others. Called by the
    /// logger, which has mapped the arena writable.
    ///
    /// `msync` of a range syncs that range of the file as `fdatasync` does, with the file's
    /// metadata and the device's cache. It reports each failed write-back of the file since the
    /// mapping was made, or since the call before.
    ///
    /// # Errors
    /// [`Error::Io`]. The kernel may then have marked pages as clean that the device does not hold.
    pub(crate) fn sync_pages(&self, pages: &Range<u32>) -> Result<()> {
        let spans = self.write.get().unwrap_or(&self.read);
        let first = spans.map(self.range_of(PageId(pages.start), pages.end - pages.start))?;
        let (first, end) = (first as usize - CHECKSUM_LEN, (pages.end - pages.start) as usize * self.page_size);
        let aligned = first - first % rustix::param::page_size().max(KERNEL_PAGE);
        write_back::attempt("extents.sync", || {
            let (at, len) = (aligned as *mut std::ffi::c_void, first + end - aligned);
            // SAFETY: the range is mapped for as long as `self` lives, and `msync` changes no byte.
            unsafe { rustix::mm::msync(at, len, rustix::mm::MsyncFlags::SYNC) }.map_err(Into::into)
        })
        .map_err(Error::io("sync of large values in arena"))
    }
}
