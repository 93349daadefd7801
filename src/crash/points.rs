//! The catalogue of crash points: every name that is passed to `crash_point!`. A name that is not
//! here does not compile. A name belongs to one place. It states what has just happened there, as in
//! `arena_synced`, or which step comes next, as in `before_sync`.
//!
//! In ordinary builds this is only a list: the points themselves are compiled in by `--cfg
//! untorn_instrumented`.

/// All points that a store passes while its device has space, in alphabetical order.
pub const ALL: &[&str] = &[
    "adopt.attached",
    "adopt.checked",
    "background.round_begun",
    "cell.allocated",
    "cell.begun",
    "cell.cleared",
    "cell.created",
    "cell.dropped",
    "cell.entry_filled",
    "cell.half_filled",
    "cell.latched",
    "cell.moved",
    "cell.resolved",
    "cell.stamped",
    "checkpoint.arena_synced",
    "checkpoint.header_written",
    "checkpoint.log_durable",
    "checkpoint.pages_summed",
    "checkpoint.round_begun",
    "checkpoint.started",
    "checkpoint.stated",
    "client.entered",
    "client.region_made",
    "client.region_placed",
    "commit.before_publish",
    "commit.deadline_announced",
    "commit.pages_written",
    "commit.published",
    "commit.record_written",
    "create.arena_created",
    "create.before_arena",
    "create.done",
    "create.log_created",
    "extent.allocated",
    "extent.written",
    "extents.before_sync",
    "extents.synced",
    "feed.before_copy",
    "flush.before_sync",
    "flush.before_wake",
    "flush.before_write",
    "flush.failed",
    "flush.half_published",
    "flush.round_begun",
    "flush.synced",
    "grow.before_zeros",
    "header.before_sync",
    "header.before_write",
    "header.synced",
    "logger.byte_dropped",
    "logger.byte_taken",
    "logger.leave_begun",
    "logger.ready",
    "logger.unneeded",
    "progress.stepped",
    "reader.durable_pinned",
    "reader.durable_read",
    "reader.pinned",
    "readers.chunk_claimed",
    "readers.claimed",
    "recover.before_rename",
    "recover.cells_restored",
    "recover.done",
    "recover.header_rewritten",
    "recover.log_replayed",
    "recover.ring_replayed",
    "recover.segment_started",
    "region.before_begin",
    "replay.committed",
    "sample.before_wake",
    "sample.collected",
    "sample.committed",
    "sample.round_begun",
    "segment.before_start",
    "segment.started",
    "serve.round_begun",
    "stream.frame_copied",
    "stream.frame_published",
];

/// The points that only a recovery on a full device passes, in alphabetical order.
pub const FULL_DEVICE: &[&str] = &["recover.checkpoint_synced", "recover.region_taken", "recover.segments_freed"];

/// The points that only a store which grows beyond its first sizes passes, in alphabetical order.
pub const GROWTH: &[&str] = &["clients.zeroed", "ring.grown", "ring.zeroed"];

/// Returns whether the catalogue has this name. Each point calls it at compile time.
pub const fn has(name: &str) -> bool {
    is_among(ALL, name) || is_among(FULL_DEVICE, name) || is_among(GROWTH, name)
}

const fn is_among(names: &[&str], name: &str) -> bool {
    let mut index = 0;
    while index < names.len() {
        if untorn_wal::planted_bugs::is_same(names[index], name) {
            return true;
        }
        index += 1;
    }
    false
}
