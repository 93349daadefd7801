//! Erases files: overwrites the headers of former segments, and the blocks of spares, with zeros.

use super::SegmentPool;
use super::create::write_zeros;
use super::slots::{SegmentSlots, SlotState};
use crate::limits::BLOCK_BYTES;
use crate::{Disk, DiskFile};

impl<D: Disk> SegmentPool<D> {
    /// Takes a file with holes that is no longer a segment, if there is one, and erases its header,
    /// so that no catalog takes the file for a damaged segment after a crash.
    pub(super) fn erase_hollow(&self) -> Option<(String, std::io::Result<()>)> {
        let hollow = |slots: &SegmentSlots| {
            slots.files.iter().position(|slot| slots.is_next(slot) && slot.ready < slots.ready_min)
        };
        // A new file is made beside a deletion, which may take long.
        let _ = hollow(&self.lock())?;
        let _erasing = self.lock_erasing();
        let name = {
            let mut slots = self.lock();
            let at = hollow(&slots)?;
            slots.files[at].state = SlotState::Making;
            slots.files[at].name.clone()
        };
        let erased = self.erase_header(&name);
        Some((name, erased))
    }

    /// Erases the header of a file that is no longer a segment.
    pub(super) fn erase_header(&self, name: &str) -> std::io::Result<()> {
        self.zero_file(name, BLOCK_BYTES as u64)?;
        self.lock().clear_header(name);
        Ok(())
    }

    /// Writes zeros over the first bytes of a file, and syncs it.
    pub(super) fn zero_file(&self, name: &str, bytes: u64) -> std::io::Result<()> {
        let file = self.disk.open(name)?;
        write_zeros(&file, bytes)?;
        file.sync()
    }
}
