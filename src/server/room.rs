//! What the server has room for: connections, in all and for each user, and bytes of messages.
//!
//! With room for a long message comes a buffer for it. One that is given back is kept for the next message of about that
//! length, whoever's it is, because new memory costs more than the copy into it: each page is found, made zero and mapped by the
//! kernel. Buffers that are kept are within the same bound as the messages, and go when room is needed, or after
//! [`KEPT_FOR`].

use crate::server::policy::Policy;
use crate::shared::socket::Stream;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use untorn_wal::wire::MESSAGE_BYTES_MAX;

/// Messages up to this length are not counted: each connection may have one request and one reply of so many bytes.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// Bytes of everything larger that peers cause, at once.
const BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Of these, what all users but the owner can have together: the owner is left room for a message.
const BYTES_OF_OTHERS_MAX: usize = BYTES_MAX - MESSAGE_BYTES_MAX;
/// Of these, what one of them can have.
const BYTES_OF_USER_MAX: usize = BYTES_MAX / 2;
/// A message that comes is counted in steps of so many bytes.
pub(super) const STEP_BYTES: usize = 64 << 10;
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

    pub(super) fn is_empty(&self) -> bool {
        self.guests.lock().connected.is_empty()
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
    of_others: usize,
    /// By uid; a user who has none is not in it.
    of_users: HashMap<u32, usize>,
    /// Whether a message of the owner, and one of the others, has the right to what the last message needs.
    finishing: [bool; 2],
    /// Buffers that wait for a message, those that wait longest first.
    kept: Vec<Kept>,
}

/// How far a user may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// Leaves room for the longest message of the same kind of user: for what takes more while it holds some.
    Ordinary,
    /// All that the user can have.
    Full,
}

struct Kept {
    buffer: Vec<u8>,
    since: Instant,
}

/// Some of the room; dropped, it is free again.
///
/// A request's share grows as its bytes come, so that announcing a length costs the others nothing. Requests that hold some and
/// wait for more could so wait for each other. Therefore they leave a message's length of the room to one of them, of the owner's and of
/// the others' each, that may take it: it has all that it needs, and when it has been answered the next one is.
pub(super) struct Share<'b> {
    bytes: &'b Bytes,
    user: User,
    count: usize,
    is_finishing: bool,
    /// For the message that it was taken for. Empty at first; with memory of an earlier one, if that was kept.
    pub(super) buffer: Vec<u8>,
}

impl<'b> Share<'b> {
    /// Grows to `count` bytes, and waits for room until `deadline`. False if there is none until then.
    pub(super) fn grow(&mut self, count: usize, deadline: Instant) -> bool {
        let bytes = self.bytes;
        let more = counted(count).saturating_sub(self.count);
        let mut given_up = Vec::new();
        let mut taken = bytes.taken.lock();
        while more > 0 && !self.has_room(&mut taken, more) {
            if bytes.freed.wait_until(&mut taken, deadline).timed_out() && !self.has_room(&mut taken, more) {
                return false;
            }
        }
        self.add(&mut taken, more, &mut given_up);
        true
    }

    fn has_room(&mut self, taken: &mut Taken, more: usize) -> bool {
        if !self.is_finishing && !taken.has_room(self.user, more, Reach::Ordinary) {
            let finishing = &mut taken.finishing[usize::from(self.user.is_owner)];
            self.is_finishing = !std::mem::replace(finishing, true);
        }
        taken.has_room(self.user, more, if self.is_finishing { Reach::Full } else { Reach::Ordinary })
    }

    /// Grows or shrinks to `count` bytes without waiting; what it keeps between two requests leaves room for messages.
    pub(super) fn try_keep(&mut self, count: usize) -> bool {
        self.try_set(count, Reach::Ordinary)
    }

    /// Grows or shrinks to `count` bytes without waiting, as far as the user can go.
    pub(super) fn try_resize(&mut self, count: usize) -> bool {
        self.try_set(count, Reach::Full)
    }

    fn try_set(&mut self, count: usize, reach: Reach) -> bool {
        let count = counted(count);
        let mut given_up = Vec::new();
        let mut taken = self.bytes.taken.lock();
        if count <= self.count {
            taken.give_back(self.user, self.count - count);
            self.count = count;
            drop(taken);
            self.bytes.freed.notify_all();
            return true;
        }
        let more = count - self.count;
        let has_room = taken.has_room(self.user, more, reach);
        if has_room {
            self.add(&mut taken, more, &mut given_up);
        }
        has_room
    }

