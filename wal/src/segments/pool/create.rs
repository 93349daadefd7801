//! Makes spares: creates new files, and fills files that have holes.

use super::SegmentPool;
use super::slots::{SlotState, blocks_of};
use crate::error::{LogError, Result};
use crate::limits::ZERO_FILL_BYTES;
use crate::segment_catalog::{SEGMENT_PREFIX, UNFINISHED_PREFIX, slot_name};
use crate::{Disk, DiskFile, disk::AlignedBuf};
use std::io::ErrorKind;

impl<D: Disk> SegmentPool<D> {
    /// Creates a spare of `bytes` ready bytes, or fills one that has holes.
    pub(super) fn create_spare(&self, bytes: u64) -> Result<()> {
        let (name, hollow, made) = match self.erase_hollow() {
            Some((name, erased)) => {
                let filled = erased.and_then(|()| self.zero_file(&name, bytes));
                let filled = filled.map_err(LogError::io(format!("zero-filling {name}")));
                (name, true, filled)
            }
            None => {
                let name = slot_name(self.lock().reserve_slot(blocks_of(bytes)));
                let made = self.create_file(&name, bytes);
                (name, false, made)
            }
        };
        let mut slots = self.lock();
        slots.is_starved = matches!(made, Err(LogError::DiskFull { .. }));
        if made.is_ok() {
            slots.set_ready(&name, blocks_of(bytes));
        }
        match made {
            Err(_) if !hollow => slots.files.retain(|s| s.name != name),
            _ => slots.set(&name, SlotState::Spare),
        }
        made
    }

    fn create_file(&self, name: &str, bytes: u64) -> Result<()> {
        let unfinished = name.replace(SEGMENT_PREFIX, UNFINISHED_PREFIX);
        let create = || {
            let failed = |doing: &str| LogError::io(format!("{doing} {unfinished}"));
            let created = self.disk.create(&unfinished).or_else(|error| {
                // This thread has reserved the name, so an earlier attempt has left the file.
                if error.kind() != ErrorKind::AlreadyExists {
                    return Err(error);
                }
                self.disk.remove(&unfinished)?;
                self.disk.create(&unfinished)
            });
            let file = created.map_err(failed("creating"))?;
            file.set_size(self.shape.segment_bytes()).map_err(failed("setting the length of"))?;
            write_zeros(&file, bytes).map_err(failed("zero-filling"))?;
            file.sync().map_err(failed("syncing"))?;
            self.disk.rename(&unfinished, name).map_err(failed("renaming"))?;
            self.disk.sync_dir().map_err(LogError::io("syncing the log's directory"))
        };
        create().inspect_err(|_| {
            // Best effort: a leftover is removed, or made a spare, at the next open.
            let _ = self.disk.remove(&unfinished).or_else(|_| self.disk.remove(name));
        })
    }
}

/// Writes `bytes` zeros from the beginning of a file on.
pub(super) fn write_zeros(file: &impl DiskFile, bytes: u64) -> std::io::Result<()> {
    let zeros = AlignedBuf::new(ZERO_FILL_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let len = (bytes - offset).min(ZERO_FILL_BYTES as u64);
        file.write_at(offset, &zeros.bytes()[..len as usize])?;
        offset += len;
    }
    Ok(())
}
