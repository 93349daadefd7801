//! The `checkpoint` file: two header slots, written in turn, of which the newest valid one counts.
//!
//! Each slot is a page of its own in the file, so that a torn write of one leaves the other whole.

use crate::options::Geometry;
use crate::slot::{SLOT_WORDS, SlotImage};
use crate::{Error, Result, TxnId, dir};
use std::fs::File;
use std::os::unix::fs::FileExt;
use untorn_wal::Lsn;

/// Marks the file as ours.
const MAGIC: [u8; 8] = *b"untornK\x01";
/// Version of the whole format: pages, log and header.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Distance of the two slots.
const SLOT_BYTES: usize = 4096;
/// Bytes of a slot that are used. The checksum covers the whole slot, at the same place in all versions, so
/// that a newer header is told apart from a damaged one.
const USED: usize = 112 + SLOT_WORDS * 8;
const _: () = assert!(USED <= 512, "a header lies in one sector, which disks write whole");

/// What a checkpoint says: the store's identity, its fixed parameters and one commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) store_id: [u8; 16],
    pub(crate) geometry: Geometry,
    /// Counts header writes; the higher one is the newer.
    pub(crate) serial: u64,
    /// From where the log is replayed.
    pub(crate) log_position: Lsn,
    /// Nothing was committed after this checkpoint: the store was left in order.
    pub(crate) clean: bool,
    pub(crate) image: SlotImage,
}

impl Header {
    pub(crate) fn txn(&self) -> TxnId {
        self.image.txn
    }

    pub(crate) fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        // 12..16: the checksum.
        bytes[16..32].copy_from_slice(&self.store_id);
        let geometry = &self.geometry;
        let words = [
            geometry.page_size as u64,
            geometry.max_size,
            geometry.ring_size,
            geometry.segment_size,
            self.serial,
            self.log_position.0,
            u64::from(self.clean),
        ];
        for (i, word) in words.iter().enumerate() {
            bytes[32 + i * 8..40 + i * 8].copy_from_slice(&word.to_le_bytes());
        }
        // 88..112: reserved, zero.
        for (i, word) in self.image.encode().iter().enumerate() {
            bytes[112 + i * 8..120 + i * 8].copy_from_slice(&word.to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Decodes a slot that stands at byte `offset` of the file.
    fn decode(bytes: &[u8; SLOT_BYTES], offset: u64) -> Result<Header> {
        let damaged = |what: String| Error::corrupt(dir::CHECKPOINT, offset, what);
        if bytes[0..8] != MAGIC {
            return Err(damaged("no header of a store stands here".into()));
        }
        let word32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (found, expected) = (word32(12), checksum(bytes));
        if found != expected {
            return Err(damaged(format!("header checksum {found:08x}, expected {expected:08x}")));
        }
        if word32(8) != FORMAT_VERSION {
            return Err(Error::Mismatch {
                file: dir::CHECKPOINT.into(),
                what: format!("format version {}, this library knows {FORMAT_VERSION}", word32(8)),
            });
        }
        let mut image = [0; SLOT_WORDS];
        for (i, slot) in image.iter_mut().enumerate() {
            *slot = word(112 + i * 8);
        }
        Ok(Header {
            store_id: bytes[16..32].try_into().expect("16 bytes"),
            geometry: Geometry {
                page_size: word(32) as usize,
                max_size: word(40),
                ring_size: word(48),
                segment_size: word(56),
            },
            serial: word(64),
            log_position: Lsn(word(72)),
            clean: word(80) != 0,
            image: SlotImage::decode(&image, dir::CHECKPOINT)?,
        })
    }

    /// Writes the header to the slot that does not hold the previous one, and syncs it.
    pub(crate) fn write(&self, file: &File) -> Result<()> {
        let offset = (self.serial % 2) * SLOT_BYTES as u64;
        crash_point!("header.before_write");
        file.write_all_at(&self.encode(), offset).map_err(Error::io("write of checkpoint"))?;
        crash_point!("header.before_sync");
        crate::fault::fdatasync(file, "checkpoint.sync").map_err(Error::io("sync of checkpoint"))?;
        crash_point!("header.after_sync");
        Ok(())
    }

    /// Reads the newest valid header; the damage of the other slot, if any, comes with it.
    ///
    /// The caller holds the older header against what the log states about newer checkpoints, so a
    /// rotten newest header is never silently passed over.
    pub(crate) fn read(file: &File) -> Result<(Header, Option<Error>)> {
        let len = file.metadata().map_err(Error::io("stat of checkpoint"))?.len();
        if len < 2 * SLOT_BYTES as u64 {
            return Err(Error::corrupt(
                dir::CHECKPOINT,
                len,
                format!("the file has {len} bytes, expected {}", 2 * SLOT_BYTES),
            ));
        }
        let mut found: Vec<Header> = Vec::new();
        let mut damage = None;
        for slot in 0..2 {
            let offset = slot * SLOT_BYTES as u64;
            let mut bytes = [0; SLOT_BYTES];
            file.read_exact_at(&mut bytes, offset).map_err(Error::io("read of checkpoint"))?;
            match Header::decode(&bytes, offset) {
                Ok(header) => found.push(header),
                Err(newer @ Error::Mismatch { .. }) => return Err(newer),
                Err(error) => damage = Some(error),
            }
        }
        found.sort_by_key(|header| header.serial);
        match found.pop() {
            Some(newest) => Ok((newest, damage)),
            None => Err(damage.expect("two slots, none valid")),
        }
    }
}

fn checksum(bytes: &[u8; SLOT_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}
