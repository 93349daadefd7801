//! A range of a tree, read from either end.
//!
//! A position is a path of indices from the root to a gap between entries of a leaf. The range is what lies between two
//! positions, found once from the bounds; the ends meet when the positions do, however they got there. Positions hold
//! page numbers and no references, so the pages must stay as they are while the cursor lives.

use crate::Result;
use crate::btree::node::{KeyParts, Node};
use crate::btree::search::entry_at;
use crate::files::page::PageRead;
use crate::ids::PageId;
use std::cmp::Ordering;
use std::ops::Bound;

/// An entry that a cursor came to.
#[derive(Clone, Copy)]
pub(crate) struct EntryAt<'a> {
    pub(crate) key: KeyParts<'a>,
    pub(crate) value: &'a [u8],
}

/// A page on the way and an index in it: of a child, or of the entry after the gap.
#[derive(Clone, Copy, Debug)]
struct Step {
    page: PageId,
    index: usize,
}

/// From the root to a leaf.
type Position = Vec<Step>;

/// Where to look for a position.
#[derive(Clone, Copy)]
enum Target<'a> {
    First,
    Last,
    /// Before the key, if it is there.
    Before(&'a [u8]),
    /// After the key, if it is there.
    After(&'a [u8]),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// The state of an iteration over a range.
#[derive(Debug)]
pub(crate) struct Cursor {
    root: PageId,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    /// The gap before the next entry from the front; found at the first use.
    front: Option<Position>,
    /// The gap after the next entry from the back. While it is not needed, an unbounded end is not looked up.
    back: Option<Position>,
    done: bool,
}

impl Cursor {
    /// A range of the tree at `root`. An inverted range is empty.
    pub(crate) fn new(root: PageId, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Cursor {
        Cursor {
            root,
            lower: lower.map(<[u8]>::to_vec),
            upper: upper.map(<[u8]>::to_vec),
            front: None,
            back: None,
            done: root.is_none(),
        }
    }

    /// The next entry from the front. After the end, or an error, there is no further one.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub(crate) fn next<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Option<EntryAt<'a>>> {
        self.step(pages, Direction::Forward)
    }

    /// The next entry from the back. After the end, or an error, there is no further one.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub(crate) fn next_back<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Option<EntryAt<'a>>> {
        self.step(pages, Direction::Backward)
    }

    fn step<'a, P: PageRead>(&mut self, pages: &'a P, direction: Direction) -> Result<Option<EntryAt<'a>>> {
        if self.done {
            return Ok(None);
        }
        let entry = self.locate(pages, direction).and_then(|()| match direction {
            Direction::Forward => self.step_front(pages),
            Direction::Backward => self.step_back(pages),
        });
        self.done = !matches!(entry, Ok(Some(_)));
        entry
    }

    /// Finds the positions that a step in this direction needs.
    fn locate<P: PageRead>(&mut self, pages: &P, direction: Direction) -> Result<()> {
        let forward = direction == Direction::Forward;
        if self.front.is_none() && (forward || self.lower != Bound::Unbounded) {
            let target = match &self.lower {
                Bound::Unbounded => Target::First,
                Bound::Included(key) => Target::Before(key),
                Bound::Excluded(key) => Target::After(key),
            };
            self.front = Some(find_position(pages, self.root, target)?);
        }
        if self.back.is_none() && (!forward || self.upper != Bound::Unbounded) {
            let target = match &self.upper {
                Bound::Unbounded => Target::Last,
                Bound::Included(key) => Target::After(key),
                Bound::Excluded(key) => Target::Before(key),
            };
            self.back = Some(find_position(pages, self.root, target)?);
        }
        Ok(())
    }

    fn step_front<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Option<EntryAt<'a>>> {
        let Some(front) = &mut self.front else {
            return Ok(None);
        };
        loop {
            if self.back.as_ref().is_some_and(|back| !comes_before(front, back)) {
                return Ok(None);
            }
            let Some(last) = front.last_mut() else {
                return Ok(None);
            };
            let leaf = Node::open(pages, last.page)?;
            if last.index < leaf.count() {
                last.index += 1;
                return read_entry(pages, &leaf, last.index - 1).map(Some);
            }
            if !next_leaf(pages, front, &leaf, Direction::Forward)? {
                return Ok(None);
            }
        }
    }

    fn step_back<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Option<EntryAt<'a>>> {
        let Some(back) = &mut self.back else {
            return Ok(None);
        };
        loop {
            if self.front.as_ref().is_some_and(|front| !comes_before(front, back)) {
                return Ok(None);
            }
            let Some(last) = back.last_mut() else {
                return Ok(None);
            };
            let leaf = Node::open(pages, last.page)?;
            if let Some(index) = last.index.checked_sub(1) {
                if index >= leaf.count() {
                    return Err(leaf.damaged("the page changed beneath a cursor"));
                }
                last.index = index;
                return read_entry(pages, &leaf, index).map(Some);
            }
            if !next_leaf(pages, back, &leaf, Direction::Backward)? {
                return Ok(None);
            }
        }
    }
}

