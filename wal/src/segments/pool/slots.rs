//! The table of the segment files: the state of each, and the order of their use.

use super::{Retention, now_ms};
use crate::segment_catalog::{slot_name, slot_of};
use crate::{Lsn, SegmentNumber, limits::BLOCK_BYTES};
use std::cmp::Reverse;

#[derive(Debug)]
pub(super) struct SegmentSlots {
    pub(super) files: Vec<SegmentSlot>,
    pub(super) number_max: SegmentNumber,
    pub(super) spares_max: usize,
    /// The least number of ready blocks of a spare.
    pub(super) ready_min: u32,
    /// The number of ready bytes of the next spare.
    pub(super) spare_bytes: u64,
    /// The number of bytes written to segments since the pool was opened.
    pub(super) logged: u64,
    /// Whether the device had no space for the last spare.
    pub(super) is_starved: bool,
    /// The highest position below which recovery needs no bytes, as the caller has reported it.
    pub(super) checkpoint_lsn: Lsn,
}

#[derive(Debug)]
pub(super) struct SegmentSlot {
    pub(super) name: String,
    /// The number of blocks from the beginning that were written, at least with zeros.
    pub(super) ready: u32,
    /// The number of a file that was a segment and still has that header on the disk.
    pub(super) header: Option<SegmentNumber>,
    pub(super) state: SlotState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotState {
    Making,
    Spare,
    Taken,
    Live(StartedSegment),
    /// The segment is below the checkpoint, and kept for followers.
    Kept(StartedSegment),
}

/// A segment that holds bytes of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StartedSegment {
    pub(crate) number: SegmentNumber,
    pub(crate) start: Lsn,
    pub(crate) started_ms: u64,
}

/// The state in which the flush thread returns a spare that it took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Returned {
    /// The file may still have the header that it had.
    Untouched,
    /// The file has no header.
    Erased,
    /// Starting the segment has failed, and its header may be on the disk.
    Failed(SegmentNumber),
    /// The file is a segment.
    Started(StartedSegment),
}

/// The counts and sizes of the files of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Segments with bytes that are, or may be, valid: those that recovery needs.
    pub segments: usize,
    /// Segments that are kept only for followers.
    pub kept: usize,
    /// Files that are ready to become segments.
    pub spares: usize,
    /// The bytes that all files together take on the disk.
    pub bytes: u64,
    /// The bytes that the segments for recovery take on the disk.
    pub segment_bytes: u64,
    /// The oldest position that is still in the log.
    pub oldest: Option<Lsn>,
}

impl SlotState {
    pub(super) fn started(self) -> Option<StartedSegment> {
        match self {
            SlotState::Live(started) | SlotState::Kept(started) => Some(started),
            _ => None,
        }
    }
}

/// The ready blocks of the spares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SpareBlocks {
    /// The ready blocks of the largest spare, which is the successor of a segment that fails.
    pub(crate) largest: u32,
    /// The ready blocks of the others that can be promised to commits.
    pub(crate) others: u64,
}

impl SegmentSlots {
    /// Returns whether a spare may be taken or deleted next: among those that still have a header,
    /// only the oldest. If the process dies, a file with a header is a segment again, and the log
    /// must have no gap then. Files in the state `Making` do not count: the thread that holds
    /// `erasing` erases their headers, in their order.
    pub(super) fn is_next(&self, slot: &SegmentSlot) -> bool {
        let counts = |slot: &&SegmentSlot| matches!(slot.state, SlotState::Spare | SlotState::Taken);
        let oldest = || self.files.iter().filter(counts).filter_map(|slot| slot.header).min();
        slot.state == SlotState::Spare && (slot.header.is_none() || slot.header == oldest())
    }

    /// Returns the files that still have a header older than `header`, the oldest first. These
    /// include files that are being deleted, since their headers are valid again if the process
    /// dies before the deletion.
    pub(super) fn older_headers(&self, header: SegmentNumber) -> Vec<(SegmentNumber, String)> {
        let number = |slot: &SegmentSlot| slot.header.filter(|number| *number < header);
        let with_name = |slot: &SegmentSlot| number(slot).map(|number| (number, slot.name.clone()));
        let mut older: Vec<_> = self.files.iter().filter_map(with_name).collect();
        older.sort_unstable();
        older
    }

    pub(super) fn set_header(&mut self, name: &str, header: Option<SegmentNumber>) {
        if let Some(slot) = self.files.iter_mut().find(|s| s.name == name) {
            slot.header = header;
        }
    }

    /// Returns the last one of the smallest spares, which is deleted first.
    pub(super) fn least_spare(&self) -> Option<usize> {
        let spares = self.files.iter().enumerate().filter(|(_, slot)| self.is_next(slot));
        spares.min_by_key(|(at, slot)| (slot.ready, Reverse(*at))).map(|(at, _)| at)
    }

