//! What the server has room for: connections, in all and for each user, and bytes of messages.
//!
//! With room for a long message comes a buffer for it. One that is given back is kept for the next message of about that
//! length, whoever's it is, because new memory costs more than the copy into it: each page is found, made zero and mapped by the
//! kernel. Buffers that are kept are within the same bound as the messages, and go when room is needed, or after
//! [`IDLE_BUFFER_LIFETIME`].

use crate::server::policy::Policy;
use crate::shared::socket::SocketStream;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use untorn_wal::wire::MESSAGE_BYTES_MAX;

/// Messages up to this length are not counted: each connection may have one request and one reply of so many bytes.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// BufferPool of everything larger that peers cause, at once.
const BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Of these, what all users but the owner can have together: the owner is left room for a message.
const BYTES_OF_OTHERS_MAX: usize = BYTES_MAX - MESSAGE_BYTES_MAX;
/// Of these, what one of them can have.
const BYTES_OF_USER_MAX: usize = BYTES_MAX / 2;
/// A message that comes is counted in steps of so many bytes.
pub(super) const GROWTH_STEP_BYTES: usize = 64 << 10;
/// BufferPool of the buffers that are kept.
const IDLE_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// A buffer that nobody wanted for so long is not kept any longer.
const IDLE_BUFFER_LIFETIME: Duration = Duration::from_secs(1);
/// What a frame may have beyond the bytes that were counted: the words around a single value.
const FRAME_SLACK_BYTES: usize = 64;

/// For whom there is room.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) is_owner: bool,
}

/// The connections.
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

/// Why somebody is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotAdmitted {
    Closed,
    /// There are so many connections already, of this uid or in all.
    Full {
        of_uid: bool,
        limit: usize,
    },
}

/// One connection's place; dropped, it is free.
pub(super) struct ConnectionPermit {
    connections: Arc<Connections>,
    number: u64,
}

impl Connections {
    /// Takes a seat. A user who is not the owner can have half of them, and all those together leave an eighth to the owner:
    /// nobody shuts out the others.
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

    /// Lets nobody in any more, if nobody is there. Says whether it did.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut table = self.table.lock();
        table.is_closed |= table.connected.is_empty();
        table.is_closed
    }

    /// Lets nobody in any more, takes no more requests, ends all connections, and waits until they have left, or until `deadline`. Those that
    /// are being answered have until `answers` for that.
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

/// Connections for the bytes of messages.
#[derive(Default)]
pub(super) struct BufferPool {
    in_use: Mutex<BuffersInUse>,
    freed: Condvar,
}

#[derive(Default)]
struct BuffersInUse {
    total: usize,
    of_others: usize,
    /// By uid; a user who has none is not in it.
    of_users: HashMap<u32, usize>,
    /// Whether a message of the owner, and one of the others, has the right to what the last message needs.
    finishing: [bool; 2],
    /// Buffers that wait for a message, those that wait longest first.
    idle: Vec<IdleBuffer>,
}

/// How far a user may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Allowance {
    /// Leaves room for the longest message of the same kind of user: for what takes more while it holds some.
    Ordinary,
    /// All that the user can have.
    Full,
}

struct IdleBuffer {
    buffer: Vec<u8>,
    since: Instant,
}

/// Some of the room; dropped, it is free again.
///
/// A request's share grows as its bytes come, so that announcing a length costs the others nothing. Requests that hold some and
/// wait for more could so wait for each other. Therefore they leave a message's length of the room to one of them, of the owner's and of
/// the others' each, that may take it: it has all that it needs, and when it has been answered the next one is.
pub(super) struct BufferPermit<'b> {
    bytes: &'b BufferPool,
    user: User,
    count: usize,
    is_finishing: bool,
    /// For the message that it was taken for. Empty at first; with memory of an earlier one, if that was kept.
    pub(super) buffer: Vec<u8>,
}

impl<'b> BufferPermit<'b> {
    /// Grows to `count` bytes, and waits for room until `deadline`. False if there is none until then.
    pub(super) fn grow(&mut self, count: usize, deadline: Instant) -> bool {
        let bytes = self.bytes;
        let more = counted(count).saturating_sub(self.count);
        let mut given_up = Vec::new();
        let mut in_use = bytes.in_use.lock();
        while more > 0 && !self.has_room(&mut in_use, more) {
            if bytes.freed.wait_until(&mut in_use, deadline).timed_out() && !self.has_room(&mut in_use, more) {
                return false;
            }
        }
        self.add(&mut in_use, more, &mut given_up);
        true
    }

