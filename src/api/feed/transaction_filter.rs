//! The filter of a transaction: which of its operations match, which of several on one key is the
//! last, and which is the last of all. It is complete before the first change is delivered.
//!
//! A transaction that was streamed is read once for its filter and once more for its delivery, so
//! that none is held in memory. The filter holds a hash of 128 bits and a number for each key.
//! Beyond [`KEYS_MAX`] keys it drops them; a key that such a transaction changed several times is
//! then delivered several times.

use crate::api::feed::keyspace_names::KeyspaceNames;
use crate::files::dir;
use crate::prefix::prefix_end;
use crate::process::client::DirectClient;
use crate::txn::ops::{Op, Ops};
use crate::{Error, KeyspaceId, Result};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use untorn_wal::Lsn;

/// The most keys of one transaction that are distinguished.
const KEYS_MAX: usize = 1 << 18;

/// The selection of changes that a follower requested.
#[derive(Clone, Default, Debug)]
pub(crate) struct ChangeFilter {
    pub(crate) keyspace: Option<String>,
    pub(crate) prefix: Vec<u8>,
}

impl ChangeFilter {
    fn matches(&self, name: &str, affected: Affected<'_>) -> bool {
        let is_wanted = match affected {
            Affected::Key(key) => key.starts_with(&self.prefix),
            Affected::Range(start, end) => self.part_of(start, end).is_some(),
            Affected::Keyspace => true,
        };
        is_wanted && self.keyspace.as_ref().is_none_or(|wanted| wanted == name)
    }

    /// Returns the part of a range whose keys begin with the prefix.
    pub(super) fn part_of(&self, start: &[u8], end: Option<&[u8]>) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let start = start.max(&self.prefix);
        let end = match (end, prefix_end(&self.prefix)) {
            (Some(end), Some(after)) => Some(end.to_vec().min(after)),
            (end, after) => end.map(<[u8]>::to_vec).or(after),
        };
        let is_empty = end.as_ref().is_some_and(|end| **end <= *start);
        (!is_empty).then(|| (start.to_vec(), end))
    }
}

/// The filter of one transaction. Its operations are numbered from 0, whether they match or not.
pub(crate) struct TransactionFilter {
    /// The number of operations so far.
    count: u64,
    /// The last operation that matches.
    last: Option<u64>,
    /// The last operation on each key; `None` if there are too many keys.
    last_on: Option<HashMap<(u64, u64), u64>>,
    /// The entry of `last_on` for a key, before each change of it since the first savepoint.
    replaced: Vec<((u64, u64), Option<u64>)>,
    hashers: [RandomState; 2],
    /// Keyspaces that the transaction creates; a rollback to a savepoint may remove them.
    created: HashMap<KeyspaceId, String>,
    /// The same in the order of their creation.
    created_ids: Vec<KeyspaceId>,
    /// Keyspaces that it drops. They have no later changes.
    pub(super) dropped: Vec<KeyspaceId>,
    savepoints: Vec<AtSavepoint>,
    /// Operations that a rollback to a savepoint has undone, ascending.
    undone: Vec<Range<u64>>,
}

/// The lengths of a filter's parts when its transaction made a savepoint.
struct AtSavepoint {
    count: u64,
    last: Option<u64>,
    replaced: usize,
    created: usize,
    dropped: usize,
}

/// The part of a keyspace that an operation changes.
#[derive(Clone, Copy)]
enum Affected<'a> {
    Key(&'a [u8]),
    Range(&'a [u8], Option<&'a [u8]>),
    Keyspace,
}

fn affected<'a>(op: &Op<'a>) -> Option<(KeyspaceId, Affected<'a>)> {
    match *op {
        Op::Put { keyspace, key, .. }
        | Op::Delete { keyspace, key }
        | Op::LargePut { keyspace, key, .. }
        | Op::PutExtent { keyspace, key, .. } => Some((keyspace, Affected::Key(key))),
        Op::DeleteRange { keyspace, start, end } => Some((keyspace, Affected::Range(start, end))),
        Op::DropKeyspace { keyspace, .. } => Some((keyspace, Affected::Keyspace)),
        Op::CreateKeyspace { .. }
        | Op::LargeBytes(_)
        | Op::Incarnation { .. }
        | Op::CellsFloor(_)
        | Op::Savepoint { .. }
        | Op::RollBack { .. } => None,
    }
}

impl TransactionFilter {
    pub(crate) fn new() -> TransactionFilter {
        let hashers = [RandomState::new(), RandomState::new()];
        TransactionFilter {
            count: 0,
            last: None,
            last_on: Some(HashMap::new()),
            replaced: Vec::new(),
            hashers,
            created: HashMap::new(),
            created_ids: Vec::new(),
            dropped: Vec::new(),
            savepoints: Vec::new(),
            undone: Vec::new(),
        }
    }

    /// Returns the bytes of memory that it holds, without names.
    pub(super) fn memory_bytes(&self) -> usize {
        // Each entry has a control byte.
        let last_on = self.last_on.as_ref().map_or(0, |last| last.capacity() * (size_of::<((u64, u64), u64)>() + 1));
        last_on + self.undone.capacity() * size_of::<Range<u64>>()
    }

