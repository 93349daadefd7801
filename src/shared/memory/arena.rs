//! The arena: the pages of the store in one file, mapped in spans
//! ([`crate::shared::memory::spans`]) as it grows.
//!
//! Nearly all stores end within the first span, so the check of a page's number also finds out, in
//! one comparison, that the page is in it.
//!
//! Users' reads go through a read-only mapping. Only the commit path, recovery and the checkpoint
//! map the arena writable, at another address. A plain reference exists only to bytes that are
//! immutable while it lives, or exclusive: pages reachable from a pinned commit (readers), or
//! created in a transaction that is not yet published (writers). The first 8 bytes of each page,
//! the checksum word, are outside every reference, since the checkpoint writes them at any time.
#![allow(unsafe_code)]

mod extents;

use crate::error::reason::{MismatchKind, Space};
use crate::files::descriptor::{FileId, file_id};
use crate::files::dir;
use crate::files::geometry::Geometry;
use crate::files::page::PageRead;
use crate::files::page::{CHECKSUM_LEN, HEADER_LEN, PageHeader, PageKind};
use crate::shared::memory::mapping;
use crate::shared::memory::mapping::{MAPPING_ALIGN, MapOptions};
use crate::shared::memory::spans::Spans;
use crate::system::sync::Mutex;
use crate::{Error, PageId, Result, TxnId, limits};
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest page size of a kernel's page cache, and so the unit of what a failed sync may have
/// dropped.
const KERNEL_PAGE: usize = 4096;
/// How much of a page is prefetched: in a leaf of 20 entries, header, key heads and slots. If the
/// slots were left out, each lookup would wait for one more load from memory.
const PREFETCHED: usize = 6 * 64;
/// Marks page 0.
const MAGIC: [u8; 8] = *b"untornA\x01";

/// The length of the first span, unless the arena can never be as long. It counts twice in a
/// process that writes. Some hundred stores in one process still leave most of the address space
/// free.
const FIRST_SPAN_MAX: u64 = 64 << 30;

/// The first span takes at most this fraction of a process's limit of address space (`RLIMIT_AS`),
/// since the limit also covers what the host allocates.
const SHARE_OF_LIMIT: u64 = 64;

fn map(file: &File, max_size: u64, writable: bool) -> Result<Spans> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current.unwrap_or(u64::MAX);
    let share = (limit / SHARE_OF_LIMIT).next_multiple_of(MAPPING_ALIGN);
    let reserve = max_size.min(FIRST_SPAN_MAX).min(share.max(limits::MAX_SIZE_MIN));
    let options = MapOptions { reserve, writable, in_core_dumps: false };
    Spans::new(file.as_fd(), dir::ARENA, options, MAPPING_ALIGN, max_size)
}

/// The mapped arena of one store.
pub(crate) struct Arena {
    read: Spans,
    write: OnceLock<Spans>,
    /// The number of pages in the first span of `read`.
    near: u32,
    page_size: usize,
    max_size: u64,
    file_id: FileId,
    /// Set for a scratch arena, whose pages belong to this process alone.
    scratch: Option<Scratch>,
}

/// The limit of a scratch arena.
struct Scratch {
    /// The pages that were written, each of which has memory of its own.
    written: Mutex<HashSet<u32>>,
    pages_max: usize,
}