    fn has_room(&mut self, in_use: &mut BuffersInUse, more: usize) -> bool {
        if !self.is_finishing && !in_use.has_room(self.user, more, Allowance::Ordinary) {
            let finishing = &mut in_use.finishing[usize::from(self.user.is_owner)];
            self.is_finishing = !std::mem::replace(finishing, true);
        }
        in_use.has_room(self.user, more, if self.is_finishing { Allowance::Full } else { Allowance::Ordinary })
    }

    /// Grows or shrinks to `count` bytes without waiting; what it keeps between two requests leaves room for messages.
    pub(super) fn try_keep(&mut self, count: usize) -> bool {
        self.try_set(count, Allowance::Ordinary)
    }

    /// Grows or shrinks to `count` bytes without waiting, as far as the user can go.
    pub(super) fn try_resize(&mut self, count: usize) -> bool {
        self.try_set(count, Allowance::Full)
    }

    fn try_set(&mut self, count: usize, allowance: Allowance) -> bool {
        let count = counted(count);
        let mut given_up = Vec::new();
        let mut in_use = self.bytes.in_use.lock();
        if count <= self.count {
            in_use.give_back(self.user, self.count - count);
            self.count = count;
            drop(in_use);
            self.bytes.freed.notify_all();
            return true;
        }
        let more = count - self.count;
        let has_room = in_use.has_room(self.user, more, allowance);
        if has_room {
            self.add(&mut in_use, more, &mut given_up);
        }
        has_room
    }

    /// Memory that makes way is handed to the caller, to be freed when the lock is.
    fn add(&mut self, in_use: &mut BuffersInUse, more: usize, given_up: &mut Vec<IdleBuffer>) {
        if more > 0 {
            in_use.add(self.user, more);
            self.count += more;
            while in_use.total + in_use.idle_bytes() > BYTES_MAX {
                given_up.push(in_use.idle.remove(0));
            }
        }
    }

    /// Takes a buffer that was kept for a message of `count` bytes, if there is one and room for all of it: its memory is there already.
    pub(super) fn reuse_buffer(&mut self, count: usize) {
        let mut in_use = self.bytes.in_use.lock();
        let more = counted(count).saturating_sub(self.count);
        if in_use.has_room(self.user, more, Allowance::Ordinary) {
            let mut buffer = in_use.lend(count);
            if buffer.capacity() > 0 {
                let mut given_up = Vec::new();
                self.add(&mut in_use, more, &mut given_up);
                drop(in_use);
                buffer.shrink_to(count + FRAME_SLACK_BYTES);
                self.buffer = buffer;
            }
        }
    }
}

/// What is counted of so many bytes.
fn counted(count: usize) -> usize {
    if count <= SMALL_BYTES { 0 } else { count }
}

impl BufferPool {
    /// No room yet, for what will grow.
    pub(super) fn permit(&self, user: User) -> BufferPermit<'_> {
        BufferPermit { bytes: self, user, count: 0, is_finishing: false, buffer: Vec::new() }
    }

    /// Connections for a message of so many bytes, and a buffer for it; `None` if there is none.
    pub(super) fn try_acquire(&self, user: User, count: usize) -> Option<BufferPermit<'_>> {
        let mut permit = self.permit(user);
        let count = counted(count);
        // Memory goes back to the system when the lock is free again.
        let mut given_up = Vec::new();
        let mut in_use = self.in_use.lock();
        if count > 0 {
            if !in_use.has_room(user, count, Allowance::Full) {
                return None;
            }
            permit.buffer = in_use.lend(count);
            permit.add(&mut in_use, count, &mut given_up);
        }
        drop(in_use);
        // What it has more than was counted would be outside of the bound.
        permit.buffer.shrink_to(count + FRAME_SLACK_BYTES);
        Some(permit)
    }

    /// Lets go of the buffers that nobody wanted for a while. To be called now and then.
    pub(super) fn forget_unused(&self) {
        let mut in_use = self.in_use.lock();
        let unused = in_use.idle.iter().take_while(|idle| idle.since.elapsed() >= IDLE_BUFFER_LIFETIME).count();
        let forgotten: Vec<IdleBuffer> = in_use.idle.drain(..unused).collect();
        drop(in_use);
        drop(forgotten);
    }
}

