//! The segment files: which are in use, spares made ahead, recycling.
//!
//! Shared by the flush thread, which takes spares, and the background thread, which makes and recycles them.
//! The lock is never held across a write or a sync.
//!
//! A file's life: *making* (zeros written under another name, synced, renamed) → *spare* → *taken* (the log
//! writes its first batches and then its header) → *live* → spare again once the checkpoint has passed its
//! last byte. A process that dies at any of these leaves a file that the next [`Survey`] judges by its header
//! alone.

use crate::{
    Disk, DiskFile, Lsn, SegmentNumber,
    disk::AlignedBuf,
    error::{LogError, Result},
    limits::{SPARES_MAX_DEFAULT, ZERO_FILL_BYTES},
    segment::LogShape,
    survey::{Survey, UNFINISHED_PREFIX, slot_name, slot_of},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The segment files of one log.
#[derive(Debug)]
pub struct Pool<D: Disk> {
    disk: Arc<D>,
    shape: LogShape,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    files: Vec<Slot>,
    number_max: SegmentNumber,
    spares_max: usize,
}

#[derive(Debug)]
struct Slot {
    name: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Making,
    Spare,
    Taken,
    Live { number: SegmentNumber, start: Lsn },
}

/// How many files the log has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Segments that hold bytes which count, or may.
    pub segments: usize,
    /// Files ready to become segments.
    pub spares: usize,
    /// What all files together take on the disk.
    pub bytes: u64,
    /// The oldest position that is still in the log.
    pub oldest: Option<Lsn>,
}

impl<D: Disk> Pool<D> {
    /// The pool of the files that `survey` found. What lies below `checkpoint_lsn` no longer counts. Files
    /// that were never finished are removed.
    ///
    /// # Errors
    /// [`LogError::Io`] if an unfinished file can't be removed, or the directory can't be synced.
    pub fn open(disk: Arc<D>, survey: &Survey, checkpoint_lsn: Lsn) -> Result<Arc<Self>> {
        for name in disk.list().map_err(LogError::io("listing the log's directory"))? {
            if name.starts_with(UNFINISHED_PREFIX) {
                disk.remove(&name).map_err(LogError::io(format!("removing {name}")))?;
            }
        }
        // A predecessor may have died between renaming a spare and syncing its name. A segment whose name a
        // power cut takes back would take acknowledged bytes with it.
        disk.sync_dir().map_err(LogError::io("syncing the log's directory"))?;
        let spares = survey.spares.iter().map(|name| Slot { name: name.clone(), state: State::Spare });
        let live = survey.segments.iter().map(|s| Slot {
            name: s.file.clone(),
            state: State::Live { number: s.header.number, start: s.header.start },
        });
        let slots = Slots {
            files: spares.chain(live).collect(),
            number_max: survey.number_max(),
            spares_max: SPARES_MAX_DEFAULT,
        };
        let pool = Arc::new(Self { disk, shape: survey.shape, slots: Mutex::new(slots) });
        pool.lock().retire_below(checkpoint_lsn);
        Ok(pool)
    }

    /// The log's shape.
    #[must_use]
    pub fn shape(&self) -> &LogShape {
        &self.shape
    }

    /// How many spares [`Pool::recycle`] keeps; it deletes those beyond.
    pub fn set_spares_max(&self, spares_max: usize) {
        self.lock().spares_max = spares_max;
    }

