//! The catalog: a tree that maps keyspaces to the roots of their trees.
//!
//! | key | value |
//! |---|---|
//! | 0, number (u64, big-endian) | root page u32, reserved u32, entries u64, name |
//! | 1, name | number u64 |
//! | 2, incarnation (u32, big-endian) | last transaction id of the incarnation before it, u64 |
//!
//! A name is resolved once, when a handle is made. Each access then finds the root by number, so a
//! handle to a dropped keyspace never leads to a new one of the same name.
//!
//! The roots and counts of the trees that changed last are not here but in the image of the commit
//! ([`CatalogState`]), so that most commits change no page of the catalog.

use crate::btree::cursor::RangeCursor;
use crate::btree::{edit, search};
use crate::files::page as format;
use crate::files::page::{PageRead, PageWrite};
use crate::files::slot::{CatalogState, RecentTree};
use crate::{Error, KeyspaceId, PageId, Result, TxnId};
use std::ops::Bound;

/// The catalog's entry of a keyspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CatalogEntry {
    pub(crate) id: KeyspaceId,
    pub(crate) root: PageId,
    pub(crate) entries: u64,
    pub(crate) name: String,
}

/// The number of bytes before the name.
const FIXED: usize = 16;

fn id_key(id: KeyspaceId) -> [u8; 9] {
    let mut key = [0; 9];
    key[1..].copy_from_slice(&id.0.to_be_bytes());
    key
}

fn name_key(name: &str) -> Vec<u8> {
    [&[1], name.as_bytes()].concat()
}

fn damaged(what: &str) -> Error {
    Error::corrupt("arena", 0, format!("the catalog {what}"))
}

fn number(value: &[u8]) -> Result<u64> {
    let bytes = value.try_into().map_err(|_| damaged("has a number that is not 8 bytes long"))?;
    Ok(u64::from_le_bytes(bytes))
}

fn decode(id: KeyspaceId, value: &[u8]) -> Result<CatalogEntry> {
    let Some((fixed, name)) = value.split_at_checked(FIXED) else {
        return Err(damaged("has an entry that is too short"));
    };
    Ok(CatalogEntry {
        id,
        root: PageId(u32::from_le_bytes(fixed[..4].try_into().expect("4 bytes"))),
        entries: u64::from_le_bytes(fixed[8..].try_into().expect("8 bytes")),
        name: String::from_utf8(name.to_vec()).map_err(|_| damaged("has a name that is not UTF-8"))?,
    })
}

/// Returns the root of a keyspace's tree; `None` if there is no such keyspace.
#[inline]
pub(crate) fn root<P: PageRead>(pages: &P, catalog: &CatalogState, id: KeyspaceId) -> Result<Option<PageId>> {
    if let Some(tree) = catalog.recent(id) {
        return Ok(Some(tree.root));
    }
    let Some(found) = search::get(pages, catalog.root, &id_key(id))? else { return Ok(None) };
    let bytes = found.value.first_chunk::<4>().ok_or_else(|| damaged("has an entry that is too short"))?;
    Ok(Some(PageId(u32::from_le_bytes(*bytes))))
}

/// Returns the whole entry of a keyspace.
pub(crate) fn entry<P: PageRead>(pages: &P, catalog: &CatalogState, id: KeyspaceId) -> Result<Option<CatalogEntry>> {
    match search::get(pages, catalog.root, &id_key(id))? {
        Some(found) => decode(id, found.value).map(|entry| Some(entry.with_recent(catalog))),
        None => Ok(None),
    }
}

/// Returns the number of the keyspace with this name.
pub(crate) fn find<P: PageRead>(pages: &P, catalog: &CatalogState, name: &str) -> Result<Option<KeyspaceId>> {
    match search::get(pages, catalog.root, &name_key(name))? {
        Some(found) => Ok(Some(KeyspaceId(number(found.value)?))),
        None => Ok(None),
    }
}

/// Returns all keyspaces, by number.
pub(crate) fn list<P: PageRead>(pages: &P, catalog: &CatalogState) -> Result<Vec<CatalogEntry>> {
    let mut cursor = RangeCursor::new(catalog.root, Bound::Included(&[0]), Bound::Excluded(&[1]));
    let mut found = Vec::new();
    let mut key = Vec::new();
    while let Some(at) = cursor.next(pages)? {
        at.key.key_into(&mut key);
        let id = key.get(1..).and_then(|id| id.try_into().ok());
        let id: [u8; 8] = id.ok_or_else(|| damaged("has a number that is not 8 bytes long"))?;
        found.push(decode(KeyspaceId(u64::from_be_bytes(id)), at.value)?.with_recent(catalog));
    }
    Ok(found)
}

