//! Savepoints of a write transaction: states to which it can return without losing earlier changes.
//!
//! A savepoint consists of a few words of the image (the catalog's root and the counts), and of
//! marks in the growing parts: the open keyspaces (`trees`), the pages
//! ([`crate::pages::savepoints`]) and the log record ([`crate::txn::stream`]). The allocator is not
//! rolled back: pages that were taken since stay with the transaction, to be used again.
//!
//! **The log.** If no frame has been sent since the savepoint, its rollback truncates the record to
//! its former end, and the log contains nothing of it. Frames that were sent can't be taken back.
//! So the first operation after a savepoint is preceded by a mark (`Op::Savepoint`), and the
//! rollback is an operation of its own (`Op::RollBack`). Replay makes a savepoint at each mark, and
//! rolls back by the same function as the writer did. Followers of the log leave out all operations
//! between the mark and the rollback (`api/feed/transaction_filter.rs`). A savepoint without a
//! change after it leaves no mark.
//!
//! A writer that dies between these operations never commits, so none of them takes effect.
//!
//! Savepoints are numbered by their depth in the log: those that a rollback removes leave their
//! numbers to later ones.

use crate::files::slot::CatalogState;
use crate::txn::ops::Op;
use crate::txn::stream::{Boundary, Stream};
use crate::txn::write::Write;
use crate::{Error, Result, Version};

/// The state of a transaction at a savepoint, besides its keyspaces and pages.
pub(super) struct Saved {
    /// Counts the savepoints of the transaction, from 1. Never given again.
    number: u64,
    catalog: CatalogState,
    next_keyspace: u64,
    keyspaces: u64,
    records: u64,
    cells_floor: Version,
    changed: bool,
    /// The position of this savepoint's mark in the log record, if it has one. Always `None` in
    /// replay.
    logged: Option<Boundary>,
}

impl Saved {
    pub(super) fn needs_mark(&self) -> bool {
        self.logged.is_none()
    }
}

impl Write<'_> {
    /// Makes a savepoint; returns its number.
    pub(crate) fn savepoint(&mut self) -> u64 {
        self.savepoints_made += 1;
        let image = &self.work.image;
        self.saved.push(Saved {
            number: self.savepoints_made,
            catalog: image.catalog,
            next_keyspace: image.next_keyspace,
            keyspaces: image.keyspaces,
            records: image.records,
            cells_floor: image.cells_floor,
            changed: self.changed,
            logged: None,
        });
        self.trees.add_savepoint();
        self.work.savepoint();
        self.savepoints_made
    }

    /// Undoes all changes since savepoint number `number`, and removes the savepoints after it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such savepoint any more. After an error of the log, the
    /// whole transaction can only be rolled back.
    pub(crate) fn roll_back_to(&mut self, number: u64) -> Result<()> {
        self.refuse_failed()?;
        let depth = self.saved.binary_search_by_key(&number, |saved| saved.number).map_err(|_| Error::Invalid {
            what: format!("savepoint {number} of the transaction was removed by a rollback to an earlier one"),
        })?;
        self.failed = true;
        // Without a mark, no operation has followed the savepoint. In replay, frames were sent.
        let mut is_cut = self.stream.is_some();
        if let (Some(stream), Some(mark)) = (&mut self.stream, &self.saved[depth].logged) {
            is_cut = stream.cut_back(mark);
        }
        self.restore(depth, is_cut);
        if is_cut {
            self.saved[depth].logged = None;
        } else {
            self.add_to_log(Op::RollBack { depth: depth as u32 })?;
        }
        self.failed = false;
        Ok(())
    }

    fn restore(&mut self, depth: usize, is_cut: bool) {
        self.saved.truncate(depth + 1);
        let saved = &self.saved[depth];
        let image = &mut self.work.image;
        image.catalog = saved.catalog;
        image.next_keyspace = saved.next_keyspace;
        image.keyspaces = saved.keyspaces;
        image.records = saved.records;
        image.cells_floor = saved.cells_floor;
        self.changed = saved.changed;
        self.trees.roll_back_to(depth);
        self.work.roll_back_to(depth, is_cut);
    }

    /// Writes marks of the savepoints that have none into the log, since an operation follows.
    pub(super) fn log_savepoints(&mut self) -> Result<()> {
        let first = self.saved.iter().rposition(|saved| saved.logged.is_some()).map_or(0, |last| last + 1);
        for depth in first..self.saved.len() {
            self.saved[depth].logged = self.stream.as_ref().map(Stream::boundary);
            self.add_to_log(Op::Savepoint { depth: depth as u32 })?;
        }
        Ok(())
    }

    /// Applies a logged mark or rollback. Returns false if no transaction can have logged it here.
    pub(super) fn replay_savepoint(&mut self, depth: u32, is_rollback: bool) -> Result<bool> {
        let depth = depth as usize;
        if is_rollback {
            let Some(number) = self.saved.get(depth).map(|saved| saved.number) else { return Ok(false) };
            self.roll_back_to(number)?;
        } else {
            if depth != self.saved.len() {
                return Ok(false);
            }
            self.savepoint();
        }
        Ok(true)
    }
}
