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

use crate::btree::cursor::RangeCursor;
use crate::btree::{edit, search};
use crate::files::page as format;
use crate::files::page::{PageRead, PageWrite};
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
pub(crate) fn root<P: PageRead>(pages: &P, catalog: PageId, id: KeyspaceId) -> Result<Option<PageId>> {
    let Some(found) = search::get(pages, catalog, &id_key(id))? else { return Ok(None) };
    let bytes = found.value.first_chunk::<4>().ok_or_else(|| damaged("has an entry that is too short"))?;
    Ok(Some(PageId(u32::from_le_bytes(*bytes))))
}

/// Returns the whole entry of a keyspace.
pub(crate) fn entry<P: PageRead>(pages: &P, catalog: PageId, id: KeyspaceId) -> Result<Option<CatalogEntry>> {
    match search::get(pages, catalog, &id_key(id))? {
        Some(found) => decode(id, found.value).map(Some),
        None => Ok(None),
    }
}

/// Returns the number of the keyspace with this name.
pub(crate) fn find<P: PageRead>(pages: &P, catalog: PageId, name: &str) -> Result<Option<KeyspaceId>> {
    match search::get(pages, catalog, &name_key(name))? {
        Some(found) => Ok(Some(KeyspaceId(number(found.value)?))),
        None => Ok(None),
    }
}

/// Returns all keyspaces, by number.
pub(crate) fn list<P: PageRead>(pages: &P, catalog: PageId) -> Result<Vec<CatalogEntry>> {
    let mut cursor = RangeCursor::new(catalog, Bound::Included(&[0]), Bound::Excluded(&[1]));
    let mut found = Vec::new();
    let mut key = Vec::new();
    while let Some(at) = cursor.next(pages)? {
        at.key.key_into(&mut key);
        let id = key.get(1..).and_then(|id| id.try_into().ok());
        let id: [u8; 8] = id.ok_or_else(|| damaged("has a number that is not 8 bytes long"))?;
        found.push(decode(KeyspaceId(u64::from_be_bytes(id)), at.value)?);
    }
    Ok(found)
}

/// Writes a keyspace's entry.
pub(crate) fn store<W: PageWrite>(pages: &mut W, catalog: &mut PageId, entry: &CatalogEntry) -> Result<()> {
    let mut value = Vec::with_capacity(FIXED + entry.name.len());
    value.extend_from_slice(&entry.root.0.to_le_bytes());
    value.extend_from_slice(&[0; 4]);
    value.extend_from_slice(&entry.entries.to_le_bytes());
    value.extend_from_slice(entry.name.as_bytes());
    let version = pages.txn_id();
    edit::put(pages, catalog, &id_key(entry.id), version, format::StoredValue::Inline(&value))?;
    Ok(())
}

/// Writes the name of a new keyspace.
pub(crate) fn store_name<W: PageWrite>(pages: &mut W, catalog: &mut PageId, id: KeyspaceId, name: &str) -> Result<()> {
    let version = pages.txn_id();
    edit::put(pages, catalog, &name_key(name), version, format::StoredValue::Inline(&id.0.to_le_bytes()))?;
    Ok(())
}

/// Removes a keyspace's entry and name.
pub(crate) fn remove<W: PageWrite>(pages: &mut W, catalog: &mut PageId, entry: &CatalogEntry) -> Result<()> {
    edit::delete(pages, catalog, &id_key(entry.id))?;
    edit::delete(pages, catalog, &name_key(&entry.name))?;
    Ok(())
}

/// Records where the incarnation before `incarnation` ended.
pub(crate) fn store_incarnation<W: PageWrite>(
    pages: &mut W,
    catalog: &mut PageId,
    incarnation: u32,
    last: TxnId,
) -> Result<()> {
    let mut key = [2; 5];
    key[1..].copy_from_slice(&incarnation.to_be_bytes());
    let version = pages.txn_id();
    edit::put(pages, catalog, &key, version, format::StoredValue::Inline(&last.as_u64().to_le_bytes()))?;
    Ok(())
}

/// Returns the last transaction of each incarnation that has ended: (incarnation that followed,
/// last id).
pub(crate) fn incarnations<P: PageRead>(pages: &P, catalog: PageId) -> Result<Vec<(u32, TxnId)>> {
    let mut cursor = RangeCursor::new(catalog, Bound::Included(&[2]), Bound::Excluded(&[3]));
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
