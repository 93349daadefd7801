//! The check of a whole store: every page reachable or waiting, never both and never neither;
//! order, counts and checksums; and the log.
//!
//! It works on a pinned snapshot, while writers run. The commit slot of one transaction gives the
//! pages in its trees and those in its queues; the pin protects all of them from reuse.

use crate::api::monitoring::log_walk::LogWalk;
use crate::btree::check::{PageSeen, check_tree};
use crate::files::dir;
use crate::files::header::CheckpointHeader;
use crate::files::log::{log_error, open_log};
use crate::files::slot::SlotImage;
use crate::pages::extents::{all_queues, extent_len};
use crate::pages::queue;
use crate::process::client::DirectClient;
use crate::system::clock;
use crate::txn::catalog;
use crate::txn::replay::ExtentPlan;
use crate::{Error, PageId, Result, TxnId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use untorn_wal::{LogShape, Lsn, RealDisk, SegmentCatalog, StoreId};

/// The result of [`crate::Store::verify`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The transaction that was checked.
    pub txn: TxnId,
    /// Pages handed out so far.
    pub pages: u64,
    /// Pages in trees, with the extents of large values.
    pub reachable_pages: u64,
    /// Pages in the queues, and those that the queues consist of.
    pub free_pages: u64,
    /// Keyspaces.
    pub keyspaces: u64,
    /// Records in them.
    pub entries: u64,
    /// Pages and extents whose checksums were compared with their bytes; younger ones have none
    /// yet.
    pub checksums: u64,
    /// Bytes of the log that were read: all that recovery needs, and all that is kept for
    /// followers.
    pub wal_bytes: u64,
    /// The damage that was found; empty if there is none.
    pub problems: Vec<Problem>,
}

/// One finding of damage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// The file, relative to the store's directory.
    pub file: String,
    /// Byte offset in the file.
    pub offset: u64,
    /// What was expected and found.
    pub what: String,
}

impl VerifyReport {
    /// Returns whether no damage was found.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn note(&mut self, error: Error) {
        let (file, offset, what) = match error {
            Error::Corrupt { file, offset, what } => (file, offset, what),
            Error::Mismatch { file, what } => (file, 0, what.to_string()),
            Error::FormatVersion { ref file, .. } => (file.clone(), 0, error.to_string()),
            other => (String::new(), 0, other.to_string()),
        };
        self.problems.push(Problem { file, offset, what });
    }

    /// Records damage. An error of the system is not damage: it ends the check.
    fn note_damage(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Corrupt { .. } | Error::Mismatch { .. } | Error::FormatVersion { .. } => {
                self.note(error);
                Ok(())
            }
            other => Err(other),
        }
    }
}

/// The use of a page that the check has reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Use {
    None,
    Tree,
    Free,
    Queue,
}

struct StoreCheck<'a> {
    client: &'a DirectClient,
    image: SlotImage,
    finished: TxnId,
    uses: Vec<Use>,
    report: VerifyReport,
}

/// Checks everything that the pinned transaction reaches, the log, and the checkpoint headers.
pub(crate) fn verify(client: &Arc<DirectClient>) -> Result<VerifyReport> {
    let engine = &client.engine;
    // Loaded before the pin: a later checkpoint writes checksums into some of the pages that the
    // pinned transaction reaches, but not into all of them.
    let finished = engine.control.fixed().checkpoint.finished();
    let (_pin, image) = client.pin_image()?;
    let report = VerifyReport { txn: image.txn, ..VerifyReport::default() };
    let uses = vec![Use::None; image.high_water as usize];
    let mut walk = StoreCheck { client, image, finished, uses, report };
    walk.trees();
    walk.queues();
    walk.unaccounted();
    walk.headers()?;
    walk.log()?;
    Ok(walk.report)
}

