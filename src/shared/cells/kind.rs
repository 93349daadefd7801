//! The kinds of cells, and how many bytes each takes.

use crate::limits;
use crate::shared::protocols::cell::COPIES;

/// The kind of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CellKind {
    /// A value of this many bytes under a latch.
    Cell { len: usize },
    /// A number to which processes add.
    Counter,
}

impl CellKind {
    /// Returns the length of the value in bytes.
    pub(crate) fn len(self) -> usize {
        match self {
            CellKind::Cell { len } => len,
            CellKind::Counter => 8,
        }
    }

    /// Returns the length of the body in bytes. An entry is used again only for cells whose body
    /// has the same length.
    pub(super) fn body_bytes(self) -> u64 {
        match self {
            CellKind::Cell { len } => (len.next_power_of_two().max(8) * COPIES) as u64,
            CellKind::Counter => 0,
        }
    }

    pub(super) fn encode(self) -> u32 {
        match self {
            CellKind::Cell { len } => 1 << 16 | len as u32,
            CellKind::Counter => 2 << 16,
        }
    }

    pub(super) fn decode(word: u32) -> Option<CellKind> {
        let len = (word & 0xffff) as usize;
        match word >> 16 {
            1 if (1..=limits::CELL_LEN_MAX).contains(&len) => Some(CellKind::Cell { len }),
            2 if len == 0 => Some(CellKind::Counter),
            _ => None,
        }
    }
}