impl CatalogEntry {
    /// Replaces root and count by those in the image of the commit, if it has them.
    fn with_recent(self, catalog: &CatalogState) -> CatalogEntry {
        match catalog.recent(self.id) {
            Some(RecentTree { root, entries, .. }) => CatalogEntry { root, entries, ..self },
            None => self,
        }
    }
}

/// Writes the entry of a new keyspace.
pub(crate) fn create<W: PageWrite>(pages: &mut W, catalog: &mut CatalogState, entry: &CatalogEntry) -> Result<()> {
    write(pages, catalog, entry)?;
    let (version, number) = (pages.txn_id(), entry.id.0.to_le_bytes());
    let name = name_key(&entry.name);
    edit::put(pages, &mut catalog.root, &name, version, format::StoredValue::Inline(&number))?;
    Ok(())
}

/// Sets root and count of a keyspace's tree. If another tree is displaced from the image of the
/// commit, its root and count are written into the catalog.
///
/// # Errors
/// `Corrupt` if the catalog lacks the displaced tree, and those of [`edit::put`].
pub(crate) fn set_tree<W: PageWrite>(pages: &mut W, catalog: &mut CatalogState, tree: RecentTree) -> Result<()> {
    let at = catalog.recent.iter().position(|recent| recent.keyspace == tree.keyspace);
    let at = at.unwrap_or(catalog.recent.len() - 1);
    let displaced = catalog.recent[at];
    if displaced.keyspace != tree.keyspace && displaced != RecentTree::NONE {
        let missing = || damaged("lacks a keyspace whose tree has changed");
        let entry = entry(pages, catalog, displaced.keyspace)?.ok_or_else(missing)?;
        write(pages, catalog, &entry)?;
    }
    catalog.recent[..=at].rotate_right(1);
    catalog.recent[0] = tree;
    Ok(())
}

fn write<W: PageWrite>(pages: &mut W, catalog: &mut CatalogState, entry: &CatalogEntry) -> Result<()> {
    let mut value = Vec::with_capacity(FIXED + entry.name.len());
    value.extend_from_slice(&entry.root.0.to_le_bytes());
    value.extend_from_slice(&[0; 4]);
    value.extend_from_slice(&entry.entries.to_le_bytes());
    value.extend_from_slice(entry.name.as_bytes());
    let version = pages.txn_id();
    edit::put(pages, &mut catalog.root, &id_key(entry.id), version, format::StoredValue::Inline(&value))?;
    Ok(())
}

/// Removes a keyspace's entry and name.
pub(crate) fn remove<W: PageWrite>(pages: &mut W, catalog: &mut CatalogState, entry: &CatalogEntry) -> Result<()> {
    if let Some(at) = catalog.recent.iter().position(|tree| tree.keyspace == entry.id) {
        catalog.recent[at..].rotate_left(1);
        *catalog.recent.last_mut().expect("two trees") = RecentTree::NONE;
    }
    edit::delete(pages, &mut catalog.root, &id_key(entry.id))?;
    edit::delete(pages, &mut catalog.root, &name_key(&entry.name))?;
    Ok(())
}

/// Records where the incarnation before `incarnation` ended.
pub(crate) fn store_incarnation<W: PageWrite>(
    pages: &mut W,
    catalog: &mut CatalogState,
    incarnation: u32,
    last: TxnId,
) -> Result<()> {
    let mut key = [2; 5];
    key[1..].copy_from_slice(&incarnation.to_be_bytes());
    let version = pages.txn_id();
    edit::put(pages, &mut catalog.root, &key, version, format::StoredValue::Inline(&last.as_u64().to_le_bytes()))?;
    Ok(())
}

/// Returns the last transaction of each incarnation that has ended: (incarnation that followed,
/// last id).
pub(crate) fn incarnations<P: PageRead>(pages: &P, catalog: &CatalogState) -> Result<Vec<(u32, TxnId)>> {
    let mut cursor = RangeCursor::new(catalog.root, Bound::Included(&[2]), Bound::Excluded(&[3]));
    let mut found = Vec::new();
    let mut key = Vec::new();
    while let Some(at) = cursor.next(pages)? {
        at.key.key_into(&mut key);
        let id = key.get(1..).and_then(|id| id.try_into().ok());
        let id: [u8; 4] = id.ok_or_else(|| damaged("has an odd incarnation"))?;
        found.push((u32::from_be_bytes(id), TxnId::from_u64(number(at.value)?)));
    }
    Ok(found)
}
