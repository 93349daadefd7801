//! The layout of `control`, the region that all processes of a store share while one of them lives.
//!
//! Everything in it is an atomic. Any process may write it at any time, and a flipped bit or a
//! stray write of another process must lead to an error, never to undefined behaviour. A number
//! that leads a reader to memory (a page number, a position) is checked before use. A number that
//! acknowledges a commit carries a check of its own.
//!
//! | part | offset | content |
//! |---|---|---|
//! | [`Fixed`] | 0 | identity, commit slots, locks, watermarks, statistics, histograms |
//! | clients | [`CLIENTS_AT`] | one [`ClientEntry`] per process; grows |
//! | ring | [`RING_AT`] | log records on their way to the logger; doubles, see [`RingWords`] |
//! | readers | after the ring | [`ReaderSlot`] per pin; grows, see [`crate::shared::readers`] |
//! | cells | after that range | see [`crate::shared::cells`]; grows as well |
//!
//! Each part grows within its reserved range: the offsets are those of the parts' greatest sizes.
//! Space that a part does not use yet is a hole of the file. No word refers to this space until its
//! blocks were written with zeros. So no store into the mapping ever needs a new block.
//!
//! - `layout`: the offsets of the words
//! - `event`: the words that threads wait on
//! - `checkpoint`, `durable`, `logger`, `stream`, `deadlines`, `clients`, `counters`, `lock_word`:
//!   the words of one subject each. Their fields are private; the comments of their methods explain
//!   the memory orderings.
//! - `state`: the newest and the durable transaction, the incarnation, poison
//! - `growth`: the parts that grow
//! - `blocks`: writes that give a file its blocks
#![allow(unsafe_code)]

pub(in crate::shared) mod blocks;
mod checkpoint;
mod clients;
mod counters;
mod deadlines;
mod durable;
mod event;
mod growth;
mod layout;
mod lock_word;
mod logger;
mod state;
mod stream;

use crate::error::reason::MismatchKind;
use crate::files::descriptor;
use crate::files::descriptor::FileId;
use crate::files::dir;
use crate::files::geometry::Geometry;
use crate::shared::cells;
use crate::shared::memory::arena::Arena;
use crate::shared::memory::mapping::{MAPPING_ALIGN, MapOptions};
use crate::shared::memory::spans::Spans;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::pins::ReaderSlot;
use crate::system::clock;
use crate::{Error, Result, limits};
use blocks::write_blocks;
pub(crate) use blocks::write_zeros;
use clients::ClientEntry;
pub(crate) use counters::StatCounter;
pub(crate) use event::Event;
pub(crate) use growth::LogRing;
pub(crate) use layout::*;
pub use layout::{
    CHECKED_CELL_NUMBERS, CHECKED_NUMBERS, FLUSH_REQUEST_AT, HEARTBEAT_AT, IMAGES_AT, READER_CHUNK, REGION_INODE_AT,
};
pub(crate) use lock_word::LockWord;
pub(crate) use logger::FlusherSleep;
pub(crate) use state::Poison;
use std::fs::File;
use std::mem::{offset_of, size_of};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use untorn_wal::Lsn;
use untorn_wal::segment::SegmentHeader;

/// The remedy in errors for a region whose words are wrong. The next open makes another region from
/// the other files.
pub(crate) const REOPEN_REMEDY: &str = "stop all processes that have the store open, and open it again";

/// The number of bytes that are copied at a time when the region moves to another file.
const COPY_BYTES: u64 = 64 << 10;

/// The mapped region.
pub(crate) struct Control {
    /// The first span maps everything but the cells' copies.
    spans: Spans,
    ring_size: usize,
    page_size: u64,
    /// The mapped arena, for the length of its file.
    arena: OnceLock<Arc<Arena>>,
    /// The greatest length of the arena's file that this process has checked. The file never
    /// shrinks while a process maps it.
    arena_known: AtomicU64,
    /// The greatest ends of the cells' entries and of their copies that this process has checked.
    pub(super) cell_table_known: AtomicU64,
    pub(super) cell_bodies_known: AtomicU64,
    /// The chunks of reader slots that this process has found ready, one bit each. A ready chunk
    /// stays ready.
    pub(super) readers_known: AtomicU64,
    /// The number of entries of the client table that this process has found ready. A ready entry
    /// stays ready.
    clients_known: AtomicUsize,
    /// The greatest length of the ring, and the least length to which it can grow, that this
    /// process has read.
    ring_len_known: AtomicU64,
    ring_reach_known: AtomicU64,
}