impl StoreCheck<'_> {
    /// Records the use of pages; reports damage if they are used already.
    fn mark(&mut self, page: PageId, pages: u32, as_what: Use) {
        for id in page.0..page.0.saturating_add(pages) {
            let Some(use_) = self.uses.get_mut(id as usize) else {
                let arena = &self.client.engine.arena;
                self.report.note(arena.damaged(page, format!("page {id} is beyond the high-water mark")));
                return;
            };
            if *use_ != Use::None {
                let what = format!("page {id} is used twice: as {:?} and as {as_what:?}", *use_);
                let error = self.client.engine.arena.damaged(PageId(id), what);
                self.report.note(error);
                return;
            }
            *use_ = as_what;
        }
    }

    fn tree(&mut self, root: PageId) -> Option<u64> {
        let client = self.client;
        let pages = client.engine.arena.pages(self.image.high_water);
        let mut seen: Vec<PageSeen> = Vec::new();
        let checked = check_tree(&pages, root, &mut |page| {
            seen.push(page);
            Ok(())
        });
        for page in seen {
            let pages = if page.pages > 1 { extent_len(page.pages) } else { 1 };
            self.mark(page.page, pages, Use::Tree);
            self.report.reachable_pages += u64::from(pages);
            self.checksum(page.page, page.pages, page.created_txn);
        }
        match checked {
            Ok(report) => Some(report.entries),
            Err(error) => {
                self.report.note(error);
                None
            }
        }
    }

    fn checksum(&mut self, page: PageId, pages: u32, created_txn: TxnId) {
        if created_txn > self.image.txn {
            let what = format!("page {} was born in {created_txn}, after {}", page.0, self.image.txn);
            return self.report.note(self.client.engine.arena.damaged(page, what));
        }
        if created_txn > self.finished {
            return;
        }
        let engine = &self.client.engine;
        let body = engine.arena.pages(self.image.high_water).body_of(page, pages);
        match body.and_then(|body| engine.arena.verify_checksum(body, page)) {
            Ok(()) => self.report.checksums += 1,
            Err(error) => self.report.note(error),
        }
    }

    fn trees(&mut self) {
        let client = self.client;
        self.tree(self.image.catalog.root);
        let pages = client.engine.arena.pages(self.image.high_water);
        let keyspaces = match catalog::list(&pages, &self.image.catalog) {
            Ok(keyspaces) => keyspaces,
            Err(error) => return self.report.note(error),
        };
        for keyspace in &keyspaces {
            let Some(entries) = self.tree(keyspace.root) else { continue };
            self.report.entries += entries;
            if entries != keyspace.entries {
                let what =
                    format!("keyspace {:?} counts {} entries, its tree has {entries}", keyspace.name, keyspace.entries);
                let error = client.engine.arena.damaged(keyspace.root, what);
                self.report.note(error);
            }
        }
        self.report.keyspaces = keyspaces.len() as u64;
        match catalog::incarnations(&pages, &self.image.catalog) {
            Ok(incarnations) => self.incarnations(&incarnations),
            Err(error) => self.report.note(error),
        }
        for (what, counted, found) in [
            ("keyspaces", self.image.keyspaces, self.report.keyspaces),
            ("records", self.image.records, self.report.entries),
        ] {
            if counted != found {
                let text = format!("the commit counts {counted} {what}, there are {found}");
                self.report.note(Error::corrupt(dir::CONTROL, 0, text));
            }
        }
    }

    /// Checks that each incarnation began after the last transaction of the one before it. The
    /// numbers of incarnations that a loss took back as a whole are missing.
    fn incarnations(&mut self, found: &[(u32, TxnId)]) {
        let mut before = 0;
        for (incarnation, last) in found {
            if *incarnation <= before || last.incarnation() != before {
                let what = format!(
                    "incarnation {incarnation} is recorded to follow {last}, expected one of incarnation {before}"
                );
                return self.report.note(self.client.engine.arena.damaged(self.image.catalog.root, what));
            }
            before = *incarnation;
        }
        if self.image.txn.incarnation() != before {
            let what = format!("transaction {} is of an incarnation that the catalog does not note", self.image.txn);
            self.report.note(self.client.engine.arena.damaged(self.image.catalog.root, what));
        }
    }

    fn queues(&mut self) {
        let client = self.client;
        let engine = &client.engine;
        let pages = engine.arena.pages(self.image.high_water);
        let queues = all_queues(&pages, &self.image).unwrap_or_else(|error| {
            self.report.note(error);
            self.image.queues.to_vec()
        });
        if !self.image.extent_directory.is_none() {
            self.mark(self.image.extent_directory, 1, Use::Queue);
            self.report.free_pages += 1;
            if let Ok(created_txn) = pages.created_txn(self.image.extent_directory) {
                self.checksum(self.image.extent_directory, 1, created_txn);
            }
        }
        let mut waiting = 0;
        for state in queues {
            let mut own = Vec::new();
            let mut entries = Vec::new();
            let walked = queue::walk(
                &pages,
                &engine.arena,
                &state,
                &mut |page, created_txn| {
                    own.push((page, created_txn));
                    Ok(())
                },
                &mut |entry| {
                    entries.push(entry);
                    Ok(())
                },
            );
            if let Err(error) = walked {
                self.report.note(error);
            }
            for (page, created_txn) in own {
                self.mark(page, 1, Use::Queue);
                self.report.free_pages += 1;
                // The tail of a queue is filled in place until a checkpoint seals it.
                if let Some(created_txn) = created_txn {
                    self.checksum(page, 1, created_txn);
                }
            }
            for entry in entries {
                self.mark(entry.page, entry.pages, Use::Free);
                waiting += u64::from(entry.pages);
            }
        }
        self.report.free_pages += waiting;
        if waiting != self.image.free_pages {
            let text = format!("the commit counts {} free pages, the queues hold {waiting}", self.image.free_pages);
            self.report.note(Error::corrupt(dir::CONTROL, 0, text));
        }
    }

    fn unaccounted(&mut self) {
        self.report.pages = u64::from(self.image.high_water);
        let lost: Vec<u32> = (1..self.image.high_water).filter(|id| self.uses[*id as usize] == Use::None).collect();
        if let Some(first) = lost.first() {
            let what = format!("{} pages are neither reachable nor free, page {first} the first", lost.len());
            let error = self.client.engine.arena.damaged(PageId(*first), what);
            self.report.note(error);
        }
    }

    fn headers(&mut self) -> Result<()> {
        let read =
            || self.client.engine.dir.need_file(dir::CHECKPOINT, false).and_then(|file| CheckpointHeader::read(&file));
        for is_last in [false, false, true] {
            match read() {
                Ok((_, None)) => break,
                // A header that is being written is complete after a short time.
                _ if !is_last => clock::sleep(Duration::from_millis(20)),
                // The other header counts, but the damage is reported.
                Ok((_, Some(damage))) | Err(damage) => self.report.note_damage(damage)?,
            }
        }
        Ok(())
    }

    /// Checks the log, from the oldest segment that is kept to the durable position. It must
    /// consist of whole batches of this store, each of which continues the one before, and of whole
    /// records in them. Damage ends the check of one segment; the check continues with the next.
    fn log(&mut self) -> Result<()> {
        let engine = &self.client.engine;
        let disk = open_log(&engine.dir)?;
        let shape = LogShape::new(StoreId(engine.store_id), engine.geometry.segment_size).map_err(log_error)?;
        let mut waited = None;
        let oldest = || engine.control.fixed().counters.wal_oldest();
        let mut from = oldest();
        let mut is_second = false;
        loop {
            let until = loop {
                match engine.control.durable() {
                    Some((_, until)) => break until,
                    None => engine.await_mended(&mut waited)?,
                }
            };
            if from >= until {
                break;
            }
            let mut walk = LogWalk::new(engine, &disk, &shape, from, until);
            let walked = walk.run();
            let (bytes, reached, next, extents) = (walk.bytes, walk.reached, walk.next, walk.extents);
            match walked {
                Ok(()) => {
                    self.report.wal_bytes += bytes;
                    self.values_of_log(&extents)?;
                    break;
                }
                // Segments are recycled while they are read. The oldest position shows that, or
                // will after a short time.
                Err(_) if is_recycled(&oldest, reached) => {
                    from = oldest();
                    is_second = false;
                }
                Err(_) if !is_second => is_second = true,
                Err(error) => {
                    self.report.wal_bytes += bytes;
                    self.report.note_damage(error)?;
                    is_second = false;
                    match next.filter(|next| *next > from) {
                        Some(next) => from = next,
                        None => break,
                    }
                }
            }
        }
        self.log_files(&disk, &shape)
    }

    /// Checks the large values to which records beyond the newest checkpoint refer. Earlier values
    /// may have been overwritten since.
    fn values_of_log(&mut self, extents: &ExtentPlan) -> Result<()> {
        let engine = &self.client.engine;
        let file = engine.dir.need_file(dir::ARENA, false)?;
        engine.arena.refuse_other_file(&file)?;
        let finished = || engine.control.fixed().checkpoint.finished();
        let mut damage = Vec::new();
        self.report.checksums += extents.check_kept(&engine.arena, &file, finished, &mut |error| damage.push(error))?;
        damage.into_iter().for_each(|error| self.report.note(error));
        Ok(())
    }

    /// Checks for files of the log whose contents can't be read: a segment without its header, one
    /// that was cut short, and one that an earlier open has set aside.
    fn log_files(&mut self, disk: &RealDisk, shape: &LogShape) -> Result<()> {
        // A header that is being written is complete after a short time.
        let look = || SegmentCatalog::read_headers(disk, shape).map_err(log_error);
        let mut damaged: Option<Vec<String>> = None;
        for _ in 0..3 {
            match look() {
                Ok(segment_catalog) => {
                    let found = segment_catalog.damaged;
                    damaged = Some(match damaged {
                        Some(before) => before.into_iter().filter(|file| found.contains(file)).collect(),
                        None => found,
                    });
                    if damaged.as_ref().is_some_and(Vec::is_empty) {
                        break;
                    }
                    clock::sleep(VERIFY_RETRY_DELAY);
                }
                Err(error) => {
                    self.report.note_damage(error)?;
                    break;
                }
            }
        }
        for file in damaged.unwrap_or_default() {
            // A spare that never was a segment is complete.
            if !untorn_wal::holds_batches(disk, shape, &file).map_err(log_error)? {
                continue;
            }
            let what = "the segment's header is damaged; what the file held for followers of the log is lost";
            self.report.note(Error::corrupt(&format!("{}/{file}", dir::WAL), 0, what));
        }
        for (file, size) in untorn_wal::set_aside(disk).map_err(log_error)? {
            let expected = shape.segment_bytes();
            let what = format!(
                "the file had {size} bytes instead of {expected} when the store was opened; recovery did not need it, and what it held for \
                 followers of the log is lost; remove it when it is of no more use"
            );
            self.report.note(Error::corrupt(&format!("{}/{file}", dir::WAL), size, what));
        }
        Ok(())
    }
}

const VERIFY_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Returns whether the log is no longer kept at `reached`. Checks several times: the logger
/// publishes the oldest position before it deletes files, and may be doing so now.
fn is_recycled(oldest: &dyn Fn() -> Lsn, reached: Lsn) -> bool {
    (0..20).any(|look| {
        if look > 0 {
            clock::sleep(VERIFY_RETRY_DELAY);
        }
        oldest() > reached
    })
}
