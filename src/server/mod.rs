//! The server of message-passing clients, in the logger process.
//!
//! One thread listens. Each connection has a thread of its own; the policy bounds their number.
//! They serve through an ordinary [`Store`] handle of this process, which is opened for the first
//! connection and dropped with the last. So there is no second path to the data, and a connection
//! keeps the logger running as a client does.
//!
//! - `access`, `policy`: the access file: the rights of each user
//! - `socket_path`: the socket's name in the file system, and changes of the directory that the
//!   kernel reports
//! - `connections`: admission of connections
//! - `buffers`: buffers for messages, and their bound
//! - `turns`: which long request is served next
//! - `connection`: one connection, from hello to end
//! - `answer`, `write`, `scans`, `cells`, `feed`: what each request does
//!
//! The server does not wait for a peer while it holds a lock or a transaction. The same holds for
//! snapshots, except those of scans, for a bounded time. A request has arrived as a whole before it
//! is decoded, and its reply is complete before it is sent.
//!
//! **Exit.** The logger's main thread exits under the initialisation lock, which opening the store
//! takes as well. So an idle logger exits only if no client is connected or connecting
//! ([`Server::close_if_idle`]). A logger that was told to exit ends the connections before it takes
//! that lock ([`Server::close`]), and waits for them a bounded time.

mod access;
mod answer;
mod buffers;
mod cells;
mod connection;
mod connections;
mod feed;
mod policy;
mod scans;
mod socket_path;
mod turns;
mod write;

use crate::files::dir::Dir;
use crate::participant::engine::Engine;
use crate::participant::options::Options;
use crate::participant::panics::Panics;
use crate::participant::rest::Rest;
use crate::participant::spawner::Host;
use crate::shared::socket::SocketStream;
use crate::system::clock;
use crate::system::sync::Mutex;
use crate::system::threads;
use crate::{Error, Result, Store};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use access::check_access;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use answer::check_request;
use buffers::{BufferPool, SMALL_BYTES};
use connections::{Connections, NotAdmitted};
use policy::Policy;
use rustix::event::{EventfdFlags, eventfd};
use socket_path::watch::{Change, Watch};
use socket_path::{BoundSocket, CachedPolicy};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use turns::Turns;
use untorn_wal::wire::hello::{Refusal, ServerHello};

/// How often the listening thread checks the socket and the access file.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The same while the store rests.
const RESTING_SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The same if no process has the store open, and the kernel does not report changes.
const UNREPORTED_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How long the listening thread checks every [`SOCKET_CHECK_INTERVAL`] after the kernel has
/// reported a change.
const CHANGE_CHECK_TIME: Duration = Duration::from_secs(5);
/// How long a request may wait for the writer lock.
const WRITER_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a long request may wait for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests for more items than this wait for a turn.
const ITEMS_WITHOUT_TURN_MAX: u64 = 64;
/// How long an exiting logger waits for the replies that are being made, and how long for the
/// connections to end.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(2);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The server of one logger.
pub(crate) struct Server {
    shared: Arc<ServerState>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

/// The state that the server's threads share.
struct ServerState {
    dir: Dir,
    host: Host,
    policy: Mutex<CachedPolicy>,
    connections: Arc<Connections>,
    /// Buffers of messages.
    buffers: BufferPool,
    /// Turns of long reads. Half of the processors are left to the flush thread and to direct
    /// clients.
    reads: Turns,
    /// Turns of long writes, which wait for the writer lock.
    writes: Turns,
    store: Mutex<SharedStore>,
    socket: Mutex<Option<Arc<BoundSocket>>>,
    /// Wakes the listening thread when the first process has opened the store, or the last has
    /// closed it. Only in a process that is the logger alone.
    use_changed: Option<OwnedFd>,
}

/// The store handle, which exists while there is a connection, and the number of its leases.
#[derive(Default)]
struct SharedStore {
    store: Option<Store>,
    users: usize,
}

/// Makes the socket and listens. A failure is recorded, and the listening thread retries. Returns
/// `None` if that thread cannot start. `wake_main` wakes the thread that serves, if the listening
/// one panics or the directory loses a file.
pub(crate) fn start(
    dir: &Dir,
    rest: &Arc<Rest>,
    host: Host,
    panics: &Arc<Panics>,
    wake_main: impl Fn() + Clone + Send + 'static,
) -> Option<Server> {
    match Server::start(dir, rest, host, panics, wake_main) {
        Ok(server) => Some(server),
        Err(error) => {
            report_problem(dir, host, Some(&error.to_string()));
            None
        }
    }
}

/// Reports that there is no socket, and the reason; or that there is one.
fn report_problem(dir: &Dir, host: Host, problem: Option<&str>) {
    // The text may repeat a path of the access file.
    let problem = problem.map(untorn_wal::printable);
    let problem = problem.as_deref();
    socket_path::write_error_file(dir, problem);
    if let Some(problem) = problem {
        tracing::warn!(problem, "no socket for message-passing clients");
    }
    if let (Host::Foreground, Some(problem)) = (host, problem) {
        eprintln!("untorn: no socket for message-passing clients: {problem}");
    }
}

impl Server {
    fn start(
        dir: &Dir,
        rest: &Arc<Rest>,
        host: Host,
        panics: &Arc<Panics>,
        wake_main: impl Fn() + Clone + Send + 'static,
    ) -> Result<Server> {
        let shared = Arc::new(ServerState::new(dir.again()?, host)?);
        let mut listener = Listener {
            shared: shared.clone(),
            bound_by: None,
            last_reported: None,
            watch: None,
            looks_until: clock::now(),
        };
        listener.check_socket();
        let (panics, rest) = (panics.clone(), rest.clone());
        let on_loss = wake_main.clone();
        let run = move || panics.watch("listening", || listener.run(&rest, on_loss), wake_main);
        let thread = threads::spawn("untorn-listen", run);
        let listening = Mutex::new(Some(thread.map_err(Error::io("starting a thread that listens"))?));
        Ok(Server { shared, listening })
    }

