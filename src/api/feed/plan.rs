//! What of a transaction is delivered, found out before the first of it is: which of its operations match, which of several
//! on one key is the last, and which is the last of all.
//!
//! A transaction that was streamed is gone through once for this and once more to be delivered, so that none is held in
//! memory. What is held for each key is a hash of 128 bits and a number; beyond [`KEYS_MAX`] keys that is given
//! up, and a key that such a transaction changed several times comes several times.

use crate::api::feed::names::Names;
use crate::files::dir;
use crate::prefix::prefix_end;
use crate::process::client::Client;
use crate::txn::ops::{Op, Ops};
use crate::{Error, KeyspaceId, Result};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use untorn_wal::Lsn;

/// Keys of one transaction that are told apart.
const KEYS_MAX: usize = 1 << 18;

/// Which changes are wanted.
#[derive(Clone, Default, Debug)]
pub(crate) struct Filter {
    pub(crate) keyspace: Option<String>,
    pub(crate) prefix: Vec<u8>,
}

impl Filter {
    fn matches(&self, name: &str, target: Target<'_>) -> bool {
        let is_wanted = match target {
            Target::Key(key) => key.starts_with(&self.prefix),
            Target::Range(start, end) => self.part_of(start, end).is_some(),
            Target::Keyspace => true,
        };
        is_wanted && self.keyspace.as_ref().is_none_or(|wanted| wanted == name)
    }

    /// The part of a range whose keys begin with the prefix.
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

/// The plan of one transaction.
pub(crate) struct Plan {
    /// Operations that match.
    count: u64,
    /// The last operation on each key; `None` if there are too many keys.
    last: Option<HashMap<(u64, u64), u64>>,
    hashers: [RandomState; 2],
    /// What it creates itself, which it may yet take back.
    created: HashMap<KeyspaceId, String>,
    /// What it drops: its end is the last that is heard of these.
    pub(super) dropped: Vec<KeyspaceId>,
}

/// What of a keyspace an operation changes.
#[derive(Clone, Copy)]
enum Target<'a> {
    Key(&'a [u8]),
    Range(&'a [u8], Option<&'a [u8]>),
    Keyspace,
}

fn target<'a>(op: &Op<'a>) -> Option<(KeyspaceId, Target<'a>)> {
    match *op {
        Op::Put { keyspace, key, .. } | Op::Delete { keyspace, key } | Op::LargePut { keyspace, key, .. } => {
            Some((keyspace, Target::Key(key)))
        }
        Op::DeleteRange { keyspace, start, end } => Some((keyspace, Target::Range(start, end))),
        Op::DropKeyspace { keyspace, .. } => Some((keyspace, Target::Keyspace)),
        Op::CreateKeyspace { .. } | Op::LargeBytes(_) | Op::Incarnation { .. } | Op::CellsFloor(_) => None,
    }
}

impl Plan {
    pub(crate) fn new() -> Plan {
        let hashers = [RandomState::new(), RandomState::new()];
        Plan { count: 0, last: Some(HashMap::new()), hashers, created: HashMap::new(), dropped: Vec::new() }
    }

    /// Bytes of memory that it holds, but for names.
    pub(super) fn held_bytes(&self) -> usize {
        // Each entry has a control byte.
        self.last.as_ref().map_or(0, |last| last.capacity() * (size_of::<((u64, u64), u64)>() + 1))
    }

    /// Whether nothing of the transaction is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the operations of the next record into account. The transaction begins at `from`.
    pub(crate) fn add(
        &mut self,
        client: &Arc<Client>,
        names: &mut Names,
        filter: &Filter,
        payload: &[u8],
        from: Lsn,
    ) -> Result<()> {
        for op in Ops::new(payload) {
            let op = op.map_err(|what| Error::corrupt(dir::WAL, from.0, what))?;
            match op {
                Op::CreateKeyspace { keyspace, name } => drop(self.created.insert(keyspace, name.to_string())),
                Op::DropKeyspace { keyspace, name } => {
                    names.learn(keyspace, name);
                    self.dropped.push(keyspace);
                }
                _ => {}
            }
            let Some((keyspace, target)) = target(&op) else { continue };
            let matches = match self.created.get(&keyspace) {
                Some(name) => filter.matches(name, target),
                None => filter.matches(names.find(client, keyspace, from)?, target),
            };
            if !matches {
                continue;
            }
            if let (Some(last), Target::Key(key)) = (&mut self.last, target) {
                last.insert(hash(&self.hashers, keyspace, key), self.count);
                if last.len() > KEYS_MAX {
                    self.last = None;
                }
            }
            self.count += 1;
        }
        Ok(())
    }

    /// The transaction is one that commits: what it created is there.
    pub(crate) fn settle(&mut self, names: &mut Names) {
        for (id, name) in self.created.drain() {
            names.learn(id, &name);
        }
    }

    /// Whether an operation matches, all of whose names are known by now.
    pub(super) fn wants(names: &Names, filter: &Filter, op: &Op<'_>) -> bool {
        target(op).is_some_and(|(id, target)| names.get(id).is_some_and(|name| filter.matches(name, target)))
    }

    /// Whether the matching operation number `index` is delivered: no later one changes the same key.
    pub(super) fn delivers(&self, index: u64, op: &Op<'_>) -> bool {
        match (&self.last, target(op)) {
            (Some(last), Some((keyspace, Target::Key(key)))) => {
                last.get(&hash(&self.hashers, keyspace, key)) == Some(&index)
            }
            _ => true,
        }
    }

    /// Whether it is the last one that is delivered.
    pub(super) fn is_last(&self, index: u64) -> bool {
        index + 1 == self.count
    }
}

fn hash(hashers: &[RandomState; 2], keyspace: KeyspaceId, key: &[u8]) -> (u64, u64) {
    (hashers[0].hash_one((keyspace, key)), hashers[1].hash_one((keyspace, key)))
}
