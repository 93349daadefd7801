//! The `checkpoint` file: two header slots, written in turn. The newest valid one is used.
//!
//! Each slot is a block of its own in the file, so that a torn write of one leaves the other whole.
//! Little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic "untornK\x01" |
//! | 8 | 4 | format version |
//! | 12 | 4 | CRC-32 of the whole slot, without these 4 bytes |
//! | 16 | 16 | store id |
//! | 32 | 4 × 8 | page size, maximum size, ring size, segment size, in bytes |
//! | 64 | 8 | serial: counts header writes, the higher one is newer; its parity is the slot |
//! | 72 | 8 | log position from which recovery replays |
//! | 80 | 8 | 1: nothing was committed after this checkpoint; else 0 |
//! | 88 | 2 × 8 | how much of the log is kept for its followers: bytes, milliseconds |
//! | 104 | 8 | the folded checksum words of the trees' roots; 0 if none or not recorded |
//! | 112 | 32 × 8 | the image of the commit, see `slot` |
//! | 368 | 3,728 | zero |

use crate::files::dir;
use crate::files::geometry::Geometry;
use crate::files::slot;
use crate::files::slot::{SLOT_WORDS, SlotImage};
use crate::{Error, LimitKind, Result, TxnId};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use untorn_wal::{Lsn, Retention};

/// Identifies the file type.
const MAGIC: [u8; 8] = *b"untornK\x01";
/// The version of the whole format: pages, log and header.
pub(crate) const FORMAT_VERSION: u32 = 3;
/// The oldest version that this program reads. Version 3 adds logged extents, which version 2 does
/// not have. So a store of version 2 is also a valid store of version 3, and its next header
/// records version 3.
const FORMAT_VERSION_MIN: u32 = 2;
/// The distance between the two slots in bytes.
const SLOT_BYTES: usize = 4096;
/// The number of bytes of a slot that are used. The checksum covers the whole slot, and is at the
/// same place in all versions, so that a newer header is distinguished from a damaged one.
const USED: usize = 112 + SLOT_WORDS * 8;
/// A bound that no store's serial can reach.
const SERIAL_MAX: u64 = 1 << 62;
const _: () = assert!(USED <= 512, "a header lies in one sector, which disks write whole");

/// The content of a checkpoint header: the store's identity, its fixed parameters and one commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CheckpointHeader {
    pub(crate) store_id: [u8; 16],
    pub(crate) geometry: Geometry,
    /// Counts header writes; the higher one is the newer.
    pub(crate) serial: u64,
    /// The position from which the log is replayed.
    pub(crate) log_position: Lsn,
    /// Whether nothing was committed after this checkpoint, since the store was shut down in order.
    pub(crate) clean: bool,
    /// How much of the log before this checkpoint is kept. It is in the header so that it survives
    /// a restart.
    pub(crate) retention: Retention,
    /// The folded checksum words of the catalog's root and of the recent roots. Each commit changes
    /// one of these roots, so this field reveals an arena of another time. 0 if it is not recorded.
    pub(crate) roots_sum: u64,
    pub(crate) image: SlotImage,
}

impl CheckpointHeader {
    pub(crate) fn txn(&self) -> TxnId {
        self.image.txn
    }

    /// Returns the serial of the header after one with this serial.
    ///
    /// # Errors
    /// [`Error::Limit`] if the next serial would exceed its limit, beyond which a newer header
    /// could count as older. Only damage leads to such a serial.
    pub(crate) fn next_serial(serial: u64) -> Result<u64> {
        match serial.checked_add(1) {
            Some(next) if next <= SERIAL_MAX => Ok(next),
            _ => Err(Error::Limit { what: LimitKind::HeaderSerials, found: serial, limit: SERIAL_MAX - 1 }),
        }
    }

