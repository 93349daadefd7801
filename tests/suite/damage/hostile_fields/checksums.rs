//! The checksummed structures of a store: where they lie, and how their checksums are made to fit.

use super::*;
use crate::common::store_files::{IMAGE_WORDS, image_checksum};
use untorn_wal::le::u32_at;
pub(super) use untorn_wal::le::{set_u32, u64_at};

const IMAGE_AT: usize = 112;
const SLOT_END: usize = IMAGE_AT + 8 * IMAGE_WORDS;

fn crc(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// The sum over the image of a commit, as `docs/format.md` leads to it.
pub(super) fn seal_image(image: &mut [u8]) {
    let words: Vec<u64> = (0..IMAGE_WORDS).map(|index| u64_at(image, 8 * index)).collect();
    image[8 * (IMAGE_WORDS - 1)..].copy_from_slice(&image_checksum(&words).to_le_bytes());
}

fn seal_slot(slot: &mut [u8]) {
    seal_image(&mut slot[IMAGE_AT..SLOT_END]);
    let sum = crc(&[&slot[..12], &slot[16..BLOCK]]);
    set_u32(slot, 12, sum);
}

/// The batches of a segment: block and length of the payload.
pub(super) fn batches(segment: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = BLOCK;
    while segment.get(at..at + 8) == Some(b"untornWB") {
        let len = u32_at(segment, at + 32) as usize;
        found.push((at, len));
        at += (128 + len).next_multiple_of(BLOCK);
    }
    found
}

/// Makes all checksums of a segment fit again: the header's, and each batch's with its payload and
/// its chain.
fn seal_segment(segment: &mut [u8], batches: &[(usize, usize)], store: &[u8], keeps_chain: bool) {
    let mut chain = crc(&[&segment[..124]]);
    set_u32(segment, 124, chain);
    for &(at, len) in batches {
        if !keeps_chain {
            set_u32(segment, at + 40, chain);
        }
        let payload = crc(&[&segment[at + 16..at + 24], &segment[at + 128..at + 128 + len]]);
        set_u32(segment, at + 36, payload);
        chain = crc(&[store, &segment[at..at + 124]]);
        set_u32(segment, at + 124, chain);
    }
}

/// A field: the file, the offset and the width in bytes; and what is to be sealed after a change.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) file: String,
    pub(super) at: usize,
    pub(super) width: usize,
    pub(super) seal: Seal,
}

#[derive(Clone, Debug)]
pub(super) enum Seal {
    /// The header in this slot.
    Slot(usize),
    /// Page 0 of the arena.
    ArenaHead,
    /// A page, by its offset.
    Page(usize),
    /// A segment; `chain` is the field itself.
    Segment { chain: bool },
    /// The record at this offset, and the segment.
    Record(usize),
}

