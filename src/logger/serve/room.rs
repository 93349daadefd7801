//! What the server has room for: connections, in all and for each user, and bytes of messages.
//!
//! With room for a long message comes a buffer for it. One that is given back is kept for the next message of about that
//! length, whoever's it is, because new memory costs more than the copy into it: each page is found, made zero and mapped by the
//! kernel. Buffers that are kept are within the same bound as the messages, and go when room is needed, or after
//! [`KEPT_FOR`].

use super::policy::Policy;
use crate::socket::Stream;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use untorn_wal::wire::MESSAGE_BYTES_MAX;

/// Messages up to this length are not counted: each connection may have one.
pub(super) const SMALL_BYTES: usize = 64 << 10;
/// Bytes of larger messages that may be in the server at once.
const BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Of these, what a user who is not the owner can have: nobody shuts out the others.
const BYTES_OF_USER_MAX: usize = BYTES_MAX / 2;
/// Bytes of the buffers that are kept.
const KEPT_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// A buffer that nobody wanted for so long is not kept any longer.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// What a frame may have beyond the bytes that were counted: the words around a single value.
const SLACK_BYTES: usize = 64;

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
        let of_others = guests.connected.values().filter(|guest| !policy.is_owner(guest.uid)).count();
        let limit = policy.connections - policy.connections / 8;
        if !policy.is_owner(uid) && of_others >= limit {
            return Err(NoSeat::Full { of_uid: false, limit });
        }
        let limit = if policy.is_owner(uid) { policy.connections } else { policy.connections.div_ceil(2) };
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
    /// Buffers that wait for a message, those that wait longest first.
    kept: Vec<Kept>,
}

struct Kept {
    buffer: Vec<u8>,
    since: Instant,
}

/// Some of the room; dropped, it is free again.
pub(super) struct Share<'b> {
    bytes: &'b Bytes,
    uid: u32,
    count: usize,
    /// For the message that it was taken for. Empty at first; with memory of an earlier one, if that was kept.
    pub(super) buffer: Vec<u8>,
}

impl Bytes {
    /// Room for a message of so many bytes; `None` if there is none until `deadline`.
    pub(super) fn take(&self, user: User, count: usize, deadline: Instant) -> Option<Share<'_>> {
        let count = if count <= SMALL_BYTES { 0 } else { count };
        // Memory goes back to the system when the lock is free again.
        let (mut buffer, mut given_up) = (Vec::new(), Vec::new());
        let mut taken = self.taken.lock();
        while count > 0 && !taken.has_room(user, count) {
            if self.freed.wait_until(&mut taken, deadline).timed_out() && !taken.has_room(user, count) {
                return None;
            }
        }
        if count > 0 {
            taken.total += count;
            *taken.of_users.entry(user.uid).or_default() += count;
            buffer = taken.lend(count);
            while taken.total + taken.kept_bytes() > BYTES_MAX {
                given_up.push(taken.kept.remove(0));
            }
        }
        drop(taken);
        // What it has more than was counted would be outside of the bound.
        buffer.shrink_to(count + SLACK_BYTES);
        Some(Share { bytes: self, uid: user.uid, count, buffer })
    }

    /// As [`Bytes::take`], without waiting.
    pub(super) fn try_take(&self, user: User, count: usize) -> Option<Share<'_>> {
        self.take(user, count, Instant::now())
    }

    /// Lets go of the buffers that nobody wanted for a while. To be called now and then.
    pub(super) fn forget_unused(&self) {
        let mut taken = self.taken.lock();
        let unused = taken.kept.iter().take_while(|kept| kept.since.elapsed() >= KEPT_FOR).count();
        let forgotten: Vec<Kept> = taken.kept.drain(..unused).collect();
        drop(taken);
        drop(forgotten);
    }
}

impl Taken {
    fn has_room(&self, user: User, count: usize) -> bool {
        let of_user = self.of_users.get(&user.uid).copied().unwrap_or(0);
        self.total + count <= BYTES_MAX && (user.is_owner || of_user + count <= BYTES_OF_USER_MAX)
    }

    fn kept_bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.buffer.capacity()).sum()
    }

    /// The smallest buffer for so many bytes, but not one that a message twice as long could have; or a new one.
    fn lend(&mut self, count: usize) -> Vec<u8> {
        let capacity = |kept: &Kept| kept.buffer.capacity();
        let fits = |kept: &Kept| (count..2 * count).contains(&capacity(kept));
        let best = (0..self.kept.len()).filter(|at| fits(&self.kept[*at])).min_by_key(|at| capacity(&self.kept[*at]));
        best.map_or_else(Vec::new, |at| self.kept.remove(at).buffer)
    }

    /// Keeps a buffer, if there is room for it; else gives it back.
    fn keep(&mut self, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        let kept_bytes = self.kept_bytes() + buffer.capacity();
        if buffer.capacity() == 0 || kept_bytes > KEPT_BYTES_MAX || self.total + kept_bytes > BYTES_MAX {
            return Some(buffer);
        }
        buffer.clear();
        self.kept.push(Kept { buffer, since: Instant::now() });
        None
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
        let not_kept = taken.keep(std::mem::take(&mut self.buffer));
        drop(taken);
        self.bytes.freed.notify_all();
        drop(not_kept);
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

    /// A buffer that has been written to, as a message of so many bytes leaves it.
    fn serve(bytes: &Bytes, count: usize) -> *const u8 {
        let mut share = bytes.try_take(OWNER, count).unwrap();
        assert!(share.buffer.is_empty());
        assert!(share.buffer.capacity() <= count + SLACK_BYTES, "memory that is not counted");
        share.buffer.resize(count, 1);
        share.buffer.as_ptr()
    }

    fn kept_bytes(bytes: &Bytes) -> usize {
        bytes.taken.lock().kept_bytes()
    }

    #[test]
    fn buffers_are_used_again() {
        let bytes = Bytes::default();
        let first = serve(&bytes, 1 << 20);
        assert_eq!(serve(&bytes, 1 << 20), first);
        // Neither by a message that it is too short for, nor by one that leaves most of it empty.
        serve(&bytes, (1 << 20) + 1000);
        serve(&bytes, 100 << 10);
        assert_eq!(bytes.taken.lock().kept.len(), 3);
        assert_eq!(serve(&bytes, 1 << 20), first);
    }

    #[test]
    fn buffers_are_kept_within_bounds() {
        let bytes = Bytes::default();
        // Many at once, of which not all can be kept.
        let shares: Vec<_> = (0..50)
            .map(|_| {
                let mut share = bytes.try_take(OWNER, 1 << 20).unwrap();
                share.buffer.resize(1 << 20, 1);
                share
            })
            .collect();
        drop(shares);
        assert!((15 << 20..=KEPT_BYTES_MAX).contains(&kept_bytes(&bytes)), "{}", kept_bytes(&bytes));
        // Messages have the room, all of it.
        let all: Vec<_> = (0..4).map(|_| bytes.try_take(OWNER, MESSAGE_BYTES_MAX).unwrap()).collect();
        assert_eq!(kept_bytes(&bytes), 0);
        drop(all);
        // Nobody wants it: it goes.
        serve(&bytes, MESSAGE_BYTES_MAX);
        bytes.forget_unused();
        assert_eq!(kept_bytes(&bytes), MESSAGE_BYTES_MAX, "it was wanted just now");
        std::thread::sleep(KEPT_FOR);
        bytes.forget_unused();
        assert_eq!(kept_bytes(&bytes), 0);
    }
}
