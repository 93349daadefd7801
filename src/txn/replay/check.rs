//! The check of the records before they are replayed.

use super::extents::{ExtentPlan, RecordExtents};
use super::follows;
use super::records::{RecordStream, damaged};
use crate::files::extent::LOGGED_VALUE_BYTES_MIN;
use crate::txn::ops::{Op, Ops};
use crate::{Error, KeyspaceId, Result, TxnId, limits};
use std::collections::HashMap;
use untorn_wal::Lsn;
use untorn_wal::record::RecordKind;

/// Checks the stream without applying it. So recovery finds a damaged log before it changes a byte
/// of any file, and `verify` finds damage in the log that is kept for followers.
pub(crate) struct Check<'k> {
    page_size: usize,
    stream: RecordStream,
    /// The last transaction that the stream commits; unknown before the first one of a stream that
    /// does not begin at a checkpoint.
    last: Option<TxnId>,
    /// Where the record of `last` ends, if the stream holds that.
    committed_end: Option<Lsn>,
    /// The state of the transactions, which are checked as replay applies them. `None` if the
    /// stream may begin within a transaction.
    transactions: Option<Transactions<'k>>,
    extents: ExtentPlan,
}

/// Returns whether a keyspace exists in the pages of the checkpoint.
pub(crate) type FindKeyspace<'k> = dyn Fn(KeyspaceId) -> Result<bool> + 'k;

/// The transactions of a stream that begins at a checkpoint.
struct Transactions<'k> {
    find_keyspace: &'k FindKeyspace<'k>,
    /// Whether each keyspace exists after the last commit. Keyspaces that no record has named are
    /// missing.
    keyspaces: HashMap<KeyspaceId, bool>,
    /// A streamed transaction whose commit was not read yet.
    open: Option<Running>,
}

/// A transaction whose records are being read.
struct Running {
    txn: TxnId,
    /// The keyspaces that it has created (true) and dropped (false).
    keyspaces: HashMap<KeyspaceId, bool>,
    /// What `keyspaces` held before each change of it since the first savepoint.
    before: Vec<(KeyspaceId, Option<bool>)>,
    /// For each savepoint, the length of `before` when it was made.
    savepoints: Vec<usize>,
    /// The number of bytes of a large value that are missing.
    missing: Option<u64>,
}

impl Running {
    fn new(txn: TxnId) -> Running {
        Running { txn, keyspaces: HashMap::new(), before: Vec::new(), savepoints: Vec::new(), missing: None }
    }

    fn set_keyspace(&mut self, keyspace: KeyspaceId, is_there: bool) {
        let before = self.keyspaces.insert(keyspace, is_there);
        if !self.savepoints.is_empty() {
            self.before.push((keyspace, before));
        }
    }

    /// Rolls back to the savepoint of this depth. Returns false if there is none.
    fn roll_back(&mut self, depth: u32) -> bool {
        let Some(len) = self.savepoints.get(depth as usize).copied() else { return false };
        self.savepoints.truncate(depth as usize + 1);
        for (keyspace, before) in self.before.drain(len..).rev() {
            match before {
                Some(is_there) => drop(self.keyspaces.insert(keyspace, is_there)),
                None => drop(self.keyspaces.remove(&keyspace)),
            }
        }
        true
    }
}

