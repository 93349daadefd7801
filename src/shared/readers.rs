//! The table of reader slots in `control`: chunks that are made on demand, and the occupancy map of
//! the slots in use.
//!
//! A chunk is absent, being made by a client that writes its zeros, or ready. Two processes must
//! never write zeros over the same chunk, since it may be ready and in use by then. So a client
//! that makes a chunk first becomes its owner by compare-and-swap. A claim of a slot takes no lock.
//! It skips a chunk that a living process makes, so a process that is stopped there costs the
//! others one chunk.
//!
//! | state word | meaning | its maker dies here |
//! |---|---|---|
//! | 0 | absent: the file may have a hole there | – |
//! | id of a client | being made | another client takes it over and begins anew |
//! | [`ready_word`] | ready, for ever | – |
//! | any other value | damaged: an error, since a pin may be there | – |
#![allow(unsafe_code)]

use crate::files::dir;
use crate::shared::control::{CHUNK_BYTES, Control, Fixed, READER_CHUNK, REOPEN_REMEDY, checked, write_zeros};
use crate::shared::liveness::CLIENT_IDS;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::lock::ClientIdBits;
use crate::shared::protocols::occupancy::Occupancy;
use crate::shared::protocols::pins;
use crate::shared::protocols::pins::ReaderSlot;
use crate::{Error, LimitKind, Result, TxnId, limits};
use std::fs::File;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

/// A reader slot of this region.
pub(crate) type StoreReader = ReaderSlot<Native>;

/// The number of chunks of the table at its greatest size.
const CHUNKS: usize = limits::READERS_MAX / READER_CHUNK;

/// The map of the slots that may hold a pin.
pub(crate) type ReaderMap = Occupancy<Native, 8, 128, 8>;

const _: () = {
    assert!(CHUNKS == u64::BITS as usize && limits::READERS_MAX.is_multiple_of(READER_CHUNK));
    assert!(128 * 8 * 64 == limits::READERS_MAX);
    assert!(READER_CHUNK.is_multiple_of(64));
};

/// The words of the table; the slots themselves are behind the ring.
#[repr(C, align(64))]
pub(crate) struct ReaderWords {
    /// The state of each chunk.
    pub(in crate::shared) chunks: [AtomicU64; CHUNKS],
    /// Not 0 if a client may have died without any other trace, so that reaping must check all
    /// slots.
    deaths: AtomicU64,
    map: ReaderMap,
}

/// The offset of the bits of the occupancy map, for a test that counts them.
pub const READER_MAP_AT: u64 =
    (offset_of!(Fixed, readers) + offset_of!(ReaderWords, map) + offset_of!(ReaderMap, areas)) as u64;
/// The length of those bits in bytes.
pub const READER_MAP_BYTES: usize = limits::READERS_MAX / 8;

impl ReaderWords {
    /// Records that a client may have died without any other trace: it may have claimed a slot and
    /// not entered it in the map.
    pub(crate) fn note_death(&self) {
        self.deaths.store(1, Ordering::Release);
    }

    /// Returns whether [`ReaderWords::note_death`] was called since the last reaping.
    pub(crate) fn has_death(&self) -> bool {
        self.deaths.load(Ordering::Acquire) != 0
    }

    /// Returns [`ReaderWords::has_death`] and clears it. Called by the reaper before it reaps.
    pub(crate) fn take_death(&self) -> bool {
        self.deaths.swap(0, Ordering::AcqRel) != 0
    }
}

/// The state of a chunk.
enum Chunk {
    Absent,
    MadeBy(ClientIdBits),
    Ready,
}

fn ready_word(chunk: usize) -> u64 {
    // No client id has such an upper half, so a flipped bit does not turn the word into an id.
    checked(chunk as u32 + 1)
}

impl Control {
    /// Marks the first chunk as ready, in a region that no other process uses yet.
    pub(crate) fn format_readers(&self) {
        self.fixed().readers.chunks[0].store(ready_word(0), Ordering::Release);
    }

    /// Returns the least length of the file for the chunks that are ready.
    pub(crate) fn ready_readers_end(&self) -> usize {
        let words = &self.fixed().readers.chunks;
        // From the words alone: the caller compares the result with the file's length.
        let last = (0..CHUNKS).rev().find(|chunk| words[*chunk].load(Ordering::Acquire) == ready_word(*chunk));
        self.readers_begin() + last.map_or(0, |last| (last + 1) * CHUNK_BYTES as usize)
    }

