//! The rehearsal of a recovery: the log is replayed into a private copy of the arena before a byte
//! of any file changes.
//!
//! Replay is the only reader of most pages, so it may meet damage late: a page that does not match
//! its checksum, a record that deletes a key which the pages lack. The replay is deterministic, and
//! the rehearsal begins from the same checkpoint and applies the same records by the same code. So
//! it meets what the recovery would meet, and the open is refused while every file is as it was.
//!
//! The rehearsal holds the pages that it writes in memory, up to [`BYTES_MAX`]. It ends early if
//! the log needs more, and it is left out if the process may not map the arena once more. The
//! recovery then meets the damage itself: it refuses the open as well, and the checkpoint's pages
//! are as they were, but the header and free pages have changed.
//!
//! It costs as much time as the replay, and nothing after a clean shutdown, whose log holds
//! nothing.

use crate::Result;
use crate::files::dir;
use crate::files::header::CheckpointHeader;
use crate::files::log::log_error;
use crate::logger::check::with_file_position;
use crate::logger::recover;
use crate::participant::engine::Engine;
use crate::process::region::begin_at;
use crate::shared::control::Control;
use crate::shared::memory::arena::Arena;
use crate::txn::replay::{ExtentPlan, Replay};
use crate::{Error, limits};
use std::fs::File;
use std::sync::Arc;
use untorn_wal::{LogScan, LogShape, RealDisk};

/// Bytes of pages that a rehearsal holds in memory at most.
const BYTES_MAX: u64 = 32 << 20;

/// A region and an arena in memory, in the state of the checkpoint that `header` describes. `None`
/// if the process may not map them.
pub(super) fn scratch(
    header: &CheckpointHeader,
    arena: &Arena,
    arena_file: &File,
    plan: &ExtentPlan,
) -> Result<Option<(Control, Arc<Arena>)>> {
    let Some(arena) = arena.scratch(arena_file, BYTES_MAX)? else { return Ok(None) };
    let control = Control::format(&recover::memory_file()?, header.store_id, &header.geometry, dir::boot_id()?)?;
    begin_at(&control, header);
    let page_size = header.geometry.page_size;
    let values_end = plan.sorted_ranges(page_size).last().map_or(0, |last| last.end);
    let used = u64::from(header.image.high_water.max(values_end)) * page_size as u64;
    control.set_arena_bytes(limits::arena_size_for(used));
    let arena = Arc::new(arena);
    control.set_arena(arena.clone())?;
    Ok(Some((control, arena)))
}

/// Replays the log, and what the ring of `old` adds to it, into the scratch region and arena of
/// `engine`.
///
/// # Errors
/// The errors of the replay.
pub(super) fn run(
    engine: &Engine,
    header: &CheckpointHeader,
    disk: &RealDisk,
    shape: &LogShape,
    old: Option<&Control>,
    plan: &ExtentPlan,
) -> Result<()> {
    match crate::crash::without_points(|| replay(engine, header, disk, shape, old, plan)) {
        // The scratch arena is full. No other device is written to.
        Err(Error::DiskFull { .. }) => Ok(()),
        replayed => replayed,
    }
}

fn replay(
    engine: &Engine,
    header: &CheckpointHeader,
    disk: &RealDisk,
    shape: &LogShape,
    old: Option<&Control>,
    plan: &ExtentPlan,
) -> Result<()> {
    let mut scan = LogScan::open(disk, shape, header.log_position).map_err(log_error)?;
    let mut replay = Replay::new(engine, header.txn(), header.log_position, plan);
    loop {
        let file_position = scan.file_position().map(|(file, offset)| (file.to_owned(), offset));
        let Some((_, bytes)) = scan.next_chunk().map_err(log_error)? else { break };
        replay.feed(bytes).map_err(|error| with_file_position(error, file_position))?;
    }
    if let Some(old) = old
        && let Some(bytes) = recover::ring_bytes(old, replay.next())?
    {
        replay.feed_until_bad(&bytes)?;
    }
    Ok(())
}