fn read_entry<'a, P: PageRead>(pages: &'a P, leaf: &Node<'a>, index: usize) -> Result<EntryAt<'a>> {
    if !leaf.is_leaf() {
        return Err(leaf.damaged("a leaf became a branch"));
    }
    let entry = entry_at(pages, leaf, index)?;
    Ok(EntryAt { key: leaf.key(index)?, value: entry.value })
}

/// All leaves are equally deep, so paths compare index by index.
fn comes_before(front: &Position, back: &Position) -> bool {
    let order = front.iter().map(|step| step.index).cmp(back.iter().map(|step| step.index));
    order == Ordering::Less
}

fn find_position<P: PageRead>(pages: &P, root: PageId, target: Target<'_>) -> Result<Position> {
    let node = Node::open(pages, root)?;
    let mut position = Position::with_capacity(usize::from(node.level) + 1);
    extend(pages, &mut position, node, target)?;
    Ok(position)
}

/// Continues a position from `node` down to a leaf.
fn extend<'a, P: PageRead>(
    pages: &'a P,
    position: &mut Position,
    mut node: Node<'a>,
    target: Target<'_>,
) -> Result<()> {
    while !node.is_leaf() {
        let index = match target {
            Target::First => 0,
            Target::Last => node.count(),
            Target::Before(key) | Target::After(key) => node.child_for(key)?,
        };
        position.push(Step { page: node.id, index });
        let child = node.child(index);
        pages.prefetch(child);
        node = Node::open_child(pages, child, &node)?;
    }
    let index = match target {
        Target::First => 0,
        Target::Last => node.count(),
        Target::Before(key) => node.find(key)?.index,
        Target::After(key) => {
            let place = node.find(key)?;
            place.index + usize::from(place.found)
        }
    };
    position.push(Step { page: node.id, index });
    Ok(())
}

/// Moves a position into the next leaf. False at the end of the tree.
fn next_leaf<P: PageRead>(pages: &P, position: &mut Position, leaf: &Node<'_>, direction: Direction) -> Result<bool> {
    let mut depth = position.len() - 1;
    while depth > 0 {
        depth -= 1;
        let Step { page, index } = position[depth];
        let branch = Node::open(pages, page)?;
        let moved = match direction {
            Direction::Forward => Some(index + 1).filter(|index| *index <= branch.count()),
            Direction::Backward => index.checked_sub(1),
        };
        let Some(index) = moved else { continue };
        if branch.is_leaf() || index > branch.count() {
            return Err(branch.damaged("the page changed beneath a cursor"));
        }
        position.truncate(depth);
        position.push(Step { page, index });
        let child = Node::open_child(pages, branch.child(index), &branch)?;
        let target = if direction == Direction::Forward { Target::First } else { Target::Last };
        extend(pages, position, child, target)?;
        read_ahead(pages, &branch, index, direction);
        let entered = Node::open(pages, position[position.len() - 1].page)?;
        match direction {
            Direction::Forward => check_order(leaf, &entered, &entered)?,
            Direction::Backward => check_order(&entered, leaf, &entered)?,
        }
        return Ok(true);
    }
    Ok(false)
}

/// Asks for the leaf after the one just entered, while that one is read.
fn read_ahead<P: PageRead>(pages: &P, branch: &Node<'_>, index: usize, direction: Direction) {
    if branch.level != 1 {
        return;
    }
    match direction {
        Direction::Forward if index < branch.count() => pages.prefetch(branch.child(index + 1)),
        Direction::Backward if index > 0 => pages.prefetch(branch.child(index - 1)),
        _ => {}
    }
}

/// Neighbouring leaves are in order. A damaged tree in which several paths lead to one page would otherwise be
/// walked through without end.
fn check_order(left: &Node<'_>, right: &Node<'_>, entered: &Node<'_>) -> Result<()> {
    if left.count() == 0 || right.count() == 0 {
        return Err(entered.damaged("an empty leaf"));
    }
    let ascends = |leaf: &Node<'_>| leaf.head(0) <= leaf.head(leaf.count() - 1);
    let last = left.key(left.count() - 1)?.to_vec();
    if !ascends(left) || !ascends(right) || last >= right.key(0)?.to_vec() {
        return Err(entered.damaged("keys are not in order from leaf to leaf"));
    }
    Ok(())
}
