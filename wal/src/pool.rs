//! The segment files: which are in use, spares made ahead, recycling.
//!
//! Shared by the flush thread, which takes spares, and the background thread, which makes and recycles them.
//! The lock is never held across a write or a sync.
//!
//! A file's life: *making* (zeros written under another name, synced, renamed) → *spare* → *taken* (the log
//! writes its first batches and then its header) → *live* → *kept* for followers, once the checkpoint has passed
//! its last byte and as far as [`Retention`] says → spare again. A process that dies at any of these leaves a file that the next [`SegmentCatalog`] judges by its header
//! alone.

use crate::{
    Disk, DiskFile, Lsn, SegmentNumber,
    disk::AlignedBuf,
    error::{LogError, Result},
    limits::{SPARES_MAX_DEFAULT, ZERO_FILL_BYTES},
    segment::LogShape,
    segment_catalog::{BROKEN_PREFIX, SegmentCatalog, UNFINISHED_PREFIX, slot_name, slot_of},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How much of the log is kept beyond what recovery needs, for those who follow it. Both bounds hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// The segments that are kept take no more than this many bytes on the disk.
    pub bytes: u64,
    /// What is older is not kept. By the system's clock, since it counts across restarts.
    pub age: Duration,
}

impl Retention {
    /// Nothing beyond what recovery needs.
    pub const NOTHING: Retention = Retention { bytes: 0, age: Duration::ZERO };
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The segment files of one log.
#[derive(Debug)]
pub struct SegmentPool<D: Disk> {
    disk: Arc<D>,
    shape: LogShape,
    slots: Mutex<SegmentSlots>,
}

#[derive(Debug)]
struct SegmentSlots {
    files: Vec<SegmentSlot>,
    number_max: SegmentNumber,
    spares_max: usize,
    /// What lies below needs no recovery any more: the highest that this pool was told.
    checkpoint_lsn: Lsn,
}

#[derive(Debug)]
struct SegmentSlot {
    name: String,
    state: SlotState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SlotState {
    Making,
    Spare,
    Taken,
    Live(StartedSegment),
    /// Below the checkpoint.
    Kept(StartedSegment),
}

/// A segment that holds bytes of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StartedSegment {
    pub(crate) number: SegmentNumber,
    pub(crate) start: Lsn,
    pub(crate) started_ms: u64,
}

impl SlotState {
    fn started(self) -> Option<StartedSegment> {
        match self {
            SlotState::Live(started) | SlotState::Kept(started) => Some(started),
            _ => None,
        }
    }
}

/// How many files the log has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Segments that hold bytes which count, or may: those that recovery needs.
    pub segments: usize,
    /// Segments that are kept for followers alone.
    pub kept: usize,
    /// Files ready to become segments.
    pub spares: usize,
    /// What all files together take on the disk.
    pub bytes: u64,
    /// The oldest position that is still in the log.
    pub oldest: Option<Lsn>,
}

impl<D: Disk> SegmentPool<D> {
    /// The pool of the files that `segment_catalog` found. What lies below `checkpoint_lsn` no longer
    /// counts, but is kept as `retention` says. Files that were never finished are removed. Those
    /// that have not the size of a segment get another name: the caller has seen that recovery
    /// needs none of them ([`SegmentCatalog::refuse_broken`]).
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
        // A predecessor may have died between renaming a spare and syncing its name. A segment whose name a
        // power cut takes back would take acknowledged bytes with it.
        disk.sync_dir().map_err(LogError::io("syncing the log's directory"))?;
        // Damaged ones are used last: they are all that tells of the damage.
        let (damaged, whole): (Vec<_>, Vec<_>) =
            segment_catalog.spares.iter().partition(|name| segment_catalog.damaged.contains(name));
        let spares =
            whole.into_iter().chain(damaged).map(|name| SegmentSlot { name: name.clone(), state: SlotState::Spare });
        let live = segment_catalog.segments.iter().map(|s| SegmentSlot {
            name: s.file.clone(),
            state: SlotState::Live(StartedSegment {
                number: s.header.number,
                start: s.header.start,
                started_ms: s.header.started_ms,
            }),
        });
        let slots = SegmentSlots {
            files: spares.chain(live).collect(),
            number_max: segment_catalog.number_max(),
            spares_max: SPARES_MAX_DEFAULT,
            checkpoint_lsn,
        };
        let pool = Arc::new(Self { disk, shape: segment_catalog.shape, slots: Mutex::new(slots) });
        pool.lock().retire_below(retention, pool.shape.segment_bytes());
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

