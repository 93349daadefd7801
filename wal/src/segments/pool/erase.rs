//! Erases files: overwrites the headers of former segments, and the blocks of spares, with zeros.

use super::SegmentPool;
use super::create::write_zeros;
use super::slots::{SegmentSlot, SegmentSlots, SlotState};
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
        self.lock().set_header(name, None);
        Ok(())
    }

    /// Deletes a spare whose header can't be erased, since a newer header is about to be erased.
    /// Unlike erasing, a deletion needs neither a descriptor nor a write to the file. If the
    /// deletion fails as well, or if another thread is changing the file, the log has a gap after
    /// the old header until the old header is erased.
    pub(super) fn remove_unerased(&self, name: &str) {
        let is_spare = |slot: &SegmentSlot| slot.name == name && slot.state == SlotState::Spare;
        {
            let mut slots = self.lock();
            let Some(slot) = slots.files.iter_mut().find(|slot| is_spare(slot)) else { return };
            slot.state = SlotState::Making;
        }
        let removed = self.disk.remove(name);
        let mut slots = self.lock();
        match removed {
            Ok(()) => slots.files.retain(|slot| slot.name != name),
            Err(_) => slots.set(name, SlotState::Spare),
        }
    }

    /// Overwrites the first bytes of a file with zeros, and syncs the file.
    pub(super) fn zero_file(&self, name: &str, bytes: u64) -> std::io::Result<()> {
        let file = self.disk.open(name)?;
        write_zeros(&file, bytes)?;
        file.sync()
    }
}
