//! The changes of one committed transaction, one by one, as its plan says. Of its values one at a time is in memory.

use super::names::Names;
use super::plan::{Filter, Plan};
use super::reader::{Bound, Reader};
use crate::changes::{Change, ChangeKind};
use crate::engine::Engine;
use crate::txn::ops::{Op, Ops};
use crate::{Error, Result, TxnId, dir};
use untorn_wal::Lsn;

/// A transaction that is being delivered.
pub(crate) struct Delivery {
    txn: TxnId,
    plan: Plan,
    filter: Filter,
    /// The record that is being delivered.
    payload: Vec<u8>,
    at: usize,
    /// Where its further records come from, if it was streamed, and where the last one ends.
    rest: Option<(Reader, Lsn)>,
    /// Matching operations that are done.
    index: u64,
    /// A large value whose bytes are coming.
    filling: Option<Filling>,
}

struct Filling {
    change: Change,
    value: Vec<u8>,
    len: usize,
}

/// What an operation leads to.
enum Step {
    Nothing,
    Change(Change),
    Fill(Filling),
}

impl Delivery {
    /// Delivers a transaction of one record.
    pub(crate) fn of_record(txn: TxnId, plan: Plan, filter: Filter, payload: Vec<u8>) -> Delivery {
        Delivery { txn, plan, filter, payload, at: 0, rest: None, index: 0, filling: None }
    }

    /// Delivers a transaction whose records stand from `start` to `end`.
    pub(crate) fn of_stream(txn: TxnId, plan: Plan, filter: Filter, start: Lsn, end: Lsn) -> Delivery {
        let rest = Some((Reader::new(start), end));
        Delivery { txn, plan, filter, payload: Vec::new(), at: 0, rest, index: 0, filling: None }
    }

    /// All of it is delivered: the transaction.
    pub(crate) fn end(self, names: &mut Names) -> TxnId {
        self.plan.dropped.into_iter().for_each(|id| names.forget(id));
        self.txn
    }

    /// The next change; `None` at the end of the transaction.
    ///
    /// # Errors
    /// [`Error::Lagged`] if the rest of it is gone, [`Error::Corrupt`]. It may be tried again.
    pub(crate) fn next(&mut self, engine: &Engine, names: &Names) -> Result<Option<Change>> {
        loop {
            while self.at < self.payload.len() {
                if let Some(change) = self.step(names)? {
                    return Ok(Some(change));
                }
            }
            let Some((reader, end)) = &mut self.rest else { break };
            let bound = Bound { txn: self.txn, lsn: *end };
            let Some(record) = reader.peek(engine, bound)? else { break };
            self.payload.clear();
            self.payload.extend_from_slice(reader.payload(&record));
            self.at = 0;
            reader.skip(&record);
        }
        if self.filling.is_some() {
            return Err(damaged("the bytes of a large value are missing"));
        }
        Ok(None)
    }

    fn step(&mut self, names: &Names) -> Result<Option<Change>> {
        let mut ops = Ops::new(&self.payload[self.at..]);
        let op = ops.next().expect("there are bytes left").map_err(|what| damaged(&what))?;
        let rest = ops.rest();
        if let Op::LargeBytes(bytes) = op {
            let done = match &mut self.filling {
                None => None,
                Some(filling) if filling.value.len() + bytes.len() > filling.len => {
                    return Err(damaged("more bytes than the large value has"));
                }
                Some(filling) => {
                    filling.value.extend_from_slice(bytes);
                    (filling.value.len() == filling.len).then(|| self.filling.take().expect("just seen"))
                }
            };
            self.at = self.payload.len() - rest;
            return Ok(done.map(|done| Change { value: Some(done.value), ..done.change }));
        }
        if self.filling.is_some() {
            return Err(damaged("the bytes of a large value are missing"));
        }
        let mut step = Step::Nothing;
        if Plan::wants(names, &self.filter, &op) {
            if self.plan.delivers(self.index, &op) {
                step = self.deliver(names, &op);
            }
            self.index += 1;
        }
        self.at = self.payload.len() - rest;
        match step {
            Step::Nothing => Ok(None),
            Step::Change(change) => Ok(Some(change)),
            Step::Fill(filling) => {
                self.filling = Some(filling);
                Ok(None)
            }
        }
    }

    fn deliver(&self, names: &Names, op: &Op<'_>) -> Step {
        let change = |keyspace, kind, key: &[u8], value: Option<&[u8]>| Change {
            txn: self.txn,
            keyspace: names.get(keyspace).cloned().unwrap_or_default(),
            kind,
            key: key.to_vec(),
            value: value.map(<[u8]>::to_vec),
            last: self.plan.is_last(self.index),
        };
        match *op {
            Op::Put { keyspace, key, value } => Step::Change(change(keyspace, ChangeKind::Put, key, Some(value))),
            Op::Delete { keyspace, key } => Step::Change(change(keyspace, ChangeKind::Delete, key, None)),
            Op::DropKeyspace { keyspace, .. } => Step::Change(change(keyspace, ChangeKind::DropKeyspace, &[], None)),
            Op::LargePut { keyspace, key, len } => {
                let change = change(keyspace, ChangeKind::Put, key, None);
                Step::Fill(Filling { change, value: Vec::new(), len: len as usize })
            }
            _ => Step::Nothing,
        }
    }
}

fn damaged(what: &str) -> Error {
    Error::corrupt(dir::WAL, 0, what)
}
