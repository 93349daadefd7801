//! A write transaction. Each operation changes the pages and is recorded for the log.

mod apply;
mod extent;

use crate::btree::cursor::RangeCursor;
use crate::btree::edit::AppendPath;
use crate::btree::point_cursor::PointCursor;
use crate::btree::{edit, range, search};
use crate::files::extent::LOGGED_VALUE_BYTES_MIN;
use crate::files::page as format;
use crate::files::slot::{RecentTree, SlotImage};
use crate::key_range::HalfOpen;
use crate::pages::protection::Protection;
use crate::pages::reserve::SpaceQuota;
use crate::pages::workspace::Workspace;
use crate::participant::engine::Engine;
use crate::txn::catalog;
use crate::txn::ops::{LARGE_VALUE_BYTES_MIN, Op};
use crate::txn::savepoint::Saved;
use crate::txn::stream::Stream;
use crate::txn::trees::{OpenTree, OpenTrees};
use crate::{Error, KeyspaceId, LimitKind, PageId, Result, TxnId, Version, limits};
use std::ops::Bound;

/// The state of a write transaction. Its owner holds the writer lock.
///
/// Before [`Write::commit`] publishes it, no change is visible and none needs to be undone:
/// dropping the transaction rolls it back.
pub(crate) struct Write<'e> {
    pub(crate) engine: &'e Engine,
    pub(crate) work: Workspace<'e>,
    pub(crate) base: SlotImage,
    pub(crate) txn: TxnId,
    /// The log record; `None` in replay, since the records are in the log already.
    pub(crate) stream: Option<Stream>,
    pub(crate) changed: bool,
    pub(super) trees: OpenTrees,
    /// Whether an operation failed in the middle, so that the transaction can only be rolled back.
    pub(super) failed: bool,
    /// The savepoints to which the transaction can return, and how many were made in all.
    pub(super) saved: Vec<Saved>,
    pub(super) savepoints_made: u64,
    /// A large value whose bytes are still coming (replay only).
    filling: Option<Filling>,
}

struct Filling {
    keyspace: KeyspaceId,
    key: Vec<u8>,
    page: PageId,
    pages: u32,
    len: u64,
    filled: u64,
}

impl<'e> Write<'e> {
    /// Begins the transaction after the newest visible one. The caller holds the writer lock.
    ///
    /// # Errors
    /// [`Error::Limit`] if no id is left.
    pub(crate) fn begin(engine: &'e Engine) -> Result<Write<'e>> {
        engine.control.refuse_poisoned()?;
        engine.arena.make_writable(|| engine.arena_file())?;
        let base = engine.control.newest()?;
        let txn = base.txn.next_in(engine.control.incarnation()?)?;
        let stream = Some(Stream::begin(engine, &base, txn)?);
        Write::new(engine, base, txn, stream, Protection::Live)
    }

    /// Begins the transaction `txn` after `base`, to replay its records in recovery.
    pub(crate) fn replay(engine: &'e Engine, base: SlotImage, txn: TxnId, recovery: Protection) -> Result<Write<'e>> {
        let mut write = Write::new(engine, base, txn, None, recovery)?;
        write.work.take_out_unreplayed()?;
        Ok(write)
    }

    fn new(
        engine: &'e Engine,
        base: SlotImage,
        txn: TxnId,
        stream: Option<Stream>,
        protection: Protection,
    ) -> Result<Write<'e>> {
        let log_from = stream.as_ref().map_or(base.log_tail, Stream::from);
        Ok(Write {
            engine,
            work: Workspace::new(engine, base, log_from, txn, protection),
            base,
            txn,
            stream,
            changed: false,
            trees: OpenTrees::default(),
            failed: false,
            saved: Vec::new(),
            savepoints_made: 0,
            filling: None,
        })
    }

    /// Returns the id that the transaction will have.
    pub(crate) fn txn_id(&self) -> TxnId {
        self.txn
    }

    /// Returns the transaction that this one began from.
    pub(crate) fn base(&self) -> TxnId {
        self.base.txn
    }

    /// Runs a step that changes pages. If it fails in the middle, the transaction can only be
    /// rolled back, so arguments are checked before it.
    fn step<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.refuse_failed()?;
        self.failed = true;
        if self.begins_incarnation() && self.stream.is_some() && !self.changed {
            self.note_incarnation(self.base.txn)?;
        }
        let done = step(self)?;
        self.failed = false;
        Ok(done)
    }

