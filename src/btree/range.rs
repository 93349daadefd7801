//! Removal of a range of keys. Whole subtrees are freed as they are, and only the two edges of the
//! range are copied.
//!
//! 1. The descent ([`Removal::remove_from`]) follows the two ends of the range. A child between
//!    them is *covered*. Each of its pages is read once, for its number of entries and for the
//!    extents of its values, and is freed without being written. A page that an end of the range
//!    cuts is copied without the part inside the range.
//! 2. The pages and extents found are freed ([`Removal::free`]).
//! 3. The pages left and right of the gap are merged with their neighbours as far as they are
//!    underfull. A merge at one level may make two pages neighbours at the level below, so this is
//!    repeated until nothing merges any more.
//!
//! If a page of a damaged tree were freed although it is in use elsewhere, it would be allocated
//! and overwritten. So each covered page is checked before any is freed: its checksum, its level,
//! its parent's created_txn and its parent's separators. No page may be found twice.

use crate::btree::balance;
use crate::btree::edit::{ensure_sound, make_writable, write_group};
use crate::btree::node::Node;
use crate::btree::node_mut;
use crate::btree::rebuild::{EntryList, NodeIdentity};
use crate::files::page as format;
use crate::files::page::{PageRead, PageWrite, StoredValue, read_extent};
use crate::{PageId, Result, TxnId};
use std::ops::Range;

/// Removes all entries from the key `start` up to but not including `end`; without `end`, to the
/// last entry. Returns their number. If there are none, nothing is copied.
///
/// # Errors
/// `Corrupt` if a page is damaged; the errors of allocation.
pub(crate) fn delete<W: PageWrite>(pages: &mut W, root: &mut PageId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
    if root.is_none() || end.is_some_and(|end| end <= start) {
        return Ok(0);
    }
    let level = Node::open(pages, *root)?.level;
    let expected = Expected { level, youngest: pages.txn_id(), lower: &[], upper: None };
    let cut = Cut { start: Some(start).filter(|start| !start.is_empty()), end };
    let mut removal = Removal::default();
    match removal.remove_from(pages, *root, &expected, cut)? {
        Remainder::Same => return Ok(0),
        Remainder::Copy(page) => *root = page,
        Remainder::Nothing => *root = PageId::NONE,
    }
    let entries = removal.entries;
    removal.free(pages)?;
    if root.is_none() {
        return Ok(entries);
    }
    let edges = cut.start.into_iter().chain(cut.end);
    loop {
        let mut merged = false;
        for key in edges.clone() {
            merged |= balance::mend(pages, root, key)?;
        }
        // Each merge frees a page, so the loop ends.
        if !merged {
            break;
        }
    }
    balance::lower_root(pages, root)?;
    Ok(entries)
}

/// The ends of the range that are inside a subtree.
#[derive(Clone, Copy)]
struct Cut<'k> {
    /// Keys before this one stay. `None` if the range begins before the subtree.
    start: Option<&'k [u8]>,
    /// This key and later ones stay. `None` if the range ends after the subtree.
    end: Option<&'k [u8]>,
}

impl Cut<'_> {
    /// Returns whether the whole subtree is inside the range.
    fn is_covered(&self) -> bool {
        self.start.is_none() && self.end.is_none()
    }
}

/// The properties that a page must have according to its parent.
#[derive(Clone, Copy)]
struct Expected<'k> {
    level: u8,
    /// The page's created_txn is not after this one.
    youngest: TxnId,
    /// The page's keys are not below `lower`, and are below `upper`.
    lower: &'k [u8],
    upper: Option<&'k [u8]>,
}