impl BuffersInUse {
    fn has_room(&self, user: User, more: usize, allowance: Allowance) -> bool {
        let spare = if allowance == Allowance::Ordinary { MESSAGE_BYTES_MAX } else { 0 };
        if user.is_owner {
            return self.total + more + spare <= BYTES_MAX;
        }
        let of_user = self.of_users.get(&user.uid).copied().unwrap_or(0);
        self.total + more <= BYTES_OF_OTHERS_MAX
            && self.of_others + more + spare <= BYTES_OF_OTHERS_MAX
            && of_user + more + spare <= BYTES_OF_USER_MAX
    }

    fn add(&mut self, user: User, more: usize) {
        self.total += more;
        self.of_others += if user.is_owner { 0 } else { more };
        *self.of_users.entry(user.uid).or_default() += more;
    }

    fn give_back(&mut self, user: User, count: usize) {
        self.total -= count;
        self.of_others -= if user.is_owner { 0 } else { count };
        if let Some(of_user) = self.of_users.get_mut(&user.uid) {
            *of_user -= count;
            if *of_user == 0 {
                self.of_users.remove(&user.uid);
            }
        }
    }

    fn idle_bytes(&self) -> usize {
        self.idle.iter().map(|idle| idle.buffer.capacity()).sum()
    }

    /// The smallest buffer for so many bytes, but not one that a message twice as long could have; or a new one.
    fn lend(&mut self, count: usize) -> Vec<u8> {
        let capacity = |idle: &IdleBuffer| idle.buffer.capacity();
        let fits = |idle: &IdleBuffer| (count..2 * count).contains(&capacity(idle));
        let best = (0..self.idle.len()).filter(|at| fits(&self.idle[*at])).min_by_key(|at| capacity(&self.idle[*at]));
        best.map_or_else(Vec::new, |at| self.idle.remove(at).buffer)
    }

    /// Keeps a buffer, if there is room for it; else gives it back.
    fn keep(&mut self, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        let idle_bytes = self.idle_bytes() + buffer.capacity();
        if buffer.capacity() == 0 || idle_bytes > IDLE_BYTES_MAX || self.total + idle_bytes > BYTES_MAX {
            return Some(buffer);
        }
        buffer.clear();
        self.idle.push(IdleBuffer { buffer, since: Instant::now() });
        None
    }
}

impl Drop for BufferPermit<'_> {
    fn drop(&mut self) {
        if self.count == 0 && !self.is_finishing {
            return;
        }
        let mut in_use = self.bytes.in_use.lock();
        in_use.give_back(self.user, self.count);
        if self.is_finishing {
            in_use.finishing[usize::from(self.user.is_owner)] = false;
        }
        let not_kept = in_use.keep(std::mem::take(&mut self.buffer));
        drop(in_use);
        self.bytes.freed.notify_all();
        drop(not_kept);
    }
}

#[cfg(test)]
mod tests {
    //! Connections that was taken must come back, and nobody may get more than there is.

    use super::*;

    const OWNER: User = User { uid: 0, is_owner: true };

    #[test]
    fn bytes_are_given_back() {
        let bytes = BufferPool::default();
        let all: Vec<_> = (0..4).map(|_| bytes.try_acquire(OWNER, MESSAGE_BYTES_MAX).unwrap()).collect();
        assert!(bytes.try_acquire(OWNER, MESSAGE_BYTES_MAX).is_none());
        assert!(bytes.try_acquire(OWNER, SMALL_BYTES).is_some(), "a small message needs no room");
        drop(all);
        assert!(bytes.try_acquire(OWNER, MESSAGE_BYTES_MAX).is_some());
        assert!(bytes.in_use.lock().of_users.is_empty());
    }

    #[test]
    fn one_user_leaves_half_of_the_bytes() {
        let bytes = BufferPool::default();
        let connection = |uid| User { uid, is_owner: false };
        let of_one: Vec<_> = (0..2).map(|_| bytes.try_acquire(connection(1), MESSAGE_BYTES_MAX).unwrap()).collect();
        assert!(bytes.try_acquire(connection(1), SMALL_BYTES + 1).is_none());
        let of_other = bytes.try_acquire(connection(2), MESSAGE_BYTES_MAX);
        let of_owner = bytes.try_acquire(OWNER, MESSAGE_BYTES_MAX);
        assert!(of_other.is_some() && of_owner.is_some());
        assert!(bytes.try_acquire(OWNER, MESSAGE_BYTES_MAX).is_none());
        drop(of_one);
        assert!(bytes.try_acquire(connection(1), MESSAGE_BYTES_MAX).is_some());
    }