    /// Closes the server for new connections, if there are none. Returns whether it did.
    pub(crate) fn close_if_idle(&self) -> bool {
        let closed = self.shared.connections.close_if_empty();
        if closed {
            self.close();
        }
        closed
    }

    /// Wakes the listening thread: the first process has opened the store, or the last has closed
    /// it.
    pub(crate) fn note_use_changed(&self) {
        // If the counter is full, the thread is woken as well.
        let _ = self.shared.use_changed.as_ref().map(|changed| rustix::io::write(changed, &1_u64.to_ne_bytes()));
    }

    /// Returns whether no process uses the store, except for message-passing clients that are
    /// connected or connecting.
    pub(crate) fn is_sole_client(&self, engine: &Engine) -> bool {
        // If a host runs the logger as a thread, its store handle is the server's as well.
        if self.shared.host == Host::Thread {
            return false;
        }
        let shared_store = self.shared.store.lock();
        match &shared_store.store {
            Some(store) => !engine.has_clients_beside(store.client().engine.me),
            None => !engine.has_clients(),
        }
    }

    /// Ends all connections and removes the socket. The caller does not hold the initialisation
    /// lock, or there is no connection.
    pub(crate) fn close(&self) {
        let Some(listening) = self.listening.lock().take() else { return };
        let now = clock::now();
        self.shared.connections.close(now + LAST_ANSWERS_TIMEOUT, now + CLOSE_TIMEOUT);
        // Ends both waits of the listening thread: for a client, and for a permit.
        if let Some(socket) = &*self.shared.socket.lock() {
            socket.end();
        }
        listening.thread().unpark();
        let _ = listening.join();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

impl ServerState {
    fn new(dir: Dir, host: Host) -> Result<ServerState> {
        let policy = CachedPolicy::read(&dir)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let use_changed = if host == Host::Daemon { eventfd(0, flags).ok() } else { None };
        Ok(ServerState {
            dir,
            host,
            policy: Mutex::new(policy),
            connections: Arc::default(),
            buffers: BufferPool::default(),
            reads: Turns::new((std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1)),
            writes: Turns::new(2),
            store: Mutex::default(),
            socket: Mutex::default(),
            use_changed,
        })
    }

    /// Returns the policy in force.
    fn policy(&self) -> Arc<Policy> {
        self.policy.lock().recent(&self.dir)
    }

    /// Returns whether the logger is exiting.
    fn is_closing(&self) -> bool {
        self.connections.is_closed()
    }

    /// Returns the turns for which a long request must wait.
    fn turns_for(&self, message: &[u8]) -> Option<&Turns> {
        let is_long = message.len() > SMALL_BYTES || answer::items_of(message) > ITEMS_WITHOUT_TURN_MAX;
        match answer::kind_of(message) {
            answer::DELETE_RANGE => Some(&self.writes),
            answer::COMMIT if is_long || answer::has_range(message) => Some(&self.writes),
            answer::MULTI_GET if is_long => Some(&self.reads),
            answer::SCAN | answer::SCAN_NEXT => Some(&self.reads),
            _ => None,
        }
    }

    /// Returns a lease of the store handle for one connection.
    fn open(&self) -> Result<StoreLease<'_>> {
        let mut shared_store = self.store.lock();
        let store = match &shared_store.store {
            Some(store) => store.clone(),
            None => {
                let mut options = Options::default();
                options.create(false).lock_timeout(WRITER_LOCK_TIMEOUT).logger_thread(self.host == Host::Thread);
                options.is_of_logger = true;
                let store = Store::open_in(self.dir.again()?, &options)?;
                shared_store.store.insert(store).clone()
            }
        };
        shared_store.users += 1;
        Ok(StoreLease { shared: self, store })
    }
}

/// The use of the store handle by one connection.
struct StoreLease<'s> {
    shared: &'s ServerState,
    store: Store,
}

impl Drop for StoreLease<'_> {
    fn drop(&mut self) {
        let mut shared_store = self.shared.store.lock();
        shared_store.users -= 1;
        let last = if shared_store.users == 0 { shared_store.store.take() } else { None };
        drop(shared_store);
        drop(last);
    }
}

