//! A mapping of a part of a file. It may be longer than the file, so that the file can grow without
//! being mapped anew.
//!
//! The mapping reserves address space, aligned to 2 MiB so that the kernel may use huge pages, and
//! is not given to forked children. This file neither grows the file nor accesses the memory.
//! `control` and `arena` place their structures at the address, check every offset that comes from
//! shared bytes, and argue which process may change what. [`crate::shared::memory::spans`] decides
//! which parts of a file are mapped, and when.
//!
//! [`Mapping::duplicate`] maps another part of the same file without a descriptor. A host may close
//! descriptors that it does not know. A process may have no descriptor left, or no right to open
//! the file any more. The file's name may be gone.
#![allow(unsafe_code)]

use crate::files::dir;
use crate::shared::memory::fork;
use crate::shared::memory::fork::ForkGuard;
use crate::{Error, Result};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use rustix::process::Resource;
use std::ffi::c_void;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::fd::AsFd;

/// Alignment of a mapping: the size of a huge page.
pub(crate) const MAPPING_ALIGN: u64 = 2 << 20;

/// The length of a cache line in bytes.
pub(crate) const CACHE_LINE_LEN: usize = 64;

/// The number of mappings that one call needs for a moment. A process with fewer left is at the
/// kernel's limit.
const MAPPINGS_OF_A_CALL: usize = 8;

/// How a file is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapOptions {
    /// The address space to reserve at first, in bytes; a multiple of the system's page size.
    pub(crate) reserve: u64,
    /// Whether the bytes can be written through this mapping.
    pub(crate) writable: bool,
    /// Whether core dumps contain it.
    pub(crate) in_core_dumps: bool,
}

impl MapOptions {
    fn protection(&self) -> ProtFlags {
        if self.writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
    }
}

/// A mapping of a part of a file, shared unless it is a private copy.
#[derive(Debug)]
pub(crate) struct Mapping {
    file_name: &'static str,
    base: *mut u8,
    len: u64,
    /// The offset in the file of the mapping's first byte.
    offset: u64,
    options: MapOptions,
    fork_guard: ForkGuard,
}

