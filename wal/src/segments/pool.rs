//! The segment files: which are in use, spares made ahead, recycling.
//!
//! Two threads share the pool. The flush thread takes spares; the background thread makes and
//! recycles them. The lock `slots` is never held across a write or a sync; the lock `erasing` is.
//!
//! | state of a file | meaning | next |
//! |---|---|---|
//! | *making* | zeros are written under another name, synced, and the file is renamed; or it is filled, reduced or deleted | *spare*, or deleted |
//! | *spare* | ready to become a segment | *taken*, *making* |
//! | *taken* | the log writes its first batches, and then its header | *live*; *spare* if that fails |
//! | *live* | recovery needs its bytes | *kept* or *spare*, once the checkpoint has passed its last byte |
//! | *kept* | only followers need it, as far as [`Retention`] allows | *spare* |
//!
//! After a process death in any state, the next [`SegmentCatalog`] classifies each file by its
//! header alone.
//!
//! **Ready blocks.** Every segment file has the same length, but a small log takes little disk
//! space. Only the first blocks of a file are ready, that is, written with zeros; the rest is a
//! hole. Where the ready blocks end, the log continues in another file, so no commit needs a block
//! that the device may not have. The first files have [`LogShape::ready_bytes_initial`]. A spare
//! has as many ready bytes as this pool has logged, rounded up to a power of two. It has at least
//! as many as the previous spare, and at least twice as many if a commit waits for it or spares run
//! out. It never has more than the length of a file. If the device lacks the space, it has as many
//! as the first files. Four rules ensure what [`Log::free_blocks`](crate::Log::free_blocks)
//! promises:
//! 1. A new spare has at least as many ready blocks as every other file, unless the device is full.
//!    So the current segment has no more than the largest spare.
//! 2. The log continues in the spare with the fewest ready blocks. The spare with the most is not
//!    counted, because it is the successor of a segment that fails.
//! 3. The ready blocks of a spare do not change. A file with fewer than the first files have, such
//!    as one that was copied with holes in place of zeros, is not a spare until
//!    [`SegmentPool::add_spare`] has filled it.
//! 4. [`SegmentPool::recycle`] deletes a small file that became free at once. Otherwise the file
//!    stays a spare, because its blocks may have been promised. The exceptions are spares beyond
//!    the maximum, a full device, a header that can't be erased, and [`SegmentPool::trim`].
//!
//! **Old headers.** A file that became free keeps its header until it is taken. If the process dies
//! before that, the file is a segment again. So headers are erased from the oldest on, and the next
//! [`SegmentCatalog`] finds no gap. Four rules ensure this order:
//! 1. `SegmentSlot::header` is cleared only after the header was erased from the disk. It is set if
//!    a header may be on the disk, also that of a segment whose start failed (`Returned`).
//! 2. Threads that delete, fill or reduce files hold the lock `erasing` until the header is erased.
//! 3. They choose the file with the oldest header (`SegmentSlots::is_next`).
//! 4. The flush thread never takes `erasing`. So before it writes to a file that has a header, it
//!    erases all older headers itself. It deletes a file whose header it can't erase.

mod create;
mod erase;
mod retention;
mod slots;
mod trim;

use crate::{
    Disk, DiskFile, Lsn, SegmentNumber,
    error::{LogError, Result},
    limits::{BLOCK_BYTES, SPARES_MAX_DEFAULT},
    segment::LogShape,
    segment_catalog::{BROKEN_PREFIX, SegmentCatalog, UNFINISHED_PREFIX},
};
pub use retention::Retention;
pub(crate) use retention::now_ms;
pub use slots::PoolStats;
pub(crate) use slots::{Returned, SpareBlocks, StartedSegment};
use slots::{SegmentSlot, SegmentSlots, SlotState, blocks_of, bytes_of};
use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The segment files of one log.
#[derive(Debug)]
pub struct SegmentPool<D: Disk> {
    disk: Arc<D>,
    shape: LogShape,
    slots: Mutex<SegmentSlots>,
    /// Held by a thread that erases headers. Locked before `slots`; never by the flush thread.
    erasing: Mutex<()>,
}

