//! A walk over the log for the check of a whole store.

use crate::files::dir;
use crate::files::log::log_error;
use crate::participant::engine::Engine;
use crate::txn::replay::{Check, ExtentPlan};
use crate::{Error, Result};
use untorn_wal::{LogError, LogScan, LogShape, Lsn, RealDisk, SegmentCatalog, resume_point_from};

/// A walk over the log up to the first damage.
pub(super) struct LogWalk<'a> {
    engine: &'a Engine,
    disk: &'a RealDisk,
    shape: &'a LogShape,
    until: Lsn,
    /// The position up to which it was read.
    pub(super) reached: Lsn,
    pub(super) bytes: u64,
    /// After damage: the position where the next segment begins.
    pub(super) next: Option<Lsn>,
    pub(super) extents: ExtentPlan,
}

impl<'a> LogWalk<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        disk: &'a RealDisk,
        shape: &'a LogShape,
        from: Lsn,
        until: Lsn,
    ) -> LogWalk<'a> {
        LogWalk { engine, disk, shape, until, reached: from, bytes: 0, next: None, extents: ExtentPlan::default() }
    }

    pub(super) fn run(&mut self) -> Result<()> {
        let from = self.reached;
        // A segment may begin in the middle of a record.
        let resume_point = resume_point_from(self.disk, self.shape, from).ok().flatten();
        let record = resume_point.map_or(Lsn(u64::MAX), |resume_point| resume_point.position);
        let (seed, page_size) = (self.shape.store().seed(), self.engine.geometry.page_size);
        let mut check = Check::anywhere(seed, page_size, record);
        let (disk, shape) = (self.disk, self.shape);
        let mut scan = LogScan::follow(disk, shape, from, self.until).map_err(|error| {
            let next = SegmentCatalog::read_headers(disk, shape)
                .ok()
                .and_then(|segment_catalog| segment_catalog.next_start(from));
            self.stop(next, error)
        })?;
        loop {
            let position = scan.file_position().map(|(file, offset)| (format!("{}/{file}", dir::WAL), offset));
            // The checker is fed from the beginning of a record.
            let step = scan.next_chunk().map(|chunk| {
                chunk.map(|(lsn, bytes)| {
                    let fed = bytes.get(record.bytes_since(lsn) as usize..).map_or(Ok(()), |bytes| check.feed(bytes));
                    (bytes.len() as u64, fed)
                })
            });
            self.reached = scan.end();
            let fed = match step {
                Ok(Some((bytes, fed))) => {
                    self.bytes += bytes;
                    fed
                }
                Ok(None) if scan.end() >= self.until => {
                    self.extents = check.into_extents();
                    return Ok(());
                }
                Ok(None) => {
                    let error = LogError::Gap { wanted: scan.end(), oldest: scan.next_start() };
                    return Err(self.stop(scan.next_start(), error));
                }
                Err(error) => return Err(self.stop(scan.next_start(), scan.gap_or(error))),
            };
            if let Err(error) = fed {
                self.next = scan.next_start();
                let (file, offset) = position.unwrap_or((dir::WAL.into(), 0));
                return Err(match error {
                    Error::Corrupt { what, .. } => Error::Corrupt { file, offset, what },
                    other => other,
                });
            }
        }
    }

    fn stop(&mut self, next: Option<Lsn>, error: LogError) -> Error {
        self.next = next;
        if let LogError::Gap { wanted, oldest } = &error {
            self.next = self.next.or(*oldest);
            let to = self.next.map_or("on".to_owned(), |next| format!("to {next}"));
            return Error::corrupt(dir::WAL, wanted.0, format!("no segment holds log positions {wanted} {to}"));
        }
        log_error(error)
    }
}
