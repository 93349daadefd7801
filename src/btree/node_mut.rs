//! Changes of one entry of a page in place.
//!
//! These functions rely on a sound page: the caller parsed and audited the page when it made the
//! page writable. If an entry does not fit, nothing is changed; the caller then rebuilds the page
//! (`rebuild`).

use crate::Result;
use crate::btree::node::{
    BRANCH_SLOT_LEN, GARBAGE_AT, HEAD_LEN, HEAP_START_AT, LEAF_SLOT_LEN, Node, Payload, Slot, VERSION_LEN, head_of,
    padded,
};
use crate::files::page::{COUNT, HEADER_LEN, LINK, set_u16, set_u32, set_u64};
use crate::ids::PageId;

/// The offsets of the parts of a page.
struct Layout {
    heads: usize,
    slots: usize,
    slot_len: usize,
    count: usize,
    heap_start: usize,
    garbage: usize,
}

impl Layout {
    fn of(node: &Node<'_>) -> Layout {
        let heads = HEADER_LEN + padded(node.prefix().len());
        Layout {
            heads,
            slots: heads + HEAD_LEN * node.count(),
            slot_len: slot_len(node.level),
            count: node.count(),
            heap_start: node.heap_start(),
            garbage: node.garbage(),
        }
    }

    fn store(&self, body: &mut [u8]) {
        set_u16(body, COUNT, self.count as u16);
        set_u16(body, HEAP_START_AT, self.heap_start as u16);
        set_u16(body, GARBAGE_AT, self.garbage as u16);
    }
}

/// Returns the length of a slot at this level in bytes.
pub(crate) fn slot_len(level: u8) -> usize {
    if level == 0 { LEAF_SLOT_LEN } else { BRANCH_SLOT_LEN }
}

/// Writes a slot at `at`; its data field has 4 bytes in a branch and 2 in a leaf.
pub(crate) fn write_slot(body: &mut [u8], at: usize, slot_len: usize, slot: Slot) {
    set_u16(body, at, slot.offset as u16);
    set_u16(body, at + 2, slot.suffix_len as u16);
    if slot_len == LEAF_SLOT_LEN {
        set_u16(body, at + 4, slot.data as u16);
    } else {
        set_u32(body, at + 4, slot.data);
    }
}

/// Writes the record that ends at `end`. Returns where it starts.
pub(crate) fn write_record(body: &mut [u8], end: usize, version: &[u8], rest: &[u8], tail: &[u8]) -> usize {
    let mut at = end;
    for part in [tail, rest, version] {
        at -= part.len();
        body[at..at + part.len()].copy_from_slice(part);
    }
    at
}

/// Inserts an entry before `index`. Returns false if the entry does not fit, or if its key lacks
/// the page's prefix.
///
/// # Errors
/// `Corrupt` if the page can't be parsed.
pub(crate) fn insert(body: &mut [u8], id: PageId, index: usize, key: &[u8], payload: Payload<'_>) -> Result<bool> {
    let node = Node::parse(body, id)?;
    let Some(suffix) = key.strip_prefix(node.prefix()) else {
        return Ok(false);
    };
    let mut layout = Layout::of(&node);
    let Layout { heads, slots, slot_len, count, .. } = layout;
    let rest = suffix.get(HEAD_LEN..).unwrap_or(&[]);
    let record_len = payload.version.len() + rest.len() + payload.value.len();
    if node.arrays_end() + HEAD_LEN + slot_len + record_len > layout.heap_start {
        return Ok(false);
    }
    // Move from the back: slots after the new one, slots before it, heads after it.
    body.copy_within(slots + index * slot_len..slots + count * slot_len, slots + HEAD_LEN + (index + 1) * slot_len);
    body.copy_within(slots..slots + index * slot_len, slots + HEAD_LEN);
    body.copy_within(heads + index * HEAD_LEN..slots, heads + (index + 1) * HEAD_LEN);
    set_u64(body, heads + index * HEAD_LEN, head_of(suffix));
    layout.heap_start = write_record(body, layout.heap_start, payload.version, rest, payload.value);
    let offset = if record_len == 0 { 0 } else { layout.heap_start };
    let slot = Slot { offset, suffix_len: suffix.len(), data: payload.slot_data };
    write_slot(body, slots + HEAD_LEN + index * slot_len, slot_len, slot);
    layout.count += 1;
    layout.store(body);
    Ok(true)
}

/// Removes entry `index`. Its record becomes garbage, or free space if it was the heap's lowest.
///
/// # Errors
/// `Corrupt` if the page can't be parsed.
pub(crate) fn remove(body: &mut [u8], id: PageId, index: usize) -> Result<()> {
    let node = Node::parse(body, id)?;
    let slot = node.slot(index);
    let record_len = node.record_len(slot);
    let mut layout = Layout::of(&node);
    let Layout { heads, slots, slot_len, count, .. } = layout;
    body.copy_within(heads + (index + 1) * HEAD_LEN..slots, heads + index * HEAD_LEN);
    body.copy_within(slots..slots + index * slot_len, slots - HEAD_LEN);
    body.copy_within(slots + (index + 1) * slot_len..slots + count * slot_len, slots - HEAD_LEN + index * slot_len);
    if slot.offset == layout.heap_start {
        layout.heap_start += record_len;
    } else {
        layout.garbage += record_len;
    }
    layout.count -= 1;
    layout.store(body);
    Ok(())
}

/// Overwrites version and value of entry `index` of a leaf, if the new value is not longer than the
/// old one.
///
/// # Errors
/// `Corrupt` if the page can't be parsed.
pub(crate) fn overwrite(body: &mut [u8], id: PageId, index: usize, payload: Payload<'_>) -> Result<bool> {
    let node = Node::parse(body, id)?;
    let slot = node.slot(index);
    let old_len = node.payload(index)?.value.len();
    let Some(saved) = old_len.checked_sub(payload.value.len()) else {
        return Ok(false);
    };
    let mut layout = Layout::of(&node);
    let value_at = slot.offset + VERSION_LEN + slot.rest_len();
    body[slot.offset..slot.offset + VERSION_LEN].copy_from_slice(payload.version);
    body[value_at..value_at + payload.value.len()].copy_from_slice(payload.value);
    let at = layout.slots + index * layout.slot_len;
    write_slot(body, at, layout.slot_len, Slot { data: payload.slot_data, ..slot });
    layout.garbage += saved;
    layout.store(body);
    Ok(true)
}

/// Sets child `index` of a branch.
///
/// # Errors
/// `Corrupt` if the page can't be parsed.
pub(crate) fn set_child(body: &mut [u8], id: PageId, index: usize, child: PageId) -> Result<()> {
    let at = if index == 0 {
        LINK
    } else {
        let layout = Layout::of(&Node::parse(body, id)?);
        layout.slots + (index - 1) * layout.slot_len + 4
    };
    set_u32(body, at, child.0);
    Ok(())
}

/// Removes child `index` of a branch that has another one.
///
/// # Errors
/// `Corrupt` if the page can't be parsed.
pub(crate) fn remove_child(body: &mut [u8], id: PageId, index: usize) -> Result<()> {
    if index == 0 {
        let second = Node::parse(body, id)?.child(1);
        set_child(body, id, 0, second)?;
    }
    remove(body, id, index.saturating_sub(1))
}
