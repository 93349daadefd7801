//! The extents to which the records of a log refer, as recovery finds them before the replay.
//!
//! **Which extents count.** The extents of a transaction that never committed may have been reused
//! by the next one. So only those of committed transactions are verified and adopted. Records of a
//! stream that never commits are not replayed at all ([`ExtentPlan::never_commits`]); transaction
//! ids do not tell them apart, since the next transaction has the same id.
//!
//! **What a mismatch means.** The flush thread syncs the extents of a record before it writes the
//! record. So, whichever sectors a power cut keeps, a record that is in the log has its extent
//! (**I4**: what is acknowledged includes the extents). The extent also keeps its bytes until a
//! checkpoint contains the transaction (**I3**). So a mismatch is damage.
//!
//! If the record is durable, the store is refused: to drop it would take back an acknowledgement
//! (**I4**) and all later commits. If it is beyond the durable position, it was acknowledged by no
//! position that any file records. Then the log ends before it, as at a batch with a wrong
//! checksum: the extent belongs to the bytes that a torn write may lack. That keeps **I1** (no part
//! of the transaction is applied) and **I2** (neither is any later one). **I5** holds since the new
//! segment begins at the durable position, which is before the record.

use crate::files::extent::LoggedExtent;
use crate::pages::extents::extent_len;
use crate::pages::unreplayed::UnreplayedExtents;
use crate::shared::memory::arena::Arena;
use crate::shared::progress::Progress;
use crate::{Error, Result, TxnId};
use std::fs::File;
use std::ops::Range;
use untorn_wal::Lsn;
use untorn_wal::record::RecordKind;

/// The extents of one record.
pub(super) struct RecordExtents {
    txn: TxnId,
    kind: RecordKind,
    at: Lsn,
    end: Lsn,
    extents: Vec<LoggedExtent>,
}

impl RecordExtents {
    pub(super) fn new(txn: TxnId, kind: RecordKind, at: Lsn, end: Lsn) -> RecordExtents {
        RecordExtents { txn, kind, at, end, extents: Vec::new() }
    }

    pub(super) fn push(&mut self, extent: LoggedExtent) {
        self.extents.push(extent);
    }
}

/// An extent of a committed transaction.
#[derive(Clone, Copy, Debug)]
struct CommittedExtent {
    txn: TxnId,
    extent: LoggedExtent,
    /// The position of the record that refers to it, and the first one of the transaction.
    at: Lsn,
    begin: Lsn,
    /// The end of the record that commits the transaction.
    end: Lsn,
}

/// A transaction whose frames were read and whose commit was not.
struct OpenTransaction {
    txn: TxnId,
    begin: Lsn,
    extents: Vec<(Lsn, LoggedExtent)>,
}

/// The extents to which the records of a log refer.
#[derive(Default)]
pub(crate) struct ExtentPlan {
    committed: Vec<CommittedExtent>,
    open: Option<OpenTransaction>,
    /// The records of streams that never commit, ascending. The last one may have no end yet.
    uncommitted: Vec<Range<Lsn>>,
    /// Where the log ends, because the extent of a record beyond the durable position is missing.
    end: Option<Lsn>,
}

impl ExtentPlan {
    /// Adds the next record.
    pub(super) fn add(&mut self, found: RecordExtents) {
        let continues = self.open.as_ref().is_some_and(|open| open.txn == found.txn)
            && matches!(found.kind, RecordKind::Frame | RecordKind::FrameCommit);
        if !continues && let Some(open) = self.open.take() {
            self.uncommitted.push(open.begin..found.at);
        }
        if found.kind == RecordKind::Abort {
            return;
        }
        let mut open =
            self.open.take().unwrap_or(OpenTransaction { txn: found.txn, begin: found.at, extents: Vec::new() });
        open.extents.extend(found.extents.into_iter().map(|extent| (found.at, extent)));
        if found.kind == RecordKind::Frame {
            self.open = Some(open);
            return;
        }
        let OpenTransaction { txn, begin, extents } = open;
        self.committed.extend(extents.into_iter().map(|(at, extent)| CommittedExtent {
            txn,
            extent,
            at,
            begin,
            end: found.end,
        }));
    }

