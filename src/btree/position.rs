//! A position is a gap between entries of a tree, stored as a path from the root. Both kinds of
//! cursor move with the functions of this file.
//!
//! A position holds page numbers and no references, so the pages must not change while it is used.
//!
//! A move inside a leaf reads that leaf alone. Only a move to the next leaf reads the branches
//! above it, and checks that the two leaves are in order. In a damaged tree several paths may lead
//! to one page; without this check a scan might never end.

use crate::Result;
use crate::btree::node::{KeyParts, Node};
use crate::btree::search::entry_at;
use crate::files::page::PageRead;
use crate::ids::PageId;
use crate::shared::memory::mapping::CACHE_LINE_LEN;
use std::cmp::Ordering;

/// An entry that a cursor has reached.
#[derive(Clone, Copy)]
pub(crate) struct EntryAt<'a> {
    pub(crate) key: KeyParts<'a>,
    pub(crate) value: &'a [u8],
}

/// A branch on the path, and the index of the child taken.
#[derive(Clone, Copy, Debug)]
struct BranchPosition {
    page: PageId,
    index: usize,
}

/// A gap between two entries of a leaf, or before the first or after the last.
#[derive(Debug)]
pub(super) struct Position {
    /// The path from the root to the leaf, without the leaf.
    branches: Vec<BranchPosition>,
    leaf: PageId,
    /// The index in the leaf of the entry after the gap.
    index: usize,
    /// The next leaf in the direction of the last move; none if it has another parent.
    ahead: PageId,
    /// The number of leaves that were entered from their neighbour since the last seek.
    leaves_passed: u32,
    /// The number of bytes of `ahead` to prefetch with each entry of this leaf that is read.
    ahead_part: usize,
}

/// An entry is prefetched this many entries before it is read.
const RECORDS_AHEAD: usize = 3;
/// A cursor that has passed this many leaves counts as a scan, which is expected to read the next
/// leaf, too.
const LEAVES_OF_A_SCAN: u32 = 2;
/// If a seek ends fewer than this many entries before the leaf's end, the next leaf is prefetched.
const ENTRIES_BEFORE_NEXT_LEAF: usize = 8;