    /// Returns an error if a counter is above half of its limit, which only damage can cause. The
    /// next header must be one that [`CheckpointHeader::decode`] accepts.
    pub(crate) fn refuse_exhausted(&self) -> Result<()> {
        let image = &self.image;
        let counters = [
            (64, "serial", self.serial, SERIAL_MAX),
            (72, "log position", self.log_position.0, Lsn::MAX.0),
            (112 + 8 * 7, "number of records", image.records, slot::COUNT_MAX),
            (112 + 8 * 8, "number of free pages", image.free_pages, slot::COUNT_MAX),
            (112 + 8 * 9, "number of commits", image.commits, slot::COUNT_MAX),
        ];
        match counters.into_iter().find(|(_, _, found, max)| *found > max / 2) {
            None => Ok(()),
            Some((at, what, found, max)) => {
                let offset = self.serial % 2 * SLOT_BYTES as u64 + at;
                let what = format!("the header's {what} is {found}, expected at most {}", max / 2);
                Err(Error::corrupt(dir::CHECKPOINT, offset, what))
            }
        }
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
            self.retention.bytes,
            u64::try_from(self.retention.age.as_millis()).unwrap_or(u64::MAX),
            self.roots_sum,
        ];
        for (i, word) in words.iter().enumerate() {
            bytes[32 + i * 8..40 + i * 8].copy_from_slice(&word.to_le_bytes());
        }
        for (i, word) in self.image.encode().iter().enumerate() {
            bytes[112 + i * 8..120 + i * 8].copy_from_slice(&word.to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Decodes the slot with this index. Every field is checked against every limit that creation
    /// and checkpoints enforce: a checksum proves that the bytes are those that were written, not
    /// that this library wrote them.
    pub(crate) fn decode(bytes: &[u8; SLOT_BYTES], slot: u64) -> Result<CheckpointHeader> {
        let offset = slot * SLOT_BYTES as u64;
        let damaged_at = |at: usize, what: String| Error::corrupt(dir::CHECKPOINT, offset + at as u64, what);
        let damaged = |what: String| damaged_at(0, what);
        if bytes[0..8] != MAGIC {
            return Err(damaged("the slot does not begin as a header of a store".into()));
        }
        let word32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (found, expected) = (word32(12), checksum(bytes));
        if found != expected {
            return Err(damaged(format!("header checksum {found:08x}, expected {expected:08x}")));
        }
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&word32(8)) {
            let (file, found) = (dir::CHECKPOINT.into(), word32(8));
            return Err(Error::FormatVersion { file, found, known: FORMAT_VERSION });
        }
        let mut image = [0; SLOT_WORDS];
        for (i, slot) in image.iter_mut().enumerate() {
            *slot = word(112 + i * 8);
        }
        if word(80) > 1 || !slot::is_reserved_zero(&image) || bytes[USED..].iter().any(|byte| *byte != 0) {
            return Err(damaged("reserved bytes of the header are not zero".into()));
        }
        let geometry = Geometry {
            page_size: usize::try_from(word(32)).unwrap_or(usize::MAX),
            max_size: word(40),
            ring_size: word(48),
            segment_size: word(56),
        };
        if let Some((parameter, what)) = geometry.problem() {
            return Err(damaged_at(32 + 8 * parameter as usize, what));
        }
        let (serial, log_position) = (word(64), Lsn(word(72)));
        if serial % 2 != slot || serial > SERIAL_MAX {
            let what = format!("the header has serial {serial}, which does not belong in slot {slot}");
            return Err(damaged_at(64, what));
        }
        if !log_position.is_stored() {
            let what = format!("log position {log_position} is not a multiple of 8 up to {}", Lsn::MAX);
            return Err(damaged_at(72, what));
        }
        let image = SlotImage::decode(&image, dir::CHECKPOINT)?;
        if let Some((word, what)) = image.problem(&geometry) {
            return Err(damaged_at(112 + 8 * word, what));
        }
        Ok(CheckpointHeader {
            store_id: bytes[16..32].try_into().expect("16 bytes"),
            geometry,
            serial,
            log_position,
            clean: word(80) != 0,
            retention: Retention { bytes: word(88), age: Duration::from_millis(word(96)) },
            roots_sum: word(104),
            image,
        })
    }

    /// Writes the header to the slot that does not hold the previous one, and syncs it.
    pub(crate) fn write(&self, file: &File) -> Result<()> {
        // A header that the next open rejects must not replace one that it accepts.
        CheckpointHeader::decode(&self.encode(), self.serial % 2)?;
        let offset = (self.serial % 2) * SLOT_BYTES as u64;
        crash_point!("header.before_write");
        file.write_all_at(&self.encode(), offset).map_err(Error::io("write of checkpoint"))?;
        crash_point!("header.before_sync");
        crate::system::write_back::sync(file, "checkpoint.sync").map_err(Error::io("sync of checkpoint"))?;
        crash_point!("header.synced");
        Ok(())
    }

    /// Reads the newest valid header, and the damage of the other slot, if any.
    ///
    /// The caller compares the header with the newest checkpoint that the log records. So a damaged
    /// newest header is never silently ignored.
    pub(crate) fn read(file: &File) -> Result<(CheckpointHeader, Option<Error>)> {
        let (mut found, damage) = CheckpointHeader::read_slots(file)?;
        match found.pop() {
            Some(newest) => Ok((newest, damage)),
            None => Err(damage.expect("two slots, none valid")),
        }
    }

    /// Reads the valid headers, the newest last, and the damage of an invalid slot.
    pub(crate) fn read_slots(file: &File) -> Result<(Vec<CheckpointHeader>, Option<Error>)> {
        let len = file.metadata().map_err(Error::io("stat of checkpoint"))?.len();
        if len < 2 * SLOT_BYTES as u64 {
            return Err(Error::corrupt(
                dir::CHECKPOINT,
                len,
                format!("the file has {len} bytes, expected {}", 2 * SLOT_BYTES),
            ));
        }
        let mut found: Vec<CheckpointHeader> = Vec::new();
        let mut damage = None;
        for slot in 0..2 {
            let offset = slot * SLOT_BYTES as u64;
            let mut bytes = [0; SLOT_BYTES];
            file.read_exact_at(&mut bytes, offset).map_err(Error::io("read of checkpoint"))?;
            match CheckpointHeader::decode(&bytes, slot) {
                Ok(header) => found.push(header),
                Err(newer @ (Error::Mismatch { .. } | Error::FormatVersion { .. })) => return Err(newer),
                Err(error) => damage = Some(error),
            }
        }
        found.sort_by_key(|header| header.serial);
        if let [older, newer] = &found[..]
            && (older.store_id, older.geometry) != (newer.store_id, newer.geometry)
        {
            let offset = older.serial % 2 * SLOT_BYTES as u64;
            let what = "its store id or fixed sizes are not those of the header in the other slot";
            return Err(Error::corrupt(dir::CHECKPOINT, offset, what));
        }
        Ok((found, damage))
    }
}

fn checksum(bytes: &[u8; SLOT_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::slot::{CatalogState, QueueState, RecentTree};
    use crate::{KeyspaceId, PageId, Version};

    /// Computed by another program from the tables in this file and in `slot`; 16 bytes a line, the
    /// rest is zero.
    const GOLDEN: [&str; 23] = [
        "756e746f726e4b010300000017ae8376",
        "000102030405060708090a0b0c0d0e0f",
        "00100000000000000000000000010000",
        "00002000000000000000800000000000",
        "09000000000000004044000000000000",
        "01000000000000000050000000000000",
        "89670000000000007856341200000080",
        "34120000003000001100000022000000",
        "33030000000000004044000000000000",
        "55000000000000006600000000000000",
        "07000000000000008808000000000000",
        "99000000000000000010000000000000",
        "01000000020000000300000004000000",
        "05000000000000000000000000000000",
        "00000000000000000000000000000000",
        "06000000070000000800000009000000",
        "0a000000000000000000000000000000",
        "00000000000000000000000000000000",
        "00000000000000002100000000000000",
        "22000000000000002300000000000000",
        "31000000000000003200000000000000",
        "33000000000000000000000000000000",
        "00000000000000005c42090cec64dd1a",
    ];

    fn header() -> CheckpointHeader {
        let queue = |n: u32| QueueState {
            head: PageId(n),
            tail: PageId(n + 1),
            head_index: n + 2,
            tail_index: n + 3,
            count: u64::from(n) + 4,
        };
        let tree =
            |n: u32| RecentTree { keyspace: KeyspaceId(n.into()), root: PageId(n + 1), entries: u64::from(n) + 2 };
        let image = SlotImage {
            txn: TxnId::from_u64(3 << 44 | 0x1234),
            catalog: CatalogState { root: PageId(0x11), recent: [tree(0x21), tree(0x31)] },
            extent_directory: PageId(0x22),
            high_water: 0x333,
            log_tail: Lsn(0x4440),
            blocks_reserved: 0x55,
            next_keyspace: 0x66,
            keyspaces: 0x7,
            records: 0x888,
            free_pages: 0x99,
            commits: 0x1000,
            queues: [queue(1), QueueState::default(), queue(6), QueueState::default()],
            cells_floor: Version::default(),
        };
        CheckpointHeader {
            store_id: std::array::from_fn(|i| i as u8),
            geometry: Geometry { page_size: 4096, max_size: 1 << 40, ring_size: 2 << 20, segment_size: 8 << 20 },
            serial: 9,
            log_position: Lsn(0x4440),
            clean: true,
            retention: Retention { bytes: 0x5000, age: Duration::from_millis(0x6789) },
            roots_sum: 0x8000_0000_1234_5678,
            image,
        }
    }

    /// Goal: the bytes of a header don't change unnoticed, and read back.
    #[test]
    fn a_header_has_its_golden_bytes() {
        let bytes = header().encode();
        let lines: Vec<String> =
            bytes.chunks(16).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        assert_eq!(lines[..GOLDEN.len()], GOLDEN);
        assert!(bytes[USED..].iter().all(|byte| *byte == 0));
        assert_eq!(CheckpointHeader::decode(&bytes, 1).unwrap(), header());
    }

    /// Goal: a header with a flipped bit is rejected, as is one with reserved bytes in use.
    #[test]
    fn a_changed_header_is_refused() {
        let bytes = header().encode();
        for bit in (0..USED * 8).chain((USED * 8..SLOT_BYTES * 8).step_by(331)) {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(CheckpointHeader::decode(&flipped, 1).is_err(), "bit {bit}");
        }
        for at in [81, 112 + 20, USED, SLOT_BYTES - 1] {
            let mut used = bytes;
            used[at] = 1;
            let sum = checksum(&used);
            used[12..16].copy_from_slice(&sum.to_le_bytes());
            let error = CheckpointHeader::decode(&used, 1).unwrap_err();
            assert!(error.to_string().contains("checkpoint is damaged at byte 4096: reserved"), "{error}");
        }
    }
}