impl<D: Disk> SegmentPool<D> {
    /// Opens the pool of the files in `segment_catalog`. Segments below `checkpoint_lsn` are no
    /// longer needed, but kept as far as `retention` requires. Files that were never finished are
    /// removed. Files of another size than a segment's are renamed: the caller has checked that
    /// recovery needs none of them ([`SegmentCatalog::refuse_broken`]).
    ///
    /// # Errors
    /// [`LogError::Io`] if an unfinished file can't be removed or a broken one not renamed, or the
    /// directory can't be synced.
    pub fn open(
        disk: Arc<D>,
        segment_catalog: &SegmentCatalog,
        checkpoint_lsn: Lsn,
        retention: Retention,
    ) -> Result<Arc<Self>> {
        let names = disk.list().map_err(LogError::io("listing the log's directory"))?;
        for name in names.iter().filter(|name| name.starts_with(UNFINISHED_PREFIX)) {
            disk.remove(name).map_err(LogError::io(format!("removing {name}")))?;
        }
        let mut set_aside: Vec<String> = names.into_iter().filter(|name| name.starts_with(BROKEN_PREFIX)).collect();
        for broken in &segment_catalog.broken {
            let mut free = (1..).map(|number: u32| format!("{BROKEN_PREFIX}{number:08}"));
            let name = free.find(|name| !set_aside.contains(name)).expect("there are more numbers than files");
            disk.rename(&broken.file, &name).map_err(LogError::io(format!("renaming {} to {name}", broken.file)))?;
            set_aside.push(name);
        }
        // An earlier logger may have died between renaming a spare and syncing its name. If a power
        // cut took back the name of a segment, acknowledged bytes would be lost.
        disk.sync_dir().map_err(LogError::io("syncing the log's directory"))?;
        // Damaged files are used last, since they are the only evidence of the damage.
        let (damaged, whole): (Vec<_>, Vec<_>) =
            segment_catalog.spares.iter().partition(|name| segment_catalog.damaged.contains(name));
        let spares = whole.into_iter().chain(damaged).map(|name| (name, SlotState::Spare));
        let live = segment_catalog.segments.iter().map(|s| {
            let started =
                StartedSegment { number: s.header.number, start: s.header.start, started_ms: s.header.started_ms };
            (&s.file, SlotState::Live(started))
        });
        let slot = |(name, state): (&String, SlotState)| -> Result<SegmentSlot> {
            let file = disk.open(name).map_err(LogError::io(format!("opening {name}")))?;
            let bytes = file.ready_bytes().map_err(LogError::io(format!("looking for a hole in {name}")))?;
            let ready = blocks_of(bytes.min(segment_catalog.shape.segment_bytes()));
            Ok(SegmentSlot { name: name.clone(), ready, header: None, state })
        };
        let files = spares.chain(live).map(slot).collect::<Result<Vec<SegmentSlot>>>()?;
        let largest = files.iter().map(|slot| bytes_of(slot.ready)).max().unwrap_or(0);
        let initial = segment_catalog.shape.ready_bytes_initial();
        let slots = SegmentSlots {
            ready_min: blocks_of(initial),
            spare_bytes: initial.max(largest),
            logged: 0,
            is_starved: false,
            files,
            number_max: segment_catalog.number_max(),
            spares_max: SPARES_MAX_DEFAULT,
            checkpoint_lsn,
        };
        let pool =
            Arc::new(Self { disk, shape: segment_catalog.shape, slots: Mutex::new(slots), erasing: Mutex::new(()) });
        pool.lock().retire_below(retention);
        Ok(pool)
    }

    /// Returns the log's shape.
    #[must_use]
    pub fn shape(&self) -> &LogShape {
        &self.shape
    }

    /// Sets how many spares [`SegmentPool::recycle`] keeps; it deletes further ones.
    pub fn set_spares_max(&self, spares_max: usize) {
        self.lock().spares_max = spares_max;
    }

    /// Makes one more spare. Fills it with zeros, so that a later sync of its blocks commits no
    /// metadata. This is slow, so only the background thread should call it.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] if there is no space, [`LogError::Io`] otherwise. No file is left
    /// behind, or only one that the next [`SegmentPool::open`] cleans up.
    pub fn add_spare(&self) -> Result<()> {
        self.add_spare_or_smaller(0)
    }