impl Control {
    fn readers_at(ring_size: usize) -> usize {
        RING_AT + ring_size
    }

    /// Returns the offset of the reader slots.
    #[inline]
    pub(crate) fn readers_begin(&self) -> usize {
        Self::readers_at(self.ring_size)
    }

    /// Returns the end of the range that is reserved for readers.
    pub(crate) fn readers_end(&self) -> usize {
        Self::file_len(self.ring_size, limits::READERS_MAX)
    }

    pub(crate) fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Returns the address of the region; the cells' copies may be mapped elsewhere.
    #[inline]
    pub(crate) fn base(&self) -> *const u8 {
        self.spans.first().as_ptr()
    }

    /// Returns the least length of the file while it has `capacity` reader slots.
    fn file_len(ring_size: usize, capacity: usize) -> usize {
        Self::readers_at(ring_size) + capacity * size_of::<ReaderSlot<Native>>()
    }

    /// Fills a new file with a region that no process uses yet.
    pub(crate) fn format(file: &File, store_id: [u8; 16], geometry: &Geometry, boot_id: [u64; 2]) -> Result<Control> {
        let first_clients_end = CLIENTS_AT + CLIENT_CHUNK * size_of::<ClientEntry>();
        let ring_end = RING_AT as u64 + limits::RING_SIZE_MIN;
        let readers_at = Self::readers_at(geometry.ring_size as usize) as u64;
        for range in [0..first_clients_end as u64, RING_AT as u64..ring_end, readers_at..readers_at + CHUNK_BYTES] {
            write_zeros(file, range.start, range.end - range.start, dir::CONTROL)?;
        }
        let control = Self::map(file, geometry, true)?;
        let identity = &control.fixed().identity;
        let id = [0, 8].map(|at| u64::from_le_bytes(store_id[at..at + 8].try_into().expect("8")));
        for i in 0..2 {
            identity.store_id[i].store(id[i], Ordering::Relaxed);
            identity.boot_id[i].store(boot_id[i], Ordering::Relaxed);
        }
        let (device, inode) = file_id(file)?;
        identity.inode.store(inode, Ordering::Relaxed);
        identity.device.store(device, Ordering::Relaxed);
        identity.page_size.store(geometry.page_size as u64, Ordering::Relaxed);
        identity.max_size.store(geometry.max_size, Ordering::Relaxed);
        identity.ring_size.store(geometry.ring_size, Ordering::Relaxed);
        identity.segment_size.store(geometry.segment_size, Ordering::Relaxed);
        control.begin_region()?;
        let began = clock::since_1970();
        control.fixed().counters.began_unix_seconds.set(began.as_secs());
        identity.magic.store(MAGIC, Ordering::Relaxed);
        control.fixed().ring.len.store(checked((limits::RING_SIZE_MIN / RING_UNIT) as u32), Ordering::Relaxed);
        control.fixed().ring.reach.store(checked((geometry.ring_size / RING_UNIT) as u32), Ordering::Relaxed);
        control.begin_ring(Lsn::ZERO);
        control.fixed().clients_ready.store(checked(CLIENT_CHUNK as u32), Ordering::Release);
        control.format_readers();
        control.format_cells();
        Ok(control)
    }