    /// Makes one more spare: writes a whole segment of zeros, so that a later sync of its blocks commits no
    /// metadata. Slow; for the background thread.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] if there is no room, [`LogError::Io`] otherwise. Nothing is left behind, or
    /// only a file that the next [`SegmentPool::open`] puts in order.
    pub fn add_spare(&self) -> Result<()> {
        let slot = self.lock().reserve_slot();
        let name = slot_name(slot);
        let unfinished = format!("{UNFINISHED_PREFIX}{slot:08}");
        let made = self.make_file(&unfinished, &name);
        let mut slots = self.lock();
        match made {
            Ok(()) => slots.set(&name, SlotState::Spare),
            Err(_) => {
                slots.files.retain(|s| s.name != name);
                // Best effort: a leftover is removed, or made a spare, at the next open.
                let _ = self.disk.remove(&unfinished).or_else(|_| self.disk.remove(&name));
            }
        }
        made
    }

    fn make_file(&self, unfinished: &str, name: &str) -> Result<()> {
        let failed = |doing: &str| LogError::io(format!("{doing} {unfinished}"));
        let file = self.disk.create(unfinished).map_err(failed("creating"))?;
        let zeros = AlignedBuf::new(ZERO_FILL_BYTES);
        let mut offset = 0;
        while offset < self.shape.segment_bytes() {
            let len = (self.shape.segment_bytes() - offset).min(ZERO_FILL_BYTES as u64);
            file.write_at(offset, &zeros.bytes()[..len as usize]).map_err(failed("zero-filling"))?;
            offset += len;
        }
        file.sync().map_err(failed("syncing"))?;
        self.disk.rename(unfinished, name).map_err(failed("renaming"))?;
        self.disk.sync_dir().map_err(LogError::io("syncing the log's directory"))
    }

    /// Turns segments whose every byte lies below `checkpoint_lsn`, or in a later one, into spares, but for those that
    /// `retention` keeps, and deletes spares beyond the maximum. Call it only when a durable header states that checkpoint. Returns how many segments it freed.
    ///
    /// # Errors
    /// [`LogError::Io`] if a surplus file can't be deleted: it stays a spare. What was freed stays freed.
    pub fn recycle(&self, checkpoint_lsn: Lsn, retention: Retention) -> Result<usize> {
        self.recycle_with(checkpoint_lsn, retention, || ())
    }

