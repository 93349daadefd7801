//! A cursor on one entry of a tree. It moves by steps and by keys, and lends each entry that it
//! reaches.
//!
//! | state | `next` goes to | `prev` goes to | reached by |
//! |---|---|---|---|
//! | new | the first entry | the last entry | its creation |
//! | on an entry | the entry after it | the entry before it | any call that returned an entry |
//! | after the last entry | nowhere | the last entry | `next` beyond the last; `seek` or `last` that found nothing |
//! | before the first entry | the first entry | nowhere | `prev` beyond the first; `first` that found nothing |
//! | failed | nowhere | nowhere | a call that returned an error |
//!
//! The position is the gap before the cursor's entry. Its memory and that of the key are reused, so
//! a step allocates nothing. The pages must not change while the cursor lives.

use crate::Result;
use crate::btree::position::{EntryAt, Position, SeekTarget, pass_next, pass_previous, set_position};
use crate::files::page::PageRead;
use crate::ids::PageId;

/// An entry that a cursor lends: the key until the next call, the value as long as the pages.
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
}

impl PointCursor {
    /// Returns a cursor over the tree at `root`.
    pub(crate) fn new(root: PageId) -> PointCursor {
        PointCursor { root, state: CursorState::New, position: Position::new(), key: Vec::new() }
    }

    /// Moves to the first entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the path is damaged.
    pub(crate) fn first<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        self.move_by(CursorState::BeforeFirst, |root, position| go_forward(pages, root, SeekTarget::First, position))
    }

    /// Moves to the last entry.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    pub(crate) fn last<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        self.move_by(CursorState::AfterLast, |root, position| {
            if root.is_none() {
                return Ok(None);
            }
            set_position(pages, root, SeekTarget::Last, position)?;
            pass_previous(pages, position, None)
        })
    }

    /// Moves to the first entry whose key is not less than `key`.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    pub(crate) fn seek<'a, P: PageRead>(&mut self, pages: &'a P, key: &[u8]) -> Result<Lent<'_, 'a>> {
        self.move_by(CursorState::AfterLast, |root, position| {
            go_forward(pages, root, SeekTarget::Before(key), position)
        })
    }

    /// Moves to the entry after the present one.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    pub(crate) fn next<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        match self.state {
            CursorState::New | CursorState::BeforeFirst => self.first(pages),
            CursorState::AfterLast | CursorState::Failed => Ok(None),
            CursorState::OnEntry => self.move_by(CursorState::AfterLast, |_, position| {
                if let Some(leaf) = position.last_mut() {
                    leaf.index += 1;
                }
                stand_on_next(pages, position)
            }),
        }
    }

    /// Moves to the entry before the present one.
    ///
    /// # Errors
    /// As [`PointCursor::first`].
    pub(crate) fn prev<'a, P: PageRead>(&mut self, pages: &'a P) -> Result<Lent<'_, 'a>> {
        match self.state {
            CursorState::New | CursorState::AfterLast => self.last(pages),
            CursorState::BeforeFirst | CursorState::Failed => Ok(None),
            CursorState::OnEntry => {
                self.move_by(CursorState::BeforeFirst, |_, position| pass_previous(pages, position, None))
            }
        }
    }

    /// Makes a move that leaves the cursor on an entry, or in the state `otherwise`.
    fn move_by<'a>(
        &mut self,
        otherwise: CursorState,
        go: impl FnOnce(PageId, &mut Position) -> Result<Option<EntryAt<'a>>>,
    ) -> Result<Lent<'_, 'a>> {
        self.state = CursorState::Failed;
        let Some(entry) = go(self.root, &mut self.position)? else {
            self.state = otherwise;
            return Ok(None);
        };
        entry.key.key_into(&mut self.key);
        self.state = CursorState::OnEntry;
        Ok(Some((&self.key, entry.value)))
    }
}

/// Moves to a position, and to the entry after it.
fn go_forward<'a, P: PageRead>(
    pages: &'a P,
    root: PageId,
    target: SeekTarget<'_>,
    position: &mut Position,
) -> Result<Option<EntryAt<'a>>> {
    if root.is_none() {
        return Ok(None);
    }
    set_position(pages, root, target, position)?;
    stand_on_next(pages, position)
}

/// Returns the entry after a position, which becomes the gap before that entry.
fn stand_on_next<'a, P: PageRead>(pages: &'a P, position: &mut Position) -> Result<Option<EntryAt<'a>>> {
    let entry = pass_next(pages, position, None)?;
    if entry.is_some()
        && let Some(leaf) = position.last_mut()
    {
        leaf.index -= 1;
    }
    Ok(entry)
}