    /// Moves this region, which `from` holds, to the blocks of another file: `to` is the region's
    /// file afterwards.
    ///
    /// Recovery does this with a region that no other process has mapped, and from its only thread.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if `to` lacks blocks, and there is no space for them. The region then
    /// still uses `from`, but its identity already names `to`.
    pub(crate) fn move_to(&self, from: &File, to: &File) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let (device, inode) = file_id(to)?;
        self.fixed().identity.inode.store(inode, Ordering::Relaxed);
        self.fixed().identity.device.store(device, Ordering::Relaxed);
        let readers_end = self.ready_readers_end() as u64;
        let clients_end = (CLIENTS_AT + std::mem::size_of_val(self.clients())) as u64;
        let ring_end = RING_AT as u64 + self.ring_len()?;
        let parts = [0..clients_end, RING_AT as u64..ring_end, self.readers_begin() as u64..readers_end];
        let mut piece = vec![0; COPY_BYTES as usize];
        for range in parts.into_iter().chain(self.cells_ranges()?) {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(COPY_BYTES) as usize;
                from.read_exact_at(&mut piece[..len], at).map_err(Error::io("read of the new control"))?;
                write_blocks(to, at, &piece[..len], dir::CONTROL, range.end - at)?;
                at += len as u64;
            }
        }
        self.spans.replace(to.as_fd())
    }

    fn map(file: &File, geometry: &Geometry, writable: bool) -> Result<Control> {
        let ring_size = geometry.ring_size as usize;
        let cells_at = Self::file_len(ring_size, limits::READERS_MAX) as u64;
        let [reserve, max_len] =
            [cells::TABLE_BYTES, cells::RESERVED_BYTES].map(|len| (cells_at + len).next_multiple_of(MAPPING_ALIGN));
        let options = MapOptions { reserve, writable, in_core_dumps: false };
        // Map at least the whole first span, since accesses to it are not checked.
        let spans = Spans::new(file.as_fd(), dir::CONTROL, options, reserve, max_len)?;
        Ok(Control {
            spans,
            ring_size,
            page_size: geometry.page_size as u64,
            arena: OnceLock::new(),
            arena_known: AtomicU64::new(0),
            cell_table_known: AtomicU64::new(0),
            cell_bodies_known: AtomicU64::new(0),
            readers_known: AtomicU64::new(1),
            clients_known: AtomicUsize::new(CLIENT_CHUNK),
            ring_len_known: AtomicU64::new(0),
            ring_reach_known: AtomicU64::new(u64::MAX),
        })
    }

    /// Maps an existing region. Returns `None` if the region is of an earlier boot, of another
    /// store, or a copy of the original file.
    pub(crate) fn attach(
        file: &File,
        store_id: [u8; 16],
        geometry: &Geometry,
        boot_id: [u64; 2],
    ) -> Result<Option<Control>> {
        Self::map_if_it_fits(file, store_id, geometry, boot_id, true)
    }

    /// Maps a region as [`Control::attach`] does, read-only. A store into it would kill the
    /// process, so only methods that load may be called on it.
    ///
    /// For memory that is mapped read-only, the language guarantees only relaxed loads of up to a
    /// pointer's size, since a stronger load could be a compare-and-exchange on some target. On the
    /// targets of this library (x86-64, AArch64, 64-bit RISC-V) every atomic load of 8 bytes or
    /// fewer is a load, with barriers if needed, whatever its ordering. A port to another target
    /// must check this.
    pub(crate) fn look_into(
        file: &File,
        store_id: [u8; 16],
        geometry: &Geometry,
        boot_id: [u64; 2],
    ) -> Result<Option<Control>> {
        Self::map_if_it_fits(file, store_id, geometry, boot_id, false)
    }

    /// Returns the layout version of a region of this store and this boot, if it differs from this
    /// library's.
    pub(crate) fn foreign_layout(file: &File, store_id: [u8; 16], boot_id: [u64; 2]) -> Result<Option<u8>> {
        use std::os::unix::fs::FileExt;
        let mut found = [0; offset_of!(RegionIdentity, inode)];
        match file.read_exact_at(&mut found, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(Error::io("read of control"))?,
        }
        let (magic, rest) = found.split_at(offset_of!(RegionIdentity, store_id));
        let boot_id = boot_id.map(u64::to_ne_bytes);
        let is_foreign = magic[..7] == MAGIC.to_le_bytes()[..7] && magic[7] != LAYOUT;
        let is_this_stores = rest[..16] == store_id && rest[16..] == *boot_id.as_flattened();
        Ok((is_foreign && is_this_stores).then_some(magic[7]))
    }

    fn map_if_it_fits(
        file: &File,
        store_id: [u8; 16],
        geometry: &Geometry,
        boot_id: [u64; 2],
        writable: bool,
    ) -> Result<Option<Control>> {
        let len = file.metadata().map_err(Error::io("stat of control"))?.len();
        if len < Self::file_len(geometry.ring_size as usize, READER_CHUNK) as u64 {
            return Ok(None);
        }
        let control = Self::map(file, geometry, writable)?;
        let identity = &control.fixed().identity;
        let id = [0, 8].map(|at| u64::from_le_bytes(store_id[at..at + 8].try_into().expect("8")));
        let fits = identity.magic.load(Ordering::Relaxed) == MAGIC
            && (0..2).all(|i| {
                identity.store_id[i].load(Ordering::Relaxed) == id[i]
                    && identity.boot_id[i].load(Ordering::Relaxed) == boot_id[i]
            })
            && identity.is_of(file)?
            && identity.page_size.load(Ordering::Relaxed) == geometry.page_size as u64
            && identity.max_size.load(Ordering::Relaxed) == geometry.max_size
            && identity.ring_size.load(Ordering::Relaxed) == geometry.ring_size
            && identity.segment_size.load(Ordering::Relaxed) == geometry.segment_size
            && control.is_covered_by(file)?;
        Ok(fits.then_some(control))
    }

    /// Returns whether the file is as long as the region's words require. The length is read last,
    /// since another process grows the file before it stores the words.
    fn is_covered_by(&self, file: &File) -> Result<bool> {
        let readers_end = self.ready_readers_end() as u64;
        let Ok(cells_end) = self.cells_end() else { return Ok(false) };
        let len = file.metadata().map_err(Error::io("stat of control"))?.len();
        Ok(readers_end.max(cells_end) <= len)
    }

    /// Returns the part of fixed size.
    #[inline]
    pub(crate) fn fixed(&self) -> &Fixed {
        // SAFETY: the mapping is longer than `Fixed`, page-aligned, and lives as long as `self`;
        // the file was checked to cover it. `Fixed` consists of atomics alone, for which every bit
        // pattern is valid and which other processes may change at will.
        unsafe { &*self.base().cast::<Fixed>() }
    }

    /// Returns the number of this region, which the headers of the log's segments repeat.
    pub(crate) fn region(&self) -> u64 {
        self.fixed().identity.region.load(Ordering::Relaxed)
    }

    /// Gives this region a new number, which no segment of an earlier region has.
    pub(crate) fn begin_region(&self) -> Result<()> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(Error::sys("random number for the shared region"))?;
        // Not 0, the number in a segment that was started without a region.
        self.fixed().identity.region.store(u64::from_le_bytes(random) | 1, Ordering::Relaxed);
        self.fixed().logger.begin_with_segment(0);
        Ok(())
    }

    /// Gives this region the number of `old`. So no data in `old` is lost if recovery dies.
    pub(crate) fn continue_region(&self, old: &Control) {
        self.fixed().identity.region.store(old.region(), Ordering::Relaxed);
        self.fixed().logger.begin_with_segment(old.fixed().logger.segment());
    }

    /// Returns whether the newest segment of the log was started with this region's number, and is
    /// no older than the last one that the region records. If not, the files are from another time
    /// than the region, for example because a backup was copied over them; the region is then not
    /// used. A newer segment is accepted: its logger died before it could store the segment's
    /// number.
    pub(crate) fn is_of_log(&self, newest: Option<&SegmentHeader>) -> bool {
        let number = self.fixed().logger.segment();
        newest.is_some_and(|newest| newest.region == self.region() && newest.number.0 >= number)
    }

    /// Invalidates the region, so that no open accepts it or a copy of it. Called by the last
    /// process of a store that shuts down in order. The file stays, so that the next open can reuse
    /// its blocks on a full disk.
    pub(crate) fn invalidate(&self) {
        self.fixed().identity.magic.store(0, Ordering::Release);
    }

    /// Returns an error if the file is not this region.
    pub(crate) fn refuse_other_file(&self, file: &File) -> Result<()> {
        if self.fixed().identity.is_of(file)? {
            return Ok(());
        }
        Err(Error::Mismatch { file: dir::CONTROL.into(), what: MismatchKind::Replaced })
    }
}

fn file_id(file: &File) -> Result<FileId> {
    descriptor::file_id(file).map_err(Error::io("stat of control"))
}

impl RegionIdentity {
    /// Returns whether the region is this file itself, and not a copy of it.
    fn is_of(&self, file: &File) -> Result<bool> {
        Ok(file_id(file)? == (self.device.load(Ordering::Relaxed), self.inode.load(Ordering::Relaxed)))
    }
}