/// The target of a search for a position.
#[derive(Clone, Copy)]
pub(super) enum SeekTarget<'a> {
    First,
    Last,
    /// Before the key, if it is there.
    Before(&'a [u8]),
    /// After the key, if it is there.
    After(&'a [u8]),
}

impl SeekTarget<'_> {
    /// Returns the index of the child of a branch that the path to the target takes.
    #[inline(always)]
    fn child_of(self, branch: &Node<'_>) -> Result<usize> {
        match self {
            SeekTarget::First => Ok(0),
            SeekTarget::Last => Ok(branch.count()),
            SeekTarget::Before(key) | SeekTarget::After(key) => branch.child_for(key),
        }
    }

    /// Returns the direction in which a cursor usually moves from the target.
    #[inline(always)]
    fn direction(self) -> Direction {
        match self {
            SeekTarget::Last => Direction::Backward,
            _ => Direction::Forward,
        }
    }

    /// Returns the child after child `index` of a branch, in the direction of the target;
    /// `PageId::NONE` if `index` is the last.
    #[inline(always)]
    fn sibling(self, branch: &Node<'_>, index: usize) -> PageId {
        match self.direction() {
            Direction::Forward if index < branch.count() => branch.child(index + 1),
            Direction::Backward if index > 0 => branch.child(index - 1),
            _ => PageId::NONE,
        }
    }

    /// Returns the index in a leaf of the entry after the target.
    #[inline(always)]
    pub(super) fn index_in(self, leaf: &Node<'_>) -> Result<usize> {
        match self {
            SeekTarget::First => Ok(0),
            SeekTarget::Last => Ok(leaf.count()),
            SeekTarget::Before(key) => Ok(leaf.find(key)?.index),
            SeekTarget::After(key) => leaf.find(key).map(|search| search.index + usize::from(search.found)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
}

impl Position {
    /// Returns a position in no tree, to be moved by [`Position::seek`].
    pub(super) fn new() -> Position {
        let (leaf, ahead) = (PageId::NONE, PageId::NONE);
        Position { branches: Vec::new(), leaf, index: 0, ahead, leaves_passed: 0, ahead_part: 0 }
    }

    /// Moves to `target` in the tree at `root`, which is not empty. Returns the leaf.
    ///
    /// # Errors
    /// `Corrupt` if a page on the path is damaged.
    pub(super) fn seek<'a, P: PageRead>(
        &mut self,
        pages: &'a P,
        root: PageId,
        target: SeekTarget<'_>,
    ) -> Result<Node<'a>> {
        let node = Node::open(pages, root)?;
        self.branches.clear();
        self.branches.reserve(usize::from(node.level));
        (self.ahead, self.leaves_passed) = (PageId::NONE, 0);
        let leaf = self.descend(pages, node, target)?;
        let until_end = match target.direction() {
            Direction::Forward => leaf.count().saturating_sub(self.index),
            Direction::Backward => self.index,
        };
        if until_end < ENTRIES_BEFORE_NEXT_LEAF && !self.ahead.is_none() {
            pages.prefetch(self.ahead);
        }
        self.prefetch_first(&leaf, target.direction());
        Ok(leaf)
    }

    /// Continues the path from `node` down to a leaf.
    fn descend<'a, P: PageRead>(
        &mut self,
        pages: &'a P,
        mut node: Node<'a>,
        target: SeekTarget<'_>,
    ) -> Result<Node<'a>> {
        while !node.is_leaf() {
            let index = target.child_of(&node)?;
            self.branches.push(BranchPosition { page: node.id, index });
            let child = node.child(index);
            pages.prefetch(child);
            self.ahead = target.sibling(&node, index);
            node = Node::open_child(pages, child, &node)?;
        }
        self.leaf = node.id;
        self.index = target.index_in(&node)?;
        Ok(node)
    }

    /// Returns the index in the leaf of the entry after the gap.
    #[inline(always)]
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Moves to another gap of the same leaf.
    #[inline(always)]
    pub(super) fn set_index(&mut self, index: usize) {
        self.index = index;
    }

    /// Reads the leaf.
    #[inline(always)]
    pub(super) fn open_leaf<'a, P: PageRead>(&self, pages: &'a P) -> Result<Node<'a>> {
        let leaf = Node::open(pages, self.leaf)?;
        if !leaf.is_leaf() {
            return Err(leaf.damaged("a leaf became a branch"));
        }
        Ok(leaf)
    }

    /// Returns whether this position comes before the other. All leaves are equally deep, so paths
    /// compare index by index.
    pub(super) fn comes_before(&self, other: &Position) -> bool {
        if self.leaf == other.leaf {
            return self.index < other.index;
        }
        let path = self.branches.iter().map(|branch| branch.index);
        path.cmp(other.branches.iter().map(|branch| branch.index)) == Ordering::Less
    }

    /// Prefetches the entries that a cursor reads first in a leaf, except the entry at the
    /// position, which is read at once.
    #[inline(always)]
    fn prefetch_first(&self, leaf: &Node<'_>, direction: Direction) {
        for step in 1..RECORDS_AHEAD {
            match direction {
                Direction::Forward => leaf.prefetch_record(self.index + step),
                Direction::Backward => leaf.prefetch_record(self.index.wrapping_sub(step + 1)),
            }
        }
    }

    /// Prefetches the bytes that a cursor reads some steps after entry `index` of the leaf: a later
    /// entry of the leaf or, in a scan, a part of the next leaf.
    ///
    /// A step takes less time than a load from memory, so the loads of several steps must overlap.
    #[inline(always)]
    fn read_ahead<P: PageRead>(&self, pages: &P, leaf: &Node<'_>, index: usize, direction: Direction) {
        if self.leaves_passed < LEAVES_OF_A_SCAN {
            match direction {
                Direction::Forward => leaf.prefetch_record(index + RECORDS_AHEAD),
                Direction::Backward => leaf.prefetch_record(index.wrapping_sub(RECORDS_AHEAD)),
            }
        } else if !self.ahead.is_none() {
            let step = match direction {
                Direction::Forward => index,
                Direction::Backward => leaf.count() - 1 - index,
            };
            let start = step * self.ahead_part;
            pages.prefetch_part(self.ahead, start..(start + self.ahead_part).min(pages.page_size()));
        }
    }

    /// Returns an entry of the leaf, and prefetches the next ones in this direction.
    #[inline(always)]
    pub(super) fn read_entry<'a, P: PageRead>(
        &self,
        pages: &'a P,
        leaf: &Node<'a>,
        index: usize,
        direction: Direction,
    ) -> Result<EntryAt<'a>> {
        if index >= leaf.count() {
            return Err(leaf.damaged("the page changed beneath a cursor"));
        }
        self.read_ahead(pages, leaf, index, direction);
        let entry = entry_at(pages, leaf, index)?;
        Ok(EntryAt { key: leaf.key(index)?, value: entry.value })
    }

    /// Moves from the present leaf into the next one: to its beginning if forward, to its end if
    /// backward. Returns `None` at the end of the tree.
    ///
    /// # Errors
    /// `Corrupt` if a page on the path is damaged, or the leaves are not in order.
    #[inline(never)]
    pub(super) fn enter_next_leaf<'a, P: PageRead>(
        &mut self,
        pages: &'a P,
        direction: Direction,
    ) -> Result<Option<Node<'a>>> {
        let leaf = self.open_leaf(pages)?;
        while let Some(BranchPosition { page, index }) = self.branches.pop() {
            let branch = Node::open(pages, page)?;
            let moved = match direction {
                Direction::Forward => Some(index + 1).filter(|index| *index <= branch.count()),
                Direction::Backward => index.checked_sub(1),
            };
            let Some(index) = moved else { continue };
            if branch.is_leaf() || index > branch.count() {
                return Err(branch.damaged("the page changed beneath a cursor"));
            }
            self.branches.push(BranchPosition { page, index });
            let target = if direction == Direction::Forward { SeekTarget::First } else { SeekTarget::Last };
            self.ahead = target.sibling(&branch, index);
            let child = Node::open_child(pages, branch.child(index), &branch)?;
            let entered = self.descend(pages, child, target)?;
            match direction {
                Direction::Forward => check_order(&leaf, &entered, &entered)?,
                Direction::Backward => check_order(&entered, &leaf, &entered)?,
            }
            self.leaves_passed = self.leaves_passed.saturating_add(1);
            let lines = pages.page_size().div_ceil(CACHE_LINE_LEN).div_ceil(entered.count());
            self.ahead_part = lines * CACHE_LINE_LEN;
            if self.leaves_passed < LEAVES_OF_A_SCAN {
                self.prefetch_first(&entered, direction);
            }
            if !self.ahead.is_none() {
                pages.prefetch(self.ahead);
            }
            return Ok(Some(entered));
        }
        Ok(None)
    }
}

/// Checks that neighbouring leaves are in order.
fn check_order(left: &Node<'_>, right: &Node<'_>, entered: &Node<'_>) -> Result<()> {
    if left.count() == 0 || right.count() == 0 {
        return Err(entered.damaged("an empty leaf"));
    }
    let ascends = |leaf: &Node<'_>| leaf.head(0) <= leaf.head(leaf.count() - 1);
    let (last, first) = (left.key(left.count() - 1)?, right.key(0)?);
    if !ascends(left) || !ascends(right) || last.compare(&first) != Ordering::Less {
        return Err(entered.damaged("keys are not in order from leaf to leaf"));
    }
    Ok(())
}