    fn log(&mut self, op: Op<'_>) -> Result<()> {
        self.changed = true;
        if self.saved.last().is_some_and(Saved::needs_mark) && self.stream.is_some() {
            self.log_savepoints()?;
        }
        self.add_to_log(op)
    }

    /// Adds an operation to the log record. Does nothing in replay, since the operations are in the
    /// log already.
    pub(super) fn add_to_log(&mut self, op: Op<'_>) -> Result<()> {
        match &mut self.stream {
            Some(stream) => {
                let added = stream.add(self.engine, op);
                // Also after an error, for the next operation.
                if stream.take_checkpointed() {
                    self.work.refresh()?;
                }
                added
            }
            None => Ok(()),
        }
    }

    /// Sets the quota of the transaction, which overwrites records with others of the same length.
    pub(crate) fn overwrites_only(&mut self, quota: SpaceQuota) {
        self.work.set_quota(quota);
    }

    // ---- keyspaces

    /// Returns the index of a keyspace in `trees`.
    fn open(&mut self, id: KeyspaceId) -> Result<usize> {
        if let Some(at) = self.trees.position(id) {
            return Ok(at);
        }
        let entry = catalog::entry(&self.work, &self.work.image.catalog, id)?
            .ok_or_else(|| Error::NoKeyspace { name: format!("number {}", id.0) })?;
        Ok(self.trees.open(OpenTree { entry, changed: false, append: AppendPath::default() }))
    }

    /// Returns the root of a keyspace's tree as the transaction sees it.
    fn root(&self, id: KeyspaceId) -> Result<PageId> {
        if let Some(at) = self.trees.position(id) {
            return Ok(self.trees.at(at).entry.root);
        }
        catalog::root(&self.work, &self.work.image.catalog, id)?
            .ok_or_else(|| Error::NoKeyspace { name: format!("number {}", id.0) })
    }

    /// Returns the keyspace of this name.
    pub(crate) fn find_keyspace(&self, name: &str) -> Result<Option<KeyspaceId>> {
        catalog::find(&self.work, &self.work.image.catalog, name)
    }

    /// Creates a keyspace.
    pub(crate) fn create_keyspace(&mut self, name: &str) -> Result<KeyspaceId> {
        self.refuse_failed()?;
        self.check_new_keyspace(name)?;
        let least = self.work.image.next_keyspace;
        let id = self.engine.control.fixed().stream.take_keyspace_number(least).ok_or(Error::Limit {
            what: LimitKind::KeyspaceNumbers,
            found: u64::MAX,
            limit: u64::MAX - 1,
        })?;
        self.step(|write| write.create_keyspace_as(id, name))?;
        Ok(id)
    }

    fn check_new_keyspace(&self, name: &str) -> Result<()> {
        if name.len() > limits::KEYSPACE_NAME_LEN_MAX {
            return Err(Error::Limit {
                what: LimitKind::KeyspaceNameLength,
                found: name.len() as u64,
                limit: limits::KEYSPACE_NAME_LEN_MAX as u64,
            });
        }
        if self.work.image.keyspaces >= limits::KEYSPACES_MAX {
            return Err(Error::Limit {
                what: LimitKind::Keyspaces,
                found: self.work.image.keyspaces + 1,
                limit: limits::KEYSPACES_MAX,
            });
        }
        Ok(())
    }

    fn create_keyspace_as(&mut self, id: KeyspaceId, name: &str) -> Result<()> {
        self.work.grow();
        let mut catalog = self.work.image.catalog;
        let entry = catalog::CatalogEntry { id, root: PageId::NONE, entries: 0, name: name.to_string() };
        catalog::create(&mut self.work, &mut catalog, &entry)?;
        self.work.image.catalog = catalog;
        self.work.image.next_keyspace = self.work.image.next_keyspace.max(id.0.saturating_add(1));
        self.work.image.keyspaces += 1;
        self.log(Op::CreateKeyspace { keyspace: id, name })
    }