// SAFETY: the base is only used for accesses that the methods argue about, from any thread alike.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `file`, called `file_name` in errors, from its beginning. The file may be shorter than
    /// the reservation, and may grow.
    ///
    /// # Errors
    /// [`Error::Io`] with the limit that the process has reached, if it may not map that much.
    pub(crate) fn new(file: impl AsFd, file_name: &'static str, options: MapOptions) -> Result<Mapping> {
        Mapping::try_new(file, file_name, options)?.ok_or_else(|| no_room(file_name, 0, options.reserve))
    }

    /// Maps `file` as [`Mapping::new`] does; returns `None` if the process may not map that much.
    pub(crate) fn try_new(file: impl AsFd, file_name: &'static str, options: MapOptions) -> Result<Option<Mapping>> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        Mapping::reserve(file_name, options, |base| {
            // SAFETY: replaces the reservation, which belongs to the caller and which nothing
            // refers to.
            unsafe { rustix::mm::mmap(base, options.reserve as usize, options.protection(), flags, &file, 0) }
        })
    }

    /// Maps a private copy of the first `file_len` bytes of `file`, with zeros behind them. A store
    /// through this mapping changes neither the file nor any other mapping. The file keeps its
    /// bytes and its length while the mapping exists. `file_len` is a multiple of the system's page
    /// size. Returns `None` if the process may not map that much.
    ///
    /// [`Mapping::duplicate`] fails on such a mapping: the kernel duplicates shared mappings only.
    pub(crate) fn private_copy(
        file: impl AsFd,
        file_name: &'static str,
        file_len: u64,
        options: MapOptions,
    ) -> Result<Option<Mapping>> {
        assert!(0 < file_len && file_len <= options.reserve, "the copied bytes lie in the reservation");
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        Mapping::reserve(file_name, options, |base| {
            // SAFETY: both replace the reservation or a part of it, which belongs to the caller and
            // which nothing refers to.
            unsafe {
                rustix::mm::mmap_anonymous(base, options.reserve as usize, options.protection(), flags)?;
                rustix::mm::mmap(base, file_len as usize, options.protection(), flags, &file, 0)
            }
        })
    }

    /// Reserves address space, and calls `map` to place a mapping at its first byte.
    fn reserve(
        file_name: &'static str,
        options: MapOptions,
        map: impl FnOnce(*mut c_void) -> rustix::io::Result<*mut c_void>,
    ) -> Result<Option<Mapping>> {
        let reserve = options.reserve;
        let page_size = rustix::param::page_size() as u64;
        if reserve == 0 || !reserve.is_multiple_of(page_size) || reserve > i64::MAX as u64 {
            return Err(Error::Invalid {
                what: format!("{reserve} bytes of address space for {file_name} are no multiple of {page_size}"),
            });
        }
        let fork_guard = ForkGuard::new()?;
        let Ok(padded) = usize::try_from(reserve + MAPPING_ALIGN) else { return Ok(None) };
        let len = reserve as usize;
        let refused = || Error::sys(format!("mapping {file_name}"));
        fork::without_forks(|| {
            // SAFETY: a new mapping at an address of the kernel's choice, without access rights or
            // memory.
            let reserved = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    padded,
                    ProtFlags::empty(),
                    MapFlags::PRIVATE | MapFlags::NORESERVE,
                )
            };
            let reserved = match reserved {
                Err(Errno::NOMEM) => return Ok(None),
                reserved => reserved.map_err(refused())?,
            };
            let head = reserved.cast::<u8>().align_offset(MAPPING_ALIGN as usize);
            let tail = MAPPING_ALIGN as usize - head;
            let base = reserved.cast::<u8>().wrapping_add(head);
            // SAFETY: both ends lie in the reservation made above, outside what is kept of it.
            unsafe {
                if head != 0 {
                    rustix::mm::munmap(reserved, head).map_err(refused())?;
                }
                if tail != 0 {
                    rustix::mm::munmap(base.wrapping_add(len).cast::<c_void>(), tail).map_err(refused())?;
                }
            }
            if let Err(errno) = map(base.cast::<c_void>()) {
                // SAFETY: the reservation is still ours, or the failed call has already removed it.
                let _ = unsafe { rustix::mm::munmap(base.cast::<c_void>(), len) };
                return if errno == Errno::NOMEM { Ok(None) } else { Err(refused()(errno)) };
            }
            // From here on dropping it unmaps.
            let mapping = Mapping { file_name, base, len: reserve, offset: 0, options, fork_guard };
            mapping.advise()?;
            Ok(Some(mapping))
        })?
    }

    /// Maps `len` bytes of the same file, with the same rights, from byte `at` of this mapping on.
    /// They may reach beyond its end. Both are multiples of the system's page size, and `at` is
    /// below the length.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub(crate) fn duplicate(&self, at: u64, len: u64) -> Result<Mapping> {
        assert!(at < self.len, "the first byte of a duplicate is mapped");
        let offset = self.offset + at;
        let made = fork::without_forks(|| {
            let Ok(size) = usize::try_from(len) else { return Ok(None) };
            let first = self.base.wrapping_add(at as usize).cast::<c_void>();
            // SAFETY: an old size of 0 leaves the mapping at `first`, which is shared, as it is,
            // and makes a new one of its file at an address of the kernel's choice (mremap(2)).
            let base = match unsafe { rustix::mm::mremap(first, 0, size, MremapFlags::MAYMOVE) } {
                Err(Errno::NOMEM) => return Ok(None),
                made => made.map_err(Error::sys(format!("mapping {} from byte {offset}", self.file_name)))?,
            };
            // From here on dropping it unmaps.
            let duplicate = Mapping { base: base.cast(), len, offset, ..*self };
            // Linux copies the advice as well; other kernels need not.
            duplicate.advise()?;
            Ok(Some(duplicate))
        })??;
        made.ok_or_else(|| no_room(self.file_name, offset, len))
    }

    /// Maps `file` in place of the file that was mapped, at the same addresses and from the same
    /// byte on.
    ///
    /// The caller has copied all bytes in use to `file`, no other thread or process uses this
    /// mapping, and `file` has blocks wherever the mapping is used from now on.
    pub(crate) fn replace(&self, file: impl AsFd) -> Result<()> {
        let protection = self.options.protection();
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        fork::without_forks(|| {
            // SAFETY: replaces this very range. References into it stay valid: the addresses stay
            // mapped, and hold the same bytes, as the caller states.
            unsafe {
                rustix::mm::mmap(self.base.cast::<c_void>(), self.len as usize, protection, flags, &file, self.offset)
            }
            .map_err(Error::sys(format!("mapping {}", self.file_name)))?;
            self.advise()
        })?
    }

    /// Returns the address of the first byte.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.base
    }

    /// Returns the range of the file that the mapping covers.
    #[inline]
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    /// Returns whether the range of the file is within the mapping.
    #[inline]
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        self.offset <= range.start && range.end <= self.offset + self.len
    }

    /// Returns the address of a byte of the file that the mapping covers.
    #[inline]
    pub(crate) fn address_of(&self, offset: u64) -> *mut u8 {
        debug_assert!(self.range().contains(&offset));
        self.base.wrapping_add((offset - self.offset) as usize)
    }

    /// Excludes the mapping from children and, unless the options include it, from core dumps.
    fn advise(&self) -> Result<()> {
        let in_dumps = (!self.options.in_core_dumps).then_some(Advice::LinuxDontDump);
        for advice in [Advice::LinuxDontFork].into_iter().chain(in_dumps) {
            // SAFETY: the whole of this mapping, and advice that never changes or drops its bytes.
            unsafe { rustix::mm::madvise(self.base.cast::<c_void>(), self.len as usize, advice) }
                .map_err(Error::sys(format!("advising the kernel about {}", self.file_name)))?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // A forked child does not have this mapping, and may have another one at its address.
        if !self.fork_guard.is_child() {
            // SAFETY: this process mapped the range, and references into it borrow from `self`.
            let unmapped = unsafe { rustix::mm::munmap(self.base.cast::<c_void>(), self.len as usize) };
            debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
        }
    }
}

