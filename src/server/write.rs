//! Writes by message. Each is one transaction. It begins when the whole request has arrived, and is
//! answered when it is as durable as requested.
//!
//! During each wait, the server checks periodically whether the logger is to exit. The writer lock
//! is released at the publication, so commits of many connections share one fsync. Then the memory
//! of the request is released, because the wait for a flush does not need it.

use crate::api::batch;
use crate::api::batch::Unmet;
use crate::error::reason::NotDurableReason;
use crate::server::answer::{Answer, Session, cut_name, refuse_unless};
use crate::server::policy::Rights;
use crate::server::{ServerState, WRITER_LOCK_TIMEOUT};
use crate::shared::socket::SocketStream;
use crate::system::clock;
use crate::system::clock::now_ns;
use crate::{Durability, Error, Keyspace, LimitKind, Result, Ticket, TxnId, WriteTxn};
use std::time::Duration;
use untorn_wal::wire;
use untorn_wal::wire::{Edge, Operation, Reply};

/// Time between checks whether the logger is to exit.
pub(super) const LOCK_WAIT_SLICE: Duration = Duration::from_millis(100);
/// How long a reply waits for the flush, in addition to the time that the write itself allows.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an exiting logger waits for a flush that it requests.
const CLOSING_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

impl<'s> Session<'s> {
    pub(super) fn put(
        &self,
        rights: &Rights<'_>,
        name: &str,
        key: &[u8],
        value: &[u8],
        durability: wire::Durability,
    ) -> Result<Answer<'s>> {
        refuse_unless(rights.may_write(name), "writing", "keyspace", name)?;
        let durability = durability_of(durability, rights)?;
        let mut txn = self.begin(durability)?;
        let keyspace = txn.keyspace(name)?;
        txn.put(&keyspace, key, value)?;
        finish(txn, durability, |txn| Reply::Committed { txn })
    }

    pub(super) fn delete(
        &self,
        rights: &Rights<'_>,
        name: &str,
        key: &[u8],
        durability: wire::Durability,
    ) -> Result<Answer<'s>> {
        let (mut txn, keyspace, durability) = self.begin_in(rights, name, durability)?;
        let was_there = txn.delete(&keyspace, key)?;
        finish(txn, durability, |txn| Reply::Deleted { txn, was_there })
    }

    pub(super) fn delete_range(
        &self,
        rights: &Rights<'_>,
        name: &str,
        (lower, upper): (Edge<'_>, Edge<'_>),
        durability: wire::Durability,
    ) -> Result<Answer<'s>> {
        let (mut txn, keyspace, durability) = self.begin_in(rights, name, durability)?;
        let removed = txn.delete_range(&keyspace, (batch::bound(lower), batch::bound(upper)))?;
        finish(txn, durability, |txn| Reply::RangeDeleted { txn, removed })
    }

    pub(super) fn commit(
        &self,
        rights: &Rights<'_>,
        operations: &[Operation<'_>],
        durability: wire::Durability,
    ) -> Result<Answer<'s>> {
        for operation in operations {
            match operation {
                Operation::ExpectVersion { keyspace, .. } | Operation::ExpectAbsent { keyspace, .. } => {
                    refuse_unless(rights.may_read(keyspace), "reading", "keyspace", keyspace)?;
                }
                Operation::Put { keyspace, .. }
                | Operation::Delete { keyspace, .. }
                | Operation::DeleteRange { keyspace, .. } => {
                    refuse_unless(rights.may_write(keyspace), "writing", "keyspace", keyspace)?;
                }
            }
        }
        let durability = durability_of(durability, rights)?;
        let mut txn = self.begin(durability)?;
        let unmet = batch::apply(&self.store, &mut txn, operations).map_err(|error| match error {
            Error::NoKeyspace { name } => Error::NoKeyspace { name: cut_name(&name) },
            other => other,
        })?;
        if let Some(Unmet { index, current }) = unmet {
            return Answer::small(&Reply::Unmet { index: index as u32, current: current.map(TxnId::as_u64) });
        }
        finish(txn, durability, |txn| Reply::Committed { txn })
    }

    /// Begins a transaction that removes from the keyspace `name`, which must exist.
    fn begin_in(
        &self,
        rights: &Rights<'_>,
        name: &str,
        durability: wire::Durability,
    ) -> Result<(WriteTxn<'_>, Keyspace, Durability)> {
        refuse_unless(rights.may_write(name), "writing", "keyspace", name)?;
        let durability = durability_of(durability, rights)?;
        let txn = self.begin(durability)?;
        // Under the writer lock, the visible state is the one from which the transaction began.
        let keyspace = self.store.find_keyspace(name)?.ok_or_else(|| Error::NoKeyspace { name: cut_name(name) })?;
        Ok((txn, keyspace, durability))
    }

    /// Waits for the writer lock in slices, but as a single wait, so that it ages.
    fn begin(&self, durability: Durability) -> Result<WriteTxn<'_>> {
        let asked_ns = now_ns();
        let mut until = Duration::ZERO;
        loop {
            until += LOCK_WAIT_SLICE;
            match self.store.begin_since(asked_ns, durability, Some(until)) {
                Err(Error::LockTimeout { lock, holder, .. }) => {
                    let waited = Duration::from_nanos(now_ns().saturating_sub(asked_ns));
                    if waited >= WRITER_LOCK_TIMEOUT || self.shared.is_closing() {
                        return Err(Error::LockTimeout { lock, waited, holder });
                    }
                }
                other => return other,
            }
        }
    }
}