    /// Drops a keyspace and everything in it.
    pub(crate) fn drop_keyspace(&mut self, id: KeyspaceId) -> Result<()> {
        self.refuse_failed()?;
        self.open(id)?;
        self.step(|write| {
            let tree = write.trees.close(id).expect("opened above");
            edit::free_tree(&mut write.work, tree.entry.root)?;
            let mut catalog = write.work.image.catalog;
            catalog::remove(&mut write.work, &mut catalog, &tree.entry)?;
            write.work.image.catalog = catalog;
            write.work.image.keyspaces = write.work.image.keyspaces.saturating_sub(1);
            write.work.image.records -= tree.entry.entries.min(write.work.image.records);
            write.log(Op::DropKeyspace { keyspace: id, name: &tree.entry.name })
        })
    }

    // ---- records

    pub(crate) fn get(&self, id: KeyspaceId, key: &[u8]) -> Result<Option<&[u8]>> {
        self.refuse_failed()?;
        let root = self.root(id)?;
        Ok(search::get(&self.work, root, key)?.map(|found| found.value))
    }

    /// Returns the value of a key and its version: the transaction that wrote it last, which may be
    /// this one.
    pub(crate) fn get_versioned(&self, id: KeyspaceId, key: &[u8]) -> Result<Option<(&[u8], TxnId)>> {
        self.refuse_failed()?;
        let root = self.root(id)?;
        Ok(search::get(&self.work, root, key)?.map(|found| (found.value, found.version)))
    }

    /// Returns a cursor over a range; it is valid until the transaction changes something.
    pub(crate) fn cursor(&self, id: KeyspaceId, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Result<RangeCursor> {
        self.refuse_failed()?;
        Ok(RangeCursor::new(self.root(id)?, lower, upper))
    }

    /// Returns a cursor on one entry; it is valid until the transaction changes something.
    pub(crate) fn point_cursor(&self, id: KeyspaceId) -> Result<PointCursor> {
        self.refuse_failed()?;
        Ok(PointCursor::new(self.root(id)?))
    }

    pub(crate) fn work(&self) -> &Workspace<'e> {
        &self.work
    }

    pub(crate) fn put(&mut self, id: KeyspaceId, key: &[u8], value: &[u8]) -> Result<()> {
        self.check_limits(key, value.len() as u64)?;
        self.open(id)?;
        self.work.grow();
        if value.len() >= LOGGED_VALUE_BYTES_MIN && self.stream.is_some() {
            return self.put_extent(id, key, value);
        }
        self.step(|write| {
            let page_size = write.engine.geometry.page_size;
            if edit::needs_extent(page_size, key.len(), value.len()) {
                let extent = format::write_extent(&mut write.work, value)?;
                write.store(id, key, extent)?;
            } else {
                write.store(id, key, format::StoredValue::Inline(value))?;
            }
            if value.len() <= LARGE_VALUE_BYTES_MIN {
                return write.log(Op::Put { keyspace: id, key, value });
            }
            write.log(Op::LargePut { keyspace: id, key, len: value.len() as u32 })?;
            for piece in value.chunks(LARGE_VALUE_BYTES_MIN) {
                write.log(Op::LargeBytes(piece))?;
            }
            Ok(())
        })
    }

    fn check_limits(&self, key: &[u8], value_len: u64) -> Result<()> {
        let key_len_max = limits::key_len_max(self.engine.geometry.page_size);
        if key.len() > key_len_max {
            return Err(Error::Limit {
                what: LimitKind::KeyLength,
                found: key.len() as u64,
                limit: key_len_max as u64,
            });
        }
        if value_len > limits::VALUE_LEN_MAX {
            return Err(Error::Limit { what: LimitKind::ValueLength, found: value_len, limit: limits::VALUE_LEN_MAX });
        }
        Ok(())
    }

    /// Stores a value in the tree.
    fn store(&mut self, id: KeyspaceId, key: &[u8], value: format::StoredValue<'_>) -> Result<()> {
        let at = self.open(id)?;
        let mut root = self.trees.at(at).entry.root;
        let mut append = self.trees.take_append(at);
        let replaced = edit::put_after(&mut self.work, &mut root, key, self.txn, value, &mut append)?;
        let tree = self.trees.change(at);
        tree.append = append;
        tree.entry.root = root;
        tree.changed = true;
        if !replaced {
            tree.entry.entries = tree.entry.entries.saturating_add(1);
            self.work.image.records = self.work.image.records.saturating_add(1);
        }
        Ok(())
    }

