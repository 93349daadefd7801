//! The segment files: which are in use, spares made ahead, recycling.
//!
//! Shared by the flush thread, which takes spares, and the background thread, which makes and
//! recycles them. The lock is never held across a write or a sync.
//!
//! A file's life: *making* (zeros written under another name, synced, renamed) → *spare* → *taken*
//! (the log writes its first batches and then its header) → *live* → *kept* for followers, once the
//! checkpoint has passed its last byte and as far as [`Retention`] says → spare again, or deleted
//! if it is small. A process that dies at any of these leaves a file that the next
//! [`SegmentCatalog`] judges by its header alone.
//!
//! **Ready blocks.** Every segment file has the same length, but a log that holds little takes
//! little of the disk: only the first blocks of a file are ready, that is written with zeros, and
//! the rest is a hole. The log continues in another file where the ready blocks end, so no commit
//! needs a block that the device may not have. The first files have
//! [`LogShape::ready_bytes_initial`]. Each spare is made as large as all that this pool was given
//! to log, and twice as large as the one before if that was used up, up to the length of a file.
//! Four rules keep what [`Log::free_blocks`](crate::Log::free_blocks) promises:
//! 1. A spare is made with no fewer ready blocks than any other file has. So no segment that is
//!    being written has more than the largest spare, unless the device is full.
//! 2. The log continues in the spare with the fewest. The one with the most is not counted: it is
//!    the successor of a segment that fails.
//! 3. The ready blocks of a spare do not change. A file with fewer than the first files have, such
//!    as one that was copied with holes in place of zeros, is no spare until
//!    [`SegmentPool::add_spare`] has filled it.
//! 4. A file that became free is deleted at once if it is small, or never: a spare may have been
//!    promised.
//!
//! **Old headers.** A file that became free keeps its header until it is taken, and counts as a
//! segment again if the process dies before. So files are taken and deleted from the oldest header
//! on (`SegmentSlots::is_next`): what the next [`SegmentCatalog`] finds has no gap.

mod retention;
mod slots;

use crate::{
    Disk, DiskFile, Lsn, SegmentNumber,
    disk::AlignedBuf,
    error::{LogError, Result},
    limits::{BLOCK_BYTES, SPARES_MAX_DEFAULT, ZERO_FILL_BYTES},
    segment::LogShape,
    segment_catalog::{BROKEN_PREFIX, SEGMENT_PREFIX, SegmentCatalog, UNFINISHED_PREFIX, slot_name},
};
pub use retention::Retention;
pub(crate) use retention::now_ms;
pub use slots::PoolStats;
use slots::{SegmentSlot, SegmentSlots, SlotState, blocks_of, bytes_of};
pub(crate) use slots::{SpareBlocks, StartedSegment};
use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The segment files of one log.
#[derive(Debug)]
pub struct SegmentPool<D: Disk> {
    disk: Arc<D>,
    shape: LogShape,
    slots: Mutex<SegmentSlots>,
}

