//! Buffers for messages, and the bound on the bytes that all of them take, in all and for each
//! user.
//!
//! A [`BufferPermit`] counts the bytes of one message and owns the buffer for it. A buffer that is
//! returned is kept idle for the next message of about that length, of any user: new memory costs
//! more than the copy into it, because the kernel finds, zeroes and maps each page. Idle buffers
//! count within the same bound as messages. They are dropped when a message needs their bytes, or
//! after [`IDLE_BUFFER_LIFETIME`].

use crate::system::clock;
use crate::system::sync::{Condvar, Mutex};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use untorn_wal::wire::MESSAGE_BYTES_MAX;

/// Messages up to this length are not counted. Each connection may have one request and one reply
/// of this length.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// Bytes of all larger messages, and of what feeds and scans hold, at any time.
const BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// The part of these that all users but the owner may hold together. It leaves one message to the
/// owner.
const BYTES_OF_OTHERS_MAX: usize = BYTES_MAX - MESSAGE_BYTES_MAX;
/// The part of these that one user other than the owner may hold.
const BYTES_OF_USER_MAX: usize = BYTES_MAX / 2;
/// The bytes of an incoming message are counted in steps of this length.
pub(super) const GROWTH_STEP_BYTES: usize = 64 << 10;
/// Bytes of idle buffers.
const IDLE_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// How long an idle buffer is kept.
const IDLE_BUFFER_LIFETIME: Duration = Duration::from_secs(1);
/// Bytes that a frame may take beyond those that were counted: the words around a single value.
const FRAME_SLACK_BYTES: usize = 64;

/// The user that bytes are counted for.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) is_owner: bool,
}

/// The buffers of all messages.
#[derive(Default)]
pub(super) struct BufferPool {
    in_use: Mutex<BuffersInUse>,
    freed: Condvar,
}

#[derive(Default)]
struct BuffersInUse {
    total: usize,
    of_others: usize,
    /// By uid. A user that holds none has no entry.
    of_users: HashMap<u32, usize>,
    /// Whether one message of the owner, and one of the other users, may use the bytes that are
    /// reserved for the last message.
    finishing: [bool; 2],
    /// Idle buffers, the oldest first.
    idle: Vec<IdleBuffer>,
}

/// The part of the bound that a message may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Allowance {
    /// Leaves the longest message to the same kind of user. For a message that grows while it holds
    /// some bytes.
    Ordinary,
    /// Everything that the user may hold.
    Full,
}

struct IdleBuffer {
    buffer: Vec<u8>,
    since: Instant,
}

/// Bytes that are counted for one message; returned when dropped.
///
/// The permit of a request grows as its bytes arrive, so that an announced length costs other users
/// nothing. Requests that hold some bytes and wait for more could deadlock. Therefore all of them
/// leave the length of one message to a single request of the owner, and to a single one of the
/// other users. That request can finish; once it is answered, the next one takes its place.
pub(super) struct BufferPermit<'b> {
    pool: &'b BufferPool,
    user: User,
    count: usize,
    is_finishing: bool,
    /// The buffer of the message. Empty at first; it may have the memory of an earlier message.
    pub(super) buffer: Vec<u8>,
}