    /// Memory that makes way is handed to the caller, to be freed when the lock is.
    fn add(&mut self, taken: &mut Taken, more: usize, given_up: &mut Vec<Kept>) {
        if more > 0 {
            taken.add(self.user, more);
            self.count += more;
            while taken.total + taken.kept_bytes() > BYTES_MAX {
                given_up.push(taken.kept.remove(0));
            }
        }
    }

    /// Takes a buffer that was kept for a message of `count` bytes, if there is one and room for all of it: its memory is there already.
    pub(super) fn reuse_buffer(&mut self, count: usize) {
        let mut taken = self.bytes.taken.lock();
        let more = counted(count).saturating_sub(self.count);
        if taken.has_room(self.user, more, Reach::Ordinary) {
            let mut buffer = taken.lend(count);
            if buffer.capacity() > 0 {
                let mut given_up = Vec::new();
                self.add(&mut taken, more, &mut given_up);
                drop(taken);
                buffer.shrink_to(count + SLACK_BYTES);
                self.buffer = buffer;
            }
        }
    }
}

/// What is counted of so many bytes.
fn counted(count: usize) -> usize {
    if count <= SMALL_BYTES { 0 } else { count }
}

impl Bytes {
    /// No room yet, for what will grow.
    pub(super) fn share(&self, user: User) -> Share<'_> {
        Share { bytes: self, user, count: 0, is_finishing: false, buffer: Vec::new() }
    }

    /// Room for a message of so many bytes, and a buffer for it; `None` if there is none.
    pub(super) fn try_take(&self, user: User, count: usize) -> Option<Share<'_>> {
        let mut share = self.share(user);
        let count = counted(count);
        // Memory goes back to the system when the lock is free again.
        let mut given_up = Vec::new();
        let mut taken = self.taken.lock();
        if count > 0 {
            if !taken.has_room(user, count, Reach::Full) {
                return None;
            }
            share.buffer = taken.lend(count);
            share.add(&mut taken, count, &mut given_up);
        }
        drop(taken);
        // What it has more than was counted would be outside of the bound.
        share.buffer.shrink_to(count + SLACK_BYTES);
        Some(share)
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
    fn has_room(&self, user: User, more: usize, reach: Reach) -> bool {
        let spare = if reach == Reach::Ordinary { MESSAGE_BYTES_MAX } else { 0 };
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
        if self.count == 0 && !self.is_finishing {
            return;
        }
        let mut taken = self.bytes.taken.lock();
        taken.give_back(self.user, self.count);
        if self.is_finishing {
            taken.finishing[usize::from(self.user.is_owner)] = false;
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

    /// Peers that announce much and send little cost the others nothing; and requests that come in pieces never wait for each other.
    #[test]
    fn what_comes_in_pieces_gets_through() {
        let bytes = Bytes::default();
        let users = [OWNER, User { uid: 1, is_owner: false }, User { uid: 2, is_owner: false }];
        let now = Instant::now();
        for others in [&users[..1], &users[1..], &users[..]] {
            let mut coming: Vec<(Share<'_>, usize)> =
                (0..12).map(|n| (bytes.share(others[n % others.len()]), 0)).collect();
            let mut rounds = 0;
            while !coming.is_empty() {
                rounds += 1;
                assert!(rounds < 100_000, "{} requests wait for each other", coming.len());
                for (share, have) in &mut coming {
                    let next = (*have + (1 << 20)).min(MESSAGE_BYTES_MAX);
                    if share.grow(next, now) {
                        *have = next;
                    }
                }
                assert!(bytes.taken.lock().total <= BYTES_MAX);
                coming.retain(|(_, have)| *have < MESSAGE_BYTES_MAX);
            }
            assert!(bytes.taken.lock().of_users.is_empty());
        }
    }

    #[test]
    fn the_owner_has_a_reserve() {
        let bytes = Bytes::default();
        let guests = (1..9).map(|uid| User { uid, is_owner: false });
        let mut shares: Vec<Share<'_>> = guests.map(|guest| bytes.share(guest)).collect();
        for step in 1..=1000 {
            for share in &mut shares {
                let _ = share.grow(step * STEP_BYTES, Instant::now());
            }
        }
        let mut of_owner = bytes.share(OWNER);
        assert!(of_owner.grow(MESSAGE_BYTES_MAX, Instant::now()));
    }
}
