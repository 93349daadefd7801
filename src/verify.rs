//! The check of a whole store: every page reachable or waiting, never both and never neither; order, counts
//! and checksums; and the log.
//!
//! It works on a pinned snapshot, beside living writers: the commit slot of one transaction says which
//! pages are in its trees and which in its queues, and the pin keeps all of them as they were.

use crate::client::Client;
use crate::dir;
use crate::header::Header;
use crate::logger::process::{log_error, open_log};
use crate::slot::SlotImage;
use crate::tree::check::{PageSeen, check_tree};
use crate::txn::catalog;
use crate::txn::queue;
use crate::txn::runs::{all_queues, run_len};
use crate::{Error, PageId, Result, TxnId};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use untorn_wal::{LogShape, Scan, StoreId};

/// What [`crate::Store::verify`] found.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The transaction that was checked.
    pub txn: TxnId,
    /// Pages handed out so far.
    pub pages: u64,
    /// Pages in trees, with the runs of large values.
    pub reachable_pages: u64,
    /// Pages in the queues, and those that the queues consist of.
    pub free_pages: u64,
    /// Keyspaces.
    pub keyspaces: u64,
    /// Records in them.
    pub entries: u64,
    /// Pages and runs whose checksums were held against their bytes; younger ones have none yet.
    pub checksums: u64,
    /// Bytes of the log that were read, from the checkpoint on.
    pub wal_bytes: u64,
    /// What is wrong, if anything.
    pub problems: Vec<Problem>,
}

/// Something wrong.
#[derive(Clone, Debug, Serialize)]
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
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn note(&mut self, error: Error) {
        let (file, offset, what) = match error {
            Error::Corrupt { file, offset, what } => (file, offset, what),
            Error::Mismatch { file, what } => (file, 0, what),
            other => (String::new(), 0, other.to_string()),
        };
        self.problems.push(Problem { file, offset, what });
    }

    /// Notes damage. What the system refused is none: the walk can't go on.
    fn note_damage(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Corrupt { .. } | Error::Mismatch { .. } => {
                self.note(error);
                Ok(())
            }
            other => Err(other),
        }
    }
}

/// What a page was found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Use {
    None,
    Tree,
    Free,
    Queue,
}

struct Walk<'a> {
    client: &'a Client,
    image: SlotImage,
    finished: TxnId,
    uses: Vec<Use>,
    report: VerifyReport,
}

/// Checks everything that the pinned transaction consists of, and the log and header at rest.
pub(crate) fn verify(client: &Arc<Client>) -> Result<VerifyReport> {
    let engine = &client.engine;
    // Before the pin: what a later checkpoint sums is not all of what the pinned transaction reaches.
    let finished = engine.checkpoints().1;
    let (_pin, image) = client.pin_image()?;
    let report = VerifyReport { txn: image.txn, ..VerifyReport::default() };
    let uses = vec![Use::None; image.high_water as usize];
    let mut walk = Walk { client, image, finished, uses, report };
    walk.trees();
    walk.queues();
    walk.unaccounted();
    walk.headers()?;
    walk.log()?;
    Ok(walk.report)
}

impl Walk<'_> {
    /// Notes what pages are used for; says what is wrong if they are used already.
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
            let pages = if page.pages > 1 { run_len(page.pages) } else { 1 };
            self.mark(page.page, pages, Use::Tree);
            self.report.reachable_pages += u64::from(pages);
            self.checksum(page.page, page.pages, page.birth);
        }
        match checked {
            Ok(report) => Some(report.entries),
            Err(error) => {
                self.report.note(error);
                None
            }
        }
    }

    fn checksum(&mut self, page: PageId, pages: u32, birth: TxnId) {
        if birth > self.image.txn {
            let what = format!("page {} was born in {birth}, after {}", page.0, self.image.txn);
            return self.report.note(self.client.engine.arena.damaged(page, what));
        }
        if birth > self.finished {
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
        self.tree(self.image.catalog);
        let pages = client.engine.arena.pages(self.image.high_water);
        let keyspaces = match catalog::list(&pages, self.image.catalog) {
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
        match catalog::incarnations(&pages, self.image.catalog) {
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

    /// Each incarnation began after the last transaction of the one before it. Numbers are missing of those that a loss
    /// took back as a whole.
    fn incarnations(&mut self, found: &[(u32, TxnId)]) {
        let mut before = 0;
        for (incarnation, last) in found {
            if *incarnation <= before || last.incarnation() != before {
                let what =
                    format!("incarnation {incarnation} is said to follow {last}, expected one of incarnation {before}");
                return self.report.note(self.client.engine.arena.damaged(self.image.catalog, what));
            }
            before = *incarnation;
        }
        if self.image.txn.incarnation() != before {
            let what = format!("transaction {} is of an incarnation that the catalog does not note", self.image.txn);
            self.report.note(self.client.engine.arena.damaged(self.image.catalog, what));
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
        if !self.image.run_directory.is_none() {
            self.mark(self.image.run_directory, 1, Use::Queue);
            self.report.free_pages += 1;
            if let Ok(birth) = pages.birth(self.image.run_directory) {
                self.checksum(self.image.run_directory, 1, birth);
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
                &mut |page, birth| {
                    own.push((page, birth));
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
            for (page, birth) in own {
                self.mark(page, 1, Use::Queue);
                self.report.free_pages += 1;
                // The tail of a queue is filled in place until a checkpoint seals it.
                if let Some(birth) = birth {
                    self.checksum(page, 1, birth);
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
        let read = || self.client.engine.dir.need_file(dir::CHECKPOINT, false).and_then(|file| Header::read(&file));
        for is_last in [false, false, true] {
            match read() {
                Ok((_, None)) => break,
                // One that is just being written is whole before long.
                _ if !is_last => std::thread::sleep(Duration::from_millis(20)),
                // The other counts, but somebody should know.
                Ok((_, Some(damage))) | Err(damage) => self.report.note_damage(damage)?,
            }
        }
        Ok(())
    }

    fn log(&mut self) -> Result<()> {
        let engine = &self.client.engine;
        let read = || -> Result<u64> {
            let disk = open_log(&engine.dir)?;
            let shape = LogShape::new(StoreId(engine.store_id), engine.geometry.segment_size).map_err(log_error)?;
            let mut waited = None;
            for attempt in 0.. {
                let words = &engine.control.fixed().checkpoint;
                let from = untorn_wal::Lsn(words.finished_lsn.load(std::sync::atomic::Ordering::Acquire));
                let until = loop {
                    match engine.control.durable() {
                        Some((_, until)) => break until,
                        None => engine.await_mended(&mut waited)?,
                    }
                };
                let walked = Scan::follow(&disk, &shape, from, until).and_then(|mut scan| {
                    let mut bytes = 0;
                    while let Some((_, chunk)) = scan.next_chunk()? {
                        bytes += chunk.len() as u64;
                    }
                    Ok(bytes)
                });
                match walked {
                    Ok(bytes) => return Ok(bytes),
                    // Segments are recycled while we read; a checkpoint that moved tells.
                    Err(_)
                        if attempt < 20 && words.finished_lsn.load(std::sync::atomic::Ordering::Acquire) != from.0 => {}
                    Err(error) => return Err(log_error(error)),
                }
            }
            unreachable!("the loop ends by returning")
        };
        match read() {
            Ok(bytes) => self.report.wal_bytes = bytes,
            Err(error) => self.report.note_damage(error)?,
        }
        Ok(())
    }
}
