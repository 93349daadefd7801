//! Changes of a tree: put, delete, and freeing all its pages.
//!
//! A page that this transaction created and that no savepoint contains is changed in place. Any
//! other page on the path is copied first, and the old one is freed. After an error the working
//! tree is in an undefined state, and the whole transaction must be rolled back.

use crate::btree::balance::PendingSplit;
use crate::btree::node::{EXTENT_BIT, Node, Payload, SearchResult, VERSION_LEN};
use crate::btree::node_mut;
use crate::btree::rebuild::{EntryList, NodeIdentity, inline_len_max, separator};
use crate::btree::{balance, check, search};
use crate::files::page as format;
use crate::files::page::{EXTENT_REF_LEN, StoredValue, read_extent, set_identity};
use crate::files::page::{PageRead, PageWrite};
use crate::ids::PageId;
use crate::limits::key_len_max;
use crate::{Error, LimitKind, Result, TxnId};

/// A page on the path to a leaf, and the index of the child taken there.
#[derive(Clone, Copy)]
pub(crate) struct PathStep {
    pub(crate) page: PageId,
    pub(crate) index: usize,
}

/// The path from the root to a leaf.
pub(crate) struct Path {
    pub(crate) branches: Vec<PathStep>,
    pub(crate) leaf: PageId,
    /// Whether the leaf is the last of the tree.
    pub(crate) is_last: bool,
    pub(crate) result: SearchResult,
}

impl Path {
    pub(crate) fn find<P: PageRead>(pages: &P, root: PageId, key: &[u8]) -> Result<Path> {
        let mut branches = Vec::with_capacity(8);
        let mut is_last = true;
        let (leaf, result) = search::descend(pages, root, key, |branch, index| {
            is_last &= index == branch.count();
            branches.push(PathStep { page: branch.id, index });
        })?;
        Ok(Path { branches, leaf: leaf.id, is_last, result })
    }

    /// Makes every page on the path writable in this transaction.
    pub(crate) fn own<W: PageWrite>(&mut self, pages: &mut W, root: &mut PageId) -> Result<()> {
        let mut parent: Option<PathStep> = None;
        // No page is newer than its parent. A page with a later created_txn is damaged. If it
        // passed for a page of this transaction, its checksum would not be checked.
        let mut youngest = pages.txn_id();
        for step in self.branches.iter_mut().map(|step| (&mut step.page, step.index)).chain([(&mut self.leaf, 0)]) {
            let (page, index) = step;
            let old = *page;
            (*page, youngest) = make_writable(pages, old, youngest)?;
            if *page != old {
                match parent {
                    None => *root = *page,
                    Some(parent) => {
                        node_mut::set_child(pages.body_mut(parent.page)?, parent.page, parent.index, *page)?
                    }
                }
            }
            parent = Some(PathStep { page: *page, index });
        }
        Ok(())
    }
}

/// Returns a page of this transaction with the content of `id` (copy on write), and the created_txn
/// of `id`. If `id` was created after `youngest`, it is damaged.
pub(crate) fn make_writable<W: PageWrite>(pages: &mut W, id: PageId, youngest: TxnId) -> Result<(PageId, TxnId)> {
    let node = Node::open(pages, id)?;
    let created_txn = node.created_txn();
    if created_txn > youngest {
        return Err(
            node.damaged(format!("created in {created_txn}, after its parent or this transaction ({youngest})"))
        );
    }
    if pages.is_own(id, created_txn) {
        return Ok((id, created_txn));
    }
    ensure_sound(pages, &node)?;
    let unused = node.arrays_end()..node.heap_start();
    let copy = pages.allocate()?;
    pages.copy_page(id, copy, unused)?;
    let txn = pages.txn_id();
    set_identity(pages.body_mut(copy)?, copy, txn);
    pages.note_checked(copy, txn);
    pages.free(id, 1, created_txn);
    Ok((copy, created_txn))
}

/// Checks the structure and the checksum of a page whose bytes are about to be copied or freed,
/// once in each process. The functions that change pages rely on the structure. A copy of damaged
/// bytes would get a valid checksum.
///
/// # Errors
/// `Corrupt` if the page is damaged.
pub(crate) fn ensure_sound<W: PageWrite>(pages: &W, node: &Node<'_>) -> Result<()> {
    let (id, created_txn) = (node.id, node.created_txn());
    if pages.is_checked(id, created_txn) {
        return Ok(());
    }
    node.audit()?;
    pages.check(id, created_txn)?;
    pages.note_checked(id, created_txn);
    Ok(())
}

/// Returns whether a value of this length needs an extent of its own.
pub(crate) fn needs_extent(page_size: usize, key_len: usize, value_len: usize) -> bool {
    key_len + value_len > inline_len_max(page_size)
}

