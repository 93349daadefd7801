//! The parts of `control` and of the arena that grow: how many bytes of each have blocks, and how
//! it gets more.

use super::blocks::write_zeros;
use super::clients::ClientEntry;
use super::layout::{CLIENT_CHUNK, CLIENTS_AT, Fixed, RING_AT, RING_UNIT, checked, unchecked};
use super::{Control, REOPEN_REMEDY};
use crate::files::dir;
use crate::files::slot::{SLOT_WORDS, SlotImage};
use crate::shared::memory::arena::Arena;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::ring::Ring;
use crate::{Error, Result, limits};
use std::fs::File;
use std::mem::{offset_of, size_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use untorn_wal::Lsn;

/// The ring of this region's log.
pub(crate) type LogRing<'c> = Ring<'c, Native>;

impl Control {
    /// Returns the client table, as far as it has grown. If its length word is damaged, returns as
    /// much as this process has seen.
    pub(crate) fn clients(&self) -> &[ClientEntry] {
        let known = self.clients_known.load(Ordering::Relaxed);
        let ready = unchecked(self.fixed().clients_ready.load(Ordering::Acquire)).map_or(0, |ready| ready as usize);
        let is_sound = ready.is_multiple_of(CLIENT_CHUNK) && ready <= limits::CLIENTS_MAX;
        let ready = if is_sound { ready.max(known) } else { known };
        if ready > known {
            self.clients_known.fetch_max(ready, Ordering::Relaxed);
        }
        // SAFETY: as in `fixed`; the table lies within the file, which has at least `RING_AT`
        // bytes, and the blocks of these entries were written before the word was stored.
        unsafe {
            let first = self.base().add(CLIENTS_AT).cast::<ClientEntry>();
            std::slice::from_raw_parts(first, ready)
        }
    }

    /// Makes the client table larger than `entries`; returns false if it is at its limit. Called by
    /// the holder of the initialisation lock. If the holder dies meanwhile, the table is unchanged.
    ///
    /// # Errors
    /// [`Error::DiskFull`].
    pub(crate) fn grow_clients(&self, entries: usize, file: &File) -> Result<bool> {
        if entries != self.clients().len() {
            return Ok(true);
        }
        if entries >= limits::CLIENTS_MAX {
            return Ok(false);
        }
        let from = (CLIENTS_AT + entries * size_of::<ClientEntry>()) as u64;
        write_zeros(file, from, (CLIENT_CHUNK * size_of::<ClientEntry>()) as u64, dir::CONTROL)?;
        crash_point!("clients.zeroed");
        // Release: a process that sees the entries finds them in the file.
        self.fixed().clients_ready.store(checked((entries + CLIENT_CHUNK) as u32), Ordering::Release);
        Ok(true)
    }

    /// Checks every number of the region that leads to memory, before a logger continues a region
    /// that no living process has used. The methods that use a number check it again: any process
    /// may overwrite it at any time.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first one that is damaged.
    pub(crate) fn check_numbers(&self) -> Result<()> {
        if self.ring_len()? > self.ring_reach()? {
            return Err(damaged_ring());
        }
        self.ring_base()?;
        let clients = unchecked(self.fixed().clients_ready.load(Ordering::Acquire));
        if clients.is_none_or(|clients| clients as usize != self.clients().len()) {
            let what = format!("the length of the client table is damaged; {REOPEN_REMEDY}");
            return Err(Error::corrupt(dir::CONTROL, offset_of!(Fixed, clients_ready) as u64, what));
        }
        self.checked_arena_bytes()?;
        self.incarnation()?;
        self.check_readers()
    }

    /// Sets `base` as the beginning of the ring's first lap. Called before any record is put into
    /// the ring.
    pub(crate) fn begin_ring(&self, base: Lsn) {
        let words = &self.fixed().ring;
        words.base.store(base.0, Ordering::Release);
        words.base_check.store(!base.0, Ordering::Release);
    }

    /// Returns the ring's length in use, in bytes.
    ///
    /// The length only grows, and the limit of its growth only shrinks. So this process rejects a
    /// number that contradicts those that it has read before, even if the number fits its
    /// complement. A process that has not read the newest numbers may accept a forged one. The
    /// logger reads both numbers at each flush and rejects a forged one, so no wrong record becomes
    /// durable.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the word is damaged: records would be put in the wrong place.
    #[inline]
    pub(crate) fn ring_len(&self) -> Result<u64> {
        let known = self.ring_len_known.load(Ordering::Acquire);
        let longest = self.ring_reach_known.load(Ordering::Acquire);
        let len = self.ring_bytes(&self.fixed().ring.len)?;
        if !(known..=longest).contains(&len) {
            return Err(damaged_ring());
        }
        if len > known {
            // Release: a thread that acquires this number loads no older length afterwards.
            self.ring_len_known.fetch_max(len, Ordering::Release);
        }
        Ok(len)
    }

    /// Returns the length to which the ring can grow, in bytes. If it can't grow any more, this is
    /// its length in use.
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    #[inline]
    pub(crate) fn ring_reach(&self) -> Result<u64> {
        let known = self.ring_reach_known.load(Ordering::Acquire);
        let least = self.ring_len_known.load(Ordering::Acquire);
        let reach = self.ring_bytes(&self.fixed().ring.reach)?;
        if !(least..=known).contains(&reach) {
            return Err(damaged_ring());
        }
        if reach < known {
            // Release: as in `ring_len`.
            self.ring_reach_known.fetch_min(reach, Ordering::Release);
        }
        Ok(reach)
    }

    #[inline]
    fn ring_bytes(&self, pages: &AtomicU64) -> Result<u64> {
        let pages = unchecked(pages.load(Ordering::Acquire));
        let len = pages.map_or(0, |pages| u64::from(pages) * RING_UNIT);
        if len.is_power_of_two() && len >= limits::RING_SIZE_MIN && len <= self.ring_size as u64 {
            return Ok(len);
        }
        Err(damaged_ring())
    }

    /// Returns the part of the ring that is in use.
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    #[inline]
    pub(crate) fn ring(&self) -> Result<LogRing<'_>> {
        let len = self.ring_len()? as usize;
        let base = self.ring_base()?;
        // SAFETY: as in `fixed`; the file was checked to hold the whole ring, and the blocks of the
        // part in use were written before the word was stored.
        let words = unsafe {
            let first = self.base().add(RING_AT).cast::<AtomicU64>();
            std::slice::from_raw_parts(first, len / 8)
        };
        Ok(Ring::new(words, base.0))
    }

    /// Returns the first position that the ring has held.
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    #[inline]
    pub(crate) fn ring_base(&self) -> Result<Lsn> {
        let words = &self.fixed().ring;
        let base = words.base.load(Ordering::Acquire);
        if words.base_check.load(Ordering::Acquire) == !base { Ok(Lsn(base)) } else { Err(damaged_ring()) }
    }

    /// Doubles the ring until it reaches position `end` in its first lap. Returns the length in
    /// use. If the file can't be opened or can't get the blocks, the ring keeps its length as
    /// long as this region is in use. Called by the owner of the writer lock; see
    /// [`RingWords`](super::RingWords).
    ///
    /// # Errors
    /// As [`Control::ring_len`].
    pub(crate) fn grow_ring(&self, end: Lsn, open_file: impl FnOnce() -> Result<File>) -> Result<u64> {
        let (len, reach) = (self.ring_len()?, self.ring_reach()?);
        let needed = end.bytes_since(self.ring_base()?);
        if needed <= len || len >= reach {
            return Ok(len);
        }
        let target = needed.checked_next_power_of_two().unwrap_or(reach).min(reach);
        let words = &self.fixed().ring;
        let zeroed = open_file().and_then(|file| write_zeros(&file, RING_AT as u64 + len, target - len, dir::CONTROL));
        if let Err(error) = zeroed {
            tracing::warn!(%error, len, "the log's ring keeps its length until the store is opened anew");
            words.reach.store(checked((len / RING_UNIT) as u32), Ordering::Release);
            return Ok(len);
        }
        crash_point!("ring.zeroed");
        words.len.store(checked((target / RING_UNIT) as u32), Ordering::Release);
        crash_point!("ring.grown");
        Ok(target)
    }

    /// Stores the arena's mapping. From now on the region's words are checked against its file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the region counts more bytes of the arena than its file has.
    pub(crate) fn set_arena(&self, arena: Arc<Arena>) -> Result<()> {
        let _ = self.arena.set(arena);
        // If the word is damaged, the next process that grows the arena writes it anew.
        self.arena_bytes().map_or(Ok(()), |backed| self.check_arena_file(backed))
    }

    /// Returns [`Control::arena_bytes`], checked against the length of the arena's file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the word is damaged, or counts more bytes than the file has: a store
    /// to those bytes would raise SIGBUS.
    pub(crate) fn checked_arena_bytes(&self) -> Result<u64> {
        let Some(backed) = self.arena_bytes() else {
            return Err(Error::corrupt(
                dir::CONTROL,
                offset_of!(Fixed, arena_bytes) as u64,
                format!("the length of the arena is damaged; {REOPEN_REMEDY}"),
            ));
        };
        self.check_arena_file(backed)?;
        Ok(backed)
    }

    /// Returns an error if the arena's file is shorter than `backed` bytes. A number that fits its
    /// complement may still be wrong.
    #[inline]
    fn check_arena_file(&self, backed: u64) -> Result<()> {
        if backed <= self.arena_known.load(Ordering::Relaxed) { Ok(()) } else { self.check_arena_file_anew(backed) }
    }

    #[cold]
    fn check_arena_file_anew(&self, backed: u64) -> Result<()> {
        // If the arena is not mapped yet, opening it compares the lengths.
        let Some(arena) = self.arena.get() else { return Ok(()) };
        if !arena.reaches(backed)? {
            let what = format!("the region counts {backed} bytes of the arena, whose file is shorter; {REOPEN_REMEDY}");
            return Err(Error::corrupt(dir::CONTROL, offset_of!(Fixed, arena_bytes) as u64, what));
        }
        self.know_arena(backed);
        Ok(())
    }

    /// Returns an error unless this region's file has at least `end` bytes: according to the words,
    /// the part called `what` ends at `end`. `known` is the greatest end that this process has
    /// checked.
    #[inline]
    pub(in crate::shared) fn check_own_file(&self, known: &AtomicU64, end: u64, what: &str) -> Result<()> {
        if end <= known.load(Ordering::Relaxed) { Ok(()) } else { self.check_own_file_anew(known, end, what) }
    }

    #[cold]
    fn check_own_file_anew(&self, known: &AtomicU64, end: u64, what: &str) -> Result<()> {
        if !self.spans.reaches(end)? {
            let what =
                format!("the region counts bytes up to {end} for the {what}, and its file is shorter; {REOPEN_REMEDY}");
            return Err(Error::corrupt(dir::CONTROL, end, what));
        }
        // Relaxed: the number leads to no other memory of this process.
        known.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    /// Returns how many bytes of the arena have blocks; `None` if the word is damaged.
    pub(crate) fn arena_bytes(&self) -> Option<u64> {
        let pieces = unchecked(self.fixed().arena_bytes.load(Ordering::Acquire))?;
        Some(u64::from(pieces) * limits::ARENA_SIZE_INITIAL)
    }

    /// Publishes that the arena has blocks up to `bytes`, a size that [`limits::arena_size_for`]
    /// returns. Called by the owner of the growth lock.
    pub(crate) fn set_arena_bytes(&self, bytes: u64) {
        let pieces = (bytes / limits::ARENA_SIZE_INITIAL) as u32;
        self.fixed().arena_bytes.store(checked(pieces), Ordering::Release);
    }

    /// Records that the arena's file has `bytes` bytes, a length that the caller has read from the
    /// file itself.
    pub(crate) fn know_arena(&self, bytes: u64) {
        // Relaxed: the number leads to no other memory of this process, and the mapping is of the
        // same file.
        self.arena_known.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Returns the image that `words`, copied from the region, describe.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the checksum does not match, or if the high-water mark lies beyond the
    /// arena's file: a load from a page there would raise SIGBUS.
    #[inline]
    pub(crate) fn decode_image(&self, words: &[u64; SLOT_WORDS]) -> Result<SlotImage> {
        let image = SlotImage::decode(words, dir::CONTROL)?;
        let used = u64::from(image.high_water) * self.page_size;
        if used > self.arena_known.load(Ordering::Relaxed) {
            self.check_backed(used)?;
        }
        Ok(image)
    }

    /// Returns an error if the arena's file does not have `used` bytes. Called after the words of
    /// an image were copied: a writer backs pages with blocks before it publishes an image that
    /// counts them.
    #[cold]
    fn check_backed(&self, used: u64) -> Result<()> {
        // The copy of the words ends with an acquire fence, so this load finds what the image's
        // writer had stored before.
        let backed = self.checked_arena_bytes()?;
        if used <= backed {
            return Ok(());
        }
        let what = format!(
            "the high-water mark of a commit is byte {used} of the arena, which has {backed} bytes; {REOPEN_REMEDY}"
        );
        Err(Error::corrupt(dir::CONTROL, 0, what))
    }
}

fn damaged_ring() -> Error {
    let what = format!("the length or the base of the log's ring is damaged; {REOPEN_REMEDY}");
    Error::corrupt(dir::CONTROL, offset_of!(Fixed, ring) as u64, what)
}
