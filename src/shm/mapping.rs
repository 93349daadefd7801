//! One file mapped once, at a large reserved length, so that its growth never remaps anything.
//!
//! The mapping reserves address space, aligned to 2 MiB so that the kernel may use huge pages, and is not given to
//! forked children. Growing the file is not done here, and neither is access: `control` and `arena` lay their structures
//! over the address, check every offset that comes from shared bytes, and argue about who may change what.
#![allow(unsafe_code)]

use super::fork::{self, ForkGuard};
use crate::{Error, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::AsFd;

/// Alignment of a mapping: the size of a huge page.
pub(crate) const MAPPING_ALIGN: u64 = 2 << 20;

/// How a file is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapOptions {
    /// Address space to reserve, in bytes; a multiple of the system's page size.
    pub(crate) reserve: u64,
    /// Whether the bytes can be written through this mapping.
    pub(crate) writable: bool,
    /// Whether core dumps contain it.
    pub(crate) in_core_dumps: bool,
}

/// A shared mapping of a file, from its beginning.
#[derive(Debug)]
pub(crate) struct Mapping {
    file_name: String,
    base: *mut u8,
    len: u64,
    fork_guard: ForkGuard,
}

// SAFETY: the base is only used for accesses that the methods argue about, from any thread alike.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `file`, called `file_name` in errors. The file may be shorter than the reservation, and may grow.
    pub(crate) fn new(file: impl AsFd, file_name: &str, options: MapOptions) -> Result<Mapping> {
        let reserve = options.reserve;
        let refused = |errno: rustix::io::Errno| Error::Io {
            what: format!("reserving {reserve} bytes of address space for {file_name} (option `max_size`)"),
            source: errno.into(),
        };
        let page_size = rustix::param::page_size() as u64;
        if reserve == 0 || !reserve.is_multiple_of(page_size) || reserve > i64::MAX as u64 {
            return Err(Error::Invalid {
                what: format!("{reserve} bytes of address space for {file_name} are no multiple of {page_size}"),
            });
        }
        let fork_guard = ForkGuard::new()?;
        let padded = usize::try_from(reserve + MAPPING_ALIGN).map_err(|_| refused(rustix::io::Errno::NOMEM))?;
        let len = reserve as usize;
        let protection = if options.writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        fork::without_forks(|| {
            // SAFETY: a new mapping at an address of the kernel's choice, without access rights or memory.
            let reserved = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    padded,
                    ProtFlags::empty(),
                    MapFlags::PRIVATE | MapFlags::NORESERVE,
                )
            }
            .map_err(refused)?;
            let head = reserved.cast::<u8>().align_offset(MAPPING_ALIGN as usize);
            let tail = MAPPING_ALIGN as usize - head;
            let base = reserved.cast::<u8>().wrapping_add(head);
            // SAFETY: both ends lie in the reservation made above, outside what is kept of it.
            unsafe {
                if head != 0 {
                    rustix::mm::munmap(reserved, head).map_err(refused)?;
                }
                if tail != 0 {
                    rustix::mm::munmap(base.wrapping_add(len).cast::<c_void>(), tail).map_err(refused)?;
                }
            }
            // SAFETY: replaces the reservation, which belongs to us and which nothing refers to.
            let mapped = unsafe {
                rustix::mm::mmap(
                    base.cast::<c_void>(),
                    len,
                    protection,
                    MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                    &file,
                    0,
                )
            };
            if let Err(errno) = mapped {
                // SAFETY: the reservation is still ours, or the failed call has already removed it.
                let _ = unsafe { rustix::mm::munmap(base.cast::<c_void>(), len) };
                return Err(Error::sys(format!("mapping {file_name}"))(errno));
            }
            // From here on dropping it unmaps.
            let mapping = Mapping { file_name: file_name.to_string(), base, len: reserve, fork_guard };
            mapping.advise(0..reserve, Advice::LinuxDontFork)?;
            if !options.in_core_dumps {
                mapping.advise(0..reserve, Advice::LinuxDontDump)?;
            }
            Ok(mapping)
        })?
    }

    /// Maps `file` in place of the file that was mapped, at the same addresses.
    ///
    /// The caller has copied all bytes in use to `file`, no other thread or process uses this mapping, and `file` has
    /// blocks wherever the mapping is used from now on.
    pub(crate) fn replace(&self, file: impl AsFd, options: MapOptions) -> Result<()> {
        assert_eq!(options.reserve, self.len, "a mapping is replaced whole");
        let protection = if options.writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        fork::without_forks(|| {
            // SAFETY: replaces this very range. References into it stay valid: the addresses stay mapped, and hold the
            // same bytes, as the caller states.
            unsafe { rustix::mm::mmap(self.base.cast::<c_void>(), self.len as usize, protection, flags, &file, 0) }
                .map_err(Error::sys(format!("mapping {}", self.file_name)))?;
            self.advise(0..self.len, Advice::LinuxDontFork)?;
            if !options.in_core_dumps {
                self.advise(0..self.len, Advice::LinuxDontDump)?;
            }
            Ok(())
        })?
    }

    /// Address of the first byte.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.base
    }

    fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        let start = self.base.wrapping_add(range.start as usize).cast::<c_void>();
        // SAFETY: callers pass ranges inside the mapping, and advice that never changes or drops its bytes.
        unsafe { rustix::mm::madvise(start, (range.end - range.start) as usize, advice) }
            .map_err(Error::sys(format!("advising the kernel about {}", self.file_name)))
    }

    /// Starts loading the cache line at `offset`. A hint: any offset is allowed.
    #[inline]
    pub(crate) fn prefetch(&self, offset: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = self.base.wrapping_add(offset as usize).cast::<i8>();
            // SAFETY: the instruction never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // A child has no such mapping, and may have something else at its address.
        if !self.fork_guard.is_child() {
            // SAFETY: this process mapped the range, and references into it borrow from `self`.
            let unmapped = unsafe { rustix::mm::munmap(self.base.cast::<c_void>(), self.len as usize) };
            debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    const PAGE: u64 = 4096;

    fn file_of(len: u64) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&(0..len).map(|index| index as u8).collect::<Vec<_>>()).unwrap();
        file
    }

    fn options(writable: bool) -> MapOptions {
        MapOptions { reserve: 1 << 40, writable, in_core_dumps: false }
    }

    /// A short file under a long reservation: the mapping is aligned, sees what another one stores, and follows growth.
    #[test]
    fn maps_what_is_there_and_what_comes() {
        let file = file_of(2 * PAGE);
        let reader = Mapping::new(&file, "arena", options(false)).unwrap();
        let writer = Mapping::new(&file, "arena", options(true)).unwrap();
        assert_eq!(reader.as_ptr() as u64 % MAPPING_ALIGN, 0);
        file.set_len(4 * PAGE).unwrap();
        // The offset lies in the file, is aligned, and is used through atomics alone.
        let word = |mapping: &Mapping| mapping.as_ptr().wrapping_add(3 * PAGE as usize).cast::<AtomicU64>();
        // SAFETY: as above, through a writable mapping.
        unsafe { &*word(&writer) }.store(77, Ordering::Release);
        // SAFETY: as above; only loaded.
        assert_eq!(unsafe { &*word(&reader) }.load(Ordering::Acquire), 77);
        reader.prefetch(u64::MAX);
    }

    #[test]
    fn a_reservation_that_cannot_be_had_names_its_size() {
        let reserve = 1 << 60;
        let error = Mapping::new(file_of(PAGE), "arena", MapOptions { reserve, ..options(false) }).unwrap_err();
        assert!(error.to_string().contains(&reserve.to_string()), "{error}");
    }
}