/// Starts loading the cache line at `address`. A hint: any address is allowed.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast::<i8>()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Starts loading `len` bytes from `address` on. A hint, as [`prefetch`].
#[inline]
pub(crate) fn prefetch_bytes(address: *const u8, len: usize) {
    let mut at = 0;
    while at < len {
        prefetch(address.wrapping_add(at));
        at += CACHE_LINE_LEN;
    }
}

/// Returns the error of the system call that failed to map `len` bytes of a file.
pub(crate) fn refused(file_name: &str, offset: u64, len: u64, errno: Errno) -> Error {
    match errno {
        Errno::NOMEM => no_room(file_name, offset, len),
        errno => Error::sys(format!("mapping {file_name}"))(errno),
    }
}

/// Returns the error of a process that may not map `len` bytes of a file. The error names the limit
/// and the remedy.
///
/// Allocates little, since the process may have no memory left.
#[cold]
fn no_room(file_name: &str, offset: u64, len: u64) -> Error {
    let option = match file_name {
        dir::CONTROL => "`Options::ring_size`",
        _ => "`Options::max_size`",
    };
    let used = match mapped_bytes() {
        Some(used) => format!("{used} bytes are mapped; "),
        None => String::new(),
    };
    let helps = if let Some(limit) = rustix::process::getrlimit(Resource::As).current {
        format!("{used}RLIMIT_AS (`ulimit -v`) allows {limit}: raise it, or create the store with a smaller {option}")
    } else if let Some((count, most)) = mappings_at_limit() {
        format!("the process has {count} mappings, `vm.max_map_count` allows {most}: raise it, or open fewer stores")
    } else {
        format!("{used}open fewer stores, or create them with a smaller {option}")
    };
    Error::Io {
        what: format!("no address space for {len} bytes of {file_name} from byte {offset}: {helps}"),
        source: Errno::NOMEM.into(),
    }
}

