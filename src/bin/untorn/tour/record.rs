//! The contents of the index: a record for each file, and each writer's totals, changed in the same
//! transaction.
//!
//! A record contains its own key and a checksum over both, so that a torn or misplaced record is
//! detected. The totals contain the sums of all of a writer's records, so that half a transaction
//! is detected. They also contain the writer's position in its list, so that the successor of a
//! dead writer continues exactly there.

use std::fmt;

/// The keyspace of the records, by relative path.
pub(crate) const FILES: &str = "files";
/// The keyspace of the writers' totals.
pub(crate) const TOTALS: &str = "totals";

/// The data of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRecord {
    /// The writer that it belongs to.
    pub(crate) slot: u32,
    /// The commit of that writer, counted from 1, that wrote it.
    pub(crate) commit: u64,
    /// Bytes of content.
    pub(crate) size: u64,
    /// Last modification, in nanoseconds since 1970.
    pub(crate) mtime_ns: i64,
    /// CRC-32 of the content, if it could be read.
    pub(crate) content_crc: Option<u32>,
}

/// The sums over all records of one writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Commits of this writer so far.
    pub(crate) commits: u64,
    /// The number of passes through its whole list.
    pub(crate) passes: u64,
    /// Files of the list done in this pass.
    pub(crate) done: u64,
    /// Length of the list.
    pub(crate) files: u64,
    /// Records that exist.
    pub(crate) records: u64,
    /// Sum of their sizes.
    pub(crate) bytes: u64,
    /// Wrapping sum of their checksums.
    pub(crate) checksums: u64,
}

/// The error that stored bytes are not what any writer wrote.
#[derive(Debug)]
pub(crate) struct Torn(String);

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hexadecimal digits of the checksum at the beginning of everything stored.
const CHECKSUM_DIGITS: usize = 8;
/// Stands for the checksum of a content that could not be read.
const UNREADABLE: &str = "unreadable";

impl FileRecord {
    /// Encodes the record as one readable line: `CHECKSUM writer N commit N size N mtime N content
    /// CRC KEY`.
    pub(crate) fn encode(&self, key: &[u8]) -> Vec<u8> {
        let FileRecord { slot, commit, size, mtime_ns, content_crc } = self;
        let content = content_crc.map_or(UNREADABLE.to_owned(), |crc| format!("{crc:08x}"));
        let fields = format!(" writer {slot} commit {commit} size {size} mtime {mtime_ns} content {content} ");
        seal([fields.as_bytes(), key].concat())
    }

    /// Decodes the record under a key, if it is whole and belongs to that key.
    pub(crate) fn decode(key: &[u8], bytes: &[u8]) -> Result<FileRecord, Torn> {
        let shown = || String::from_utf8_lossy(key).into_owned();
        let Some(body) = unseal(bytes) else {
            return Err(Torn(format!("the record of {:?}, {} bytes, fails its checksum", shown(), bytes.len())));
        };
        body.strip_suffix(key)
            .and_then(|fields| std::str::from_utf8(fields).ok())
            .and_then(FileRecord::parse)
            .ok_or_else(|| Torn(format!("under {:?} lies {:?}", shown(), String::from_utf8_lossy(body))))
    }

    fn parse(fields: &str) -> Option<FileRecord> {
        let rest = fields.strip_prefix(" writer ")?;
        let (slot, rest) = rest.split_once(" commit ")?;
        let (commit, rest) = rest.split_once(" size ")?;
        let (size, rest) = rest.split_once(" mtime ")?;
        let (mtime, rest) = rest.split_once(" content ")?;
        // A remainder of a longer key would be after this space.
        let content = rest.strip_suffix(' ')?;
        let content_crc = match content {
            UNREADABLE => None,
            digits => Some(u32::from_str_radix(digits, 16).ok()?),
        };
        Some(FileRecord {
            slot: slot.parse().ok()?,
            commit: commit.parse().ok()?,
            size: size.parse().ok()?,
            mtime_ns: mtime.parse().ok()?,
            content_crc,
        })
    }
}

/// Returns the checksum that a stored record contains.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    split(bytes).map_or(0, |(stated, _)| u64::from(stated))
}