    /// Makes one more spare: writes a whole segment of zeros, so that a later sync of its blocks commits no
    /// metadata. Slow; for the background thread.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] if there is no room, [`LogError::Io`] otherwise. Nothing is left behind, or
    /// only a file that the next [`Pool::open`] puts in order.
    pub fn add_spare(&self) -> Result<()> {
        let slot = self.lock().reserve_slot();
        let name = slot_name(slot);
        let unfinished = format!("{UNFINISHED_PREFIX}{slot:08}");
        let made = self.make_file(&unfinished, &name);
        let mut slots = self.lock();
        match made {
            Ok(()) => slots.set(&name, State::Spare),
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

    /// Turns segments whose every byte lies below `checkpoint_lsn`, or in a later one, into spares, and deletes spares
    /// beyond the maximum. Call it only when a durable header states that checkpoint. Returns how many segments it freed.
    ///
    /// # Errors
    /// [`LogError::Io`] if a surplus file can't be deleted; what was freed stays freed.
    pub fn recycle(&self, checkpoint_lsn: Lsn) -> Result<usize> {
        let (freed, surplus) = {
            let mut slots = self.lock();
            let freed = slots.retire_below(checkpoint_lsn);
            let mut surplus = Vec::new();
            while slots.spares() > slots.spares_max {
                let Some(at) = slots.files.iter().rposition(|s| s.state == State::Spare) else {
                    break;
                };
                surplus.push(slots.files.remove(at).name);
            }
            (freed, surplus)
        };
        for name in &surplus {
            self.disk.remove(name).map_err(LogError::io(format!("removing {name}")))?;
        }
        if !surplus.is_empty() {
            self.disk.sync_dir().map_err(LogError::io("syncing the log's directory"))?;
        }
        Ok(freed)
    }

    /// How many files there are.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let slots = self.lock();
        let live = || {
            slots.files.iter().filter_map(|s| match s.state {
                State::Live { start, .. } => Some(start),
                _ => None,
            })
        };
        PoolStats {
            segments: live().count(),
            spares: slots.spares(),
            bytes: slots.files.len() as u64 * self.shape.segment_bytes(),
            oldest: live().min(),
        }
    }

    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    /// Takes a spare and a number above all existing ones for a new segment.
    pub(crate) fn take_spare(&self) -> Option<(String, SegmentNumber)> {
        let mut slots = self.lock();
        let at = slots.files.iter().position(|s| s.state == State::Spare)?;
        slots.number_max.0 += 1;
        // At the end of the list, so that after a failure another spare comes first.
        let mut slot = slots.files.remove(at);
        slot.state = State::Taken;
        let name = slot.name.clone();
        slots.files.push(slot);
        Some((name, slots.number_max))
    }

    /// The spare that was taken is a segment now, or a spare again.
    pub(crate) fn give_back(&self, name: &str, started: Option<(SegmentNumber, Lsn)>) {
        let state = started.map_or(State::Spare, |(number, start)| State::Live { number, start });
        self.lock().set(name, state);
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // No critical section can panic half-way through a change, so a poisoned lock is as good.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn spares(&self) -> usize {
        self.files.iter().filter(|s| s.state == State::Spare).count()
    }

    fn set(&mut self, name: &str, state: State) {
        if let Some(slot) = self.files.iter_mut().find(|s| s.name == name) {
            slot.state = state;
        }
    }

    fn reserve_slot(&mut self) -> u32 {
        let mut slot = 1;
        while self.files.iter().any(|s| slot_of(&s.name) == Some(slot)) {
            slot += 1;
        }
        self.files.push(Slot { name: slot_name(slot), state: State::Making });
        slot
    }

    /// A segment's bytes count up to the lowest start among later segments. The newest never retires.
    fn retire_below(&mut self, checkpoint_lsn: Lsn) -> usize {
        let mut live: Vec<(SegmentNumber, Lsn, usize)> = self
            .files
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| match slot.state {
                State::Live { number, start } => Some((number, start, index)),
                _ => None,
            })
            .collect();
        live.sort_unstable();
        let (mut freed, mut end) = (0, None::<Lsn>);
        for &(_, start, index) in live.iter().rev() {
            // Not one byte of a segment counts if a later one begins where it does.
            if end.is_some_and(|end| end <= checkpoint_lsn.max(start)) {
                self.files[index].state = State::Spare;
                freed += 1;
            }
            end = Some(end.map_or(start, |e| e.min(start)));
        }
        freed
    }
}
