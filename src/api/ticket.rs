//! Tickets: a commit on its way to durability.

use crate::process::client::DirectClient;
use crate::process::waker::TicketFailure;
use crate::shared::latencies::Acknowledged;
use crate::system::clock::now_ns;
use crate::{Error, Result, TxnId};
use std::fmt;
use std::future::Future;
use std::pin::Pin as FuturePin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use untorn_wal::Lsn;

/// A visible commit, whose durability can be waited for, polled or awaited.
///
/// As a [`Future`] it needs no particular runtime: one thread of this process wakes its tasks. It
/// remains pending while the logger is stopped.
pub struct Ticket {
    client: Arc<DirectClient>,
    txn: TxnId,
    lsn: Lsn,
    /// The time by which it should be durable, on the monotonic clock.
    deadline_ns: Option<u64>,
    /// The time at which it became visible; set if the committing caller waits and records the
    /// latency.
    published_ns: Option<u64>,
    /// The failure that the waker stored for this future. Clones do not share it.
    failure: TicketFailure,
}

impl Clone for Ticket {
    fn clone(&self) -> Ticket {
        Ticket::new(self.client.clone(), self.txn, self.lsn).with_deadline(self.deadline_ns)
    }
}

impl Ticket {
    pub(crate) fn new(client: Arc<DirectClient>, txn: TxnId, lsn: Lsn) -> Ticket {
        Ticket { client, txn, lsn, deadline_ns: None, published_ns: None, failure: TicketFailure::default() }
    }

    pub(crate) fn with_deadline(self, deadline_ns: Option<u64>) -> Ticket {
        Ticket { deadline_ns, ..self }
    }

    /// Sets the time from which [`Ticket::count_acknowledged`] measures. If it is set, the wait
    /// itself records no latency.
    pub(crate) fn counted_from(self, published_ns: Option<u64>) -> Ticket {
        Ticket { published_ns, ..self }
    }

    /// Records the latency from publication to acknowledgement, and whether the deadline was met.
    /// Called once, by the committing caller after its wait, even if the commit was durable
    /// already.
    pub(crate) fn count_acknowledged(&self) {
        if let Some(published_ns) = self.published_ns {
            let of = if self.deadline_ns.is_some() { Acknowledged::Within } else { Acknowledged::Durable };
            self.client.engine.note_acknowledgement(of, published_ns);
        }
        let Some(by) = self.deadline_ns else { return };
        let counters = &self.client.engine.control.fixed().counters;
        let counter = if now_ns() <= by { &counters.deadlines_met } else { &counters.deadlines_missed };
        counter.add(1);
    }

    /// Returns the transaction's id.
    pub fn txn_id(&self) -> TxnId {
        self.txn
    }

    /// Returns whether the transaction is durable now. Never blocks.
    pub fn is_durable(&self) -> bool {
        self.client.check_usable().is_ok()
            && self.client.engine.control.durable().is_some_and(|(_, durable)| durable >= self.lsn)
    }

    /// Blocks until the transaction is durable: the delay that the flush policy allows, plus the
    /// fsync.
    ///
    /// # Errors
    /// [`Error::NotDurable`] if the log is broken, if no logger can be started now, or for another
    /// reason, which it contains; [`Error::LoggerStalled`] if the logger makes no progress. Unless
    /// the log is broken, a later wait may succeed.
    pub fn wait(&self) -> Result<()> {
        self.wait_ref()
    }

    /// Waits as [`Ticket::wait`] does, at most `timeout`. Returns whether the transaction is
    /// durable.
    ///
    /// # Errors
    /// Those of [`Ticket::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
        self.wait_as(false, Some(timeout))
    }

    pub(crate) fn wait_ref(&self) -> Result<()> {
        self.wait_as(false, None).map(|_| ())
    }

    /// Requests a flush at once and waits, at most `timeout` if there is one. Returns whether the
    /// transaction is durable.
    pub(crate) fn wait_hurrying(&self, timeout: Option<Duration>) -> Result<bool> {
        self.wait_as(true, timeout)
    }

    fn wait_as(&self, hurry: bool, timeout: Option<Duration>) -> Result<bool> {
        self.client.check_usable()?;
        // There is no wait in this case, and so no latency to record.
        if self.is_durable() {
            return Ok(true);
        }
        let engine = &self.client.engine;
        let began_ns = now_ns();
        let waited = match self.deadline_ns {
            Some(by) if !hurry => engine.wait_durable_by(self.lsn, by, timeout),
            _ => engine.wait_durable(self.lsn, hurry, timeout),
        };
        let is_durable = waited.map_err(|error| self.in_doubt(error))?;
        if is_durable && self.published_ns.is_none() {
            engine.note_acknowledgement(Acknowledged::Ticket, began_ns);
        }
        Ok(is_durable)
    }

    /// Checks whether a logger lives that will flush this commit, unless this process has checked
    /// recently.
    pub(crate) fn glance(&self) {
        self.client.engine.glance_by_coarse_clock();
    }

    /// Converts the error of a wait into one which states that the transaction has happened.
    fn in_doubt(&self, error: Error) -> Error {
        match error {
            Error::Forked => error,
            Error::LoggerStalled { waited, .. } => Error::LoggerStalled { waited, visible: Some(self.txn) },
            other => Error::NotDurable { txn: self.txn, reason: other.into() },
        }
    }
}

impl Future for Ticket {
    type Output = Result<()>;

    fn poll(self: FuturePin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        if let Err(error) = self.client.check_usable() {
            return Poll::Ready(Err(error));
        }
        if self.is_durable() {
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = self.client.engine.refuse_broken_log() {
            return Poll::Ready(Err(self.in_doubt(error)));
        }
        if let Some(reason) = self.failure.lock().take() {
            return Poll::Ready(Err(Error::NotDurable { txn: self.txn, reason }));
        }
        self.client.wake_at(self.lsn, self.deadline_ns, context.waker(), &self.failure);
        Poll::Pending
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("txn", &self.txn).field("durable", &self.is_durable()).finish()
    }
}
