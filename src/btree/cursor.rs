//! A range of a tree, read from either end.
//!
//! The range is between two positions, which are found once from the bounds. The iteration ends
//! when the positions meet, from whichever ends it was read.

use crate::Result;
use crate::btree::position::{Direction, EntryAt, Position, SeekTarget, find_position, pass_next, pass_previous};
use crate::files::page::PageRead;
use crate::ids::PageId;
use std::ops::Bound;

/// The state of an iteration over a range.
#[derive(Debug)]
pub(crate) struct RangeCursor {
    root: PageId,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    /// The gap before the next entry from the front; found at the first use.
    front: Option<Position>,
    /// The gap after the next entry from the back. An unbounded end is looked up only when it is
    /// needed.
    back: Option<Position>,
    done: bool,
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

    /// Returns the next entry from the front. After the end, or an error, there is none.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub(crate) fn next<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Option<EntryAt<'a>>> {
        self.step(pages, Direction::Forward)
    }

    /// Returns the next entry from the back. After the end, or an error, there is none.
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
        let entry = self.locate(pages, direction).and_then(|()| match (direction, &mut self.front, &mut self.back) {
            (Direction::Forward, Some(front), back) => pass_next(pages, front, back.as_ref()),
            (Direction::Backward, front, Some(back)) => pass_previous(pages, back, front.as_ref()),
            _ => Ok(None),
        });
        self.done = !matches!(entry, Ok(Some(_)));
        entry
    }

    /// Finds the positions that a step in this direction needs.
    fn locate<P: PageRead>(&mut self, pages: &P, direction: Direction) -> Result<()> {
        let forward = direction == Direction::Forward;
        if self.front.is_none() && (forward || self.lower != Bound::Unbounded) {
            let target = match &self.lower {
                Bound::Unbounded => SeekTarget::First,
                Bound::Included(key) => SeekTarget::Before(key),
                Bound::Excluded(key) => SeekTarget::After(key),
            };
            self.front = Some(find_position(pages, self.root, target)?);
        }
        if self.back.is_none() && (!forward || self.upper != Bound::Unbounded) {
            let target = match &self.upper {
                Bound::Unbounded => SeekTarget::Last,
                Bound::Included(key) => SeekTarget::After(key),
                Bound::Excluded(key) => SeekTarget::Before(key),
            };
            self.back = Some(find_position(pages, self.root, target)?);
        }
        Ok(())
    }
}
