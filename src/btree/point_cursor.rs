//! A cursor on one entry of a tree. It moves by steps or to a key, and lends each entry that it
//! reaches.
//!
//! | state | `next` goes to | `prev` goes to | reached by |
//! |---|---|---|---|
//! | new | the first entry | the last entry | its creation |
//! | on an entry | the entry after it | the entry before it | any call that returned an entry |
//! | after the last entry | nowhere | the last entry | `next` at the end; empty `seek` or `last` |
//! | before the first entry | the first entry | nowhere | `prev` at the start; an empty `first` |
//! | failed | nowhere | nowhere | a call that returned an error |
//!
//! The position is the gap before the cursor's entry. The memory of the position and of the key is
//! reused, so a step allocates nothing. A step inside a leaf keeps the leaf's prefix in the key.
//! The pages must not change while the cursor lives.

use crate::Result;
use crate::btree::node::Node;
use crate::btree::position::{Direction, Position, SeekTarget};
use crate::files::page::PageRead;
use crate::ids::PageId;

/// An entry that a cursor lends. The key is valid until the next call, the value as long as the
/// pages.
pub(crate) type Lent<'k, 'a> = Option<(&'k [u8], &'a [u8])>;

/// The state of a cursor; see the table above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CursorState {
    New,
    OnEntry,
    AfterLast,
    BeforeFirst,
    Failed,
}

/// A cursor on one entry.
#[derive(Debug)]
pub(crate) struct PointCursor {
    root: PageId,
    state: CursorState,
    /// The gap before the cursor's entry, if it is on one.
    position: Position,
    /// The key of the entry.
    key: Vec<u8>,
    /// The leaf whose prefix `key` begins with; none if unknown.
    prefix_leaf: PageId,
}

impl PointCursor {
    /// Returns a cursor over the tree at `root`.
    pub(crate) fn new(root: PageId) -> PointCursor {
        let (position, key) = (Position::new(), Vec::new());
        PointCursor { root, state: CursorState::New, position, key, prefix_leaf: PageId::NONE }
    }

    /// Moves to the first entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the path is damaged.
    pub(crate) fn first<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        self.seek_forward(pages, SeekTarget::First)
    }

    /// Moves to the last entry.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    pub(crate) fn last<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        if self.root.is_none() {
            self.state = CursorState::AfterLast;
            return Ok(None);
        }
        self.state = CursorState::Failed;
        let leaf = self.position.seek(pages, self.root, SeekTarget::Last)?;
        self.step_back(pages, leaf, CursorState::AfterLast)
    }

    /// Moves to the first entry whose key is not less than `key`.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    pub(crate) fn seek<'a, P: PageRead>(&mut self, pages: &'a P, key: &[u8]) -> Result<Lent<'_, 'a>> {
        self.seek_forward(pages, SeekTarget::Before(key))
    }

    /// Moves to the entry after the present one.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    #[inline]
    pub(crate) fn next<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        match self.state {
            CursorState::New | CursorState::BeforeFirst => self.first(pages),
            CursorState::AfterLast | CursorState::Failed => Ok(None),
            CursorState::OnEntry => {
                self.state = CursorState::Failed;
                let leaf = self.position.open_leaf(pages)?;
                self.position.set_index(self.position.index() + 1);
                self.enter_after(pages, leaf, CursorState::AfterLast)
            }
        }
    }

    /// Moves to the entry before the present one.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    #[inline]
    pub(crate) fn prev<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        match self.state {
            CursorState::New | CursorState::AfterLast => self.last(pages),
            CursorState::BeforeFirst | CursorState::Failed => Ok(None),
            CursorState::OnEntry => {
                self.state = CursorState::Failed;
                let leaf = self.position.open_leaf(pages)?;
                self.step_back(pages, leaf, CursorState::BeforeFirst)
            }
        }
    }

    /// Moves the position to `target`, and the cursor to the entry after it.
    fn seek_forward<'a, P: PageRead>(&mut self, pages: &'a P, target: SeekTarget<'_>) -> Result<Lent<'_, 'a>> {
        let otherwise = match target {
            SeekTarget::First => CursorState::BeforeFirst,
            _ => CursorState::AfterLast,
        };
        if self.root.is_none() {
            self.state = otherwise;
            return Ok(None);
        }
        self.state = CursorState::Failed;
        let leaf = self.position.seek(pages, self.root, target)?;
        self.enter_after(pages, leaf, otherwise)
    }

    /// Moves to the entry after the position, which is in `leaf`. If there is none, the state
    /// becomes `otherwise`.
    #[inline(always)]
    fn enter_after<'a, P: PageRead>(
        &mut self,
        pages: &'a P,
        mut leaf: Node<'a>,
        otherwise: CursorState,
    ) -> Result<Lent<'_, 'a>> {
        while self.position.index() >= leaf.count() {
            let Some(next) = self.position.enter_next_leaf(pages, Direction::Forward)? else {
                self.state = otherwise;
                return Ok(None);
            };
            leaf = next;
        }
        self.lend(pages, &leaf, Direction::Forward)
    }

    /// Moves to the entry before the position, which is in `leaf`. If there is none, the state
    /// becomes `otherwise`.
    #[inline(always)]
    fn step_back<'a, P: PageRead>(
        &mut self,
        pages: &'a P,
        mut leaf: Node<'a>,
        otherwise: CursorState,
    ) -> Result<Lent<'_, 'a>> {
        while self.position.index() == 0 {
            let Some(next) = self.position.enter_next_leaf(pages, Direction::Backward)? else {
                self.state = otherwise;
                return Ok(None);
            };
            leaf = next;
        }
        self.position.set_index(self.position.index() - 1);
        self.lend(pages, &leaf, Direction::Backward)
    }

    /// Lends the entry after the position, which is in `leaf`.
    #[inline(always)]
    fn lend<'a, P: PageRead>(&mut self, pages: &'a P, leaf: &Node<'a>, direction: Direction) -> Result<Lent<'_, 'a>> {
        let entry = self.position.read_entry(pages, leaf, self.position.index(), direction)?;
        let prefix = leaf.prefix();
        if self.prefix_leaf == leaf.id {
            self.key.truncate(prefix.len());
        } else {
            self.key.clear();
            self.key.extend_from_slice(prefix);
            self.prefix_leaf = leaf.id;
        }
        entry.key.append_suffix(&mut self.key);
        self.state = CursorState::OnEntry;
        Ok(Some((&self.key, entry.value)))
    }
}