impl Transactions<'_> {
    /// Checks a record whose operations are complete.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if replay could not apply it.
    fn check(&mut self, txn: TxnId, kind: RecordKind, payload: &[u8], at: Lsn) -> Result<()> {
        let damaged = |what: String| damaged(at, what);
        if matches!(kind, RecordKind::Abort | RecordKind::Commit) {
            self.open = None;
        }
        if kind == RecordKind::Abort {
            return Ok(());
        }
        let mut running = match self.open.take() {
            Some(running) if running.txn == txn => running,
            _ if kind == RecordKind::FrameCommit => {
                return Err(damaged(format!("transaction {txn} ends without having begun")));
            }
            _ => Running::new(txn),
        };
        for op in Ops::new(payload) {
            self.check_op(&mut running, &op.map_err(damaged)?, &damaged)?;
        }
        if kind == RecordKind::Frame {
            self.open = Some(running);
            return Ok(());
        }
        if let Some(missing) = running.missing {
            return Err(damaged(format!("transaction {txn} ends before the last {missing} bytes of a large value")));
        }
        self.keyspaces.extend(running.keyspaces);
        Ok(())
    }

    fn check_op(&mut self, running: &mut Running, op: &Op<'_>, damaged: &dyn Fn(String) -> Error) -> Result<()> {
        if running.missing.is_some() && !matches!(op, Op::LargeBytes(_)) {
            return Err(damaged("the bytes of a large value are missing".into()));
        }
        let (keyspace, is_created) = match op {
            Op::Put { keyspace, .. } | Op::Delete { keyspace, .. } | Op::DeleteRange { keyspace, .. } => {
                (*keyspace, false)
            }
            Op::PutExtent { keyspace, .. } => (*keyspace, false),
            Op::CreateKeyspace { keyspace, .. } => (*keyspace, true),
            Op::DropKeyspace { keyspace, .. } => (*keyspace, false),
            Op::LargePut { keyspace, len, .. } => {
                running.missing = Some(u64::from(*len));
                (*keyspace, false)
            }
            Op::LargeBytes(bytes) => {
                let found = bytes.len() as u64;
                running.missing = match running.missing {
                    None => return Err(damaged("bytes of a large value that was not begun".into())),
                    Some(missing) if found > missing => {
                        return Err(damaged("more bytes than the large value has".into()));
                    }
                    Some(missing) => Some(missing - found).filter(|missing| *missing > 0),
                };
                return Ok(());
            }
            Op::Incarnation { .. } | Op::CellsFloor(_) => return Ok(()),
            Op::Savepoint { depth } => {
                if *depth as usize != running.savepoints.len() {
                    let found = running.savepoints.len();
                    return Err(damaged(format!("a savepoint follows {depth} others, of which there are {found}")));
                }
                running.savepoints.push(running.before.len());
                return Ok(());
            }
            Op::RollBack { depth } => {
                if !running.roll_back(*depth) {
                    return Err(damaged(format!("a rollback to savepoint {depth}, which is not there")));
                }
                return Ok(());
            }
        };
        let is_there = match running.keyspaces.get(&keyspace).or_else(|| self.keyspaces.get(&keyspace)) {
            Some(is_there) => *is_there,
            None => {
                let is_there = (self.find_keyspace)(keyspace)?;
                self.keyspaces.insert(keyspace, is_there);
                is_there
            }
        };
        if is_there == is_created {
            let which = keyspace.0;
            return Err(damaged(match is_created {
                true => format!("the log creates keyspace number {which}, which the pages have"),
                false => format!("the log changes keyspace number {which}, which the pages don't have"),
            }));
        }
        if is_created || matches!(op, Op::DropKeyspace { .. }) {
            running.set_keyspace(keyspace, is_created);
        }
        Ok(())
    }
}