/// The thread that listens.
struct Listener {
    shared: Arc<ServerState>,
    /// The policy for which the socket was bound.
    bound_by: Option<Arc<Policy>>,
    /// The problem that was reported last; `None` at first, so that an old error file is removed.
    last_reported: Option<Option<String>>,
    /// Reports changes of the directory while no process has the store open. It is not used beside
    /// clients: the kernel takes some 15 ms to close it, and releases a killed logger's locks only
    /// after that, while clients wait for them.
    watch: Option<Watch>,
    /// Until this time the thread polls as often as beside clients: a change was reported recently,
    /// and the timestamps of files are coarse.
    looks_until: Instant,
}

impl Listener {
    fn run(mut self, rest: &Rest, on_loss: impl Fn()) {
        let mut looked = clock::now();
        while !self.shared.is_closing() {
            crash_point!("serve.round_begun");
            if self.watch_while(rest.is_alone()) {
                // An earlier change is not reported, so this thread checks the socket, and the main
                // thread the directory and `lock`.
                self.check_socket();
                on_loss();
            }
            let is_unused = self.shared.connections.is_empty();
            let is_changed = clock::now() < self.looks_until;
            let interval = match is_unused && !is_changed {
                true => rest
                    .nap_beside_clients(SOCKET_CHECK_INTERVAL, RESTING_SOCKET_CHECK_INTERVAL)
                    .min(self.longest_nap()),
                false => SOCKET_CHECK_INTERVAL,
            };
            // Decided by the clock, since clients may connect without a pause.
            if clock::since(looked) >= interval {
                self.check_socket();
                self.shared.buffers.forget_unused();
                looked = clock::now();
            }
            let socket = self.shared.socket.lock().clone();
            let next = match &socket {
                Some(socket) => {
                    let watched = self.watch.as_ref().map(Watch::fd);
                    let others = [watched, self.shared.use_changed.as_ref().map(AsFd::as_fd)];
                    socket.next_client(interval.saturating_sub(clock::since(looked)), others)
                }
                None => {
                    std::thread::park_timeout(interval);
                    Ok(None)
                }
            };
            let _ = self.shared.use_changed.as_ref().map(|changed| rustix::io::read(changed, &mut [0; 8]));
            if let Some(change) = self.watch.as_ref().and_then(Watch::next_change) {
                // After a delay: a directory that is being removed must not get a new socket.
                looked = clock::now();
                self.looks_until = looked + CHANGE_CHECK_TIME;
                if change == Change::Loss {
                    on_loss();
                }
            }
            if self.shared.is_closing() {
                break;
            }
            match next {
                Ok(Some(stream)) => receive(&self.shared, stream),
                Ok(None) => {}
                // For example, no descriptor is free, and waiting clients continue to wait; or
                // other code has closed the socket.
                Err(_) => {
                    clock::sleep(Duration::from_millis(100));
                    self.check_socket();
                }
            }
        }
        if let Some(socket) = self.shared.socket.lock().take() {
            socket.remove();
        }
    }

