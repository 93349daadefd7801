//! The turns of long requests.
//!
//! A request may ask for tens of thousands of records. Many such requests at once could take all
//! processors from the flush thread, for which direct clients wait, and use hundreds of megabytes
//! for a moment. Therefore only a few are served at once. When one is done, the next turn goes to
//! the user that has not had one for longest. Every second turn goes to the owner, if it waits. A
//! turn ends before any wait, except the wait for the writer lock, which has its own turns.

use crate::server::buffers::User;
use crate::system::clock;
use crate::system::sync::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between checks whether the logger is to exit.
const CLOSING_CHECK_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct Turns {
    at_once: usize,
    state: Mutex<TurnState>,
}

#[derive(Default)]
struct TurnState {
    at_work: usize,
    waiting: Vec<QueuedRequest>,
    next: u64,
    /// The last turn of each user, counted in turns.
    last: HashMap<u32, u64>,
    was_owners: bool,
}

struct QueuedRequest {
    number: u64,
    user: User,
    event: Arc<Condvar>,
}

/// A turn; dropping it passes it on.
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    pub(super) fn new(at_once: usize) -> Turns {
        Turns { at_once, state: Mutex::default() }
    }

    /// Waits for a turn until `deadline`, or until `is_closing`. Returns `None` in both cases.
    pub(super) fn take(&self, user: User, deadline: Instant, is_closing: impl Fn() -> bool) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let event = Arc::new(Condvar::new());
        state.waiting.push(QueuedRequest { number, user, event: event.clone() });
        self.grant(&mut state);
        loop {
            let Some(at) = state.waiting.iter().position(|waiting| waiting.number == number) else {
                return Some(Turn(self));
            };
            let now = clock::now();
            if now >= deadline || is_closing() {
                state.waiting.remove(at);
                return None;
            }
            event.wait_until(&mut state, deadline.min(now + CLOSING_CHECK_INTERVAL));
        }
    }

    /// Gives free turns to the users that wait.
    fn grant(&self, state: &mut TurnState) {
        while state.at_work < self.at_once && !state.waiting.is_empty() {
            let TurnState { waiting, last, was_owners, .. } = &*state;
            let order = |waiting: &QueuedRequest| {
                let is_first = waiting.user.is_owner && !was_owners;
                (!is_first, last.get(&waiting.user.uid).map_or(0, |turn| turn + 1), waiting.number)
            };
            let at = (0..waiting.len()).min_by_key(|at| order(&waiting[*at])).expect("one waits");
            let chosen = state.waiting.remove(at);
            state.at_work += 1;
            state.was_owners = chosen.user.is_owner;
            state.next += 1;
            state.last.insert(chosen.user.uid, state.next);
            chosen.event.notify_one();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.at_work -= 1;
        self.0.grant(&mut state);
        if state.at_work == 0 {
            state.last.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a user with many requests does not delay the requests of others for long. Requests
    //! that may be long are served only in their turn, and only a few at once.

    use super::*;
    use crate::Store;
    use crate::files::dir::Dir;
    use crate::files::owner::Ownership;
    use crate::participant::spawner::Host;
    use crate::server::{ServerState, connection};
    use crate::shared::socket::SocketStream;
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use untorn_wal::wire;
    use untorn_wal::wire::hello::{ClientHello, SERVER_HELLO_BYTES};
    use untorn_wal::wire::{Durability, Edge, FRAME_HEADER_BYTES, List, Operation, Reply, Request};

    const USER: User = User { uid: 0, is_owner: true };

    /// The state of a server of the store at `path`.
    fn server_of(path: &Path) -> ServerState {
        ServerState::new(Dir::open(path, false, true, Ownership::Own).unwrap(), Host::Thread).unwrap()
    }

    fn reply(peer: &mut impl Read) -> Vec<u8> {
        let mut header = [0; FRAME_HEADER_BYTES];
        peer.read_exact(&mut header).unwrap();
        let mut body = vec![0; wire::frame_len(header).unwrap()];
        peer.read_exact(&mut body).unwrap();
        body
    }

    /// Takes all turns that are free.
    fn take_all(turns: &Turns) -> Vec<Turn<'_>> {
        std::iter::from_fn(|| turns.take(USER, Instant::now(), || false)).take(1000).collect()
    }

    #[test]
    fn users_take_turns() {
        let turns = Turns::new(1);
        let user = |uid| User { uid, is_owner: uid == 0 };
        let never = || false;
        let far = Instant::now() + Duration::from_secs(60);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let first = turns.take(user(1), far, never).unwrap();
            let queue = [1, 1, 1, 1, 2, 3, 0, 0, 2];
            for (index, uid) in queue.into_iter().enumerate() {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take(user(uid), far, never).unwrap();
                    order.lock().push(uid);
                });
                while turns.state.lock().waiting.len() <= index {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock(), [0, 2, 0, 3, 1, 2, 1, 1, 1]);
        // A wait that times out leaves nothing behind.
        let _turn = turns.take(user(1), far, never).unwrap();
        assert!(turns.take(user(2), Instant::now(), never).is_none());
        assert!(turns.take(user(2), far, || true).is_none());
        assert!(turns.state.lock().waiting.is_empty());
    }

    /// Short requests of the same kinds do not wait.
    #[test]
    fn long_requests_wait_for_a_turn() {
        let dir = tempfile::tempdir().unwrap();
        let server = server_of(dir.path());
        let durability = Durability::Durable;
        let (long, keyspace) = (vec![7; 20_000], "k");
        let get = |count| Request::MultiGet { keyspace, keys: List(vec![&b"key"[..]; count]) };
        let put = |value| Operation::Put { keyspace, key: b"key", value };
        let commit = |operations| Request::Commit { operations: List(operations), durability };
        let puts = |count| commit((0..count).map(|_| put(b"")).collect());
        let (lower, upper) = (Edge::Open, Edge::Open);
        let range = || Operation::DeleteRange { keyspace, lower: Edge::Open, upper: Edge::Open };
        let reads = [
            get(65_536),
            get(65),
            Request::MultiGet { keyspace, keys: List(vec![&long]) },
            Request::Scan { keyspace, lower, upper, is_reverse: false, piece_bytes: 1 },
            Request::ScanNext { scan: 1 },
        ];
        let writes = [
            puts(10_000),
            puts(65),
            commit(vec![put(&long)]),
            commit(vec![put(b""), range()]),
            Request::DeleteRange { keyspace, lower: Edge::Open, upper: Edge::Open, durability },
        ];
        let short = [
            Request::Get { keyspace, key: b"key" },
            get(64),
            Request::Put { keyspace, key: b"key", value: b"", durability },
            Request::Delete { keyspace, key: b"key", durability },
            puts(64),
            Request::ScanClose { scan: 1 },
            Request::Keyspaces,
            Request::Sync,
        ];
        let turns_for = |request: &Request<'_>| {
            let turns = server.turns_for(&wire::encode(request).unwrap()[FRAME_HEADER_BYTES..]);
            turns.map(std::ptr::from_ref)
        };
        for (index, request) in reads.iter().enumerate() {
            assert_eq!(turns_for(request), Some(&raw const server.reads), "read {index}");
        }
        for (index, request) in writes.iter().enumerate() {
            assert_eq!(turns_for(request), Some(&raw const server.writes), "write {index}");
        }
        for (index, request) in short.iter().enumerate() {
            assert_eq!(turns_for(request), None, "short request {index}");
        }
    }

    #[test]
    fn few_long_requests_are_served_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let server = server_of(dir.path());
        let half = (std::thread::available_parallelism().unwrap().get() / 2).max(1);
        for (turns, at_once) in [(&server.reads, half), (&server.writes, 2)] {
            let mut taken = take_all(turns);
            assert_eq!(taken.len(), at_once);
            // Each turn that ends makes room for one.
            taken.pop();
            assert_eq!(take_all(turns).len(), 1);
        }
    }

    /// While all turns are taken, a connection serves short requests, and no long one.
    #[test]
    fn a_connection_waits_for_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::options().logger_thread(true).open(&path).unwrap();
        store.keyspace("k").unwrap().put(b"key", b"value").unwrap();
        let server = server_of(&path);
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let served = SocketStream::connect(&socket, Instant::now() + Duration::from_secs(60)).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let (server, served) = (&server, &served);
        std::thread::scope(move |scope| {
            scope.spawn(move || connection::run(server, served, rustix::process::geteuid().as_raw()));
            // If an assertion fails, the connection ends, and with it the thread above.
            let mut peer = peer;
            let peer = &mut peer;
            peer.write_all(&ClientHello::OURS.encode()).unwrap();
            peer.read_exact(&mut [0; SERVER_HELLO_BYTES]).unwrap();
            let turns = take_all(&server.reads);
            peer.write_all(&wire::encode(&Request::Get { keyspace: "k", key: b"key" }).unwrap()).unwrap();
            assert!(matches!(wire::decode(&reply(peer)), Ok(Reply::Value(Some(found))) if found.value == b"value"));
            let long = Request::MultiGet { keyspace: "k", keys: List(vec![b"key"; 65_536]) };
            peer.write_all(&wire::encode(&long).unwrap()).unwrap();
            peer.set_nonblocking(true).unwrap();
            while server.reads.state.lock().waiting.is_empty() {
                let read = peer.read(&mut [0]).map_err(|error| error.kind());
                assert_eq!(read, Err(ErrorKind::WouldBlock), "the request was served without a turn");
                std::thread::yield_now();
            }
            peer.set_nonblocking(false).unwrap();
            drop(turns);
            assert!(matches!(wire::decode(&reply(peer)), Ok(Reply::Values { values, .. }) if values.0.len() == 65_536));
        });
    }
}