impl<'b> BufferPermit<'b> {
    /// Grows to `count` bytes. Waits for free bytes until `deadline`; returns false if there are
    /// too few by then.
    pub(super) fn grow(&mut self, count: usize, deadline: Instant) -> bool {
        let pool = self.pool;
        let more = counted(count).saturating_sub(self.count);
        let mut given_up = Vec::new();
        let mut in_use = pool.in_use.lock();
        while more > 0 && !self.has_room(&mut in_use, more) {
            if pool.freed.wait_until(&mut in_use, deadline).timed_out() && !self.has_room(&mut in_use, more) {
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

    /// Grows or shrinks to `count` bytes without waiting. Leaves bytes for messages, since it is
    /// held between two requests.
    pub(super) fn try_keep(&mut self, count: usize) -> bool {
        self.try_set(count, Allowance::Ordinary)
    }

    /// Grows or shrinks to `count` bytes without waiting, up to the user's limit.
    pub(super) fn try_resize(&mut self, count: usize) -> bool {
        self.try_set(count, Allowance::Full)
    }

    fn try_set(&mut self, count: usize, allowance: Allowance) -> bool {
        let count = counted(count);
        let mut given_up = Vec::new();
        let mut in_use = self.pool.in_use.lock();
        if count <= self.count {
            in_use.give_back(self.user, self.count - count);
            self.count = count;
            drop(in_use);
            self.pool.freed.notify_all();
            return true;
        }
        let more = count - self.count;
        let has_room = in_use.has_room(self.user, more, allowance);
        if has_room {
            self.add(&mut in_use, more, &mut given_up);
        }
        has_room
    }

    /// Moves idle buffers that must go to `given_up`. The caller frees them after it has released
    /// the lock.
    fn add(&mut self, in_use: &mut BuffersInUse, more: usize, given_up: &mut Vec<IdleBuffer>) {
        if more > 0 {
            in_use.add(self.user, more);
            self.count += more;
            while in_use.total + in_use.idle_bytes() > BYTES_MAX {
                given_up.push(in_use.idle.remove(0));
            }
        }
    }

    /// Takes an idle buffer for a message of `count` bytes, if there is one and all of it may be
    /// counted.
    pub(super) fn reuse_buffer(&mut self, count: usize) {
        let mut in_use = self.pool.in_use.lock();
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

/// Returns the bytes that are counted for a message of `count` bytes.
fn counted(count: usize) -> usize {
    if count <= SMALL_BYTES { 0 } else { count }
}

impl BufferPool {
    /// Returns an empty permit, which can grow.
    pub(super) fn permit(&self, user: User) -> BufferPermit<'_> {
        BufferPermit { pool: self, user, count: 0, is_finishing: false, buffer: Vec::new() }
    }

    /// Returns a permit for a message of `count` bytes, with a buffer for it; `None` if there are
    /// too few free bytes.
    pub(super) fn try_acquire(&self, user: User, count: usize) -> Option<BufferPermit<'_>> {
        let mut permit = self.permit(user);
        let count = counted(count);
        // Memory is freed after the lock is released.
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
        // Capacity beyond what was counted would escape the bound.
        permit.buffer.shrink_to(count + FRAME_SLACK_BYTES);
        Some(permit)
    }

    /// Frees the buffers that have been idle for [`IDLE_BUFFER_LIFETIME`]. Called periodically.
    pub(super) fn forget_unused(&self) {
        let mut in_use = self.in_use.lock();
        let unused = in_use.idle.iter().take_while(|idle| clock::since(idle.since) >= IDLE_BUFFER_LIFETIME).count();
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

    /// Returns the smallest idle buffer of at least `count` and less than `2 * count` bytes, or an
    /// empty one.
    fn lend(&mut self, count: usize) -> Vec<u8> {
        let capacity = |idle: &IdleBuffer| idle.buffer.capacity();
        let fits = |idle: &IdleBuffer| (count..2 * count).contains(&capacity(idle));
        let best = (0..self.idle.len()).filter(|at| fits(&self.idle[*at])).min_by_key(|at| capacity(&self.idle[*at]));
        best.map_or_else(Vec::new, |at| self.idle.remove(at).buffer)
    }

    /// Keeps a buffer idle if the bounds allow it; otherwise returns it.
    fn keep(&mut self, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        let idle_bytes = self.idle_bytes() + buffer.capacity();
        if buffer.capacity() == 0 || idle_bytes > IDLE_BYTES_MAX || self.total + idle_bytes > BYTES_MAX {
            return Some(buffer);
        }
        buffer.clear();
        self.idle.push(IdleBuffer { buffer, since: clock::now() });
        None
    }
}

impl Drop for BufferPermit<'_> {
    fn drop(&mut self) {
        if self.count == 0 && !self.is_finishing {
            return;
        }
        let mut in_use = self.pool.in_use.lock();
        in_use.give_back(self.user, self.count);
        if self.is_finishing {
            in_use.finishing[usize::from(self.user.is_owner)] = false;
        }
        let not_kept = in_use.keep(std::mem::take(&mut self.buffer));
        drop(in_use);
        self.pool.freed.notify_all();
        drop(not_kept);
    }
}

#[cfg(test)]
mod tests {
    //! Goal: bytes that are taken are returned, and no user gets more than its limit.

    use super::*;

    const OWNER: User = User { uid: 0, is_owner: true };

    #[test]
    fn bytes_are_given_back() {
        let pool = BufferPool::default();
        let all: Vec<_> = (0..4).map(|_| pool.try_acquire(OWNER, MESSAGE_BYTES_MAX).unwrap()).collect();
        assert!(pool.try_acquire(OWNER, MESSAGE_BYTES_MAX).is_none());
        assert!(pool.try_acquire(OWNER, SMALL_BYTES).is_some(), "a small message needs no room");
        drop(all);
        assert!(pool.try_acquire(OWNER, MESSAGE_BYTES_MAX).is_some());
        assert!(pool.in_use.lock().of_users.is_empty());
    }

    #[test]
    fn one_user_leaves_half_of_the_bytes() {
        let pool = BufferPool::default();
        let user = |uid| User { uid, is_owner: false };
        let of_one: Vec<_> = (0..2).map(|_| pool.try_acquire(user(1), MESSAGE_BYTES_MAX).unwrap()).collect();
        assert!(pool.try_acquire(user(1), SMALL_BYTES + 1).is_none());
        let of_other = pool.try_acquire(user(2), MESSAGE_BYTES_MAX);
        let of_owner = pool.try_acquire(OWNER, MESSAGE_BYTES_MAX);
        assert!(of_other.is_some() && of_owner.is_some());
        assert!(pool.try_acquire(OWNER, MESSAGE_BYTES_MAX).is_none());
        drop(of_one);
        assert!(pool.try_acquire(user(1), MESSAGE_BYTES_MAX).is_some());
    }

    /// Uses a buffer as a message of this many bytes does: writes to it and returns it.
    fn serve(pool: &BufferPool, count: usize) -> *const u8 {
        let mut permit = pool.try_acquire(OWNER, count).unwrap();
        assert!(permit.buffer.is_empty());
        assert!(permit.buffer.capacity() <= count + FRAME_SLACK_BYTES, "memory that is not counted");
        permit.buffer.resize(count, 1);
        permit.buffer.as_ptr()
    }

    fn idle_bytes(pool: &BufferPool) -> usize {
        pool.in_use.lock().idle_bytes()
    }

    #[test]
    fn buffers_are_used_again() {
        let pool = BufferPool::default();
        let first = serve(&pool, 1 << 20);
        assert_eq!(serve(&pool, 1 << 20), first);
        // The buffer is not reused for a message that is too long for it, nor for one that leaves
        // most of it empty.
        serve(&pool, (1 << 20) + 1000);
        serve(&pool, 100 << 10);
        assert_eq!(pool.in_use.lock().idle.len(), 3);
        assert_eq!(serve(&pool, 1 << 20), first);
    }

    #[test]
    fn buffers_are_kept_within_bounds() {
        let pool = BufferPool::default();
        // Many at once, which can't all be kept.
        let permits: Vec<_> = (0..50)
            .map(|_| {
                let mut permit = pool.try_acquire(OWNER, 1 << 20).unwrap();
                permit.buffer.resize(1 << 20, 1);
                permit
            })
            .collect();
        drop(permits);
        assert!((15 << 20..=IDLE_BYTES_MAX).contains(&idle_bytes(&pool)), "{}", idle_bytes(&pool));
        // All bytes are available to messages.
        let all: Vec<_> = (0..4).map(|_| pool.try_acquire(OWNER, MESSAGE_BYTES_MAX).unwrap()).collect();
        assert_eq!(idle_bytes(&pool), 0);
        drop(all);
        // A buffer that no message uses is freed.
        serve(&pool, MESSAGE_BYTES_MAX);
        pool.forget_unused();
        assert_eq!(idle_bytes(&pool), MESSAGE_BYTES_MAX, "it was wanted just now");
        std::thread::sleep(IDLE_BUFFER_LIFETIME);
        pool.forget_unused();
        assert_eq!(idle_bytes(&pool), 0);
    }

    /// Peers that announce long messages and send little cost the others nothing, and requests that
    /// arrive in pieces never wait for each other.
    #[test]
    fn what_comes_in_pieces_gets_through() {
        let pool = BufferPool::default();
        let users = [OWNER, User { uid: 1, is_owner: false }, User { uid: 2, is_owner: false }];
        let now = Instant::now();
        for others in [&users[..1], &users[1..], &users[..]] {
            let mut coming: Vec<(BufferPermit<'_>, usize)> =
                (0..12).map(|n| (pool.permit(others[n % others.len()]), 0)).collect();
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
                assert!(pool.in_use.lock().total <= BYTES_MAX);
                coming.retain(|(_, have)| *have < MESSAGE_BYTES_MAX);
            }
            assert!(pool.in_use.lock().of_users.is_empty());
        }
    }

    #[test]
    fn the_owner_has_a_reserve() {
        let pool = BufferPool::default();
        let users = (1..9).map(|uid| User { uid, is_owner: false });
        let mut permits: Vec<BufferPermit<'_>> = users.map(|user| pool.permit(user)).collect();
        for step in 1..=1000 {
            for permit in &mut permits {
                let _ = permit.grow(step * GROWTH_STEP_BYTES, Instant::now());
            }
        }
        let mut of_owner = pool.permit(OWNER);
        assert!(of_owner.grow(MESSAGE_BYTES_MAX, Instant::now()));
    }
}