impl Arena {
    /// Writes page 0, which contains the store's id, to a new arena file.
    pub(crate) fn format(file: &File, store_id: [u8; 16], geometry: &Geometry) -> Result<()> {
        crate::shared::control::write_zeros(file, 0, limits::ARENA_SIZE_INITIAL, dir::ARENA)?;
        let mut bytes = [0; 40];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..24].copy_from_slice(&store_id);
        bytes[24..32].copy_from_slice(&(geometry.page_size as u64).to_le_bytes());
        let sum = crc32fast::hash(&bytes[..32]);
        bytes[32..36].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&bytes, 0).map_err(Error::io("write of arena"))
    }

    /// Maps the arena of a store; at least `high_water` pages of it must exist.
    pub(crate) fn open(file: &File, store_id: [u8; 16], geometry: &Geometry, high_water: u32) -> Result<Arena> {
        let page_size = geometry.page_size;
        let len = file.metadata().map_err(Error::io("stat of arena"))?.len();
        // A size to which the arena grows. Bytes beyond it are zeroed again before they are used.
        let needed = limits::arena_size_for(u64::from(high_water) * page_size as u64);
        if len < needed {
            return Err(Error::corrupt(
                dir::ARENA,
                len,
                format!("the file has {len} bytes, the checkpoint needs {needed}"),
            ));
        }
        let mut bytes = [0; 40];
        file.read_exact_at(&mut bytes, 0).map_err(Error::io("read of arena"))?;
        if bytes[0..8] != MAGIC || bytes[32..36] != crc32fast::hash(&bytes[..32]).to_le_bytes() {
            return Err(Error::corrupt(dir::ARENA, 0, "the file is not the arena of a store"));
        }
        if bytes[8..24] != store_id || bytes[24..32] != (page_size as u64).to_le_bytes() {
            return Err(Error::Mismatch { file: dir::ARENA.into(), what: MismatchKind::OtherStore });
        }
        let read = map(file, geometry.max_size, false)?;
        let file_id = file_id(file).map_err(Error::io("stat of arena"))?;
        let near = u32::try_from(read.first().range().end / page_size as u64).unwrap_or(u32::MAX);
        let max_size = geometry.max_size;
        Ok(Arena { read, write: OnceLock::new(), near, page_size, max_size, file_id, scratch: None })
    }

    /// Returns a scratch copy of this arena, whose file is `file`: its pages can be read and
    /// written, and no file changes. At most `bytes_max` bytes of pages can be written. Returns
    /// `None` if the process may not map that much.
    pub(crate) fn scratch(&self, file: &File, bytes_max: u64) -> Result<Option<Arena>> {
        let len = file.metadata().map_err(Error::io("stat of arena"))?.len();
        // Pages of an incomplete unit were never handed out.
        let file_len = len - len % limits::ARENA_SIZE_INITIAL;
        let reserve = (file_len + bytes_max).next_multiple_of(MAPPING_ALIGN);
        let options = MapOptions { reserve, writable: true, in_core_dumps: false };
        let Some(read) = Spans::private_copy(file, dir::ARENA, file_len, options)? else { return Ok(None) };
        let pages_max = (bytes_max / self.page_size as u64) as usize;
        Ok(Some(Arena {
            near: u32::try_from(reserve / self.page_size as u64).unwrap_or(u32::MAX),
            read,
            write: OnceLock::new(),
            scratch: Some(Scratch { written: Mutex::default(), pages_max }),
            ..*self
        }))
    }

    /// Returns whether the file has the byte before `end`: see [`Spans::reaches`].
    pub(crate) fn reaches(&self, end: u64) -> Result<bool> {
        Ok(end <= self.max_size && (self.scratch.is_some() || self.read.reaches(end)?))
    }

    /// Returns the greatest length of a scratch arena in bytes; `None` for others.
    pub(crate) fn scratch_len(&self) -> Option<u64> {
        self.scratch.as_ref().map(|_| self.read.first().range().end)
    }

    /// Records that pages of a scratch arena are about to be written.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if these are more than the scratch arena may hold.
    fn note_written(&self, id: PageId, pages: u32) -> Result<()> {
        let Some(scratch) = &self.scratch else { return Ok(()) };
        let mut written = scratch.written.lock();
        written.extend(id.0..id.0.saturating_add(pages));
        match written.len() > scratch.pages_max {
            true => Err(Error::DiskFull { what: Space::Arena { bytes: u64::from(pages) * self.page_size as u64 } }),
            false => Ok(()),
        }
    }

    /// Returns an error if `file` is not the mapped file: to grow or sync it would have no effect
    /// on the mapping.
    pub(crate) fn refuse_other_file(&self, file: &File) -> Result<()> {
        if file_id(file).is_ok_and(|id| id == self.file_id) {
            return Ok(());
        }
        Err(Error::Mismatch { file: dir::ARENA.into(), what: MismatchKind::Replaced })
    }

    /// Maps the first span of the arena writable too, if it is not yet. A handle that only reads
    /// never calls this.
    pub(crate) fn make_writable(&self, open: impl FnOnce() -> Result<File>) -> Result<()> {
        if self.write.get().is_none() {
            let spans = map(&open()?, self.max_size, true)?;
            let _ = self.write.set(spans);
        }
        Ok(())
    }

    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    pub(crate) fn max_size(&self) -> u64 {
        self.max_size
    }

    fn offset(&self, id: PageId) -> u64 {
        u64::from(id.0) * self.page_size as u64
    }

    /// Returns an error with a page's position in the file.
    pub(crate) fn damaged(&self, id: PageId, what: impl Into<String>) -> Error {
        Error::corrupt(dir::ARENA, self.offset(id), what)
    }

    /// Returns the bytes of the file that are the bodies of `pages` pages from `id` on.
    fn range_of(&self, id: PageId, pages: u32) -> Range<u64> {
        let start = self.offset(id);
        start + CHECKSUM_LEN as u64..start + u64::from(pages) * self.page_size as u64
    }

    /// Returns the bodies of `pages` pages from `id` on, for reading.
    ///
    /// # Safety
    /// The pages are in the first span and below the high-water mark of a commit. No thread writes
    /// them (checksum words excepted) while the slice lives: the caller holds a pin or the writer
    /// lock, or their commit is protected in another way.
    #[inline]
    unsafe fn near_body(&self, id: PageId, pages: u32) -> &[u8] {
        let len = pages as usize * self.page_size - CHECKSUM_LEN;
        // SAFETY: the range lies within the mapping, whose file is at least that long (pages are
        // handed out only after their blocks were written); the rest is the caller's promise.
        unsafe {
            let first = self.read.first().as_ptr().add(id.0 as usize * self.page_size + CHECKSUM_LEN);
            std::slice::from_raw_parts(first, len)
        }
    }

    /// Returns the same as [`Arena::near_body`], for pages anywhere in the arena. Maps their span
    /// if it is not mapped yet.
    ///
    /// # Safety
    /// As there, except that the pages may be in any span.
    #[inline(never)]
    unsafe fn body(&self, id: PageId, pages: u32) -> Result<&[u8]> {
        let range = self.range_of(id, pages);
        let len = (range.end - range.start) as usize;
        let first = self.read.map(range)?;
        // SAFETY: as in `near_body`; the range is mapped for as long as `self` lives.
        Ok(unsafe { std::slice::from_raw_parts(first, len) })
    }

    /// Returns the header of page `id` alone, since the entries of a queue page may change.
    ///
    /// # Safety
    /// As [`Arena::near_body`], for the bytes of the header.
    #[inline]
    unsafe fn near_header(&self, id: PageId) -> &[u8] {
        // SAFETY: as in `near_body`, of which this is the beginning.
        unsafe {
            let first = self.read.first().as_ptr().add(id.0 as usize * self.page_size + CHECKSUM_LEN);
            std::slice::from_raw_parts(first, HEADER_LEN)
        }
    }

    /// Returns the same as [`Arena::near_header`], for a page anywhere in the arena.
    ///
    /// # Safety
    /// As [`Arena::body`], for the bytes of the header.
    unsafe fn header(&self, id: PageId) -> Result<&[u8]> {
        let start = self.offset(id) + CHECKSUM_LEN as u64;
        let first = self.read.map(start..start + HEADER_LEN as u64)?;
        // SAFETY: as in `body`, of which this is the beginning.
        Ok(unsafe { std::slice::from_raw_parts(first, HEADER_LEN) })
    }

    /// Returns the bodies of `pages` pages from `id` on, for writing.
    ///
    /// # Errors
    /// As [`Spans::map`].
    ///
    /// # Safety
    /// The running transaction has allocated the pages and not published them, and no other
    /// reference to them lives.
    #[allow(clippy::mut_from_ref)]
    #[inline]
    pub(crate) unsafe fn body_mut(&self, id: PageId, pages: u32) -> Result<&mut [u8]> {
        let range = self.range_of(id, pages);
        let len = (range.end - range.start) as usize;
        let first = match self.write.get() {
            Some(write) => write.map(range)?,
            None => {
                assert!(self.scratch.is_some(), "writers map the arena writable first");
                self.note_written(id, pages)?;
                self.read.map(range)?
            }
        };
        // SAFETY: as in `body`; exclusive by the caller's promise. The one mapping of a scratch
        // arena is writable.
        Ok(unsafe { std::slice::from_raw_parts_mut(first, len) })
    }

    /// Loads words of a page. The writer lock or a pin orders this load with its writers.
    #[inline]
    pub(crate) fn load_words<const N: usize>(&self, id: PageId, offset: usize) -> Result<[u64; N]> {
        let words = self.words(id, offset, N)?;
        Ok(std::array::from_fn(|index| words[index].load(Ordering::Relaxed)))
    }

    /// Stores words of a page, ordered likewise.
    pub(crate) fn store_words(&self, id: PageId, offset: usize, values: &[u64]) -> Result<()> {
        let words = self.words(id, offset, values.len())?;
        words.iter().zip(values).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
        Ok(())
    }

    /// Returns the `count` words from a byte offset of a page on. Used for the parts of the arena
    /// that change while they are shared: checksum words and entries of queue pages.
    #[inline]
    fn words(&self, id: PageId, offset: usize, count: usize) -> Result<&[AtomicU64]> {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 * count <= self.page_size);
        let spans = self.write.get().unwrap_or(&self.read);
        let start = self.offset(id) + offset as u64;
        let first = spans.map(start..start + 8 * count as u64)?;
        // SAFETY: mapped as just checked, and in the file as in `near_body` (callers check the page
        // number), aligned, and every access to these words goes through atomics. Through the
        // read-only mapping the words are only loaded: storing callers have called `make_writable`,
        // or have a scratch arena, whose one mapping is writable.
        Ok(unsafe { std::slice::from_raw_parts(first.cast::<AtomicU64>(), count) })
    }

    /// Returns the pages of a commit with this high-water mark.
    #[inline]
    pub(crate) fn pages(&self, high_water: u32) -> Pages<'_> {
        Pages { arena: self, high_water, near: high_water.min(self.near) }
    }

    /// Returns the checksum of a page or extent over `len` bytes of its body.
    fn sum(body: &[u8]) -> u64 {
        // The upper half distinguishes "never summed" (zero) from a sum that happens to be zero.
        u64::from(crc32fast::hash(body)) | 1 << 63
    }

    /// Sums a page or extent and stores the sum in its checksum word.
    pub(crate) fn store_checksum(&self, body: &[u8], id: PageId) -> Result<()> {
        // Relaxed: recovery and verify rely on it only after a sync of the file.
        self.words(id, 0, 1)?[0].store(Self::sum(body), Ordering::Relaxed);
        Ok(())
    }

    /// Returns the checksum word of a page, which must be within the file.
    pub(crate) fn checksum_word(&self, id: PageId) -> Result<u64> {
        Ok(self.words(id, 0, 1)?[0].load(Ordering::Relaxed))
    }

    /// Verifies the checksum of a page or extent that was created at or before the newest
    /// checkpoint.
    pub(crate) fn verify_checksum(&self, body: &[u8], id: PageId) -> Result<()> {
        let found = self.checksum_word(id)?;
        let expected = Self::sum(body);
        if found != expected && !planted_bug!("page-without-checksum") {
            return Err(
                self.damaged(id, format!("page {} has checksum {found:016x}, its bytes give {expected:016x}", id.0))
            );
        }
        Ok(())
    }

    /// Marks a page or extent dirty again, so that the next sync writes it, whatever an earlier
    /// failed sync left. Storing the checksum word dirties the first of the kernel's pages, which
    /// may be smaller than the store's; this dirties the others. The kernel writes them the bytes
    /// that they hold, so no reader sees a store.
    pub(crate) fn redirty_interior(&self, file: &File, id: PageId, body: &[u8]) -> Result<()> {
        let mut at = KERNEL_PAGE - CHECKSUM_LEN;
        while at < body.len() {
            let offset = self.offset(id) + (CHECKSUM_LEN + at) as u64;
            file.write_all_at(&body[at..at + 1], offset).map_err(Error::io("write of arena"))?;
            at += KERNEL_PAGE;
        }
        Ok(())
    }

    /// Prefetches a part of a page of the first span.
    #[inline]
    fn prefetch_near(&self, id: PageId, part: Range<usize>) {
        let page = self.read.first().as_ptr().wrapping_add(id.0 as usize * self.page_size);
        mapping::prefetch_bytes(page.wrapping_add(part.start), part.len());
    }

    /// Prefetches the beginning of a page if its span is mapped.
    #[inline(never)]
    fn prefetch(&self, id: PageId) {
        if let Some(page) = self.read.find(self.offset(id)) {
            mapping::prefetch_bytes(page, PREFETCHED);
        }
    }
}

