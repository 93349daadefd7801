//! Admission of connections: the most there may be, in all and for each user.
//!
//! Each connection holds a [`ConnectionPermit`]. The logger exits only if the table is closed while
//! it is empty.

use crate::server::policy::Policy;
use crate::shared::socket::SocketStream;
use crate::system::sync::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// The connections that are open.
#[derive(Default)]
pub(super) struct Connections {
    table: Mutex<ConnectionTable>,
    disconnected: Condvar,
}

#[derive(Default)]
struct ConnectionTable {
    is_closed: bool,
    next: u64,
    connected: HashMap<u64, OpenConnection>,
}

struct OpenConnection {
    uid: u32,
    stream: Arc<SocketStream>,
}

/// The reason why a connection is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotAdmitted {
    Closed,
    /// The limit is reached, of this uid or in all.
    Full {
        of_uid: bool,
        limit: usize,
    },
}

/// The right to one connection; returned when dropped.
pub(super) struct ConnectionPermit {
    connections: Arc<Connections>,
    number: u64,
}

impl Connections {
    /// Admits a connection. A user other than the owner may have half of all connections. All other
    /// users together leave an eighth to the owner. So no user can lock the others out.
    pub(super) fn enter(
        self: &Arc<Connections>,
        uid: u32,
        stream: Arc<SocketStream>,
        policy: &Policy,
    ) -> Result<ConnectionPermit, NotAdmitted> {
        let mut table = self.table.lock();
        if table.is_closed {
            return Err(NotAdmitted::Closed);
        }
        if table.connected.len() >= policy.connections {
            return Err(NotAdmitted::Full { of_uid: false, limit: policy.connections });
        }
        let of_others = table.connected.values().filter(|connection| !policy.is_owner(connection.uid)).count();
        let limit = policy.connections - policy.connections / 8;
        if !policy.is_owner(uid) && of_others >= limit {
            return Err(NotAdmitted::Full { of_uid: false, limit });
        }
        let limit = if policy.is_owner(uid) { policy.connections } else { policy.connections.div_ceil(2) };
        if table.connected.values().filter(|connection| connection.uid == uid).count() >= limit {
            return Err(NotAdmitted::Full { of_uid: true, limit });
        }
        let number = table.next;
        table.next += 1;
        table.connected.insert(number, OpenConnection { uid, stream });
        Ok(ConnectionPermit { connections: self.clone(), number })
    }

    /// Closes the table if it is empty. Returns whether it is closed.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut table = self.table.lock();
        table.is_closed |= table.connected.is_empty();
        table.is_closed
    }

    /// Closes the table, ends all connections, and waits until they have disconnected, or until
    /// `deadline`. Requests that are being served have until `answers` for their replies; no new
    /// ones are read.
    pub(super) fn close(&self, answers: Instant, deadline: Instant) {
        let mut table = self.table.lock();
        table.is_closed = true;
        table.connected.values().for_each(|connection| connection.stream.end_reading());
        if !self.wait_until_empty(&mut table, answers) {
            table.connected.values().for_each(|connection| connection.stream.end());
            self.wait_until_empty(&mut table, deadline);
        }
    }

    fn wait_until_empty(&self, table: &mut MutexGuard<'_, ConnectionTable>, deadline: Instant) -> bool {
        while !table.connected.is_empty() {
            if self.disconnected.wait_until(table, deadline).timed_out() {
                return table.connected.is_empty();
            }
        }
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.lock().connected.is_empty()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.table.lock().is_closed
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.table.lock().connected.remove(&self.number);
        self.connections.disconnected.notify_all();
    }
}