impl<'k> Expected<'k> {
    fn open<'p, P: PageRead>(&self, pages: &'p P, id: PageId) -> Result<Node<'p>> {
        let node = Node::open(pages, id)?;
        if node.level != self.level {
            return Err(node.damaged(format!("level {} where level {} was expected", node.level, self.level)));
        }
        let created_txn = node.created_txn();
        if created_txn > self.youngest {
            let youngest = self.youngest;
            return Err(
                node.damaged(format!("created in {created_txn}, after its parent or this transaction ({youngest})"))
            );
        }
        Ok(node)
    }

    /// Returns the properties for child `index` of a branch. The separators around the child are
    /// copied into the two buffers.
    fn of_child<'c>(&self, branch: &Node<'_>, index: usize, fences: &'c mut (Vec<u8>, Vec<u8>)) -> Result<Expected<'c>>
    where
        'k: 'c,
    {
        let (lower, upper) = fences;
        let level = branch.level.checked_sub(1).ok_or_else(|| branch.damaged("a leaf where a branch was expected"))?;
        if let Some(before) = index.checked_sub(1) {
            branch.key(before)?.key_into(lower);
        }
        if index < branch.count() {
            branch.key(index)?.key_into(upper);
        }
        Ok(Expected {
            level,
            youngest: branch.created_txn(),
            lower: if index == 0 { self.lower } else { lower },
            upper: if index == branch.count() { self.upper } else { Some(upper) },
        })
    }
}

/// The result of the removal for a subtree.
enum Remainder {
    /// No part of the subtree was inside the range.
    Same,
    /// This page replaces the subtree's root.
    Copy(PageId),
    Nothing,
}

/// A page or extent to be freed.
struct Extent {
    page: PageId,
    pages: u32,
    created_txn: TxnId,
}

/// The pages and entries that a removal has found inside the range.
#[derive(Default)]
struct Removal {
    entries: u64,
    extents: Vec<Extent>,
}

impl Removal {
    /// Removes the part inside the range from the subtree at `id`.
    fn remove_from<W: PageWrite>(
        &mut self,
        pages: &mut W,
        id: PageId,
        expected: &Expected<'_>,
        cut: Cut<'_>,
    ) -> Result<Remainder> {
        if cut.is_covered() {
            self.take(pages, id, expected)?;
            return Ok(Remainder::Nothing);
        }
        if expected.level == 0 {
            self.remove_from_leaf(pages, id, expected, cut)
        } else {
            self.remove_from_branch(pages, id, expected, cut)
        }
    }

    fn remove_from_leaf<W: PageWrite>(
        &mut self,
        pages: &mut W,
        id: PageId,
        expected: &Expected<'_>,
        cut: Cut<'_>,
    ) -> Result<Remainder> {
        let leaf = expected.open(pages, id)?;
        let first = cut.start.map_or(Ok(0), |key| leaf.find(key).map(|search| search.index))?;
        let end = cut.end.map_or(Ok(leaf.count()), |key| leaf.find(key).map(|search| search.index))?;
        if first >= end {
            return Ok(Remainder::Same);
        }
        if first == 0 && end == leaf.count() {
            self.take(pages, id, expected)?;
            return Ok(Remainder::Nothing);
        }
        self.take_entries(pages, &leaf, first..end)?;
        let (page, _) = make_writable(pages, id, expected.youngest)?;
        let created_txn = pages.txn_id();
        let body = pages.body_mut(page)?;
        let mut items = EntryList::read(&Node::parse(body, page)?)?;
        items.remove(first..end);
        write_group(&items, 0..items.len(), body, NodeIdentity { id: page, created_txn, first_child: PageId::NONE })?;
        Ok(Remainder::Copy(page))
    }

