//! A range of a tree, read from either end.
//!
//! Each end of the iteration descends once, to its own bound, and then moves entry by entry. In
//! each leaf that it enters, it searches for the other bound. The result is the index at which the
//! iteration stops in that leaf. If the range is read from both ends, the iteration ends when the
//! two meet.

use crate::Result;
use crate::btree::node::Node;
use crate::btree::position::{Direction, EntryAt, Position, SeekTarget};
use crate::files::page::PageRead;
use crate::ids::PageId;
use std::ops::Bound;

/// The state of an iteration over a range.
#[derive(Debug)]
pub(crate) struct RangeCursor {
    root: PageId,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    /// The end that moves forward; `None` until it is first used.
    front: Option<RangeEnd>,
    /// The end that moves backward.
    back: Option<RangeEnd>,
    done: bool,
}

/// One end of the iteration.
#[derive(Debug)]
struct RangeEnd {
    /// The gap between the entries that this end has returned and those that it has not.
    position: Position,
    /// The index in the leaf at which this end stops. If the end moves forward, this is the index
    /// of the first entry after the range; if backward, of the first entry in the range.
    stop: usize,
}

/// Returns the gap before the first entry of a range.
fn beginning(lower: &Bound<Vec<u8>>) -> SeekTarget<'_> {
    match lower {
        Bound::Unbounded => SeekTarget::First,
        Bound::Included(key) => SeekTarget::Before(key),
        Bound::Excluded(key) => SeekTarget::After(key),
    }
}

/// Returns the gap after the last entry of a range.
fn ending(upper: &Bound<Vec<u8>>) -> SeekTarget<'_> {
    match upper {
        Bound::Unbounded => SeekTarget::Last,
        Bound::Included(key) => SeekTarget::After(key),
        Bound::Excluded(key) => SeekTarget::Before(key),
    }
}

impl RangeEnd {
    /// Returns an end at `start`, which stops at `stop`.
    fn new<P: PageRead>(pages: &P, root: PageId, start: SeekTarget<'_>, stop: SeekTarget<'_>) -> Result<RangeEnd> {
        let mut position = Position::new();
        let leaf = position.seek(pages, root, start)?;
        Ok(RangeEnd { stop: stop.index_in(&leaf)?, position })
    }

    /// Enters the next leaf. Returns `None` at the end of the tree.
    fn enter<'a, P: PageRead>(
        &mut self,
        pages: &'a P,
        direction: Direction,
        stop: SeekTarget<'_>,
    ) -> Result<Option<Node<'a>>> {
        let Some(entered) = self.position.enter_next_leaf(pages, direction)? else { return Ok(None) };
        self.stop = stop.index_in(&entered)?;
        Ok(Some(entered))
    }
}

impl RangeCursor {
    /// Returns a range of the tree at `root`. An inverted range is empty.
    pub(crate) fn new(root: PageId, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> RangeCursor {
        RangeCursor {
            root,
            lower: lower.map(<[u8]>::to_vec),
            upper: upper.map(<[u8]>::to_vec),
            front: None,
            back: None,
            done: root.is_none(),
        }
    }

    /// Returns the next entry from the front; `None` after the end or an error.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    #[inline(always)]
    pub(crate) fn next<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Option<EntryAt<'a>>> {
        if self.done {
            return Ok(None);
        }
        self.done = true;
        let front = match &mut self.front {
            Some(front) => front,
            none => none.insert(RangeEnd::new(pages, self.root, beginning(&self.lower), ending(&self.upper))?),
        };
        let mut leaf = front.position.open_leaf(pages)?;
        while front.position.index() >= front.stop {
            if front.stop < leaf.count() {
                return Ok(None);
            }
            let Some(next) = front.enter(pages, Direction::Forward, ending(&self.upper))? else {
                return Ok(None);
            };
            leaf = next;
        }
        if self.back.as_ref().is_some_and(|back| !front.position.comes_before(&back.position)) {
            return Ok(None);
        }
        let index = front.position.index();
        front.position.set_index(index + 1);
        let entry = front.position.read_entry(pages, &leaf, index, Direction::Forward)?;
        self.done = false;
        Ok(Some(entry))
    }

    /// Returns the next entry from the back; `None` after the end or an error.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    #[inline(always)]
    pub(crate) fn next_back<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Option<EntryAt<'a>>> {
        if self.done {
            return Ok(None);
        }
        self.done = true;
        let back = match &mut self.back {
            Some(back) => back,
            none => none.insert(RangeEnd::new(pages, self.root, ending(&self.upper), beginning(&self.lower))?),
        };
        let mut leaf = back.position.open_leaf(pages)?;
        while back.position.index() <= back.stop {
            if back.stop > 0 {
                return Ok(None);
            }
            let Some(next) = back.enter(pages, Direction::Backward, beginning(&self.lower))? else {
                return Ok(None);
            };
            leaf = next;
        }
        if self.front.as_ref().is_some_and(|front| !front.position.comes_before(&back.position)) {
            return Ok(None);
        }
        let index = back.position.index() - 1;
        back.position.set_index(index);
        let entry = back.position.read_entry(pages, &leaf, index, Direction::Backward)?;
        self.done = false;
        Ok(Some(entry))
    }
}