    /// Makes a spare as [`SegmentPool::add_spare_of`]. If the device lacks the space, the spare has
    /// as few blocks as the first ones.
    ///
    /// # Errors
    /// As [`SegmentPool::add_spare`].
    pub fn add_spare_or_smaller(&self, blocks: u64) -> Result<()> {
        match self.add_spare_of(blocks) {
            Err(LogError::DiskFull { .. }) if self.shape.ready_bytes_initial() < self.shape.segment_bytes() => {
                self.create_spare(self.shape.ready_bytes_initial())
            }
            made => made,
        }
    }

    /// Makes a spare as [`SegmentPool::add_spare`], with at least `blocks` ready blocks, or all
    /// blocks of a segment if it has fewer.
    ///
    /// # Errors
    /// As [`SegmentPool::add_spare`].
    pub fn add_spare_of(&self, blocks: u64) -> Result<()> {
        let (bytes, before) = {
            let mut slots = self.lock();
            let before = slots.spare_bytes;
            // A spare that a caller needs is followed by one twice as large.
            let doubled = if blocks > 0 { 2 * before } else { 0 };
            let wanted = slots.logged.max(doubled).max(blocks.saturating_mul(BLOCK_BYTES as u64));
            let wanted = wanted.checked_next_power_of_two().unwrap_or(u64::MAX);
            slots.spare_bytes = before.max(wanted).min(self.shape.segment_bytes());
            (slots.spare_bytes, before)
        };
        let made = self.create_spare(bytes);
        if matches!(made, Err(LogError::DiskFull { .. })) {
            // The device may have space for a smaller one.
            self.lock().spare_bytes = before;
        }
        made
    }

    /// Frees each segment that recovery no longer needs: every byte is below `checkpoint_lsn`, or
    /// repeated in a later segment. Freed segments become spares unless `retention` keeps them.
    /// Deletes spares beyond the maximum. Small segments are deleted instead once spares have
    /// grown, if there are two other spares and the device has space. Call it only when a durable
    /// header states that checkpoint. Returns how many segments it freed.
    ///
    /// # Errors
    /// [`LogError::Io`] if a surplus file can't be deleted: it stays a spare. Freed segments stay
    /// freed.
    pub fn recycle(&self, checkpoint_lsn: Lsn, retention: Retention) -> Result<usize> {
        self.recycle_with(checkpoint_lsn, retention, || ())
    }

    /// Recycles as [`SegmentPool::recycle`]. Calls `on_freed` before it deletes a file. There the
    /// caller publishes where the log begins, for readers that find a file missing.
    ///
    /// # Errors
    /// As [`SegmentPool::recycle`].
    pub fn recycle_with(&self, checkpoint_lsn: Lsn, retention: Retention, on_freed: impl FnOnce()) -> Result<usize> {
        let _erasing = self.lock_erasing();
        let (freed, surplus) = {
            let mut slots = self.lock();
            slots.checkpoint_lsn = slots.checkpoint_lsn.max(checkpoint_lsn);
            let retired = slots.retire_below(retention);
            let freed = retired.len();
            let mut surplus = Vec::new();
            // Oldest first. The loop ends at the first segment that stays, so no younger one is
            // deleted.
            for at in retired.into_iter().rev() {
                let ready = slots.files[at].ready;
                let is_initial = ready <= slots.ready_min && ready < self.shape.segment_blocks();
                let is_small = is_initial || bytes_of(ready) < slots.spare_bytes / 2;
                if !is_small || slots.is_starved || slots.spares() <= 2 || !slots.is_next(&slots.files[at]) {
                    break;
                }
                slots.files[at].state = SlotState::Making;
                surplus.push(slots.files[at].name.clone());
            }
            while slots.spares() > slots.spares_max {
                let Some(at) = slots.least_spare() else { break };
                // The file keeps its name until it is deleted: a new file must not take the name
                // meanwhile.
                slots.files[at].state = SlotState::Making;
                surplus.push(slots.files[at].name.clone());
            }
            (freed, surplus)
        };
        on_freed();
        let mut failed = Ok(());
        for name in &surplus {
            if failed.is_ok() {
                failed = self.disk.remove(name).map_err(LogError::io(format!("removing {name}")));
            }
            let mut slots = self.lock();
            match failed {
                Ok(()) => slots.files.retain(|slot| slot.name != *name),
                Err(_) => slots.set(name, SlotState::Spare),
            }
        }
        failed?;
        if !surplus.is_empty() {
            self.disk.sync_dir().map_err(LogError::io("syncing the log's directory"))?;
        }
        Ok(freed)
    }