impl<D: Disk> SegmentPool<D> {
    /// The pool of the files that `segment_catalog` found. What lies below `checkpoint_lsn` no
    /// longer counts, but is kept as `retention` says. Files that were never finished are removed.
    /// Those that have not the size of a segment get another name: the caller has seen that
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
        // A predecessor may have died between renaming a spare and syncing its name. A segment
        // whose name a power cut takes back would take acknowledged bytes with it.
        disk.sync_dir().map_err(LogError::io("syncing the log's directory"))?;
        // Damaged ones are used last: they are all that tells of the damage.
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
        let pool = Arc::new(Self { disk, shape: segment_catalog.shape, slots: Mutex::new(slots) });
        pool.lock().retire_below(retention);
        Ok(pool)
    }

    /// The log's shape.
    #[must_use]
    pub fn shape(&self) -> &LogShape {
        &self.shape
    }

    /// How many spares [`SegmentPool::recycle`] keeps; it deletes those beyond.
    pub fn set_spares_max(&self, spares_max: usize) {
        self.lock().spares_max = spares_max;
    }

    /// Makes one more spare: writes zeros, so that a later sync of its blocks commits no metadata.
    /// Slow; for the background thread.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] if there is no room, [`LogError::Io`] otherwise. Nothing is left
    /// behind, or only a file that the next [`SegmentPool::open`] puts in order.
    pub fn add_spare(&self) -> Result<()> {
        self.add_spare_or_smaller(0)
    }

    /// As [`SegmentPool::add_spare_of`]. If the device has no room for as many blocks, the spare
    /// has as few as the first ones.
    ///
    /// # Errors
    /// As [`SegmentPool::add_spare`].
    pub fn add_spare_or_smaller(&self, blocks: u64) -> Result<()> {
        match self.add_spare_of(blocks) {
            Err(LogError::DiskFull { .. }) if self.shape.ready_bytes_initial() < self.shape.segment_bytes() => {
                self.make_spare(self.shape.ready_bytes_initial())
            }
            made => made,
        }
    }

    /// As [`SegmentPool::add_spare`], with at least `blocks` ready blocks if a segment has as many.
    ///
    /// # Errors
    /// As [`SegmentPool::add_spare`].
    pub fn add_spare_of(&self, blocks: u64) -> Result<()> {
        let (bytes, before) = {
            let mut slots = self.lock();
            let before = slots.spare_bytes;
            // One that a caller needs is followed by one twice as large.
            let doubled = if blocks > 0 { 2 * before } else { 0 };
            let wanted = slots.logged.max(doubled).max(blocks.saturating_mul(BLOCK_BYTES as u64));
            let wanted = wanted.checked_next_power_of_two().unwrap_or(u64::MAX);
            slots.spare_bytes = before.max(wanted).min(self.shape.segment_bytes());
            (slots.spare_bytes, before)
        };
        let made = self.make_spare(bytes);
        if matches!(made, Err(LogError::DiskFull { .. })) {
            // The device may have room for a smaller one.
            self.lock().spare_bytes = before;
        }
        made
    }

    /// Makes a spare of so many ready bytes, or fills one with holes.
    fn make_spare(&self, bytes: u64) -> Result<()> {
        let (name, hollow) = {
            let mut slots = self.lock();
            match slots.files.iter().position(|slot| slots.is_next(slot) && slot.ready < slots.ready_min) {
                Some(at) => {
                    slots.files[at].state = SlotState::Making;
                    slots.files[at].header = None;
                    (slots.files[at].name.clone(), true)
                }
                None => (slot_name(slots.reserve_slot(blocks_of(bytes))), false),
            }
        };
        let made = if hollow { self.fill_file(&name, bytes) } else { self.make_file(&name, bytes) };
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

    /// Writes zeros into a file with holes that is no segment any more. Its header goes first, so
    /// that no survey takes what a crash leaves for a damaged segment.
    fn fill_file(&self, name: &str, bytes: u64) -> Result<()> {
        let filled = self.zero_file(name, BLOCK_BYTES as u64).and_then(|()| self.zero_file(name, bytes));
        filled.map_err(LogError::io(format!("zero-filling {name}")))
    }

    /// Writes zeros over the first bytes of a file, and syncs it.
    fn zero_file(&self, name: &str, bytes: u64) -> std::io::Result<()> {
        let file = self.disk.open(name)?;
        write_zeros(&file, bytes)?;
        file.sync()
    }

    fn make_file(&self, name: &str, bytes: u64) -> Result<()> {
        let unfinished = name.replace(SEGMENT_PREFIX, UNFINISHED_PREFIX);
        let make = || {
            let failed = |doing: &str| LogError::io(format!("{doing} {unfinished}"));
            let file = self.disk.create(&unfinished).map_err(failed("creating"))?;
            file.set_size(self.shape.segment_bytes()).map_err(failed("setting the length of"))?;
            write_zeros(&file, bytes).map_err(failed("zero-filling"))?;
            file.sync().map_err(failed("syncing"))?;
            self.disk.rename(&unfinished, name).map_err(failed("renaming"))?;
            self.disk.sync_dir().map_err(LogError::io("syncing the log's directory"))
        };
        make().inspect_err(|_| {
            // Best effort: a leftover is removed, or made a spare, at the next open.
            let _ = self.disk.remove(&unfinished).or_else(|_| self.disk.remove(name));
        })
    }

    /// Turns segments whose every byte lies below `checkpoint_lsn`, or in a later one, into spares,
    /// but for those that `retention` keeps, and deletes spares beyond the maximum. Small ones are
    /// deleted rather than made spares once spares have grown, if there are two others and the
    /// device has room. Call it only when a durable header states that checkpoint. Returns how many
    /// segments it freed.
    ///
    /// # Errors
    /// [`LogError::Io`] if a surplus file can't be deleted: it stays a spare. What was freed stays
    /// freed.
    pub fn recycle(&self, checkpoint_lsn: Lsn, retention: Retention) -> Result<usize> {
        self.recycle_with(checkpoint_lsn, retention, || ())
    }

    /// As [`SegmentPool::recycle`]. Calls `on_freed` before it deletes a file: a reader that misses
    /// one of them learns from what the caller publishes there that the log begins later by now.
    ///
    /// # Errors
    /// As [`SegmentPool::recycle`].
    pub fn recycle_with(&self, checkpoint_lsn: Lsn, retention: Retention, on_freed: impl FnOnce()) -> Result<usize> {
        let (freed, surplus) = {
            let mut slots = self.lock();
            slots.checkpoint_lsn = slots.checkpoint_lsn.max(checkpoint_lsn);
            let retired = slots.retire_below(retention);
            let freed = retired.len();
            let mut surplus = Vec::new();
            // The oldest first, and none that is younger than one that stays.
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
                // It keeps its name until it is gone: one that is made meanwhile must not take it.
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

    /// As [`SegmentPool::recycle_with`] at the same checkpoint as the last time: for those that
    /// have become too old since.
    ///
    /// # Errors
    /// As [`SegmentPool::recycle`].
    pub fn expire(&self, retention: Retention, on_freed: impl FnOnce()) -> Result<usize> {
        self.recycle_with(Lsn::ZERO, retention, on_freed)
    }

    /// Gives the oldest segment that is kept for followers alone up, when the device is full: it
    /// becomes a spare, or with `delete` its room is given back. False if there is none. Calls
    /// `on_freed` before it deletes the file, as [`SegmentPool::recycle_with`] does.
    ///
    /// # Errors
    /// [`LogError::Io`] if it can't be deleted; it is a spare then.
    pub fn yield_kept(&self, delete: bool, on_freed: impl FnOnce()) -> Result<bool> {
        let name = {
            let mut slots = self.lock();
            let oldest = |(_, slot): &(usize, &SegmentSlot)| slot.state.started().map(|started| started.number);
            let kept = slots.files.iter().enumerate().filter(|(_, slot)| matches!(slot.state, SlotState::Kept(_)));
            let Some((at, _)) = kept.min_by_key(oldest) else { return Ok(false) };
            slots.files[at].header = slots.files[at].state.started().map(|started| started.number);
            slots.files[at].state = SlotState::Spare;
            // A spare with an older header goes before it, if no less log is left then.
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

    /// Deletes the largest spare, but never the last one, when the device is full and the room is
    /// needed for something else. False if there is no other.
    ///
    /// # Errors
    /// [`LogError::Io`] if it can't be deleted; it is a spare then.
    pub fn remove_spare(&self) -> Result<bool> {
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

    /// Deletes a file that is no other's any more; if that fails it is a spare.
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

    /// How many files there are.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let slots = self.lock();
        let count = |of: fn(SlotState) -> bool| slots.files.iter().filter(|slot| of(slot.state)).count();
        PoolStats {
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
        }
    }

    /// Blocks of the spares that commits can be promised: of all but the largest.
    #[must_use]
    pub fn countable_blocks(&self) -> u64 {
        self.spare_blocks().map_or(0, |spares| spares.others)
    }

    /// What the spares hold: see [`SpareBlocks`]. Asked at each flush, however many segments are
    /// kept.
    pub(crate) fn spare_blocks(&self) -> Option<SpareBlocks> {
        self.lock().spare_blocks()
    }

    /// Whether the newest segment has more ready blocks than the largest spare.
    #[must_use]
    pub fn lacks_successor(&self) -> bool {
        self.lock().lacks_successor()
    }

    /// So many blocks of a segment were written.
    pub(crate) fn note_logged(&self, blocks: u32) {
        let mut slots = self.lock();
        slots.logged = slots.logged.saturating_add(bytes_of(blocks));
    }

    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    /// Takes a spare and a number above all existing ones for a new segment: the smallest spare, or
    /// the `largest`. The spare's name, its ready blocks, and the number. By the flush thread,
    /// which alone takes spares.
    pub(crate) fn take_spare(&self, largest: bool) -> Option<(String, u32, SegmentNumber)> {
        let mut slots = self.lock();
        // The first one of several that are as good.
        let spares = slots.spare_files();
        let (at, _) = match largest {
            true => spares.min_by_key(|(_, slot)| Reverse(slot.ready)),
            false => {
                let next = spares.filter(|(_, slot)| slots.is_next(slot)).min_by_key(|(_, slot)| slot.ready);
                // A file with holes may be before all others.
                next.or_else(|| slots.spare_files().min_by_key(|(_, slot)| slot.header))
            }
        }?;
        slots.number_max.0 = slots.number_max.0.checked_add(1)?;
        // At the end of the list, so that after a failure another spare comes first.
        let mut slot = slots.files.remove(at);
        slot.state = SlotState::Taken;
        let header = slot.header.take();
        let (name, ready) = (slot.name.clone(), slot.ready);
        slots.files.push(slot);
        let (number, is_next) =
            (slots.number_max, |slot: &&mut SegmentSlot| slot.state == SlotState::Spare && slot.header < header);
        let older: Vec<String> = match header {
            Some(_) => slots
                .files
                .iter_mut()
                .filter(is_next)
                .filter_map(|slot| slot.header.take().map(|_| slot.name.clone()))
                .collect(),
            None => Vec::new(),
        };
        drop(slots);
        // A header that stays does no more harm than before.
        older.iter().for_each(|name| drop(self.zero_file(name, BLOCK_BYTES as u64)));
        Some((name, ready, number))
    }

    /// The spare that was taken is a segment now, or a spare again.
    pub(crate) fn give_back(&self, name: &str, started: Option<StartedSegment>) {
        let state = started.map_or(SlotState::Spare, SlotState::Live);
        self.lock().set(name, state);
    }

    fn lock(&self) -> MutexGuard<'_, SegmentSlots> {
        // No critical section can panic half-way through a change, so a poisoned lock is as good.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes zeros from the beginning of a file on.
fn write_zeros(file: &impl DiskFile, bytes: u64) -> std::io::Result<()> {
    let zeros = AlignedBuf::new(ZERO_FILL_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let len = (bytes - offset).min(ZERO_FILL_BYTES as u64);
        file.write_at(offset, &zeros.bytes()[..len as usize])?;
        offset += len;
    }
    Ok(())
}
