//! Detection of changes to shared memory by the stepper, and copies of a store in the middle of an
//! update.
#![allow(unsafe_code)]

use crate::outcome::{Finding, Kind};
use crate::workload;
use rustix::fs::SeekFrom;
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use untorn::Store;

/// The part of the arena that a small store uses.
const ARENA_BYTES: usize = 1 << 20;
/// The part of those bytes that an update may add.
const UPDATE_BYTES: usize = 192 << 10;

/// The mapped shared files, and their previous content.
pub(super) struct Memory {
    ranges: Vec<Range>,
}

struct Range {
    at: *const u8,
    held: Vec<u8>,
}

impl Memory {
    /// Maps the allocated parts of `control` and the beginning of `arena`.
    pub(super) fn of(path: &Path) -> Result<Memory, Finding> {
        let mut ranges = Vec::new();
        let control = open(path, "control")?;
        let mut from = 0;
        while let Ok(start) = rustix::fs::seek(&control, SeekFrom::Data(from)) {
            let end = rustix::fs::seek(&control, SeekFrom::Hole(start)).unwrap_or(start);
            ranges.push(Range::map(&control, start, (end - start) as usize)?);
            from = end;
        }
        let arena = open(path, "arena")?;
        let len = arena.metadata().map_or(0, |metadata| metadata.len() as usize).min(ARENA_BYTES);
        let mut used = vec![0; len];
        let failed = |error| Finding::new(Kind::Misbehaved, format!("reading the arena: {error}"));
        arena.read_exact_at(&mut used, 0).map_err(failed)?;
        let used = used.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        ranges.push(Range::map(&arena, 0, len.min(used + UPDATE_BYTES))?);
        let mut memory = Memory { ranges };
        memory.look();
        Ok(memory)
    }

    /// As [`Memory::of`], with the files that only the logger writes: the headers of checkpoints
    /// and the log, as far as it exists.
    pub(super) fn with_files(path: &Path) -> Result<Memory, Finding> {
        let mut memory = Memory::of(path)?;
        let failed = |error| Finding::new(Kind::Misbehaved, format!("the files of the store: {error}"));
        let mut names = vec!["checkpoint".to_string()];
        for entry in std::fs::read_dir(path.join("wal")).map_err(failed)? {
            names.push(format!("wal/{}", entry.map_err(failed)?.file_name().to_string_lossy()));
        }
        for name in names {
            let file = open(path, &name)?;
            let len = file.metadata().map_err(failed)?.len() as usize;
            if len > 0 {
                memory.ranges.push(Range::map(&file, 0, len)?);
            }
        }
        memory.look();
        Ok(memory)
    }

    /// Returns whether anything has changed since the last [`Memory::look`].
    pub(super) fn has_changed(&self) -> bool {
        self.ranges.iter().any(Range::has_changed)
    }

    /// Saves the current content.
    pub(super) fn look(&mut self) {
        for range in &mut self.ranges {
            // SAFETY: the range is mapped as long as `self` lives. The processes that write to it
            // are stopped. The reader in this process also writes to it, but its calls have
            // returned.
            let now = unsafe { std::slice::from_raw_parts(range.at, range.held.len()) };
            range.held.copy_from_slice(now);
        }
    }
}

impl Range {
    fn map(file: &File, from: u64, len: usize) -> Result<Range, Finding> {
        let failed = |error| Finding::new(Kind::Misbehaved, format!("mapping shared memory: {error}"));
        // SAFETY: a new read-only mapping at an address of the kernel's choice.
        let at = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, from)
                .map_err(failed)?
        };
        Ok(Range { at: at.cast(), held: vec![0; len] })
    }

    fn has_changed(&self) -> bool {
        // SAFETY: both buffers have this length. The rest of the argument is that of `look`.
        unsafe { libc::memcmp(self.at.cast(), self.held.as_ptr().cast(), self.held.len()) != 0 }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no other pointer to it exists.
        let _ = unsafe { rustix::mm::munmap(self.at.cast_mut().cast(), self.held.len()) };
    }
}

fn open(path: &Path, name: &str) -> Result<File, Finding> {
    let failed = |error| Finding::new(Kind::Misbehaved, format!("opening {name}: {error}"));
    File::open(path.join(name)).map_err(failed)
}

/// Copies a store in its current state. If the region is kept, the copy accepts it as its own, as
/// if the processes had died and the files had stayed.
pub(super) fn copy_store(from: &Path, to: &Path, keeps_region: bool) -> Result<(), Finding> {
    let _ = std::fs::remove_dir_all(to);
    let copied = (|| {
        std::fs::create_dir_all(to.join("wal"))?;
        for name in ["lock", "checkpoint", "arena"] {
            copy_sparse(&from.join(name), &to.join(name))?;
        }
        for entry in std::fs::read_dir(from.join("wal"))? {
            let entry = entry?;
            copy_sparse(&entry.path(), &to.join("wal").join(entry.file_name()))?;
        }
        if keeps_region {
            let region = to.join("control");
            copy_sparse(&from.join("control"), &region)?;
            let file = File::options().write(true).open(&region)?;
            let is = file.metadata()?;
            file.write_all_at(&is.ino().to_le_bytes(), untorn::internals::REGION_INODE_AT)?;
            file.write_all_at(&is.dev().to_le_bytes(), untorn::internals::REGION_INODE_AT + 8)?;
        }
        Ok(())
    })();
    copied.map_err(|error: std::io::Error| Finding::new(Kind::Misbehaved, format!("copying the store: {error}")))
}

fn copy_sparse(from: &Path, to: &Path) -> std::io::Result<()> {
    let (from, to) = (File::open(from)?, File::options().write(true).create_new(true).open(to)?);
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Ok(start) = rustix::fs::seek(&from, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&from, SeekFrom::Hole(start))?;
        let mut here = start;
        while here < end {
            let len = (end - here).min(buffer.len() as u64) as usize;
            from.read_exact_at(&mut buffer[..len], here)?;
            to.write_all_at(&buffer[..len], here)?;
            here += len as u64;
        }
        at = end;
    }
    Ok(())
}

/// Opens a copy, with the logger in this process.
pub(super) fn open_copy(path: &Path) -> Result<Store, Finding> {
    let mut options = workload::options();
    options.logger_thread(true).logger_idle(std::time::Duration::ZERO);
    options.open(path).map_err(workload::misbehaved("opening a copy"))
}
