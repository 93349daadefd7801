//! Replay: applies log records again, through the write path that made them.
//!
//! A streamed transaction is applied frame by frame, and rolled back if the log does not contain
//! its commit. So replay needs no more memory than the original transaction.

mod check;
mod extents;
mod records;

pub(crate) use check::Check;
pub(crate) use extents::ExtentPlan;
use records::{RecordStream, WholeRecord, damaged};

use crate::pages::protection::Protection;
use crate::pages::unreplayed::UnreplayedExtents;
use crate::participant::engine::Engine;
use crate::txn::ops::Ops;
use crate::txn::write::Write;
use crate::{Error, LimitKind, Result, TxnId};
use std::sync::Arc;
use untorn_wal::Lsn;
use untorn_wal::record::RecordKind;

/// Returns an error if a record of `txn` can't come next after the commit of `base`.
fn follows(base: TxnId, txn: TxnId, kind: RecordKind) -> Result<(), String> {
    if kind == RecordKind::Abort || base.precedes(txn) {
        return Ok(());
    }
    Err(format!("transaction {txn} does not follow {base}"))
}

/// Applies the stream of records that follows a checkpoint.
pub(crate) struct Replay<'e> {
    engine: &'e Engine,
    plan: &'e ExtentPlan,
    unreplayed: Arc<UnreplayedExtents>,
    checkpoint: TxnId,
    /// A streamed transaction whose commit has not come yet.
    open: Option<Write<'e>>,
    stream: RecordStream,
    /// The end of the last commit or abort record: the stream is valid up to here.
    safe_start: Lsn,
    records: u64,
}

impl<'e> Replay<'e> {
    /// Begins at `from`, the log position of the state in `control`, which is that of `checkpoint`.
    /// `plan` was made from the same records.
    pub(crate) fn new(engine: &'e Engine, checkpoint: TxnId, from: Lsn, plan: &'e ExtentPlan) -> Replay<'e> {
        let unreplayed = Arc::new(plan.unreplayed(engine.geometry.page_size));
        Replay {
            engine,
            plan,
            unreplayed,
            checkpoint,
            open: None,
            stream: RecordStream::new(engine.record_seed(), from, plan.end()),
            safe_start: from,
            records: 0,
        }
    }

    /// Applies the records in `bytes`, which continue the stream.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they are no records: the checksum of their batch was valid, so they
    /// were damaged before the batch was written.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let wrong = self.advance(bytes)?;
        self.stream.check(wrong)
    }

    /// Applies the whole records at the beginning of `bytes`, which were in the ring when all
    /// processes died. The first invalid record ends the stream.
    pub(crate) fn feed_until_bad(&mut self, bytes: &[u8]) -> Result<()> {
        self.advance(bytes)?;
        self.stream.clear();
        Ok(())
    }

    /// Applies records until the bytes end or are no valid record. In the latter case returns what
    /// is wrong with them.
    fn advance(&mut self, bytes: &[u8]) -> Result<Option<String>> {
        let mut stream = std::mem::take(&mut self.stream);
        let wrong =
            stream.advance(bytes, |record| match follows(self.engine.control.committed(), record.txn, record.kind) {
                Ok(()) => self.apply(record).map(Ok),
                Err(what) => Ok(Err(what)),
            });
        self.stream = stream;
        wrong
    }

    fn apply(&mut self, record: WholeRecord<'_>) -> Result<()> {
        let WholeRecord { txn, kind, payload, at, end } = record;
        let damaged = |what: String| damaged(at, what);
        if matches!(kind, RecordKind::Abort | RecordKind::Commit) {
            // The frames so far belong to a transaction that never committed.
            self.open = None;
        }
        if kind == RecordKind::Abort {
            self.safe_start = end;
            return Ok(());
        }
        if self.plan.never_commits(at) {
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
            _ => {
                let recovery = Protection::Recovery(self.checkpoint, self.unreplayed.clone());
                Write::replay(self.engine, base, txn, recovery)?
            }
        };
        for op in Ops::new(payload) {
            write.apply(op.map_err(&damaged)?).map_err(|error| match error {
                Error::Corrupt { file, what, .. } if file == "wal" => damaged(what),
                // No transaction could have logged such an operation. The size of the store is no
                // such limit, since replay allocates pages differently.
                Error::Limit { what, found, limit } if what != LimitKind::StoreSize => damaged(format!(
                    "transaction {txn} needs more than the store allows: {what} is {found}, the limit is {limit}"
                )),
                other => other,
            })?;
        }
        if kind == RecordKind::Frame {
            self.open = Some(write);
            return Ok(());
        }
        write.commit_replayed(end)?;
        self.safe_start = end;
        self.records += 1;
        crash_point!("replay.committed");
        Ok(())
    }

    /// Returns the position of the next expected byte of the stream. All bytes before it have been
    /// decoded or are buffered.
    pub(crate) fn next(&self) -> Lsn {
        self.stream.next()
    }

    /// Returns the end of the last commit or abort record. The newest commit contains all of the
    /// log up to there.
    pub(crate) fn safe_start(&self) -> Lsn {
        self.safe_start
    }

    /// Protects from now on the pages of another checkpoint, which is of the newest commit.
    pub(crate) fn protect(&mut self, checkpoint: TxnId) {
        self.checkpoint = checkpoint;
    }

    /// Makes each commit one of which a checkpoint may be taken, if `are_whole`. Without this, the
    /// pages of extents that are still to be replayed are in no queue.
    pub(crate) fn make_commits_whole(&mut self, are_whole: bool) {
        self.unreplayed.return_at_commits(are_whole);
    }

    /// Ends the replay. Returns where the last whole record ended, and how many transactions were
    /// applied.
    pub(crate) fn finish(self) -> (Lsn, u64) {
        (self.stream.at(), self.records)
    }
}

#[cfg(test)]
mod tests;