/// Returns how many bytes of address space this process has mapped.
fn mapped_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages = statm.split(' ').next()?.parse::<u64>().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// Returns the number of mappings of this process and the kernel's limit, if it has reached the
/// limit.
fn mappings_at_limit() -> Option<(usize, usize)> {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    let maps = BufReader::new(std::fs::File::open("/proc/self/maps").ok()?);
    let count = maps.split(b'\n').count();
    (count + MAPPINGS_OF_A_CALL >= most).then_some((count, most))
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

    /// A short file under a long reservation: the mapping is aligned, sees what another one stores,
    /// and follows growth.
    #[test]
    fn maps_what_is_there_and_what_comes() {
        let file = file_of(2 * PAGE);
        let reader = Mapping::new(&file, "arena", options(false)).unwrap();
        let writer = Mapping::new(&file, "arena", options(true)).unwrap();
        assert_eq!(reader.as_ptr() as u64 % MAPPING_ALIGN, 0);
        file.set_len(4 * PAGE).unwrap();
        // The offset is within the file and aligned, and is used only through atomics.
        let word = |mapping: &Mapping| mapping.as_ptr().wrapping_add(3 * PAGE as usize).cast::<AtomicU64>();
        // SAFETY: as above, through a writable mapping.
        unsafe { &*word(&writer) }.store(77, Ordering::Release);
        // SAFETY: as above; only loaded.
        assert_eq!(unsafe { &*word(&reader) }.load(Ordering::Acquire), 77);
        prefetch(std::ptr::null());
    }

    #[test]
    fn a_reservation_that_cannot_be_had_names_its_size() {
        let reserve = 1 << 60;
        let error = Mapping::new(file_of(PAGE), "arena", MapOptions { reserve, ..options(false) }).unwrap_err();
        assert!(error.to_string().contains(&reserve.to_string()), "{error}");
        assert!(error.to_string().contains("`Options::max_size`"), "{error}");
        let error = Mapping::new(file_of(PAGE), "control", MapOptions { reserve, ..options(false) }).unwrap_err();
        assert!(error.to_string().contains("`Options::ring_size`"), "{error}");
    }

    /// Returns the kernel's flags of the mapping that holds an address: see VmFlags in
    /// proc_pid_smaps(5).
    fn flags_of(address: *const u8) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_within = false;
        for line in smaps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                if is_within {
                    return flags.split_whitespace().map(str::to_string).collect();
                }
            } else if let Some((range, _)) = line.split_once(' ')
                && let Some((start, end)) = range.split_once('-')
            {
                let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
                is_within = (number(start)..number(end)).contains(&address.addr());
            }
        }
        panic!("{address:?} is not mapped");
    }

    /// Another part of the file is mapped without its descriptor, with the rights of the first, and
    /// not for children.
    #[test]
    fn a_duplicate_maps_another_part() {
        let file = file_of(4 * PAGE);
        let options = MapOptions { reserve: 2 * PAGE, ..options(true) };
        let writer = Mapping::new(&file, "arena", options).unwrap();
        let reader = Mapping::new(&file, "arena", MapOptions { writable: false, ..options }).unwrap();
        drop(file);
        let [writer, reader] = [writer, reader].map(|first| first.duplicate(PAGE, 3 * PAGE).unwrap());
        assert_eq!(writer.range(), PAGE..4 * PAGE);
        assert!(writer.covers(&(PAGE..4 * PAGE)) && !writer.covers(&(0..PAGE)) && !writer.covers(&(PAGE..5 * PAGE)));
        let word = |mapping: &Mapping| mapping.address_of(3 * PAGE).cast::<AtomicU64>();
        // SAFETY: the byte is mapped, lies in the file, is aligned, and used through atomics alone;
        // stored to by a writer.
        unsafe { &*word(&writer) }.store(77, Ordering::Release);
        // SAFETY: as above; only loaded.
        assert_eq!(unsafe { &*word(&reader) }.load(Ordering::Acquire), 77);
        for (mapping, may_write) in [(&writer, true), (&reader, false)] {
            let flags = flags_of(mapping.as_ptr());
            let has = |flag: &str| flags.iter().any(|found| found == flag);
            assert!(has("dc") && has("dd") && has("wr") == may_write, "{flags:?}");
        }
        assert!(writer.duplicate(0, 1 << 60).unwrap_err().to_string().contains("from byte 4096"));
    }
}