    fn chunk(&self, chunk: usize) -> Result<Chunk> {
        if self.is_known_ready(chunk) {
            return Ok(Chunk::Ready);
        }
        match self.fixed().readers.chunks[chunk].load(Ordering::Acquire) {
            0 => Ok(Chunk::Absent),
            word if word == ready_word(chunk) => {
                let end = self.readers_begin() as u64 + (chunk as u64 + 1) * CHUNK_BYTES;
                if !self.spans().reaches(end)? {
                    let what = format!(
                        "chunk {chunk} of the reader slots ends at byte {end}, and the file is shorter; {REOPEN_REMEDY}"
                    );
                    return Err(Error::corrupt(dir::CONTROL, end, what));
                }
                self.readers_known.fetch_or(1 << chunk, Ordering::Relaxed);
                Ok(Chunk::Ready)
            }
            word if CLIENT_IDS.contains(&word) => Ok(Chunk::MadeBy(word)),
            _ => Err(damaged(chunk)),
        }
    }

    #[inline]
    fn is_known_ready(&self, chunk: usize) -> bool {
        self.readers_known.load(Ordering::Relaxed) >> chunk & 1 == 1
    }

    #[inline]
    fn is_ready(&self, chunk: usize) -> bool {
        chunk < CHUNKS && (self.is_known_ready(chunk) || matches!(self.chunk(chunk), Ok(Chunk::Ready)))
    }

    /// Returns the slot of this number; `None` if its chunk is not ready.
    #[inline]
    fn find_reader(&self, index: usize) -> Option<&StoreReader> {
        if !self.is_ready(index / READER_CHUNK) {
            return None;
        }
        // SAFETY: the table is within the mapping at its greatest size. The slot's chunk was
        // published as ready (release) only after zeros were written over all of it, and no chunk
        // is ever removed, so the file covers the slot; `chunk` rejects a forged word. The slot
        // consists of atomics alone, for which every bit pattern is valid and which other processes
        // may change.
        Some(unsafe { &*self.base().add(self.readers_begin()).cast::<StoreReader>().add(index) })
    }

    /// Returns the slot of this number.
    ///
    /// # Panics
    /// If there is none, since it was never claimed.
    #[inline]
    pub(crate) fn reader(&self, index: usize) -> &StoreReader {
        self.find_reader(index).expect("a slot that was claimed lies in a chunk that is ready")
    }

    /// Calls `protect` with each pinned transaction, and returns the horizon: see [`pins::scan`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] if damage could hide a pin.
    pub(crate) fn scan_pins(&self, protect: impl FnMut(TxnId)) -> Result<TxnId> {
        let fixed = self.fixed();
        let mut damage = None;
        let slot = |index| {
            let found = self.find_reader(index);
            if found.is_none() {
                damage = Some(damaged(index / READER_CHUNK));
            }
            found
        };
        let horizon = pins::scan(&*fixed.committed, &fixed.logger_pins, &fixed.readers.map, slot, protect);
        damage.map_or(Ok(horizon), Err)
    }

    /// Calls `visit` with each slot that a client uses, and its number.
    pub(crate) fn for_each_reader<'c>(&'c self, mut visit: impl FnMut(usize, &'c StoreReader)) {
        self.fixed().readers.map.for_each(|index| {
            if let Some(slot) = self.find_reader(index) {
                visit(index, slot);
            }
        });
    }

    /// Calls `visit` with each slot of the ready chunks.
    fn for_all_readers(&self, mut visit: impl FnMut(usize, &StoreReader)) {
        for chunk in (0..CHUNKS).filter(|chunk| self.is_ready(*chunk)) {
            for index in chunk * READER_CHUNK..(chunk + 1) * READER_CHUNK {
                visit(index, self.reader(index));
            }
        }
    }

