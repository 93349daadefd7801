//! What the tests share: a log on a disk in memory, and the stream that it ought to hold.

use std::sync::Arc;
use untorn_wal::{
    Disk, Log, LogError, LogScan, LogShape, LogState, Lsn, RecordKind, Result, Retention, SegmentCatalog, SegmentPool,
    StoreId, record,
    testing::{Rng, SimDisk},
};

pub(crate) const STORE: StoreId = StoreId(*b"a store's own id");

pub(crate) fn shape() -> LogShape {
    LogShape::new(STORE, 64 << 10).unwrap()
}

/// The stream as its writers wrote it.
#[derive(Clone, Default)]
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
    /// Ends of whole records.
    pub(crate) ends: Vec<Lsn>,
}

impl Stream {
    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.bytes.len() as u64)
    }

    pub(crate) fn push(&mut self, txn: u64, payload: &[u8]) -> Lsn {
        let lsn = self.end();
        record::encode(&mut self.bytes, STORE.seed(), lsn, txn, RecordKind::Commit, payload);
        self.ends.push(self.end());
        self.end()
    }

    pub(crate) fn push_random(&mut self, rng: &mut Rng, len_max: u64) -> Lsn {
        let txn = rng.number();
        let payload: Vec<u8> = (0..rng.below(len_max)).map(|_| rng.number() as u8).collect();
        self.push(txn, &payload)
    }

    /// The source from which the log copies, in place of the ring.
    pub(crate) fn fill(&self) -> impl FnMut(Lsn, &mut [u8]) {
        |lsn, out| out.copy_from_slice(&self.bytes[lsn.0 as usize..][..out.len()])
    }

    pub(crate) fn left_after(&self, lsn: Lsn) -> u64 {
        self.end().bytes_since(lsn)
    }
}

/// A new log with a started segment and spares.
pub(crate) fn new_log(disk: &SimDisk, spares: usize) -> Log<SimDisk> {
    new_log_of(disk, &shape(), spares)
}

pub(crate) fn new_log_of<D: Disk + Clone>(disk: &D, shape: &LogShape, spares: usize) -> Log<D> {
    let segment_catalog = SegmentCatalog::read(disk, shape).unwrap();
    let pool = SegmentPool::open(Arc::new(disk.clone()), &segment_catalog, Lsn::ZERO, Retention::NOTHING).unwrap();
    for _ in 0..=spares {
        pool.add_spare().unwrap();
    }
    let mut log = Log::new(pool);
    log.start_segment(&LogState::default(), 0, &mut |_, _| unreachable!("nothing is to be copied")).unwrap();
    log
}

/// The numbers of the segments, in ascending order.
pub(crate) fn numbers_of(segment_catalog: &SegmentCatalog) -> Vec<u64> {
    let mut numbers: Vec<u64> = segment_catalog.segments.iter().map(|segment| segment.header.number.0).collect();
    numbers.sort_unstable();
    numbers
}

/// Returns whether these numbers are consecutive, so that no segment is missing.
pub(crate) fn follow_each_other(numbers: &[u64]) -> bool {
    numbers.is_sorted_by(|one, next| one + 1 == *next)
}

pub(crate) fn open_pool(disk: &SimDisk, from: Lsn) -> Result<Arc<SegmentPool<SimDisk>>> {
    SegmentPool::open(Arc::new(disk.clone()), &SegmentCatalog::read(disk, &shape())?, from, Retention::NOTHING)
}

/// Appends and syncs everything of the stream that is not written, and starts segments as they
/// fill. `log_state.durable` moves along.
pub(crate) fn flush(log: &mut Log<SimDisk>, stream: &Stream, log_state: &mut LogState) -> Result<()> {
    let from = log.written().ok_or(LogError::NeedsSegment)?;
    let mut appended = log.append(from, stream.left_after(from), log_state, &mut stream.fill())?;
    log_state.durable = log.sync()?;
    while appended.full {
        log_state.durable = log.start_segment(log_state, stream.left_after(log_state.durable), &mut stream.fill())?;
        appended.full = log_state.durable < stream.end();
    }
    Ok(())
}

/// Returns all bytes that a scan from `from` on yields, and the newest log state.
pub(crate) fn read_all(disk: &SimDisk, from: Lsn) -> Result<(Vec<u8>, LogState)> {
    read_all_of(disk, &shape(), from)
}

pub(crate) fn read_all_of(disk: &SimDisk, shape: &LogShape, from: Lsn) -> Result<(Vec<u8>, LogState)> {
    let mut scan = LogScan::open(disk, shape, from)?;
    let mut bytes = Vec::new();
    while let Some((lsn, chunk)) = scan.next_chunk()? {
        assert_eq!(lsn.bytes_since(from), bytes.len() as u64, "chunks follow each other");
        assert!(!chunk.is_empty());
        bytes.extend_from_slice(chunk);
    }
    assert_eq!(scan.end().bytes_since(from), bytes.len() as u64);
    Ok((bytes, scan.newest_log_state()))
}

/// Checks that a scan returns the bytes of the stream from `from` on, at least up to `durable`.
pub(crate) fn check(disk: &SimDisk, stream: &Stream, from: Lsn, durable: Lsn, note: &str) -> (Lsn, LogState) {
    let (bytes, log_state) = read_all(disk, from).unwrap_or_else(|e| panic!("{note}: {e}"));
    let end = from.advanced_by(bytes.len() as u64);
    assert!(end >= durable, "{note}: the log ends at {end}, {durable} was durable");
    assert!(end <= stream.end(), "{note}: the log ends at {end}, nothing was written beyond {}", stream.end());
    assert!(bytes == stream.bytes[from.0 as usize..end.0 as usize], "{note}: wrong bytes");
    (end, log_state)
}
