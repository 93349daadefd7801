//! Replay: log records become commits again, through the write path that made them.
//!
//! A streamed transaction is applied frame by frame and rolled back if its commit never comes, so replay
//! needs no more memory than the original did.

use crate::participant::engine::Engine;
use crate::txn::ops::{Op, Ops};
use crate::txn::write::Write;
use crate::{Error, Result, TxnId, limits};
use untorn_wal::Lsn;
use untorn_wal::record;
use untorn_wal::record::{Decoded, RecordKind};

/// An error if a record of `txn` can't come next after the commit of `base`.
fn follows(base: TxnId, txn: TxnId, kind: RecordKind) -> Result<(), String> {
    if kind == RecordKind::Abort || base.precedes(txn) {
        return Ok(());
    }
    Err(format!("transaction {txn} does not follow {base}"))
}

/// Reads the stream without applying it: a damaged log is found before recovery changes a byte of
/// any file, and `verify` finds damage in what is kept for followers.
pub(crate) struct Check {
    seed: u32,
    page_size: usize,
    /// The last transaction that the stream commits; unknown before the first one of a stream that
    /// does not begin at a checkpoint.
    last: Option<TxnId>,
    rest: Vec<u8>,
    at: Lsn,
}

impl Check {
    /// Begins at `from`, behind the commit of `checkpoint`. `seed` is that of the store's records.
    pub(crate) fn new(seed: u32, page_size: usize, checkpoint: TxnId, from: Lsn) -> Check {
        Check { seed, page_size, last: Some(checkpoint), rest: Vec::new(), at: from }
    }

    /// Begins at `from`, where a record begins.
    pub(crate) fn anywhere(seed: u32, page_size: usize, from: Lsn) -> Check {
        Check { seed, page_size, last: None, rest: Vec::new(), at: from }
    }

    /// Checks the records in `bytes`, which continue the stream.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they are no records, are out of order, or have no whole operations.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        let mut used = 0;
        loop {
            let at = self.at;
            let damaged = |what: String| Error::corrupt("wal", at.0, format!("log position {}: {what}", at.0));
            match record::decode(&self.rest[used..], self.seed, at) {
                Decoded::Record { txn, kind, payload, len } => {
                    let txn = TxnId::from_u64(txn);
                    self.last.map_or(Ok(()), |last| follows(last, txn, kind)).map_err(damaged)?;
                    // What lies in an abort record is never applied.
                    if kind != RecordKind::Abort {
                        Ops::new(payload).try_for_each(|op| self.check_op(&op?)).map_err(damaged)?;
                    }
                    if matches!(kind, RecordKind::Commit | RecordKind::FrameCommit) {
                        self.last = Some(txn);
                    }
                    used += len;
                    self.at = Lsn(at.0 + len as u64);
                }
                Decoded::Incomplete => break,
                Decoded::Bad(reason) => return Err(damaged(reason.to_string())),
            }
        }
        self.rest.drain(..used);
        Ok(())
    }

    /// Holds an operation against the limits that the call kept by which it came into the log.
    fn check_op(&self, op: &Op<'_>) -> Result<(), String> {
        let key_max = limits::key_len_max(self.page_size) as u64;
        let (what, found, max) = match op {
            Op::Put { key, .. } | Op::Delete { key, .. } => ("a key of bytes", key.len() as u64, key_max),
            Op::LargePut { key, .. } if key.len() as u64 > key_max => ("a key of bytes", key.len() as u64, key_max),
            Op::LargePut { len, .. } => ("a value of bytes", u64::from(*len), limits::VALUE_LEN_MAX),
            Op::CreateKeyspace { name, .. } => {
                ("a name of bytes", name.len() as u64, limits::KEYSPACE_NAME_LEN_MAX as u64)
            }
            Op::DropKeyspace { .. } | Op::LargeBytes(_) | Op::Incarnation { .. } | Op::CellsFloor(_) => return Ok(()),
        };
        if found > max { Err(format!("an operation has {what} {found}, the limit is {max}")) } else { Ok(()) }
    }

    /// The last transaction that the stream commits.
    pub(crate) fn last(&self) -> TxnId {
        self.last.unwrap_or(TxnId::ZERO)
    }
}