    /// As [`SegmentPool::recycle`]. Calls `on_freed` before it deletes a file: a reader that misses one of
    /// them learns from what the caller publishes there that the log begins later by now.
    ///
    /// # Errors
    /// As [`SegmentPool::recycle`].
    pub fn recycle_with(&self, checkpoint_lsn: Lsn, retention: Retention, on_freed: impl FnOnce()) -> Result<usize> {
        let (freed, surplus) = {
            let mut slots = self.lock();
            slots.checkpoint_lsn = slots.checkpoint_lsn.max(checkpoint_lsn);
            let freed = slots.retire_below(retention, self.shape.segment_bytes());
            let mut surplus = Vec::new();
            while slots.spares() > slots.spares_max {
                let Some(at) = slots.files.iter().rposition(|s| s.state == SlotState::Spare) else {
                    break;
                };
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

    /// As [`SegmentPool::recycle_with`] at the same checkpoint as the last time: for those that have
    /// become too old since.
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
            slots.files[at].state = SlotState::Spare;
            if !delete {
                return Ok(true);
            }
            slots.files[at].state = SlotState::Making;
            slots.files[at].name.clone()
        };
        on_freed();
        self.delete(&name)?;
        Ok(true)
    }

    /// Deletes a spare, but never the last one, when the device is full and the room is needed for something else. False if there is
    /// no other.
    ///
    /// # Errors
    /// [`LogError::Io`] if it can't be deleted; it is a spare then.
    pub fn remove_spare(&self) -> Result<bool> {
        let name = {
            let mut slots = self.lock();
            if slots.spares() < 2 {
                return Ok(false);
            }
            let Some(slot) = slots.files.iter_mut().rfind(|slot| slot.state == SlotState::Spare) else {
                return Ok(false);
            };
            slot.state = SlotState::Making;
            slot.name.clone()
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
            bytes: slots.files.len() as u64 * self.shape.segment_bytes(),
            oldest: slots.files.iter().filter_map(|slot| slot.state.started()).map(|started| started.start).min(),
        }
    }

    /// How many files are ready to become segments. Asked at each flush, however many are kept.
    pub(crate) fn spares(&self) -> usize {
        self.lock().spares()
    }

    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    /// Takes a spare and a number above all existing ones for a new segment.
    pub(crate) fn take_spare(&self) -> Option<(String, SegmentNumber)> {
        let mut slots = self.lock();
        let at = slots.files.iter().position(|s| s.state == SlotState::Spare)?;
        slots.number_max.0 = slots.number_max.0.checked_add(1)?;
        // At the end of the list, so that after a failure another spare comes first.
        let mut slot = slots.files.remove(at);
        slot.state = SlotState::Taken;
        let name = slot.name.clone();
        slots.files.push(slot);
        Some((name, slots.number_max))
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

impl SegmentSlots {
    fn spares(&self) -> usize {
        self.files.iter().filter(|s| s.state == SlotState::Spare).count()
    }

    fn set(&mut self, name: &str, state: SlotState) {
        if let Some(slot) = self.files.iter_mut().find(|s| s.name == name) {
            slot.state = state;
        }
    }

    fn reserve_slot(&mut self) -> u32 {
        // Many segments may be kept, and the flush thread waits for this lock.
        let mut used: Vec<u32> = self.files.iter().filter_map(|s| slot_of(&s.name)).collect();
        used.sort_unstable();
        let slot = used.into_iter().fold(1, |free, used| if used == free { free + 1 } else { free });
        self.files.push(SegmentSlot { name: slot_name(slot), state: SlotState::Making });
        slot
    }

    /// A segment's bytes count up to the lowest start among later segments. The newest never retires.
    fn retire_below(&mut self, retention: Retention, segment_bytes: u64) -> usize {
        let with_index = |(index, slot): (usize, &SegmentSlot)| slot.state.started().map(|started| (started, index));
        let mut live: Vec<(StartedSegment, usize)> = self.files.iter().enumerate().filter_map(with_index).collect();
        live.sort_unstable_by_key(|(started, _)| started.number);
        let (now_ms, age_ms) = (now_ms(), u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX));
        let (mut freed, mut kept_bytes, mut is_over) = (0, 0, false);
        let (mut end, mut ended_ms) = (None::<Lsn>, u64::MAX);
        for &(started, index) in live.iter().rev() {
            // Not one byte of a segment counts if a later one begins where it does.
            let is_empty = end.is_some_and(|end| end <= started.start);
            if end.is_some_and(|end| end <= self.checkpoint_lsn.max(started.start)) {
                let keeps = kept_bytes + segment_bytes <= retention.bytes && now_ms.saturating_sub(ended_ms) < age_ms;
                // What is older than one that is given up serves no follower: it could not read on.
                is_over |= !keeps && !is_empty;
                if is_empty || is_over {
                    self.files[index].state = SlotState::Spare;
                    freed += 1;
                } else {
                    self.files[index].state = SlotState::Kept(started);
                    kept_bytes += segment_bytes;
                }
            }
            end = Some(end.map_or(started.start, |e| e.min(started.start)));
            ended_ms = started.started_ms;
        }
        freed
    }
}
