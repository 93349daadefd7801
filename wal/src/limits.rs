//! Sizes and limits of the log, and their relations (checked at compile time).

use std::time::Duration;

/// The unit in which segments are written. Each batch begins on a fresh one.
pub const BLOCK_BYTES: usize = 4096;
/// The length of a record's header in bytes.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Records begin, and the stream is divided, at multiples of this.
pub const RECORD_ALIGN_BYTES: usize = 8;
/// The longest payload of one record. Writers have stricter limits (the ring).
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// The length of a batch's header in bytes.
pub const BATCH_HEADER_BYTES: usize = 128;
/// The longest batch with its header: the size of the largest single write. It bounds how long an
/// urgent commit waits for the bytes of other commits.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// The most bytes of the stream in one batch. A full batch has no padding.
pub const BATCH_PAYLOAD_BYTES_MAX: usize = BATCH_BYTES_MAX - BATCH_HEADER_BYTES;
/// The length of a segment's header in bytes; it is in the first sector of block 0.
pub const SEGMENT_HEADER_BYTES: usize = 128;
/// The smallest segment.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// How many bytes of each of a log's first segments have blocks, filled with zeros. In later
/// segments, more bytes have blocks.
pub const SEGMENT_READY_BYTES_INITIAL: u64 = 128 << 10;
/// The size of a segment unless the store was created with another.
pub const SEGMENT_BYTES_DEFAULT: u64 = 16 << 20;
/// The largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Spares beyond this number are deleted when segments are recycled.
pub const SPARES_MAX_DEFAULT: usize = 8;
/// Under [`FlushPolicy::EveryBytes`](crate::FlushPolicy::EveryBytes), bytes wait no longer than
/// this.
pub const EVERY_BYTES_AGE_MAX: Duration = Duration::from_secs(1);
/// The size of one write of zeros while a spare is made.
pub(crate) const ZERO_FILL_BYTES: usize = 1 << 20;

const _: () = {
    assert!(BATCH_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    assert!(BATCH_PAYLOAD_BYTES_MAX.is_multiple_of(RECORD_ALIGN_BYTES));
    assert!(RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGN_BYTES));
    assert!(BATCH_HEADER_BYTES.is_multiple_of(RECORD_ALIGN_BYTES));
    assert!(BLOCK_BYTES.is_multiple_of(RECORD_ALIGN_BYTES));
    // A header must be within one sector, the unit that disks write atomically.
    assert!(SEGMENT_HEADER_BYTES <= 512 && BATCH_HEADER_BYTES <= 512);
    assert!(SEGMENT_BYTES_MIN >= 4 * BLOCK_BYTES as u64);
    assert!(SEGMENT_READY_BYTES_INITIAL.is_multiple_of(BLOCK_BYTES as u64));
    assert!(SEGMENT_BYTES_MAX / BLOCK_BYTES as u64 <= u32::MAX as u64);
    assert!(RECORD_PAYLOAD_BYTES_MAX + RECORD_HEADER_BYTES + RECORD_ALIGN_BYTES < u32::MAX as usize);
};