/// Applies the stream of records that follows a checkpoint.
pub(crate) struct Replay<'e> {
    engine: &'e Engine,
    checkpoint: TxnId,
    /// A streamed transaction whose commit has not come yet.
    open: Option<Write<'e>>,
    /// Bytes of the stream not yet decoded, and where they begin.
    rest: Vec<u8>,
    at: Lsn,
    /// Where the last commit's or abort's record ended: the stream is good up to here.
    settled: Lsn,
    records: u64,
}

impl<'e> Replay<'e> {
    /// Begins at `from`, where the state in `control` ends, which is that of `checkpoint`.
    pub(crate) fn new(engine: &'e Engine, checkpoint: TxnId, from: Lsn) -> Replay<'e> {
        Replay { engine, checkpoint, open: None, rest: Vec::new(), at: from, settled: from, records: 0 }
    }

    /// Applies the records in `bytes`, which continue the stream.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they are no records: their batch was whole, so somebody damaged them before
    /// they were written.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        match self.advance(bytes)? {
            None => Ok(()),
            Some(what) => Err(Error::corrupt("wal", self.at.0, format!("log position {}: {what}", self.at.0))),
        }
    }

    /// Applies as many whole records as `bytes` begin with: what stood in the ring when all died, where
    /// the first record that is none ends the stream.
    pub(crate) fn feed_until_bad(&mut self, bytes: &[u8]) -> Result<()> {
        self.advance(bytes)?;
        self.rest.clear();
        Ok(())
    }

    /// Applies records until the bytes end or are no record; says what is wrong with them then.
    fn advance(&mut self, bytes: &[u8]) -> Result<Option<String>> {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut used = 0;
        let mut wrong = None;
        loop {
            match record::decode(&rest[used..], self.engine.record_seed(), self.at) {
                Decoded::Record { txn, kind, payload, len } => {
                    let txn = TxnId::from_u64(txn);
                    if let Err(what) = follows(self.engine.control.committed(), txn, kind) {
                        wrong = Some(what);
                        break;
                    }
                    self.apply(txn, kind, payload, Lsn(self.at.0 + len as u64))?;
                    used += len;
                    self.at = Lsn(self.at.0 + len as u64);
                }
                Decoded::Incomplete => break,
                Decoded::Bad(reason) => {
                    wrong = Some(reason.to_string());
                    break;
                }
            }
        }
        self.rest = rest;
        self.rest.drain(..used);
        Ok(wrong)
    }

    fn apply(&mut self, txn: TxnId, kind: RecordKind, payload: &[u8], end: Lsn) -> Result<()> {
        let at = self.at;
        let damaged = |what: String| Error::corrupt("wal", at.0, format!("log position {}: {what}", at.0));
        if matches!(kind, RecordKind::Abort | RecordKind::Commit) {
            // The pieces so far belong to a transaction that never committed.
            self.open = None;
        }
        if kind == RecordKind::Abort {
            self.settled = end;
            return Ok(());
        }
        self.engine.progress.step();
        let base = self.engine.control.newest()?;
        let mut write = match self.open.take() {
            Some(write) if write.txn_id() == txn => write,
            _ if kind == RecordKind::FrameCommit => {
                return Err(damaged(format!("transaction {txn} ends without having begun")));
            }
            // A stream of another transaction never committed.
            _ => Write::replay(self.engine, base, txn, self.checkpoint)?,
        };
        for op in Ops::new(payload) {
            write.apply(op.map_err(&damaged)?)?;
        }
        if kind == RecordKind::Frame {
            self.open = Some(write);
            return Ok(());
        }
        write.commit_replayed(end)?;
        self.settled = end;
        self.records += 1;
        crash_point!("replay.committed");
        Ok(())
    }

    /// Where the next byte of the stream is expected: all before it has been decoded or is kept.
    pub(crate) fn next(&self) -> Lsn {
        Lsn(self.at.0 + self.rest.len() as u64)
    }

    /// Where the last commit's or abort's record ended: the newest commit is all that the log has up to there.
    pub(crate) fn settled(&self) -> Lsn {
        self.settled
    }

    /// Protects the pages of another checkpoint from now on, which is of the newest commit.
    pub(crate) fn protect(&mut self, checkpoint: TxnId) {
        self.checkpoint = checkpoint;
    }

    /// Ends the replay: where the last whole record ended, and how many transactions were applied.
    pub(crate) fn finish(self) -> (Lsn, u64) {
        (self.at, self.records)
    }
}
