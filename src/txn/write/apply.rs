//! Applies a logged operation again, by the write path.

use super::{Filling, Write};
use crate::btree::check::PageSeen;
use crate::btree::walk::each_page;
use crate::files::dir;
use crate::files::page as format;
use crate::files::page::{HEADER_LEN, PageKind, PageWrite};
use crate::txn::ops::Op;
use crate::{Error, KeyspaceId, Result};

impl Write<'_> {
    /// Applies a logged operation. What it found when it was logged must be there again.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the damaged page or, at log position 0, the operation that the log
    /// must not contain.
    pub(crate) fn apply(&mut self, op: Op<'_>) -> Result<()> {
        match self.apply_found(op) {
            Ok(true) => Ok(()),
            Ok(false) | Err(Error::NoKeyspace { .. }) => Err(self.explain_missing(op)),
            Err(error) => Err(error),
        }
    }

    /// Returns the error for an operation that changes something which the pages do not contain.
    /// The cause is a damaged page that leads elsewhere, or else the record itself. A page that is
    /// only read on the path to a key is not checked against its checksum before this.
    fn explain_missing(&self, op: Op<'_>) -> Error {
        let (keyspace, what) = match op {
            Op::Delete { keyspace, .. } => (keyspace, "deletes a key that the pages don't have"),
            Op::DeleteRange { keyspace, .. } => (keyspace, "deletes a range in which the pages have no key"),
            Op::Put { keyspace, .. }
            | Op::LargePut { keyspace, .. }
            | Op::PutExtent { keyspace, .. }
            | Op::DropKeyspace { keyspace, .. } => (keyspace, "changes a keyspace that the pages don't have"),
            _ => (KeyspaceId(0), "changes what the pages don't have"),
        };
        let checked = [Ok(self.work.image.catalog.root), self.root(keyspace)]
            .into_iter()
            .flatten()
            .try_for_each(|root| each_page(&self.work, root, &mut |page| self.check_page(&page)));
        match checked {
            Ok(()) => Error::corrupt(dir::WAL, 0, format!("a record {what}, in keyspace number {}", keyspace.0)),
            Err(error) => error,
        }
    }

    /// Checks a page against its checksum if it has one. Returns true, so that the walk continues.
    fn check_page(&self, page: &PageSeen) -> Result<bool> {
        self.engine.progress.step();
        if page.created_txn > self.txn {
            let what = format!("page {} was created in {}, after {}", page.page.0, page.created_txn, self.txn);
            return Err(self.engine.arena.damaged(page.page, what));
        }
        if page.kind != PageKind::Extent {
            self.work.check(page.page, page.created_txn)?;
        }
        Ok(true)
    }

    /// Applies as [`Write::apply`]; returns whether the object that it changes was there.
    fn apply_found(&mut self, op: Op<'_>) -> Result<bool> {
        let damaged = |what: &str| Error::corrupt("wal", 0, what.to_string());
        if self.filling.is_some() && !matches!(op, Op::LargeBytes(_)) {
            return Err(damaged("the bytes of a large value are missing"));
        }
        match op {
            Op::Put { keyspace, key, value } => self.put(keyspace, key, value)?,
            Op::Delete { keyspace, key } => return self.delete(keyspace, key),
            Op::CreateKeyspace { keyspace, name } => {
                self.check_new_keyspace(name)?;
                if let Some(found) = self.find_keyspace(name)? {
                    let what =
                        format!("a record creates keyspace {name:?}, which the pages have as number {}", found.0);
                    return Err(damaged(&what));
                }
                self.step(|write| write.create_keyspace_as(keyspace, name))?;
            }
            Op::DropKeyspace { keyspace, .. } => self.drop_keyspace(keyspace)?,
            Op::Incarnation { last } => self.step(|write| write.note_incarnation(last))?,
            Op::CellsFloor(version) => self.raise_cells_floor(version)?,
            Op::DeleteRange { keyspace, start, end } => return Ok(self.delete_range(keyspace, start, end)? > 0),
            Op::Savepoint { depth } | Op::RollBack { depth } => {
                if !self.replay_savepoint(depth, matches!(op, Op::RollBack { .. }))? {
                    return Err(damaged("savepoints out of order"));
                }
            }
            Op::LargePut { keyspace, key, len } => {
                let len = u64::from(len);
                self.check_limits(key, len)?;
                let pages = format::extent_pages(self.engine.geometry.page_size, len);
                let page = self.work.allocate_extent(pages)?;
                let created_txn = self.txn;
                let body = self.work.extent_mut(page, pages)?;
                format::write_extent_header(body, page, pages, len, created_txn);
                let key = key.to_vec();
                self.filling = Some(Filling { keyspace, key, page, pages, len, filled: 0 });
            }
            Op::PutExtent { keyspace, key, extent } => {
                let len = u64::from(extent.len);
                self.check_limits(key, len)?;
                let pages = extent.pages(self.engine.geometry.page_size);
                self.open(keyspace)?;
                self.step(|write| {
                    write.work.adopt_extent(extent.page, pages)?;
                    write.store(keyspace, key, format::StoredValue::Extent { page: extent.page, pages, len })
                })?;
            }
            Op::LargeBytes(bytes) => {
                let Some(mut filling) = self.filling.take() else {
                    return Err(damaged("bytes of a large value that was not begun"));
                };
                let end = filling.filled + bytes.len() as u64;
                if end > filling.len {
                    return Err(damaged("more bytes than the large value has"));
                }
                let body = self.work.extent_mut(filling.page, filling.pages)?;
                let at = HEADER_LEN + filling.filled as usize;
                body[at..at + bytes.len()].copy_from_slice(bytes);
                filling.filled = end;
                if end < filling.len {
                    self.filling = Some(filling);
                    return Ok(true);
                }
                body[at + bytes.len()..].fill(0);
                let Filling { keyspace, key, page, pages, len, .. } = filling;
                self.step(|write| write.store(keyspace, &key, format::StoredValue::Extent { page, pages, len }))?;
            }
        }
        Ok(true)
    }
}
