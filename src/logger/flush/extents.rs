//! The sync of large values before the records that refer to them.
//!
//! **I4** A record in the log implies that the extents to which it refers are durable: each flush
//! syncs the extents of its records before it writes the records. So whatever position a later
//! header or acknowledgement states, the extents of the records before it are on the disk, and
//! recovery finds no record whose extent a power cut took.
//!
//! **A failed sync** is handled as a second failure of the log. The kernel may have marked the
//! pages as clean, so that another sync would succeed without writing them. The store is poisoned:
//! nothing is acknowledged any more, no checkpoint is taken, and each waiter gets the error. The
//! records were not written, and recovery does not trust the ring of a poisoned region.
//!
//! **Another logger** may find extents whose sync has failed, if its predecessor died before it
//! could poison the store. So the first flush after a take-over makes the pages of the extents
//! dirty again. It writes bytes that the pages hold, so it may do that only while no transaction
//! writes other bytes there. That holds for committed transactions beyond the durable one, since no
//! checkpoint contains them yet (**I3**). A stream that has not ended may be one whose writer died,
//! and whose pages the next writer uses. Its extents are kept in a list until it commits.

use super::Flusher;
use crate::files::extent::LoggedExtent;
use crate::system::write_back;
use crate::txn::ops::{Op, Ops};
use crate::{Error, Result};
use std::ops::Range;
use untorn_wal::Lsn;
use untorn_wal::record;
use untorn_wal::record::{Decoded, RecordKind};

/// If the extents of a flush are in more ranges than this, the whole arena is synced. Each sync of
/// a range waits for the device; a sync of the whole arena waits once, but writes all other pages
/// that are dirty.
const RANGES_MAX: usize = 16;
/// Extents are synced together if at most this many pages lie between them.
const GAP_PAGES_MAX: u32 = 64;

/// The extents of an earlier logger's records.
#[derive(Default)]
pub(super) struct InheritedExtents {
    /// Whether the next flush is the first one after a take-over.
    pub(super) is_first_flush: bool,
    /// Extents of a stream that has not ended.
    open: Vec<LoggedExtent>,
}

/// The extents of the records of a flush.
#[derive(Default)]
struct FlushedExtents {
    all: Vec<LoggedExtent>,
    /// Those that an earlier logger may have synced in vain.
    to_redirty: Vec<LoggedExtent>,
}

impl Flusher {
    /// Makes the extents durable to which the records up to `tail` refer. `tail` was acquired
    /// before.
    ///
    /// # Errors
    /// [`Error::Io`]; the log is then given up, and the call is not to be repeated.
    pub(super) fn sync_extents(&mut self, tail: Lsn) -> Result<()> {
        let logger = self.logger.clone();
        let engine = &logger.engine;
        let has_any = engine.control.fixed().stream.extents_end() > self.log_state.durable;
        let is_first_flush = std::mem::take(&mut self.inherited.is_first_flush);
        if (!has_any && self.inherited.open.is_empty()) || planted_bug!("acknowledge-before-extent") {
            return Ok(());
        }
        crash_point!("extents.before_sync");
        let synced = match self.extents_up_to(tail, is_first_flush) {
            None => self.sync_whole_arena(),
            Some(extents) => self.sync_each(&extents),
        };
        if let Err(error) = synced {
            self.give_up(&error);
            return Err(error);
        }
        crash_point!("extents.synced");
        Ok(())
    }

    /// Returns the extents of the records from the durable position to `tail`; `None` if the ring
    /// does not hold whole records there, because it is damaged.
    fn extents_up_to(&mut self, tail: Lsn, is_first_flush: bool) -> Option<FlushedExtents> {
        let logger = self.logger.clone();
        let engine = &logger.engine;
        let from = self.log_state.durable;
        let mut bytes = vec![0; tail.bytes_since(from) as usize];
        engine.control.ring().ok()?.copy_out(from.0, &mut bytes).ok()?;
        let (mut used, mut found) = (0, FlushedExtents::default());
        while used < bytes.len() {
            let at = from.advanced_by(used as u64);
            let Decoded::Record { kind, payload, len, .. } = record::decode(&bytes[used..], engine.record_seed(), at)
            else {
                return None;
            };
            used += len;
            if matches!(kind, RecordKind::Abort | RecordKind::Commit) {
                self.inherited.open.clear();
            }
            if kind == RecordKind::Abort {
                continue;
            }
            let before = found.all.len();
            for op in Ops::new(payload) {
                if let Op::PutExtent { extent, .. } = op.ok()? {
                    found.all.push(extent);
                }
            }
            if is_first_flush {
                self.inherited.open.extend_from_slice(&found.all[before..]);
            }
            if kind != RecordKind::Frame {
                found.all.extend_from_slice(&self.inherited.open);
                found.to_redirty.append(&mut self.inherited.open);
            }
        }
        // The syncs must stay within the file.
        let page_size = engine.geometry.page_size;
        let backed = engine.control.checked_arena_bytes().ok()? / page_size as u64;
        let is_backed = |found: &LoggedExtent| u64::from(found.page.0) + u64::from(found.pages(page_size)) <= backed;
        found.all.iter().all(is_backed).then_some(found)
    }

    fn sync_each(&self, extents: &FlushedExtents) -> Result<()> {
        let engine = &self.logger.engine;
        let page_size = engine.geometry.page_size;
        if !extents.to_redirty.is_empty() {
            let file = engine.arena_file()?;
            extents.to_redirty.iter().try_for_each(|extent| engine.arena.redirty_extent(&file, extent))?;
        }
        let mut pages: Vec<Range<u32>> = extents.all.iter().map(|extent| extent.page_range(page_size)).collect();
        pages.sort_by_key(|pages| pages.start);
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for next in pages {
            match ranges.last_mut() {
                Some(last) if next.start <= last.end.saturating_add(GAP_PAGES_MAX) => last.end = last.end.max(next.end),
                _ => ranges.push(next),
            }
        }
        if ranges.len() > RANGES_MAX {
            return self.sync_whole_arena();
        }
        ranges.iter().try_for_each(|range| {
            engine.control.fixed().logger.beat();
            engine.arena.sync_pages(range)
        })
    }

    fn sync_whole_arena(&self) -> Result<()> {
        let file = self.logger.engine.arena_file()?;
        write_back::sync(&file, "extents.sync").map_err(Error::io("sync of large values in arena"))
    }
}