    /// Recycles as [`SegmentPool::recycle_with`] at the checkpoint of the last call, for segments
    /// that have become too old since.
    ///
    /// # Errors
    /// As [`SegmentPool::recycle`].
    pub fn expire(&self, retention: Retention, on_freed: impl FnOnce()) -> Result<usize> {
        self.recycle_with(Lsn::ZERO, retention, on_freed)
    }

    /// Frees the oldest segment that is kept only for followers, when the device is full. It
    /// becomes a spare, or with `delete` it is deleted. Returns false if there is none. Calls
    /// `on_freed` before it deletes the file, as [`SegmentPool::recycle_with`] does.
    ///
    /// # Errors
    /// [`LogError::Io`] if it can't be deleted; it is a spare then.
    pub fn yield_kept(&self, delete: bool, on_freed: impl FnOnce()) -> Result<bool> {
        let _erasing = self.lock_erasing();
        let name = {
            let mut slots = self.lock();
            let oldest = |(_, slot): &(usize, &SegmentSlot)| slot.state.started().map(|started| started.number);
            let kept = slots.files.iter().enumerate().filter(|(_, slot)| matches!(slot.state, SlotState::Kept(_)));
            let Some((at, _)) = kept.min_by_key(oldest) else { return Ok(false) };
            slots.files[at].header = slots.files[at].state.started().map(|started| started.number);
            slots.files[at].state = SlotState::Spare;
            // If a spare has an older header and no more ready blocks, delete that spare instead.
            let oldest = slots.files.iter().position(|slot| slot.header.is_some() && slots.is_next(slot));
            let Some(oldest) = oldest.filter(|oldest| slots.files[*oldest].ready <= slots.files[at].ready) else {
                return Ok(true);
            };
            if !delete {
                return Ok(true);
            }
            slots.files[oldest].state = SlotState::Making;
            slots.files[oldest].name.clone()
        };
        on_freed();
        self.delete(&name)?;
        Ok(true)
    }

    /// Deletes a spare when the device is full and the space is needed elsewhere: one that has
    /// holes, otherwise the largest. Of the spares with an old header, only the oldest qualifies.
    /// Returns false if none qualifies, or if the only spare has no holes.
    ///
    /// # Errors
    /// [`LogError::Io`] if it can't be deleted; it is a spare then.
    pub fn remove_spare(&self) -> Result<bool> {
        let _erasing = self.lock_erasing();
        let name = {
            let mut slots = self.lock();
            let is_hollow = |slot: &SegmentSlot| slot.state == SlotState::Spare && slot.ready < slots.ready_min;
            if slots.spares() < 2 && !slots.files.iter().any(is_hollow) {
                return Ok(false);
            }
            let spares = slots.files.iter().enumerate().filter(|(_, slot)| slots.is_next(slot));
            let Some((at, _)) = spares.max_by_key(|(_, slot)| (is_hollow(slot), slot.ready)) else {
                return Ok(false);
            };
            slots.files[at].state = SlotState::Making;
            slots.files[at].name.clone()
        };
        self.delete(&name)?;
        Ok(true)
    }

    /// Deletes a file that nothing uses any more. If that fails, the file is a spare. The caller
    /// holds `erasing`.
    fn delete(&self, name: &str) -> Result<()> {
        let removed = self.disk.remove(name).map_err(LogError::io(format!("removing {name}")));
        let mut slots = self.lock();
        match removed {
            Ok(()) => slots.files.retain(|slot| slot.name != name),
            Err(error) => {
                slots.set(name, SlotState::Spare);
                return Err(error);
            }
        }
        drop(slots);
        self.disk.sync_dir().map_err(LogError::io("syncing the log's directory"))
    }

