//! The sizes of a store and their relations; each is in the public documentation.

use std::time::Duration;

/// Page sizes that a store can be created with, in bytes.
pub const PAGE_SIZE_MIN: usize = 4096;
/// Largest page size, in bytes.
pub const PAGE_SIZE_MAX: usize = 65536;
/// Page size unless chosen otherwise, in bytes.
pub const PAGE_SIZE_DEFAULT: usize = 4096;

/// Longest key in bytes, for a page size: a quarter of the page, 1,024 bytes at the default.
pub const fn key_len_max(page_size: usize) -> usize {
    page_size / 4
}

/// Longest value in bytes: 1 GiB.
pub const VALUE_LEN_MAX: u64 = 1 << 30;

/// Longest keyspace name in bytes.
pub const KEYSPACE_NAME_LEN_MAX: usize = 255;

/// Largest size of the arena unless chosen otherwise, in bytes: 1 TiB.
pub const MAX_SIZE_DEFAULT: u64 = 1 << 40;

/// The least that the largest size of the arena can be, in bytes.
pub const MAX_SIZE_MIN: u64 = 4 << 20;

/// The arena grows in pieces of this many bytes, aligned: the size of a huge page, so that the
/// kernel can map each with one entry. A smaller arena doubles.
pub const GROWTH_PIECE: u64 = 2 << 20;

/// Size of a new arena, in bytes. Every size that an arena grows to is a multiple of it.
pub const ARENA_SIZE_INITIAL: u64 = 256 << 10;

/// Returns the size to which an arena grows for `bytes` bytes of pages. The size doubles up to
/// [`GROWTH_PIECE`], and is a multiple of it from there on.
pub(crate) const fn arena_size_for(bytes: u64) -> u64 {
    if bytes > GROWTH_PIECE {
        bytes.next_multiple_of(GROWTH_PIECE)
    } else if bytes > ARENA_SIZE_INITIAL {
        bytes.next_power_of_two()
    } else {
        ARENA_SIZE_INITIAL
    }
}

/// Smallest ring, in bytes.
pub const RING_SIZE_MIN: u64 = 64 << 10;
/// Ring size unless chosen otherwise, in bytes.
pub const RING_SIZE_DEFAULT: u64 = 2 << 20;
/// Largest ring, in bytes.
pub const RING_SIZE_MAX: u64 = 256 << 20;

/// Segment size unless chosen otherwise, in bytes.
pub const SEGMENT_SIZE_DEFAULT: u64 = 8 << 20;

/// Largest segment, in bytes.
pub const SEGMENT_SIZE_MAX: u64 = untorn_wal::limits::SEGMENT_BYTES_MAX;

/// Most clients (processes) that have one store open at once.
pub const CLIENTS_MAX: usize = 4096;

/// Most snapshots pinned at once, over all processes of a store.
pub const READERS_MAX: usize = 65536;

/// Most keyspaces of a store.
pub const KEYSPACES_MAX: u64 = 1 << 20;

/// Longest value of a cell in bytes; the shortest is 1.
pub const CELL_LEN_MAX: usize = 4096;

/// Most cells and counters of a store.
pub const CELLS_MAX: usize = 65536;

/// Longest name of a cell or counter in bytes.
pub const CELL_NAME_LEN_MAX: usize = 255;

/// A commit at [`Durability::Within`](crate::Durability::Within) with at least this time is of the
/// bulk class, as visible ones are.
pub const BULK_TIME_MIN: Duration = Duration::from_millis(100);

/// A bulk commit that has waited this long for the writer lock is treated as an urgent one.
pub const BULK_PATIENCE: Duration = Duration::from_millis(50);

/// While urgent commits come, bulk commits publish at most this many bytes ahead of what is
/// durable, or a quarter of a ring that is smaller than four times this.
pub const BULK_SHARE_BYTES: u64 = 256 << 10;

const _: () = assert!(4 * RING_SIZE_MAX <= SEGMENT_SIZE_MAX);
const _: () = assert!(SEGMENT_SIZE_DEFAULT >= 4 * RING_SIZE_DEFAULT);
const _: () = assert!(GROWTH_PIECE.is_power_of_two() && ARENA_SIZE_INITIAL.is_power_of_two());
const _: () = assert!(ARENA_SIZE_INITIAL >= 4 * PAGE_SIZE_MAX as u64 && ARENA_SIZE_INITIAL <= GROWTH_PIECE);
const _: () = assert!(MAX_SIZE_MIN.is_multiple_of(GROWTH_PIECE) && MAX_SIZE_DEFAULT.is_multiple_of(GROWTH_PIECE));