/// The path to the last leaf of a tree, whose pages all belong to the running transaction. A key
/// beyond the last one is inserted there without a search.
///
/// The path is valid until the tree changes in another way than by [`put_after`], or a savepoint is
/// made.
#[derive(Default)]
pub(crate) struct AppendPath(Option<Path>);

/// A clone has no path, since it belongs to another state of the tree.
impl Clone for AppendPath {
    fn clone(&self) -> Self {
        AppendPath::default()
    }
}

impl AppendPath {
    /// Forgets the path.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }

    /// Takes the path. Returns it only if `key` comes after all keys of the tree.
    fn take<P: PageRead>(&mut self, pages: &P, key: &[u8]) -> Result<Option<Path>> {
        let Some(mut path) = self.0.take() else { return Ok(None) };
        let leaf = Node::open(pages, path.leaf)?;
        path.result = leaf.find(key)?;
        Ok((path.result == SearchResult { index: leaf.count(), found: false }).then_some(path))
    }
}

/// Sets the entry of a key, as [`put_after`] does.
pub(crate) fn put<W: PageWrite>(
    pages: &mut W,
    root: &mut PageId,
    key: &[u8],
    version: TxnId,
    value: StoredValue<'_>,
) -> Result<bool> {
    put_after(pages, root, key, version, value, &mut AppendPath::default())
}

/// Sets the entry of a key. Returns true if there was one before. The extent of a replaced value is
/// freed. `append` must belong to this tree. On return, it holds the path only if the entry was
/// inserted as the last one, without a split.
///
/// # Errors
/// `Limit` if the key is too long, or if an inline value [needs an extent](needs_extent); `Corrupt`
/// if a page is damaged; the errors of allocation.
pub(crate) fn put_after<W: PageWrite>(
    pages: &mut W,
    root: &mut PageId,
    key: &[u8],
    version: TxnId,
    value: StoredValue<'_>,
    append: &mut AppendPath,
) -> Result<bool> {
    check_lengths(pages.page_size(), key, &value)?;
    let version = version.as_u64().to_le_bytes();
    let reference;
    let payload = match value {
        StoredValue::Inline(bytes) => Payload { version: &version, value: bytes, slot_data: bytes.len() as u32 },
        StoredValue::Extent { page, pages, len } => {
            reference = StoredValue::encode_extent(page, pages, len);
            Payload { version: &version, value: &reference, slot_data: (EXTENT_REF_LEN as u16 | EXTENT_BIT).into() }
        }
    };
    const { assert!(VERSION_LEN == size_of::<TxnId>()) };
    if root.is_none() {
        *root = create(pages, key, payload)?;
        return Ok(false);
    }
    if let Some(path) = append.take(pages, key)? {
        // A split makes the path invalid. The tree is then searched for the next key.
        if insert(pages, root, &path, key, payload)? {
            append.0 = Some(path);
        }
        return Ok(false);
    }
    let mut path = Path::find(pages, *root, key)?;
    path.own(pages, root)?;
    if path.result.found {
        free_value(pages, path.leaf, path.result.index)?;
        let leaf = pages.body_mut(path.leaf)?;
        if node_mut::overwrite(leaf, path.leaf, path.result.index, payload)? {
            return Ok(true);
        }
        node_mut::remove(leaf, path.leaf, path.result.index)?;
    }
    let found = path.result.found;
    let is_last = path.is_last && path.result.index == Node::open(pages, path.leaf)?.count();
    if insert(pages, root, &path, key, payload)? && is_last {
        append.0 = Some(path);
    }
    Ok(found)
}

fn check_lengths(page_size: usize, key: &[u8], value: &StoredValue<'_>) -> Result<()> {
    let limit = key_len_max(page_size);
    if key.len() > limit {
        return Err(Error::Limit { what: LimitKind::KeyLength, found: key.len() as u64, limit: limit as u64 });
    }
    match value {
        StoredValue::Inline(bytes) if needs_extent(page_size, key.len(), bytes.len()) => Err(Error::Limit {
            what: LimitKind::ValueLength,
            found: (key.len() + bytes.len()) as u64,
            limit: inline_len_max(page_size) as u64,
        }),
        _ => Ok(()),
    }
}

/// Makes the first page of a tree.
fn create<W: PageWrite>(pages: &mut W, key: &[u8], payload: Payload<'_>) -> Result<PageId> {
    let mut items = EntryList::new(0);
    items.insert(0, key, payload);
    let id = pages.allocate()?;
    let identity = NodeIdentity { id, created_txn: pages.txn_id(), first_child: PageId::NONE };
    let body = pages.body_mut(id)?;
    items.write(0..1, items.fit(0..1, body.len()).unwrap_or(0), body, identity);
    Ok(id)
}