    pub(crate) fn delete(&mut self, id: KeyspaceId, key: &[u8]) -> Result<bool> {
        self.check_limits(key, 0)?;
        self.refuse_failed()?;
        let at = self.open(id)?;
        // A delete of a missing key must not copy the path.
        if search::get(&self.work, self.trees.at(at).entry.root, key)?.is_none() {
            return Ok(false);
        }
        self.step(|write| {
            let mut root = write.trees.at(at).entry.root;
            edit::delete(&mut write.work, &mut root, key)?;
            let tree = write.trees.change(at);
            tree.append.clear();
            tree.entry.root = root;
            tree.changed = true;
            // Counts come from stored bytes, which may be damaged.
            tree.entry.entries = tree.entry.entries.saturating_sub(1);
            write.work.image.records = write.work.image.records.saturating_sub(1);
            write.log(Op::Delete { keyspace: id, key })
        })?;
        Ok(true)
    }

    /// Removes the keys between two bounds, of any length. Returns how many there were.
    pub(crate) fn delete_bounds(&mut self, id: KeyspaceId, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Result<u64> {
        let range = HalfOpen::new(lower, upper, limits::key_len_max(self.engine.geometry.page_size));
        self.delete_range(id, &range.start, range.end.as_deref())
    }

    /// Removes the keys from `start` on, below `end` if there is one. Returns how many there were.
    fn delete_range(&mut self, id: KeyspaceId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
        self.refuse_failed()?;
        let at = self.open(id)?;
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = RangeCursor::new(self.trees.at(at).entry.root, Bound::Included(start), upper);
        if found.next(&self.work)?.is_none() {
            return Ok(0);
        }
        self.step(|write| {
            let mut root = write.trees.at(at).entry.root;
            let removed = range::delete(&mut write.work, &mut root, start, end)?;
            let tree = write.trees.change(at);
            tree.append.clear();
            tree.entry.root = root;
            tree.changed = true;
            tree.entry.entries = tree.entry.entries.saturating_sub(removed);
            write.work.image.records = write.work.image.records.saturating_sub(removed);
            write.log(Op::DeleteRange { keyspace: id, start, end })?;
            Ok(removed)
        })
    }

    /// Returns whether this is the first transaction of its incarnation.
    pub(crate) fn begins_incarnation(&self) -> bool {
        self.txn.incarnation() != self.base.txn.incarnation()
    }

    /// Records a new incarnation; the one before it ended with `last`. This is the first change of
    /// its first transaction.
    fn note_incarnation(&mut self, last: TxnId) -> Result<()> {
        let mut catalog = self.work.image.catalog;
        catalog::store_incarnation(&mut self.work, &mut catalog, self.txn.incarnation(), last)?;
        self.work.image.catalog = catalog;
        let floor = self.work.image.cells_floor;
        self.work.image.cells_floor = floor.floor(last.incarnation(), self.txn.incarnation());
        self.log(Op::Incarnation { last })
    }

    // ---- cells

    /// Returns the version above which those of new cells are.
    pub(crate) fn cells_floor(&self) -> Version {
        let noted_in = if self.changed { self.txn } else { self.base.txn };
        self.work.image.cells_floor.floor(noted_in.incarnation(), self.txn.incarnation())
    }

    /// Records that dropped cells have had versions up to `version`.
    pub(crate) fn raise_cells_floor(&mut self, version: Version) -> Result<()> {
        if version <= self.work.image.cells_floor {
            return Ok(());
        }
        self.step(|write| {
            write.work.image.cells_floor = write.work.image.cells_floor.max(version);
            write.log(Op::CellsFloor(version))
        })
    }

    /// Records the changed keyspaces' roots in the image or, beyond the most recent ones, in the
    /// catalog.
    pub(crate) fn store_trees(&mut self) -> Result<()> {
        let mut catalog = self.work.image.catalog;
        for tree in self.trees.all_mut() {
            if std::mem::take(&mut tree.changed) {
                let (keyspace, root, entries) = (tree.entry.id, tree.entry.root, tree.entry.entries);
                catalog::set_tree(&mut self.work, &mut catalog, RecentTree { keyspace, root, entries })?;
            }
        }
        self.work.image.catalog = catalog;
        Ok(())
    }

    /// Returns an error if an operation has failed in the middle: the trees hold neither the old
    /// nor the new state then.
    pub(crate) fn refuse_failed(&self) -> Result<()> {
        if self.failed {
            return Err(Error::TransactionFailed);
        }
        Ok(())
    }
}
