//! The arena's blocks in recovery, and the large values that the log refers to.
//!
//! The values of records beyond the checkpoint are in the arena, often beyond the part that the
//! checkpoint uses. They are found and verified before the replay
//! ([`crate::txn::replay::ExtentPlan`]).

use crate::error::reason::Space;
use crate::files::dir;
use crate::pages::unreplayed::gaps;
use crate::participant::engine::Engine;
use crate::shared::control::write_zeros;
use crate::txn::replay::ExtentPlan;
use crate::{Error, Result, limits};
use untorn_wal::Lsn;

/// Bytes of the arena whose blocks are allocated by one system call.
const BACKING_STEP_BYTES: u64 = 256 << 20;

/// Backs the arena with blocks: the first `known` bytes, which the checkpoint's sync covered, and
/// all up to the last of the log's values. Between those values zeros are written, as before any
/// page is handed out, since a power cut may have lost those blocks.
pub(super) fn back_arena(engine: &Engine, known: u64, plan: &ExtentPlan) -> Result<()> {
    let page_size = engine.geometry.page_size as u64;
    let ranges = plan.sorted_ranges(engine.geometry.page_size);
    let end = ranges.last().map_or(0, |last| u64::from(last.end) * page_size);
    let backed = known.max(limits::arena_size_for(end).min(engine.geometry.max_size));
    back_with_blocks(engine, known)?;
    if backed > known {
        back_with_blocks(engine, end)?;
        let file = engine.arena_file()?;
        let (first, last) = ((known / page_size) as u32, (backed / page_size) as u32);
        for gap in gaps(first..last, &ranges) {
            let len = u64::from(gap.end - gap.start) * page_size;
            write_zeros(&file, u64::from(gap.start) * page_size, len, dir::ARENA)?;
            engine.progress.step();
        }
    }
    engine.control.set_arena_bytes(backed);
    Ok(())
}

/// Syncs the values of the records at or beyond `from` before these records go to a new segment,
/// and counts all values of the log toward the next checkpoint.
///
/// **I4** These values may be in the page cache alone: an earlier logger may have died before it
/// synced them, or after a sync of them failed, which left their pages clean. So each page is made
/// dirty again. The values of records before `from` were synced before those records.
pub(super) fn sync_again(engine: &Engine, plan: &ExtentPlan, from: Lsn) -> Result<()> {
    let file = engine.arena_file()?;
    let page_size = engine.geometry.page_size;
    for extent in plan.beyond(from) {
        engine.arena.redirty_extent(&file, &extent)?;
        engine.arena.sync_pages(&extent.page_range(page_size))?;
        engine.progress.step();
    }
    let words = &engine.control.fixed().stream;
    words.note_extents(from, plan.bytes());
    words.set_durable_extent_bytes(plan.bytes());
    Ok(())
}

/// Makes sure that storing into the arena needs no new blocks. A copy of a store may have holes, or
/// share its blocks with the original. On a full disk, a store into either would be a SIGBUS.
fn back_with_blocks(engine: &Engine, len: u64) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    let file = engine.arena_file()?;
    for flags in [FallocateFlags::UNSHARE_RANGE, FallocateFlags::empty()] {
        for from in (0..len).step_by(BACKING_STEP_BYTES as usize) {
            match fallocate(&file, flags, from, BACKING_STEP_BYTES.min(len - from)) {
                // The number of missing blocks is unknown.
                Err(Errno::NOSPC | Errno::DQUOT) => return Err(Error::DiskFull { what: Space::Arena { bytes: len } }),
                Ok(()) => engine.progress.step(),
                // A file system without the first operation shares no blocks. Without both, this
                // check is not possible.
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
                Err(errno) => return Err(Error::sys("allocating the arena's blocks")(errno)),
            }
        }
    }
    Ok(())
}
