//! What the server has room for: connections, in all and for each user, and bytes of messages.

use super::policy::Policy;
use crate::socket::Stream;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use untorn_wal::wire::MESSAGE_BYTES_MAX;

/// Messages up to this length are not counted: each connection may have one.
const SMALL_BYTES: usize = 64 << 10;
/// Bytes of larger messages that may be in the server at once.
const BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Of these, what a user who is not the owner can have: nobody shuts out the others.
const BYTES_OF_USER_MAX: usize = BYTES_MAX / 2;

/// For whom there is room.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) is_owner: bool,
}

/// The connections.
#[derive(Default)]
pub(super) struct Room {
    guests: Mutex<Guests>,
    left: Condvar,
}

#[derive(Default)]
struct Guests {
    is_closed: bool,
    next: u64,
    connected: HashMap<u64, Guest>,
}

struct Guest {
    uid: u32,
    stream: Arc<Stream>,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoSeat {
    Closed,
    /// There are so many connections already, of this uid or in all.
    Full {
        of_uid: bool,
        limit: usize,
    },
}

/// One connection's place; dropped, it is free.
pub(super) struct Seat {
    room: Arc<Room>,
    number: u64,
}

impl Room {
    /// Takes a seat. A user who is not the owner can have half of them, and all those together leave an eighth to the owner:
    /// nobody shuts out the others.
    pub(super) fn enter(self: &Arc<Room>, uid: u32, stream: Arc<Stream>, policy: &Policy) -> Result<Seat, NoSeat> {
        let mut guests = self.guests.lock();
        if guests.is_closed {
            return Err(NoSeat::Closed);
        }
        if guests.connected.len() >= policy.connections {
            return Err(NoSeat::Full { of_uid: false, limit: policy.connections });
        }
        let of_others = guests.connected.values().filter(|guest| guest.uid != policy.owner()).count();
        let limit = policy.connections - policy.connections / 8;
        if uid != policy.owner() && of_others >= limit {
            return Err(NoSeat::Full { of_uid: false, limit });
        }
        let limit = if uid == policy.owner() { policy.connections } else { policy.connections.div_ceil(2) };
        if guests.connected.values().filter(|guest| guest.uid == uid).count() >= limit {
            return Err(NoSeat::Full { of_uid: true, limit });
        }
        let number = guests.next;
        guests.next += 1;
        guests.connected.insert(number, Guest { uid, stream });
        Ok(Seat { room: self.clone(), number })
    }

    /// Lets nobody in any more, if nobody is there. Says whether it did.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut guests = self.guests.lock();
        guests.is_closed |= guests.connected.is_empty();
        guests.is_closed
    }

    /// Lets nobody in any more, takes no more requests, ends all connections, and waits until they have left, or until `deadline`. Those that
    /// are being answered have until `answers` for that.
    pub(super) fn close(&self, answers: Instant, deadline: Instant) {
        let mut guests = self.guests.lock();
        guests.is_closed = true;
        guests.connected.values().for_each(|guest| guest.stream.end_reading());
        if !self.wait_until_empty(&mut guests, answers) {
            guests.connected.values().for_each(|guest| guest.stream.end());
            self.wait_until_empty(&mut guests, deadline);
        }
    }

    fn wait_until_empty(&self, guests: &mut MutexGuard<'_, Guests>, deadline: Instant) -> bool {
        while !guests.connected.is_empty() {
            if self.left.wait_until(guests, deadline).timed_out() {
                return guests.connected.is_empty();
            }
        }
        true
    }

    pub(super) fn is_closed(&self) -> bool {
        self.guests.lock().is_closed
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.guests.lock().connected.remove(&self.number);
        self.room.left.notify_all();
    }
}

/// Room for the bytes of messages.
#[derive(Default)]
pub(super) struct Bytes {
    taken: Mutex<Taken>,
    freed: Condvar,
}

#[derive(Default)]
struct Taken {
    total: usize,
    /// By uid; whoever has none is not in it.
    of_users: HashMap<u32, usize>,
}

/// Some of the room; dropped, it is free again.
pub(super) struct Share<'b> {
    bytes: &'b Bytes,
    uid: u32,
    count: usize,
}

impl Bytes {
    /// Room for a message of so many bytes; `None` if there is none until `deadline`.
    pub(super) fn take(&self, user: User, count: usize, deadline: Instant) -> Option<Share<'_>> {
        let count = if count <= SMALL_BYTES { 0 } else { count };
        let mut taken = self.taken.lock();
        while count > 0 && !taken.has_room(user, count) {
            if self.freed.wait_until(&mut taken, deadline).timed_out() && !taken.has_room(user, count) {
                return None;
            }
        }
        if count > 0 {
            taken.total += count;
            *taken.of_users.entry(user.uid).or_default() += count;
        }
        Some(Share { bytes: self, uid: user.uid, count })
    }

    /// As [`Bytes::take`], without waiting.
    pub(super) fn try_take(&self, user: User, count: usize) -> Option<Share<'_>> {
        self.take(user, count, Instant::now())
    }
}

impl Taken {
    fn has_room(&self, user: User, count: usize) -> bool {
        let of_user = self.of_users.get(&user.uid).copied().unwrap_or(0);
        self.total + count <= BYTES_MAX && (user.is_owner || of_user + count <= BYTES_OF_USER_MAX)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        let mut taken = self.bytes.taken.lock();
        taken.total -= self.count;
        if let Some(of_user) = taken.of_users.get_mut(&self.uid) {
            *of_user -= self.count;
            if *of_user == 0 {
                taken.of_users.remove(&self.uid);
            }
        }
        drop(taken);
        self.bytes.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    //! Room that was taken must come back, and nobody may get more than there is.

    use super::*;

    const OWNER: User = User { uid: 0, is_owner: true };

    #[test]
    fn bytes_are_given_back() {
        let bytes = Bytes::default();
        let all: Vec<_> = (0..4).map(|_| bytes.try_take(OWNER, MESSAGE_BYTES_MAX).unwrap()).collect();
        assert!(bytes.try_take(OWNER, MESSAGE_BYTES_MAX).is_none());
        assert!(bytes.try_take(OWNER, SMALL_BYTES).is_some(), "a small message needs no room");
        drop(all);
        assert!(bytes.try_take(OWNER, MESSAGE_BYTES_MAX).is_some());
        assert!(bytes.taken.lock().of_users.is_empty());
    }

    #[test]
    fn one_user_leaves_half_of_the_bytes() {
        let bytes = Bytes::default();
        let guest = |uid| User { uid, is_owner: false };
        let of_one: Vec<_> = (0..2).map(|_| bytes.try_take(guest(1), MESSAGE_BYTES_MAX).unwrap()).collect();
        assert!(bytes.try_take(guest(1), SMALL_BYTES + 1).is_none());
        let of_other = bytes.try_take(guest(2), MESSAGE_BYTES_MAX);
        let of_owner = bytes.try_take(OWNER, MESSAGE_BYTES_MAX);
        assert!(of_other.is_some() && of_owner.is_some());
        assert!(bytes.try_take(OWNER, MESSAGE_BYTES_MAX).is_none());
        drop(of_one);
        assert!(bytes.try_take(guest(1), MESSAGE_BYTES_MAX).is_some());
    }
}
