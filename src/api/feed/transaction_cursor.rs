//! The cursor over the changes of one committed transaction that its filter selects. At most one
//! value is in memory at a time.

use crate::api::feed::keyspace_names::KeyspaceNames;
use crate::api::feed::reader::{LogReader, ReadLimit};
use crate::api::feed::transaction_filter::{ChangeFilter, TransactionFilter};
use crate::change::{Change, ChangeKind};
use crate::files::dir;
use crate::files::extent::LoggedExtent;
use crate::participant::engine::Engine;
use crate::txn::ops::{Op, Ops};
use crate::{Error, Result, TxnId};
use untorn_wal::Lsn;

/// How the next change is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    /// It is delivered whole.
    Whole,
    /// It is delivered without its value, which is not copied.
    WithoutValue,
    /// It is not delivered now; the next call comes to it again.
    Later,
}

/// Decides about a change by the name of its keyspace and the bytes of its key and value, before
/// they are copied.
pub(crate) type Admit<'a> = &'a mut dyn FnMut(&str, usize, usize) -> Delivery;

/// The result of [`TransactionCursor::next`].
pub(crate) enum CursorStep {
    Change(Change),
    /// The transaction has no more changes.
    End,
    /// The next change was postponed.
    Later,
}

/// A cursor over the changes of one transaction.
pub(crate) struct TransactionCursor {
    txn: TxnId,
    txn_filter: TransactionFilter,
    filter: ChangeFilter,
    /// The record that is being delivered.
    payload: Vec<u8>,
    at: usize,
    /// The reader of its further records, if it was streamed, and the end of the last one.
    rest: Option<(LogReader, Lsn)>,
    /// The number of operations that were processed.
    index: u64,
    /// A large value of which some bytes are still to be read.
    filling: Option<PartialValue>,
}

struct PartialValue {
    change: Change,
    /// The value; `None` if it is delivered without its value.
    value: Option<Vec<u8>>,
    come: usize,
    len: usize,
}

/// The effect of an operation on the follower.
enum OpEffect {
    Nothing,
    Change(Change),
    Fill(PartialValue),
    Later,
}

impl TransactionCursor {
    /// Returns a cursor over a transaction of one record.
    pub(crate) fn of_record(
        txn: TxnId,
        txn_filter: TransactionFilter,
        filter: ChangeFilter,
        payload: Vec<u8>,
    ) -> TransactionCursor {
        TransactionCursor { txn, txn_filter, filter, payload, at: 0, rest: None, index: 0, filling: None }
    }

    /// Returns a cursor over a transaction whose records lie from `start` to `end`.
    pub(crate) fn of_stream(
        txn: TxnId,
        txn_filter: TransactionFilter,
        filter: ChangeFilter,
        start: Lsn,
        end: Lsn,
    ) -> TransactionCursor {
        let rest = Some((LogReader::new(start), end));
        TransactionCursor { txn, txn_filter, filter, payload: Vec::new(), at: 0, rest, index: 0, filling: None }
    }

    /// Ends the delivery of the transaction, and returns its id.
    pub(crate) fn end(self, names: &mut KeyspaceNames) -> TxnId {
        self.txn_filter.dropped.into_iter().for_each(|id| names.forget(id));
        self.txn
    }

    /// Frees memory whose contents can be read again, and returns the number of bytes still in use.
    pub(crate) fn let_go(&mut self) -> usize {
        if let Some((reader, _)) = &mut self.rest {
            *reader = LogReader::new(reader.at());
        }
        self.payload.drain(..std::mem::take(&mut self.at));
        self.payload.shrink_to_fit();
        let filling = self.filling.as_ref().and_then(|filling| filling.value.as_ref()).map_or(0, Vec::capacity);
        self.payload.capacity() + filling + self.txn_filter.memory_bytes()
    }

    /// Returns the next change.
    ///
    /// # Errors
    /// [`Error::Lagged`] if the rest of it is no longer retained, [`Error::Corrupt`]. The call may
    /// be retried.
    pub(crate) fn next(&mut self, engine: &Engine, names: &KeyspaceNames, admit: Admit<'_>) -> Result<CursorStep> {
        loop {
            while self.at < self.payload.len() {
                match self.step(engine, names, admit)? {
                    OpEffect::Nothing => {}
                    OpEffect::Change(change) => return Ok(CursorStep::Change(change)),
                    OpEffect::Fill(filling) => self.filling = Some(filling),
                    OpEffect::Later => return Ok(CursorStep::Later),
                }
            }
            let Some((reader, end)) = &mut self.rest else { break };
            let bound = ReadLimit { txn: self.txn, lsn: *end };
            let Some(record) = reader.peek(engine, bound)? else { break };
            self.payload.clear();
            self.payload.extend_from_slice(reader.payload(&record));
            self.at = 0;
            reader.skip(&record);
        }
        if self.filling.is_some() {
            return Err(damaged("the bytes of a large value are missing"));
        }
        Ok(CursorStep::End)
    }