/// The pages below one commit's high-water mark.
///
/// The maker holds what protects that commit: a pin, the writer lock, or the checkpoint.
#[derive(Clone, Copy)]
pub(crate) struct Pages<'a> {
    arena: &'a Arena,
    high_water: u32,
    /// The number of pages below the mark that are in the first span.
    near: u32,
}

impl<'a> Pages<'a> {
    #[cold]
    fn out_of_range(&self, id: PageId, pages: u32) -> Error {
        self.arena
            .damaged(id, format!("page {} (of {pages}) is not below the high-water mark {}", id.0, self.high_water))
    }

    pub(crate) fn high_water(&self) -> u32 {
        self.high_water
    }

    /// Returns an error unless these pages are below the high-water mark.
    #[inline]
    pub(crate) fn check(&self, id: PageId, pages: u32) -> Result<()> {
        let end = u64::from(id.0) + u64::from(pages);
        if id.is_none() || pages == 0 || end > u64::from(self.high_water) {
            return Err(self.out_of_range(id, pages));
        }
        Ok(())
    }

    /// Returns the same as [`PageRead::extent`], for as long as the arena is mapped.
    #[inline]
    pub(crate) fn body_of(&self, id: PageId, pages: u32) -> Result<&'a [u8]> {
        let end = u64::from(id.0) + u64::from(pages);
        if id.is_none() || pages == 0 || end > u64::from(self.near) {
            return self.far_body_of(id, pages);
        }
        // SAFETY: in range as just checked; immutable, since the maker of `self` protects the
        // commit (see the type), and no pages of a protected commit are written (rule I3).
        Ok(unsafe { self.arena.near_body(id, pages) })
    }

    #[cold]
    #[inline(never)]
    fn far_body_of(&self, id: PageId, pages: u32) -> Result<&'a [u8]> {
        self.check(id, pages)?;
        // SAFETY: as in `body_of`.
        unsafe { self.arena.body(id, pages) }
    }

    /// Returns the header of a page, which must be of this kind.
    pub(crate) fn expect(&self, id: PageId, kind: PageKind) -> Result<PageHeader> {
        PageHeader::expect(self.header_of(id)?, kind, id, self.arena.page_size)
    }

    #[inline]
    fn header_of(&self, id: PageId) -> Result<&'a [u8]> {
        if id.is_none() || id.0 >= self.near {
            return self.far_header_of(id);
        }
        // SAFETY: in range as just checked; a page's header never changes while a commit reaches
        // it.
        Ok(unsafe { self.arena.near_header(id) })
    }

    #[cold]
    #[inline(never)]
    fn far_header_of(&self, id: PageId) -> Result<&'a [u8]> {
        self.check(id, 1)?;
        // SAFETY: as in `header_of`.
        unsafe { self.arena.header(id) }
    }

    /// Returns the transaction that created a page.
    pub(crate) fn created_txn(&self, id: PageId) -> Result<TxnId> {
        match PageHeader::read(self.header_of(id)?) {
            Some(header) => Ok(header.created_txn),
            None => Err(self.arena.damaged(id, "unknown kind of page")),
        }
    }
}

impl PageRead for Pages<'_> {
    #[inline]
    fn page_size(&self) -> usize {
        self.arena.page_size
    }

    #[inline]
    fn body(&self, id: PageId) -> Result<&[u8]> {
        self.body_of(id, 1)
    }

    #[inline]
    fn extent(&self, id: PageId, pages: u32) -> Result<&[u8]> {
        self.body_of(id, pages)
    }

    #[inline]
    fn prefetch(&self, id: PageId) {
        if id.0 < self.near {
            self.arena.prefetch_near(id, 0..PREFETCHED);
        } else if id.0 < self.high_water {
            self.arena.prefetch(id);
        }
    }

    #[inline]
    fn prefetch_part(&self, id: PageId, part: Range<usize>) {
        if id.0 < self.near {
            self.arena.prefetch_near(id, part);
        }
    }
}