    /// Verifies the extents against the arena, and determines where the log ends. All records
    /// before `durable` are durable.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the extent of a durable record does not hold its value, or if two
    /// records refer to the same page: the arena is damaged or of another time.
    pub(crate) fn verify(&mut self, arena: &Arena, durable: Lsn, progress: &Progress) -> Result<()> {
        for committed in &self.committed {
            if let Err(error) = committed.check(arena, progress) {
                if committed.at < durable {
                    return Err(error);
                }
                tracing::warn!(%error, at = committed.at.0, "the log ends before a record without its value");
                self.end = Some(committed.at);
                let (begin, end) = (committed.begin, committed.at);
                self.committed.retain(|other| other.end <= end);
                self.uncommitted.retain(|range| range.end <= end);
                self.uncommitted.push(begin..Lsn(u64::MAX));
                self.open = None;
                break;
            }
        }
        let mut pages = self.ranges(arena.page_size());
        pages.sort_by_key(|pages| pages.start);
        match pages.windows(2).find(|pair| pair[0].end > pair[1].start) {
            Some(pair) => {
                let what = format!("two records of the log put values at pages {:?} and {:?}", pair[0], pair[1]);
                Err(arena.damaged(crate::PageId(pair[1].start), what))
            }
            None => Ok(()),
        }
    }

    /// Returns the pages of each extent, also those that its size class adds.
    fn ranges(&self, page_size: usize) -> Vec<Range<u32>> {
        let range =
            |extent: &LoggedExtent| extent.page.0..extent.page.0.saturating_add(extent_len(extent.pages(page_size)));
        self.committed.iter().map(|committed| range(&committed.extent)).collect()
    }

    /// Returns the extents for a replay of the same records.
    pub(super) fn unreplayed(&self, page_size: usize) -> UnreplayedExtents {
        UnreplayedExtents::new(self.ranges(page_size).into_iter())
    }

    /// Returns the extents' page ranges in ascending order.
    pub(crate) fn sorted_ranges(&self, page_size: usize) -> Vec<Range<u32>> {
        let mut ranges = self.ranges(page_size);
        ranges.sort_by_key(|pages| pages.start);
        ranges
    }

    /// Returns the bytes of all values.
    pub(crate) fn bytes(&self) -> u64 {
        self.committed.iter().map(|committed| u64::from(committed.extent.len)).sum()
    }

    /// Returns the extents of records at or beyond `from`.
    pub(crate) fn beyond(&self, from: Lsn) -> impl Iterator<Item = LoggedExtent> {
        self.committed.iter().filter(move |committed| committed.at >= from).map(|committed| committed.extent)
    }

    /// Returns whether the log ends before its last record.
    pub(crate) fn is_cut(&self) -> bool {
        self.end.is_some()
    }

    /// Returns where the log ends, if that is before its last record.
    pub(super) fn end(&self) -> Option<Lsn> {
        self.end
    }

    /// Returns whether the record at `at` belongs to a stream that never commits.
    pub(super) fn never_commits(&self, at: Lsn) -> bool {
        let next = self.uncommitted.partition_point(|range| range.end <= at);
        self.uncommitted.get(next).is_some_and(|range| range.contains(&at))
            || self.open.as_ref().is_some_and(|open| at >= open.begin)
    }

    /// Calls `on_damage` for each extent that does not hold its value, of a transaction that is
    /// still beyond the checkpoint which `finished` returns.
    pub(crate) fn check_kept(
        &self,
        arena: &Arena,
        file: &File,
        finished: impl Fn() -> TxnId,
        on_damage: &mut dyn FnMut(Error),
    ) -> Result<u64> {
        let mut checked = 0;
        for committed in &self.committed {
            if committed.txn <= finished() {
                continue;
            }
            match arena.read_extent(file, &committed.extent, committed.txn)? {
                Some(_) => checked += 1,
                // A checkpoint that was finished meanwhile allows its reuse.
                None if committed.txn <= finished() => {}
                None => on_damage(committed.damaged(arena, "does not match the checksum in the log")),
            }
        }
        Ok(checked)
    }
}

impl CommittedExtent {
    /// Checks that the extent holds the value that the transaction wrote.
    fn check(&self, arena: &Arena, progress: &Progress) -> Result<()> {
        let page_size = arena.page_size();
        let pages = self.extent.pages(page_size);
        let end = u64::from(self.extent.page.0) + u64::from(extent_len(pages));
        // No load beyond the file's end.
        if end > u64::from(u32::MAX) || !arena.reaches(end * page_size as u64)? {
            return Err(self.damaged(arena, "is beyond the end of the file"));
        }
        let body = arena.pages(end as u32).body_of(self.extent.page, pages)?;
        match self.extent.find_value(body, page_size, self.txn, &mut || progress.step()) {
            Some(_) => Ok(()),
            None => Err(self.damaged(arena, "does not match the checksum in the log")),
        }
    }

    fn damaged(&self, arena: &Arena, what: &str) -> Error {
        let what = format!(
            "the value of {} bytes of transaction {} at page {} {what} (log position {})",
            self.extent.len, self.txn, self.extent.page.0, self.at
        );
        arena.damaged(self.extent.page, what)
    }
}
