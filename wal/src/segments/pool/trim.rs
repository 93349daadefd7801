//! The space that a log gives back to the device when it ends.

use super::SegmentPool;
use super::slots::{SegmentSlot, SlotState, blocks_of, bytes_of};
use crate::error::{LogError, Result};
use crate::{Disk, DiskFile};

impl<D: Disk> SegmentPool<D> {
    /// Gives space back to the device at the end of a log: deletes all spares but `count`, and
    /// reduces those to the ready blocks of the first files. No commit may follow, since blocks of
    /// the spares may have been promised to it.
    ///
    /// # Errors
    /// [`LogError::Io`] if a file can't be changed. The log is still valid then.
    pub fn trim(&self, count: usize) -> Result<()> {
        let _erasing = self.lock_erasing();
        loop {
            let name = {
                let mut slots = self.lock();
                if slots.spares() <= count {
                    break;
                }
                let Some(at) = slots.least_spare() else { break };
                slots.files[at].state = SlotState::Making;
                slots.files[at].name.clone()
            };
            self.delete(&name)?;
        }
        let bytes = self.shape.ready_bytes_initial();
        loop {
            let name = {
                let mut slots = self.lock();
                // A small spare that still has a header may be older than a large one.
                let needs_work = |slot: &&mut SegmentSlot| slot.header.is_some() || bytes_of(slot.ready) > bytes;
                let next = slots.next_spare();
                let Some(slot) = next.and_then(|at| slots.files.get_mut(at)).filter(needs_work) else { return Ok(()) };
                slot.state = SlotState::Making;
                slot.name.clone()
            };
            let released =
                self.release_blocks(&name, bytes).map_err(LogError::io(format!("releasing blocks of {name}")));
            let mut slots = self.lock();
            slots.set(&name, SlotState::Spare);
            let ready = blocks_of(released?.min(self.shape.segment_bytes()));
            slots.set_ready(&name, ready);
            if bytes_of(ready) > bytes {
                return Ok(());
            }
        }
    }

    /// Gives the blocks of a spare beyond its first `bytes` back to the device. Its header is
    /// erased first, as in [`SegmentPool::erase_hollow`]. Returns how many bytes have blocks then.
    fn release_blocks(&self, name: &str, bytes: u64) -> std::io::Result<u64> {
        self.erase_header(name)?;
        let file = self.disk.open(name)?;
        file.release(bytes, self.shape.segment_bytes())?;
        self.zero_file(name, bytes)?;
        file.ready_bytes()
    }
}