    /// A buffer that has been written to, as a message of so many bytes leaves it.
    fn serve(bytes: &BufferPool, count: usize) -> *const u8 {
        let mut permit = bytes.try_acquire(OWNER, count).unwrap();
        assert!(permit.buffer.is_empty());
        assert!(permit.buffer.capacity() <= count + FRAME_SLACK_BYTES, "memory that is not counted");
        permit.buffer.resize(count, 1);
        permit.buffer.as_ptr()
    }

    fn idle_bytes(bytes: &BufferPool) -> usize {
        bytes.in_use.lock().idle_bytes()
    }

    #[test]
    fn buffers_are_used_again() {
        let bytes = BufferPool::default();
        let first = serve(&bytes, 1 << 20);
        assert_eq!(serve(&bytes, 1 << 20), first);
        // Neither by a message that it is too short for, nor by one that leaves most of it empty.
        serve(&bytes, (1 << 20) + 1000);
        serve(&bytes, 100 << 10);
        assert_eq!(bytes.in_use.lock().idle.len(), 3);
        assert_eq!(serve(&bytes, 1 << 20), first);
    }

    #[test]
    fn buffers_are_kept_within_bounds() {
        let bytes = BufferPool::default();
        // Many at once, of which not all can be kept.
        let shares: Vec<_> = (0..50)
            .map(|_| {
                let mut permit = bytes.try_acquire(OWNER, 1 << 20).unwrap();
                permit.buffer.resize(1 << 20, 1);
                permit
            })
            .collect();
        drop(shares);
        assert!((15 << 20..=IDLE_BYTES_MAX).contains(&idle_bytes(&bytes)), "{}", idle_bytes(&bytes));
        // Messages have the room, all of it.
        let all: Vec<_> = (0..4).map(|_| bytes.try_acquire(OWNER, MESSAGE_BYTES_MAX).unwrap()).collect();
        assert_eq!(idle_bytes(&bytes), 0);
        drop(all);
        // Nobody wants it: it goes.
        serve(&bytes, MESSAGE_BYTES_MAX);
        bytes.forget_unused();
        assert_eq!(idle_bytes(&bytes), MESSAGE_BYTES_MAX, "it was wanted just now");
        std::thread::sleep(IDLE_BUFFER_LIFETIME);
        bytes.forget_unused();
        assert_eq!(idle_bytes(&bytes), 0);
    }

    /// Peers that announce much and send little cost the others nothing; and requests that come in pieces never wait for each other.
    #[test]
    fn what_comes_in_pieces_gets_through() {
        let bytes = BufferPool::default();
        let users = [OWNER, User { uid: 1, is_owner: false }, User { uid: 2, is_owner: false }];
        let now = Instant::now();
        for others in [&users[..1], &users[1..], &users[..]] {
            let mut coming: Vec<(BufferPermit<'_>, usize)> =
                (0..12).map(|n| (bytes.permit(others[n % others.len()]), 0)).collect();
            let mut rounds = 0;
            while !coming.is_empty() {
                rounds += 1;
                assert!(rounds < 100_000, "{} requests wait for each other", coming.len());
                for (permit, have) in &mut coming {
                    let next = (*have + (1 << 20)).min(MESSAGE_BYTES_MAX);
                    if permit.grow(next, now) {
                        *have = next;
                    }
                }
                assert!(bytes.in_use.lock().total <= BYTES_MAX);
                coming.retain(|(_, have)| *have < MESSAGE_BYTES_MAX);
            }
            assert!(bytes.in_use.lock().of_users.is_empty());
        }
    }

    #[test]
    fn the_owner_has_a_reserve() {
        let bytes = BufferPool::default();
        let table = (1..9).map(|uid| User { uid, is_owner: false });
        let mut shares: Vec<BufferPermit<'_>> = table.map(|connection| bytes.permit(connection)).collect();
        for step in 1..=1000 {
            for permit in &mut shares {
                let _ = permit.grow(step * GROWTH_STEP_BYTES, Instant::now());
            }
        }
        let mut of_owner = bytes.permit(OWNER);
        assert!(of_owner.grow(MESSAGE_BYTES_MAX, Instant::now()));
    }
}