    /// Returns whether no operation of the transaction matches.
    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Adds the operations of the next record. The transaction begins at `from`.
    pub(crate) fn add(
        &mut self,
        client: &Arc<DirectClient>,
        names: &mut KeyspaceNames,
        filter: &ChangeFilter,
        payload: &[u8],
        from: Lsn,
    ) -> Result<()> {
        let damaged = |what: String| Error::corrupt(dir::WAL, from.0, what);
        for op in Ops::new(payload) {
            let op = op.map_err(damaged)?;
            match op {
                Op::CreateKeyspace { keyspace, name } => {
                    self.created.insert(keyspace, name.to_string());
                    self.created_ids.push(keyspace);
                }
                Op::DropKeyspace { keyspace, name } => {
                    names.learn(keyspace, name);
                    self.dropped.push(keyspace);
                }
                Op::Savepoint { depth } => self.add_savepoint(depth).map_err(damaged)?,
                Op::RollBack { depth } => self.roll_back(depth, names).map_err(damaged)?,
                _ => {}
            }
            if let Some((keyspace, affected)) = affected(&op) {
                let matches = match self.created.get(&keyspace) {
                    Some(name) => filter.matches(name, affected),
                    None => filter.matches(names.find(client, keyspace, from)?, affected),
                };
                if matches {
                    self.note_match(keyspace, affected);
                }
            }
            self.count += 1;
        }
        Ok(())
    }

    fn note_match(&mut self, keyspace: KeyspaceId, affected: Affected<'_>) {
        self.last = Some(self.count);
        if let (Some(last_on), Affected::Key(key)) = (&mut self.last_on, affected) {
            let hash = hash(&self.hashers, keyspace, key);
            let before = last_on.insert(hash, self.count);
            if !self.savepoints.is_empty() {
                self.replaced.push((hash, before));
            }
            if last_on.len().max(self.replaced.len()) > KEYS_MAX {
                self.last_on = None;
                self.replaced = Vec::new();
            }
        }
    }

    fn add_savepoint(&mut self, depth: u32) -> Result<(), String> {
        if depth as usize != self.savepoints.len() {
            return Err(format!("a savepoint follows {depth} others, of which there are {}", self.savepoints.len()));
        }
        self.savepoints.push(AtSavepoint {
            count: self.count,
            last: self.last,
            replaced: self.replaced.len(),
            created: self.created_ids.len(),
            dropped: self.dropped.len(),
        });
        Ok(())
    }

    /// Undoes all operations since a savepoint. Keyspaces that they created never existed, and no
    /// other operation refers to them.
    fn roll_back(&mut self, depth: u32, names: &mut KeyspaceNames) -> Result<(), String> {
        self.savepoints.truncate((depth as usize).saturating_add(1));
        let savepoint = self.savepoints.get(depth as usize);
        let savepoint = savepoint.ok_or_else(|| format!("a rollback to savepoint {depth}, which is not there"))?;
        while self.undone.pop_if(|undone| undone.start >= savepoint.count).is_some() {}
        self.undone.push(savepoint.count..self.count);
        self.last = savepoint.last;
        for id in self.created_ids.drain(savepoint.created..) {
            self.created.remove(&id);
            names.forget(id);
        }
        self.dropped.truncate(savepoint.dropped);
        // Empty if the map was dropped since.
        let replaced = self.replaced.split_off(savepoint.replaced.min(self.replaced.len()));
        if let Some(last_on) = &mut self.last_on {
            for (hash, before) in replaced.into_iter().rev() {
                match before {
                    Some(before) => drop(last_on.insert(hash, before)),
                    None => drop(last_on.remove(&hash)),
                }
            }
        }
        Ok(())
    }

    /// Records that the transaction commits: the keyspaces that it created exist.
    pub(crate) fn commit(&mut self, names: &mut KeyspaceNames) {
        for (id, name) in self.created.drain() {
            names.learn(id, &name);
        }
        self.savepoints = Vec::new();
        self.replaced = Vec::new();
    }

    /// Returns whether an operation matches. All its names are known by now, unless it was undone.
    fn wants(names: &KeyspaceNames, filter: &ChangeFilter, op: &Op<'_>) -> bool {
        affected(op).is_some_and(|(id, affected)| names.get(id).is_some_and(|name| filter.matches(name, affected)))
    }

    /// Returns whether operation number `index` is delivered: it matches, was not undone, and no
    /// later one changes the same key.
    pub(super) fn delivers(&self, names: &KeyspaceNames, filter: &ChangeFilter, index: u64, op: &Op<'_>) -> bool {
        let next = self.undone.partition_point(|undone| undone.end <= index);
        if self.undone.get(next).is_some_and(|undone| undone.contains(&index))
            || !TransactionFilter::wants(names, filter, op)
        {
            return false;
        }
        match (&self.last_on, affected(op)) {
            (Some(last_on), Some((keyspace, Affected::Key(key)))) => {
                last_on.get(&hash(&self.hashers, keyspace, key)) == Some(&index)
            }
            _ => true,
        }
    }

    /// Returns whether operation number `index` is the last one that is delivered.
    pub(super) fn is_last(&self, index: u64) -> bool {
        self.last == Some(index)
    }
}

fn hash(hashers: &[RandomState; 2], keyspace: KeyspaceId, key: &[u8]) -> (u64, u64) {
    (hashers[0].hash_one((keyspace, key)), hashers[1].hash_one((keyspace, key)))
}