    /// Returns the spare that may be changed next: the oldest one with a header, or the largest.
    pub(super) fn next_spare(&self) -> Option<usize> {
        let spares = self.files.iter().enumerate().filter(|(_, slot)| self.is_next(slot));
        spares.max_by_key(|(_, slot)| (slot.header.is_some(), slot.ready)).map(|(at, _)| at)
    }

    /// Returns the files that are ready to become segments, with their indices in the list.
    pub(super) fn spare_files(&self) -> impl Iterator<Item = (usize, &SegmentSlot)> {
        let is_spare = |slot: &SegmentSlot| slot.state == SlotState::Spare && slot.ready >= self.ready_min;
        self.files.iter().enumerate().filter(move |(_, slot)| is_spare(slot))
    }

    /// Returns the ready blocks of the spares: see [`SpareBlocks`].
    pub(super) fn spare_blocks(&self) -> Option<SpareBlocks> {
        let (mut largest, mut others) = (None::<u32>, 0);
        for blocks in self.spare_files().map(|(_, slot)| slot.ready) {
            let least = largest.map_or(0, |largest| largest.min(blocks));
            largest = largest.max(Some(blocks));
            // Block 0 is the header, and the last block covers the cut at the segment's end.
            others += u64::from(least.saturating_sub(2));
        }
        largest.map(|largest| SpareBlocks { largest, others })
    }

    /// Returns whether the newest segment has more ready blocks than the largest spare.
    pub(super) fn lacks_successor(&self) -> bool {
        let live = self.files.iter().filter_map(|slot| match slot.state {
            SlotState::Live(started) => Some((started.number, slot.ready)),
            _ => None,
        });
        let newest = live.max().map_or(0, |(_, ready)| ready);
        self.spare_files().all(|(_, slot)| slot.ready < newest)
    }

    pub(super) fn spares(&self) -> usize {
        self.spare_files().count()
    }

    pub(super) fn set_ready(&mut self, name: &str, ready: u32) {
        if let Some(slot) = self.files.iter_mut().find(|s| s.name == name) {
            slot.ready = ready;
        }
    }

    pub(super) fn set(&mut self, name: &str, state: SlotState) {
        if let Some(slot) = self.files.iter_mut().find(|s| s.name == name) {
            slot.state = state;
        }
    }

    pub(super) fn reserve_slot(&mut self, ready: u32) -> u32 {
        // Many segments may be kept, and the flush thread waits for this lock.
        let mut used: Vec<u32> = self.files.iter().filter_map(|s| slot_of(&s.name)).collect();
        used.sort_unstable();
        let slot = used.into_iter().fold(1, |free, used| if used == free { free + 1 } else { free });
        self.files.push(SegmentSlot { name: slot_name(slot), ready, header: None, state: SlotState::Making });
        slot
    }

    /// Turns the segments that are no longer needed into spares, and returns their indices in the
    /// list, the newest first. A segment's bytes are valid up to the lowest start among later
    /// segments. The newest segment never retires.
    pub(super) fn retire_below(&mut self, retention: Retention) -> Vec<usize> {
        let with_index = |(index, slot): (usize, &SegmentSlot)| slot.state.started().map(|started| (started, index));
        let mut live: Vec<(StartedSegment, usize)> = self.files.iter().enumerate().filter_map(with_index).collect();
        live.sort_unstable_by_key(|(started, _)| started.number);
        let (now_ms, age_ms) = (now_ms(), u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX));
        let (mut freed, mut kept_bytes, mut is_over) = (Vec::new(), 0, false);
        let (mut end, mut ended_ms) = (None::<Lsn>, u64::MAX);
        for &(started, index) in live.iter().rev() {
            // No byte of a segment is valid if a later one begins at the same position.
            let is_empty = end.is_some_and(|end| end <= started.start);
            if end.is_some_and(|end| end <= self.checkpoint_lsn.max(started.start)) {
                let segment_bytes = bytes_of(self.files[index].ready);
                let keeps = kept_bytes + segment_bytes <= retention.bytes && now_ms.saturating_sub(ended_ms) < age_ms;
                // Segments older than a freed one serve no follower, since it could not continue
                // after them.
                is_over |= !keeps && !is_empty;
                if is_empty || is_over {
                    self.files[index].state = SlotState::Spare;
                    self.files[index].header = Some(started.number);
                    freed.push(index);
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

/// Returns the length of `blocks` blocks in bytes.
pub(super) fn bytes_of(blocks: u32) -> u64 {
    u64::from(blocks) * BLOCK_BYTES as u64
}

/// Returns the number of whole blocks in `bytes` bytes, which are at most those of a segment.
pub(super) fn blocks_of(bytes: u64) -> u32 {
    (bytes / BLOCK_BYTES as u64) as u32
}