    fn step(&mut self, engine: &Engine, names: &KeyspaceNames, admit: Admit<'_>) -> Result<OpEffect> {
        let mut ops = Ops::new(&self.payload[self.at..]);
        let op = ops.next().expect("there are bytes left").map_err(|what| damaged(&what))?;
        let rest = ops.rest();
        if let Op::LargeBytes(bytes) = op {
            let done = match &mut self.filling {
                None => None,
                Some(filling) if filling.come + bytes.len() > filling.len => {
                    return Err(damaged("more bytes than the large value has"));
                }
                Some(filling) => {
                    filling.come += bytes.len();
                    if let Some(value) = &mut filling.value {
                        value.extend_from_slice(bytes);
                    }
                    (filling.come == filling.len).then(|| self.filling.take().expect("just seen"))
                }
            };
            self.at = self.payload.len() - rest;
            self.index += 1;
            return Ok(
                done.map_or(OpEffect::Nothing, |done| OpEffect::Change(Change { value: done.value, ..done.change }))
            );
        }
        if self.filling.is_some() {
            return Err(damaged("the bytes of a large value are missing"));
        }
        let mut step = OpEffect::Nothing;
        if self.txn_filter.delivers(names, &self.filter, self.index, &op) {
            step = self.deliver(engine, names, &op, admit)?;
            if let OpEffect::Later = step {
                return Ok(step);
            }
        }
        self.index += 1;
        self.at = self.payload.len() - rest;
        Ok(step)
    }

    fn deliver(&self, engine: &Engine, names: &KeyspaceNames, op: &Op<'_>, admit: Admit<'_>) -> Result<OpEffect> {
        let mut part = None;
        let (id, key_bytes, value_bytes) = match *op {
            Op::Put { keyspace, key, value } => (keyspace, key.len(), value.len()),
            Op::LargePut { keyspace, key, len } => (keyspace, key.len(), len as usize),
            Op::PutExtent { keyspace, key, extent } => (keyspace, key.len(), extent.len as usize),
            Op::Delete { keyspace, key } => (keyspace, key.len(), 0),
            Op::DropKeyspace { keyspace, .. } => (keyspace, 0, 0),
            Op::DeleteRange { keyspace, start, end } => {
                let Some((start, end)) = self.filter.part_of(start, end) else { return Ok(OpEffect::Nothing) };
                let bytes = start.len() + end.as_ref().map_or(0, Vec::len);
                part = Some((start, end));
                (keyspace, bytes, 0)
            }
            _ => return Ok(OpEffect::Nothing),
        };
        let has_value = match admit(names.get(id).map_or("", |name| name), key_bytes, value_bytes) {
            Delivery::Whole => true,
            Delivery::WithoutValue => false,
            Delivery::Later => return Ok(OpEffect::Later),
        };
        let change = |keyspace, kind, key: &[u8], value: Option<&[u8]>| Change {
            txn: self.txn,
            keyspace: names.get(keyspace).cloned().unwrap_or_default(),
            kind,
            key: key.to_vec(),
            end: None,
            value: value.map(<[u8]>::to_vec),
            last: self.txn_filter.is_last(self.index),
        };
        Ok(match *op {
            Op::Put { keyspace, key, value } => {
                OpEffect::Change(change(keyspace, ChangeKind::Put, key, Some(value).filter(|_| has_value)))
            }
            Op::Delete { keyspace, key } => OpEffect::Change(change(keyspace, ChangeKind::Delete, key, None)),
            Op::DropKeyspace { keyspace, .. } => {
                OpEffect::Change(change(keyspace, ChangeKind::DropKeyspace, &[], None))
            }
            Op::DeleteRange { keyspace, .. } => {
                let (key, end) = part.unwrap_or_default();
                let change = change(keyspace, ChangeKind::DeleteRange, &[], None);
                OpEffect::Change(Change { key, end, ..change })
            }
            Op::LargePut { keyspace, key, len } => {
                let change = change(keyspace, ChangeKind::Put, key, None);
                OpEffect::Fill(PartialValue { change, value: has_value.then(Vec::new), come: 0, len: len as usize })
            }
            Op::PutExtent { keyspace, key, extent } => {
                let value = if has_value { Some(self.read_extent(engine, &extent)?) } else { None };
                OpEffect::Change(Change { value, ..change(keyspace, ChangeKind::Put, key, None) })
            }
            _ => OpEffect::Nothing,
        })
    }

    /// Reads the value of an extent from the arena.
    ///
    /// The log does not contain the bytes. Until a checkpoint K is at or beyond the transaction,
    /// nothing reuses the extent ([`crate::pages::protection`]). Afterwards, if a later transaction
    /// has overwritten or deleted the value, the extent may be reused even while it is read. The
    /// header and the checksum show that. The consumer then lags, as if the log had been recycled;
    /// from K on all values are there.
    ///
    /// # Errors
    /// [`Error::Lagged`] if the extent was reused, [`Error::Corrupt`] if it can't have been.
    fn read_extent(&self, engine: &Engine, extent: &LoggedExtent) -> Result<Vec<u8>> {
        let file = engine.dir.need_file(dir::ARENA, false)?;
        engine.arena.refuse_other_file(&file)?;
        if let Some(value) = engine.arena.read_extent(&file, extent, self.txn)? {
            return Ok(value);
        }
        // Loaded after the read: the extent was reused only after K had moved.
        let finished = engine.control.fixed().checkpoint.finished();
        if self.txn <= finished {
            return Err(Error::Lagged { oldest: finished });
        }
        let what = format!("the value of {} bytes of transaction {} does not match the log", extent.len, self.txn);
        Err(engine.arena.damaged(extent.page, what))
    }
}

fn damaged(what: &str) -> Error {
    Error::corrupt(dir::WAL, 0, what)
}