    fn remove_from_branch<W: PageWrite>(
        &mut self,
        pages: &mut W,
        id: PageId,
        expected: &Expected<'_>,
        cut: Cut<'_>,
    ) -> Result<Remainder> {
        let branch = expected.open(pages, id)?;
        let count = branch.count();
        // An end of the range that equals a separator cuts no child.
        let (first, first_start) = match cut.start {
            None => (0, None),
            Some(key) => {
                let search = branch.find(key)?;
                (search.index + usize::from(search.found), Some(key).filter(|_| !search.found))
            }
        };
        let (last, last_end) = match cut.end {
            None => (count, None),
            Some(key) => {
                let search = branch.find(key)?;
                (search.index, Some(key).filter(|_| !search.found))
            }
        };
        if first > last {
            return Err(branch.damaged("separators are not in order"));
        }
        let mut copies = Vec::new();
        let mut gone = first + 1..last;
        for index in first..=last {
            let start = first_start.filter(|_| index == first);
            let end = last_end.filter(|_| index == last);
            let mut fences = (Vec::new(), Vec::new());
            let branch = Node::open(pages, id)?;
            let child = branch.child(index);
            if index < last {
                pages.prefetch(branch.child(index + 1));
            }
            let below = expected.of_child(&branch, index, &mut fences)?;
            match self.remove_from(pages, child, &below, Cut { start, end })? {
                Remainder::Same => {}
                Remainder::Copy(page) => copies.push((index, page)),
                Remainder::Nothing => gone = gone.start.min(index)..gone.end.max(index + 1),
            }
        }
        if gone.is_empty() && copies.is_empty() {
            return Ok(Remainder::Same);
        }
        if gone == (0..count + 1) {
            self.take_page(pages, &Node::open(pages, id)?)?;
            return Ok(Remainder::Nothing);
        }
        let (page, _) = make_writable(pages, id, expected.youngest)?;
        let created_txn = pages.txn_id();
        let body = pages.body_mut(page)?;
        for (index, copy) in copies {
            node_mut::set_child(body, page, index, copy)?;
        }
        if !gone.is_empty() {
            let branch = Node::parse(body, page)?;
            let mut items = EntryList::read(&branch)?;
            // The separator before each removed child is removed with the child. If child 0 is
            // removed, the first child that stays loses its separator, too.
            let (first_child, separators) = match gone.start {
                0 => (branch.child(gone.end), 0..gone.end),
                start => (branch.child(0), start - 1..gone.end - 1),
            };
            items.remove(separators);
            write_group(&items, 0..items.len(), body, NodeIdentity { id: page, created_txn, first_child })?;
        }
        Ok(Remainder::Copy(page))
    }

    /// Adds a whole subtree to the pages to free.
    fn take<W: PageWrite>(&mut self, pages: &W, id: PageId, expected: &Expected<'_>) -> Result<()> {
        let node = expected.open(pages, id)?;
        self.take_page(pages, &node)?;
        if node.is_leaf() {
            check_fences(&node, expected)?;
            return self.take_entries(pages, &node, 0..node.count());
        }
        let mut fences = (Vec::new(), Vec::new());
        for index in 0..=node.count() {
            if index < node.count() {
                pages.prefetch(node.child(index + 1));
            }
            let below = expected.of_child(&node, index, &mut fences)?;
            self.take(pages, node.child(index), &below)?;
        }
        Ok(())
    }

    fn take_page<W: PageWrite>(&mut self, pages: &W, node: &Node<'_>) -> Result<()> {
        ensure_sound(pages, node)?;
        self.extents.push(Extent { page: node.id, pages: 1, created_txn: node.created_txn() });
        Ok(())
    }

    /// Counts entries of a leaf, and adds the extents of their values.
    fn take_entries<P: PageRead>(&mut self, pages: &P, leaf: &Node<'_>, range: Range<usize>) -> Result<()> {
        self.entries += range.len() as u64;
        for index in range {
            let (version, value) = leaf.entry(index)?;
            let StoredValue::Extent { page, pages: count, len } = value else { continue };
            let (_, created_txn) = read_extent(pages, page, count, len)?;
            if created_txn != version {
                let what = format!("an extent created in {created_txn} holds a value of {version}");
                return Err(format::damaged(page, pages.page_size(), what));
            }
            self.extents.push(Extent { page, pages: count, created_txn });
        }
        Ok(())
    }

    /// Frees the pages and extents that were found.
    fn free<W: PageWrite>(mut self, pages: &mut W) -> Result<()> {
        self.extents.sort_unstable_by_key(|extent| extent.page);
        let overlap = self.extents.windows(2).find(|pair| pair[0].page.0 + pair[0].pages > pair[1].page.0);
        if let Some(pair) = overlap {
            return Err(format::damaged(pair[1].page, pages.page_size(), "a tree reaches the page twice"));
        }
        for Extent { page, pages: count, created_txn } in self.extents {
            pages.free(page, count, created_txn);
        }
        Ok(())
    }
}

/// Checks that the first and the last key of a leaf are between its parent's separators.
fn check_fences(leaf: &Node<'_>, expected: &Expected<'_>) -> Result<()> {
    let Some(last) = leaf.count().checked_sub(1) else { return Err(leaf.damaged("an empty leaf")) };
    let (first, last) = (leaf.key(0)?.to_vec(), leaf.key(last)?.to_vec());
    let is_inside = *first >= *expected.lower && expected.upper.is_none_or(|upper| *last < *upper);
    if is_inside { Ok(()) } else { Err(leaf.damaged("a key lies outside the separators of the parent")) }
}