impl Totals {
    /// Returns the key of a writer's totals.
    pub(crate) fn key(slot: usize) -> Vec<u8> {
        format!("writer {slot}").into_bytes()
    }

    /// Encodes the totals as `CHECKSUM commits N passes N …`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Totals { commits, passes, done, files, records, bytes, checksums } = self;
        seal(
            format!(
                " commits {commits} passes {passes} done {done} files {files} records {records} bytes {bytes} \
                 checksums {checksums}"
            )
            .into_bytes(),
        )
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Totals, Torn> {
        unseal(bytes)
            .and_then(|body| std::str::from_utf8(body).ok())
            .and_then(Totals::parse)
            .ok_or_else(|| Torn(format!("a writer's totals are {:?}", String::from_utf8_lossy(bytes))))
    }

    fn parse(body: &str) -> Option<Totals> {
        let mut numbers = body.split(' ').filter_map(|word| word.parse().ok());
        let mut number = || numbers.next();
        Some(Totals {
            commits: number()?,
            passes: number()?,
            done: number()?,
            files: number()?,
            records: number()?,
            bytes: number()?,
            checksums: number()?,
        })
    }

    /// Adds a record to the totals.
    pub(crate) fn add(&mut self, record: &FileRecord, bytes: &[u8]) {
        self.records += 1;
        self.bytes = self.bytes.wrapping_add(record.size);
        self.checksums = self.checksums.wrapping_add(checksum(bytes));
    }

    /// Subtracts a record that is about to be replaced.
    pub(crate) fn subtract(&mut self, record: &FileRecord, bytes: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub(record.size);
        self.checksums = self.checksums.wrapping_sub(checksum(bytes));
    }

    /// Returns the number of records for the writer's position in its list.
    pub(crate) fn records_expected(&self) -> u64 {
        if self.passes == 0 { self.done } else { self.files }
    }
}

fn seal(body: Vec<u8>) -> Vec<u8> {
    let mut bytes = format!("{:08x}", crc32fast::hash(&body)).into_bytes();
    bytes.extend(body);
    bytes
}

/// Returns the stored checksum and the bytes that it covers.
fn split(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, body) = bytes.split_at_checked(CHECKSUM_DIGITS)?;
    // Exactly as `seal` writes them: a flipped bit must not turn a digit into another spelling of
    // the same value.
    if !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let stated = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    Some((stated, body))
}

fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    split(bytes).filter(|&(stated, body)| crc32fast::hash(body) == stated).map(|(_, body)| body)
}

#[cfg(test)]
mod tests {
    //! The tour must detect all damage: every flipped bit and every cut.

    use super::*;

    #[test]
    fn damage_is_seen() {
        let record = FileRecord { slot: 3, commit: 7, size: 1 << 40, mtime_ns: -5, content_crc: Some(0xdead_beef) };
        let whole = record.encode(b"src/lib.rs");
        assert_eq!(FileRecord::decode(b"src/lib.rs", &whole).unwrap(), record);
        for other in ["src/lib.rx", "lib.rs", "", "xsrc/lib.rs"] {
            assert!(FileRecord::decode(other.as_bytes(), &whole).is_err(), "{other}");
        }
        for bit in 0..whole.len() * 8 {
            let mut torn = whole.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(FileRecord::decode(b"src/lib.rs", &torn).is_err());
        }
        for length in 0..whole.len() {
            assert!(FileRecord::decode(b"src/lib.rs", &whole[..length]).is_err());
        }
    }

    #[test]
    fn totals_keep_count() {
        let record = FileRecord { slot: 0, commit: 1, size: 9, mtime_ns: 0, content_crc: None };
        let bytes = record.encode(b"a");
        let start = Totals { commits: 1, passes: 2, done: 3, files: 4, records: 5, bytes: 6, checksums: 7 };
        let mut totals = start;
        totals.add(&record, &bytes);
        assert_ne!(totals, start);
        totals.subtract(&record, &bytes);
        assert_eq!(totals, start);
        assert_eq!(Totals::decode(&start.encode()).unwrap(), start);
        assert!(Totals::decode(&start.encode()[1..]).is_err());
    }
}