impl<'k> Check<'k> {
    /// Begins at `from`, behind the commit of `checkpoint`. `find_keyspace` finds that commit's
    /// keyspaces. `seed` is the checksum seed of the store's records.
    pub(crate) fn new(
        seed: u32,
        page_size: usize,
        checkpoint: TxnId,
        from: Lsn,
        find_keyspace: &'k FindKeyspace<'k>,
    ) -> Check<'k> {
        let transactions = Transactions { find_keyspace, keyspaces: HashMap::new(), open: None };
        let transactions = Some(transactions);
        Check {
            page_size,
            stream: RecordStream::new(seed, from, None),
            last: Some(checkpoint),
            committed_end: None,
            transactions,
            extents: ExtentPlan::default(),
        }
    }

    /// Begins at `from`, where a record begins.
    pub(crate) fn anywhere(seed: u32, page_size: usize, from: Lsn) -> Check<'k> {
        Check {
            page_size,
            stream: RecordStream::new(seed, from, None),
            last: None,
            committed_end: None,
            transactions: None,
            extents: ExtentPlan::default(),
        }
    }

    /// Checks the records in `bytes`, which continue the stream.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they are no records, are out of order, or contain incomplete
    /// operations; from a checkpoint on, also if no transaction can have written them.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let wrong = self.advance(bytes)?;
        self.stream.check(wrong)
    }

    /// Checks the whole records at the beginning of `bytes`, which [`Replay::feed_until_bad`] will
    /// apply.
    ///
    /// [`Replay::feed_until_bad`]: super::Replay::feed_until_bad
    pub(crate) fn feed_until_bad(&mut self, bytes: &[u8]) -> Result<()> {
        self.advance(bytes)?;
        self.stream.clear();
        Ok(())
    }

    /// Checks records until the bytes end or are no valid record. In the latter case returns what
    /// is wrong with them.
    fn advance(&mut self, bytes: &[u8]) -> Result<Option<String>> {
        let Check { page_size, stream, last, committed_end, transactions, extents } = self;
        stream.advance(bytes, |record| {
            let (txn, kind, at) = (record.txn, record.kind, record.at);
            if let Err(what) = last.map_or(Ok(()), |last| follows(last, txn, kind)) {
                return Ok(Err(what));
            }
            let mut found = RecordExtents::new(txn, kind, at, record.end);
            // The content of an abort record is never applied.
            if kind != RecordKind::Abort {
                let checked = Ops::new(record.payload).try_for_each(|op| check_op(*page_size, &op?, &mut found));
                checked.map_err(|what| damaged(at, what))?;
            }
            extents.add(found);
            if let Some(transactions) = transactions {
                transactions.check(txn, kind, record.payload, at)?;
            }
            if matches!(kind, RecordKind::Commit | RecordKind::FrameCommit) {
                *last = Some(txn);
                *committed_end = Some(record.end);
            }
            Ok(Ok(()))
        })
    }

    /// Returns where the record of [`Check::last`] ends; `None` if the stream does not hold it.
    pub(crate) fn committed_end(&self) -> Option<Lsn> {
        self.committed_end
    }

    /// Returns where the stream ends; `None` if that is within a record.
    pub(crate) fn end(&self) -> Option<Lsn> {
        self.stream.is_whole().then_some(self.stream.at())
    }

    /// Returns the position of the next expected byte of the stream.
    pub(crate) fn next(&self) -> Lsn {
        self.stream.next()
    }

    /// Ends the check. Returns the extents to which the records refer.
    pub(crate) fn into_extents(self) -> ExtentPlan {
        self.extents
    }

    /// Returns the last transaction that the stream commits.
    pub(crate) fn last(&self) -> TxnId {
        self.last.unwrap_or(TxnId::ZERO)
    }
}

/// Checks an operation against the limits that the public call enforced before it was logged. Adds
/// the extent to which it refers to `extents`.
fn check_op(page_size: usize, op: &Op<'_>, extents: &mut RecordExtents) -> Result<(), String> {
    let key_max = limits::key_len_max(page_size) as u64;
    let (what, found, max) = match op {
        Op::Put { key, .. } | Op::Delete { key, .. } => ("a key of bytes", key.len() as u64, key_max),
        Op::LargePut { key, .. } if key.len() as u64 > key_max => ("a key of bytes", key.len() as u64, key_max),
        Op::PutExtent { key, extent, .. } => {
            if extent.page.is_none() || (extent.len as usize) < LOGGED_VALUE_BYTES_MIN {
                return Err(format!("an operation refers to {} bytes at page {}", extent.len, extent.page.0));
            }
            if u64::from(extent.len) > limits::VALUE_LEN_MAX {
                ("a value of bytes", u64::from(extent.len), limits::VALUE_LEN_MAX)
            } else {
                extents.push(*extent);
                ("a key of bytes", key.len() as u64, key_max)
            }
        }
        Op::LargePut { len, .. } => ("a value of bytes", u64::from(*len), limits::VALUE_LEN_MAX),
        Op::DeleteRange { start, end, .. } => {
            let longest = start.len().max(end.map_or(0, <[u8]>::len)) as u64;
            ("a bound of bytes", longest, key_max + 1)
        }
        Op::CreateKeyspace { name, .. } => ("a name of bytes", name.len() as u64, limits::KEYSPACE_NAME_LEN_MAX as u64),
        Op::DropKeyspace { .. }
        | Op::LargeBytes(_)
        | Op::Incarnation { .. }
        | Op::CellsFloor(_)
        | Op::Savepoint { .. }
        | Op::RollBack { .. } => return Ok(()),
    };
    if found > max { Err(format!("an operation has {what} {found}, the limit is {max}")) } else { Ok(()) }
}