    /// Returns the counts and sizes of the files.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.publish(|stats| *stats)
    }

    /// Calls `store` with the counts and sizes of the files, which do not change until `store`
    /// returns. So if two threads publish them, the last publication is the newest. `store` must be
    /// fast: the flush thread may wait for it.
    pub fn publish<T>(&self, store: impl FnOnce(&PoolStats) -> T) -> T {
        let slots = self.lock();
        let count = |of: fn(SlotState) -> bool| slots.files.iter().filter(|slot| of(slot.state)).count();
        let stats = PoolStats {
            segments: count(|state| matches!(state, SlotState::Live(_))),
            kept: count(|state| matches!(state, SlotState::Kept(_))),
            spares: slots.spares(),
            bytes: slots.files.iter().map(|slot| bytes_of(slot.ready)).sum(),
            segment_bytes: slots
                .files
                .iter()
                .filter(|slot| matches!(slot.state, SlotState::Live(_)))
                .map(|slot| bytes_of(slot.ready))
                .sum(),
            oldest: slots.files.iter().filter_map(|slot| slot.state.started()).map(|started| started.start).min(),
        };
        store(&stats)
    }

    /// Returns how many blocks of the spares can be promised to commits: those of all spares but
    /// the largest.
    #[must_use]
    pub fn countable_blocks(&self) -> u64 {
        self.spare_blocks().map_or(0, |spares| spares.others)
    }

    /// Returns the ready blocks of the spares: see [`SpareBlocks`]. Called at each flush, so it
    /// must be fast even if many segments are kept.
    pub(crate) fn spare_blocks(&self) -> Option<SpareBlocks> {
        self.lock().spare_blocks()
    }

    /// Returns whether the newest segment has more ready blocks than the largest spare.
    #[must_use]
    pub fn lacks_successor(&self) -> bool {
        self.lock().lacks_successor()
    }

    /// Records that `blocks` blocks of a segment were written.
    pub(crate) fn note_logged(&self, blocks: u32) {
        let mut slots = self.lock();
        slots.logged = slots.logged.saturating_add(bytes_of(blocks));
    }

    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    /// Takes a spare and a number above all existing ones for a new segment: the smallest spare, or
    /// the `largest`. Returns the spare's name, its ready blocks, and the number. Only the flush
    /// thread takes spares.
    pub(crate) fn take_spare(&self, largest: bool) -> Option<(String, u32, SegmentNumber)> {
        let mut slots = self.lock();
        // Of several spares of equal size, the first is taken.
        let spares = slots.spare_files();
        let (at, _) = match largest {
            true => spares.min_by_key(|(_, slot)| Reverse(slot.ready)),
            false => {
                let next = spares.filter(|(_, slot)| slots.is_next(slot)).min_by_key(|(_, slot)| slot.ready);
                // If the oldest header is in a file with holes, no spare is the next. Then take the
                // spare with the oldest header.
                next.or_else(|| slots.spare_files().min_by_key(|(_, slot)| slot.header))
            }
        }?;
        slots.number_max.0 = slots.number_max.0.checked_add(1)?;
        // The slot moves to the end of the list, so that after a failure another spare comes first.
        let mut slot = slots.files.remove(at);
        slot.state = SlotState::Taken;
        let (name, ready, header) = (slot.name.clone(), slot.ready, slot.header);
        slots.files.push(slot);
        let number = slots.number_max;
        let older = header.map_or(Vec::new(), |header| slots.older_headers(header));
        drop(slots);
        for (_, older) in older {
            // A file that was deleted meanwhile has no header.
            if self.erase_header(&older).is_err() {
                self.remove_unerased(&older);
            }
        }
        Some((name, ready, number))
    }

    /// Records that the spare that was taken is a segment now, or a spare again.
    pub(crate) fn give_back(&self, name: &str, returned: Returned) {
        let mut slots = self.lock();
        match returned {
            Returned::Untouched => {}
            Returned::Erased | Returned::Started(_) => slots.set_header(name, None),
            Returned::Failed(number) => slots.set_header(name, Some(number)),
        }
        slots.set(
            name,
            if let Returned::Started(started) = returned { SlotState::Live(started) } else { SlotState::Spare },
        );
    }

    fn lock_erasing(&self) -> MutexGuard<'_, ()> {
        self.erasing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, SegmentSlots> {
        // No critical section can panic in the middle of a change, so a poisoned lock can be used.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