    /// Begins or ends the watch. Returns whether it has begun.
    fn watch_while(&mut self, is_alone: bool) -> bool {
        let begins = is_alone && self.watch.is_none() && self.shared.use_changed.is_some();
        if begins {
            self.watch = self.shared.dir.with_fd(|fd| Ok(Watch::new(fd).ok())).unwrap_or(None);
        } else if !is_alone {
            self.watch = None;
        }
        begins && self.watch.is_some()
    }

    /// Returns how long the thread may sleep if no process has the store open. It polls for a
    /// change that the kernel does not report.
    fn longest_nap(&self) -> Duration {
        let socket = self.shared.socket.lock();
        match socket.as_ref().is_some_and(|socket| !socket.is_elsewhere()) && self.watch.is_some() {
            true => Duration::MAX,
            false => UNREPORTED_CHECK_INTERVAL,
        }
    }

    /// Makes the socket if there is none, or if its path or mode differs from the policy.
    ///
    /// The policy must not be an older one: after the check at the beginning of a watch, the thread
    /// sleeps until the next change is reported.
    fn check_socket(&mut self) {
        let policy = self.shared.policy.lock().now(&self.shared.dir);
        let is_as_wanted = self
            .bound_by
            .as_ref()
            .is_some_and(|bound| bound.socket == policy.socket && bound.is_owners_alone() == policy.is_owners_alone());
        if is_as_wanted && self.shared.socket.lock().as_ref().is_some_and(|socket| !socket.is_lost()) {
            return;
        }
        let taken = BoundSocket::bind(&self.shared.dir, &policy);
        let problem = taken.as_ref().err().map(Error::to_string);
        if let Ok(socket) = taken {
            // If both have the same name, it belongs to the new socket by now.
            let old = self.shared.socket.lock().replace(Arc::new(socket));
            if let Some(old) = old {
                old.remove();
            }
            self.bound_by = Some(policy);
        }
        if self.last_reported.as_ref() != Some(&problem) {
            report_problem(&self.shared.dir, self.shared.host, problem.as_deref());
            self.last_reported = Some(problem);
        }
    }
}

/// Serves a client on a thread of its own, or refuses it.
fn receive(shared: &Arc<ServerState>, stream: SocketStream) {
    let stream = Arc::new(stream);
    let Ok(uid) = stream.peer_uid() else { return };
    let policy = shared.policy();
    if policy.rights(uid).is_none() {
        let text = match &policy.fault {
            None => format!("uid {uid} is not admitted by the store's access file"),
            Some(fault) => format!("uid {uid} is not admitted: {fault}"),
        };
        return refuse(&stream, Refusal::NotAllowed, &text);
    }
    if stream.is_among_the_last() {
        return refuse(&stream, Refusal::Busy, "the logger has reached its limit of open files");
    }
    let seat = match shared.connections.enter(uid, stream.clone(), &policy) {
        Ok(seat) => seat,
        Err(NotAdmitted::Closed) => return refuse(&stream, Refusal::Exiting, "the logger is exiting"),
        Err(NotAdmitted::Full { of_uid, limit }) => {
            let whose = if of_uid { format!(" of uid {uid}") } else { String::new() };
            return refuse(&stream, Refusal::Busy, &format!("there are {limit} connections{whose} already"));
        }
    };
    let (of_thread, at) = (shared.clone(), stream.clone());
    let spawned = threads::spawn("untorn-message", move || {
        connection::run(&of_thread, &at, uid);
        drop(seat);
    });
    if let Err(error) = spawned {
        refuse(&stream, Refusal::Busy, &format!("no thread could be started: {error}"));
    }
}

/// Refuses a client. The part of the text that the socket does not accept at once is lost.
fn refuse(stream: &SocketStream, refusal: Refusal, text: &str) {
    tracing::info!(reason = text, "message client refused");
    let _ = stream.write(&ServerHello::encode(0, Some(refusal), text), Some(clock::now()));
    stream.end();
}