/// All fields of the structures in these files.
pub(super) fn fields(image: &Image) -> Vec<Field> {
    let mut found = Vec::new();
    let mut add = |file: &str, at: usize, width: usize, seal: Seal| {
        found.push(Field { file: file.to_owned(), at, width, seal });
    };
    for slot in 0..2 {
        let base = slot * BLOCK;
        add("checkpoint", base + 8, 4, Seal::Slot(slot));
        for at in (16..SLOT_END).step_by(8) {
            add("checkpoint", base + at, 8, Seal::Slot(slot));
            if at >= IMAGE_AT {
                add("checkpoint", base + at, 4, Seal::Slot(slot));
                add("checkpoint", base + at + 4, 4, Seal::Slot(slot));
            }
        }
    }
    for at in [8, 24] {
        add("arena", at, 8, Seal::ArenaHead);
    }
    let arena = &image.files["arena"];
    for page in (PAGE..arena.len()).step_by(PAGE).filter(|page| u64_at(arena, *page) >> 63 == 1) {
        for (at, width) in
            [(8, 1), (9, 1), (10, 2), (12, 4), (16, 8), (24, 4), (28, 4), (32, 2), (34, 2), (36, 2), (38, 2)]
        {
            add("arena", page + at, width, Seal::Page(page));
        }
        for at in (40..120).step_by(8).chain((PAGE - 64..PAGE).step_by(16)) {
            add("arena", page + at, 2, Seal::Page(page));
            add("arena", page + at, 8, Seal::Page(page));
        }
    }
    for (file, bytes) in image.files.iter().filter(|(_, bytes)| bytes.starts_with(b"untornWS")) {
        for (at, width) in [(8, 4), (12, 4), (96, 4), (100, 4), (16, 8), (32, 8), (40, 8), (48, 8), (104, 8), (112, 8)]
        {
            add(file, at, width, Seal::Segment { chain: false });
        }
        for at in (56..96).step_by(8) {
            add(file, at, 8, Seal::Segment { chain: false });
        }
        let batches = batches(bytes);
        for (batch, len) in batches.first().into_iter().chain(batches.iter().rev().take(3)) {
            for (at, width) in [(32, 4), (40, 4), (44, 4), (88, 4), (8, 8), (16, 8), (24, 8), (96, 8)] {
                add(file, batch + at, width, Seal::Segment { chain: at == 40 });
            }
            for at in (48..88).step_by(8) {
                add(file, batch + at, 8, Seal::Segment { chain: false });
            }
            if *len > 64 {
                let record = batch + 128;
                for (at, width) in [(0, 4), (8, 8), (16, 8), (24, 1), (25, 1), (32, 1), (33, 8), (41, 2), (43, 4)] {
                    add(file, record + at, width, Seal::Record(record));
                }
            }
        }
    }
    found
}

/// Extreme values for a field of this width that holds `old`.
pub(super) fn values(old: u64, width: usize) -> Vec<u64> {
    let max = if width == 8 { u64::MAX } else { (1 << (8 * width)) - 1 };
    let high = 1 << (8 * width - 1);
    let mut values = vec![0, 1, 2, 7, max, max - 1, high, high - 1, high >> 1, 0x1000 & max];
    values.extend([
        old.wrapping_add(1),
        old.wrapping_sub(1),
        old.wrapping_mul(2),
        old / 2,
        old ^ 4,
        old + (old == 0) as u64 * 3,
    ]);
    values.iter_mut().for_each(|value| *value &= max);
    values.sort_unstable();
    values.dedup();
    values.retain(|value| *value != old);
    values
}

/// Sets one field of the files and makes the checksums fit.
pub(super) fn patch(files: &mut BTreeMap<String, Vec<u8>>, field: &Field, value: u64) {
    let store = files["checkpoint"][16..32].to_vec();
    let bytes = files.get_mut(&field.file).unwrap();
    let batches = batches(bytes);
    let set =
        |bytes: &mut [u8]| bytes[field.at..field.at + field.width].copy_from_slice(&value.to_le_bytes()[..field.width]);
    set(bytes);
    match field.seal {
        Seal::Slot(slot) => seal_slot(&mut bytes[slot * BLOCK..][..BLOCK]),
        Seal::ArenaHead => {
            let sum = crc(&[&bytes[..32]]);
            set_u32(bytes, 32, sum);
        }
        Seal::Page(page) => {
            let sum = u64::from(crc(&[&bytes[page + 8..page + PAGE]])) | 1 << 63;
            bytes[page..page + 8].copy_from_slice(&sum.to_le_bytes());
        }
        Seal::Segment { chain } => seal_segment(bytes, &batches, &store, chain),
        Seal::Record(record) => seal_record(bytes, record, &store),
    }
}

/// Makes the checksums of a record fit, and those of its segment.
pub(super) fn seal_record(bytes: &mut [u8], record: usize, store: &[u8]) {
    let batches = batches(bytes);
    let end = record + 32 + u32_at(bytes, record) as usize;
    if end <= bytes.len() {
        set_u32(bytes, record + 4, 0);
        let mut hasher = crc32fast::Hasher::new_with_initial(crc(&[store]));
        hasher.update(&bytes[record..end]);
        set_u32(bytes, record + 4, hasher.finalize());
    }
    seal_segment(bytes, &batches, store, false);
}