    /// Claims the lowest free slot for `me`. Takes no lock. If no slot is free, makes a chunk in
    /// the file, which `open_file` opens. Skips a chunk that another living client makes.
    ///
    /// # Errors
    /// [`Error::Limit`] if the table can't grow any more, [`Error::DiskFull`], or
    /// [`Error::Corrupt`] if `control` is damaged.
    pub(crate) fn claim_reader(
        &self,
        me: ClientIdBits,
        is_alive: impl Fn(ClientIdBits) -> bool,
        open_file: impl Fn() -> Result<File>,
    ) -> Result<usize> {
        let claim_in = |chunk: usize| {
            let range = chunk * READER_CHUNK..(chunk + 1) * READER_CHUNK;
            pins::claim_lowest(&self.fixed().readers.map, range, |index| self.reader(index), me)
        };
        let mut missing = Vec::new();
        for chunk in 0..CHUNKS {
            match self.chunk(chunk)? {
                Chunk::Ready => {
                    if let Some(index) = claim_in(chunk) {
                        return Ok(index);
                    }
                }
                state => missing.push((chunk, state)),
            }
        }
        for (chunk, state) in missing {
            let found = match state {
                Chunk::Absent => 0,
                Chunk::MadeBy(maker) if !is_alive(maker) => maker,
                _ => continue,
            };
            if self.create_chunk(chunk, found, me, &open_file)?
                && let Some(index) = claim_in(chunk)
            {
                return Ok(index);
            }
        }
        Err(Error::Limit {
            what: LimitKind::Snapshots,
            found: limits::READERS_MAX as u64 + 1,
            limit: limits::READERS_MAX as u64,
        })
    }

    /// Creates a chunk whose state word is `found`. Returns true if the chunk is ready now, whichever
    /// process created it.
    #[cold]
    fn create_chunk(
        &self,
        chunk: usize,
        found: u64,
        me: ClientIdBits,
        open_file: impl Fn() -> Result<File>,
    ) -> Result<bool> {
        let file = open_file()?;
        let state = &self.fixed().readers.chunks[chunk];
        if state.compare_exchange(found, me, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            crash_point!("readers.chunk_claimed");
            let from = self.readers_begin() as u64 + chunk as u64 * CHUNK_BYTES;
            let written = write_zeros(&file, from, CHUNK_BYTES, dir::CONTROL);
            // Release: a client that sees the chunk ready finds it in the file.
            state.store(if written.is_ok() { ready_word(chunk) } else { 0 }, Ordering::Release);
            written?;
        }
        Ok(matches!(self.chunk(chunk)?, Chunk::Ready))
    }

    /// Checks the states of all chunks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first one that is damaged.
    pub(crate) fn check_readers(&self) -> Result<()> {
        if self.fixed().readers.chunks[0].load(Ordering::Acquire) != ready_word(0) {
            return Err(damaged(0));
        }
        (0..CHUNKS).try_for_each(|chunk| self.chunk(chunk).map(drop))
    }

    /// Frees a slot. Called by its owner only.
    pub(crate) fn release_reader(&self, index: usize) {
        pins::release(&self.fixed().readers.map, index, self.reader(index));
    }

    /// Frees all slots of a client that has no pins. Called by that client.
    pub(crate) fn release_readers_of(&self, me: ClientIdBits) {
        self.for_each_reader(|index, slot| {
            if slot.owner() == Some(me) {
                self.release_reader(index);
            }
        });
    }

    /// Frees the slots whose owner is dead according to `is_dead`, for the living reaper `me`, and
    /// calls `reaped` with each. Checks the slots that are entered; with `all`, also slots that
    /// their owner had claimed and not entered yet.
    pub(crate) fn reap_readers(
        &self,
        all: bool,
        me: ClientIdBits,
        mut is_dead: impl FnMut(ClientIdBits) -> bool,
        mut reaped: impl FnMut(&StoreReader),
    ) {
        let map = &self.fixed().readers.map;
        let reap = |index: usize, slot: &StoreReader| {
            if let Some(owner) = slot.owner()
                && is_dead(owner)
                && pins::reap(map, index, slot, owner, me)
            {
                reaped(slot);
            }
        };
        if all {
            self.for_all_readers(reap);
            map.tidy_all();
        } else {
            self.for_each_reader(reap);
        }
    }
}

fn damaged(chunk: usize) -> Error {
    let what = format!("the state of chunk {chunk} of the reader slots is damaged; {REOPEN_REMEDY}");
    Error::corrupt(dir::CONTROL, 0, what)
}