/// Inserts a new entry into the path's leaf: in place, otherwise by rebuilding the page, otherwise
/// by splitting it. Returns false if the leaf was split.
fn insert<W: PageWrite>(
    pages: &mut W,
    root: &mut PageId,
    path: &Path,
    key: &[u8],
    payload: Payload<'_>,
) -> Result<bool> {
    let (leaf, index) = (path.leaf, path.result.index);
    let created_txn = pages.txn_id();
    let body = pages.body_mut(leaf)?;
    if node_mut::insert(body, leaf, index, key, payload)? {
        return Ok(true);
    }
    let limit = body.len();
    let mut items = EntryList::read(&Node::parse(body, leaf)?)?;
    items.insert(index, key, payload);
    let n = items.len();
    let identity = |id| NodeIdentity { id, created_txn, first_child: PageId::NONE };
    if let Some(prefix_len) = items.fit(0..n, limit) {
        items.write(0..n, prefix_len, body, identity(leaf));
        return Ok(true);
    }
    // The last page stays as it is, and the new entry goes to a new page. So ascending insertions
    // fill their pages.
    let cuts = if path.is_last && index + 1 == n {
        vec![index]
    } else if let Some(cut) = items.cut(limit) {
        vec![cut]
    } else {
        // The new entry fits with neither neighbour's prefix: it gets a page of its own between two
        // parts of the old page.
        vec![index, index + 1]
    };
    let ends = cuts[1..].iter().copied().chain([n]);
    let mut split = Vec::with_capacity(cuts.len());
    for (start, end) in cuts.iter().copied().zip(ends) {
        let id = pages.allocate()?;
        write_group(&items, start..end, pages.body_mut(id)?, identity(id))?;
        let separator = separator(items.key(start - 1), items.key(start)).to_vec();
        split.push(PendingSplit { separator, page: id });
    }
    if !(path.is_last && index + 1 == n) {
        write_group(&items, 0..cuts[0], pages.body_mut(leaf)?, identity(leaf))?;
    }
    balance::insert_children(pages, root, path, split)?;
    Ok(false)
}

/// Writes entries that are known to fit one page.
pub(crate) fn write_group(
    items: &EntryList,
    range: std::ops::Range<usize>,
    body: &mut [u8],
    identity: NodeIdentity,
) -> Result<()> {
    let page_size = body.len() + format::CHECKSUM_LEN;
    let prefix_len = items
        .fit(range.clone(), body.len())
        .ok_or_else(|| format::damaged(identity.id, page_size, "longer entries than can be written"))?;
    items.write(range, prefix_len, body, identity);
    Ok(())
}

/// Frees the extent of an entry, if its value has one.
fn free_value<W: PageWrite>(pages: &mut W, leaf: PageId, index: usize) -> Result<()> {
    let (version, value) = Node::open(pages, leaf)?.entry(index)?;
    if let StoredValue::Extent { page, pages: count, len } = value {
        let (_, created_txn) = read_extent(pages, page, count, len)?;
        if created_txn != version {
            let what = format!("an extent created in {created_txn} holds a value of {version}");
            return Err(format::damaged(page, pages.page_size(), what));
        }
        pages.free(page, count, created_txn);
    }
    Ok(())
}

/// Removes the entry of a key. Returns true if there was one; otherwise nothing is copied.
///
/// # Errors
/// `Corrupt` if a page is damaged; the errors of allocation.
pub(crate) fn delete<W: PageWrite>(pages: &mut W, root: &mut PageId, key: &[u8]) -> Result<bool> {
    if root.is_none() {
        return Ok(false);
    }
    let mut path = Path::find(pages, *root, key)?;
    if !path.result.found {
        return Ok(false);
    }
    path.own(pages, root)?;
    free_value(pages, path.leaf, path.result.index)?;
    node_mut::remove(pages.body_mut(path.leaf)?, path.leaf, path.result.index)?;
    balance::settle(pages, root, &path)?;
    Ok(true)
}

/// Frees every page and extent of a tree. The whole tree is checked first: a page that is freed
/// twice would be allocated twice.
///
/// # Errors
/// `Corrupt` if the tree is damaged; nothing is freed then.
pub(crate) fn free_tree<W: PageWrite>(pages: &mut W, root: PageId) -> Result<()> {
    let mut found = Vec::new();
    check::check_tree(pages, root, &mut |seen| {
        found.push((seen.page, seen.pages, seen.created_txn));
        Ok(())
    })?;
    // A damaged leaf may refer to an extent of another tree, so the checksums are checked, too.
    for (page, _, created_txn) in found.iter().filter(|(_, count, _)| *count == 1) {
        pages.check(*page, *created_txn)?;
    }
    for (page, count, created_txn) in found {
        pages.free(page, count, created_txn);
    }
    Ok(())
}