/// Returns the durability of a commit.
///
/// # Errors
/// [`Error::Limit`] if it has more time than a message-passing client may give.
fn durability_of(asked: wire::Durability, rights: &Rights<'_>) -> Result<Durability> {
    match asked {
        wire::Durability::Visible => Ok(Durability::Visible),
        wire::Durability::Durable => Ok(Durability::Durable),
        wire::Durability::Within { micros } => {
            let limit = rights.commit_time_max();
            if Duration::from_micros(micros) > limit {
                return Err(Error::Limit {
                    what: LimitKind::CommitTime,
                    found: micros,
                    limit: limit.as_micros() as u64,
                });
            }
            Ok(Durability::Within(Duration::from_micros(micros)))
        }
    }
}

/// Commits, and makes the reply, to be sent when the commit is as durable as requested.
fn finish<'s>(
    txn: WriteTxn<'_>,
    durability: Durability,
    reply: impl FnOnce(u64) -> Reply<'static>,
) -> Result<Answer<'s>> {
    let patience = match durability {
        Durability::Visible => None,
        Durability::Durable => Some(FLUSH_TIMEOUT),
        Durability::Within(time) => Some(FLUSH_TIMEOUT + time),
    };
    let ticket = txn.make_visible(|| {})?;
    let reply = reply(ticket.txn_id().as_u64());
    let patience = patience.filter(|_| !planted_bug!("message-answered-before-sync"));
    Answer::after(patience.map(|patience| Awaited { ticket, patience }), &reply)
}

/// A commit that is visible, and must be durable before its reply is sent.
pub(super) struct Awaited {
    ticket: Ticket,
    patience: Duration,
}

impl Awaited {
    /// Waits until it is durable. Returns false if the peer has disconnected, so that no reply is
    /// needed.
    pub(super) fn wait(&self, shared: &ServerState, stream: &SocketStream) -> Result<bool> {
        let start = clock::now();
        while !self.ticket.wait_timeout(LOCK_WAIT_SLICE)? {
            if stream.has_hung_up() {
                return Ok(false);
            }
            // The flush will happen anyway, and the peer should get its result.
            if shared.is_closing() {
                if self.ticket.wait_hurrying(Some(CLOSING_FLUSH_TIMEOUT))? {
                    break;
                }
                return Err(Error::NotDurable { txn: self.ticket.txn_id(), reason: NotDurableReason::LoggerExiting });
            }
            if clock::since(start) >= self.patience {
                return Err(Error::LoggerStalled { waited: clock::since(start), visible: Some(self.ticket.txn_id()) });
            }
        }
        self.ticket.count_acknowledged();
        Ok(true)
    }
}
