//! The server of message-passing clients, in the logger process.
//!
//! One thread listens; each connection has a thread of its own, of which there are as many as the policy allows. They serve
//! by an ordinary [`Store`] of this process, opened for the first connection and dropped with the last. So there is no
//! second path to the data, and who is connected counts as a client: the logger stays.
//!
//! - `access`, `policy`: the access file: who may do what
//! - `place`: the socket's name in the file system
//! - `watch`: changes of the store's directory, as the kernel reports them
//! - `room`: how many connections, how many bytes
//! - `turns`: whose long request is served
//! - `connection`: one connection, from hello to end
//! - `answer`, `write`, `scans`, `cells`, `feed`: what each request does
//!
//! Nothing waits for a peer while it holds a lock, a transaction or (but for scans, for a bounded time) a snapshot: a
//! request is there whole before it is looked at, and its reply is made whole before it is sent.
//!
//! **Leaving.** The logger's main thread leaves under the initialisation lock, which opening the store takes as well. So a
//! logger that is idle leaves only if nobody is connected or connecting ([`Server::close_if_idle`]), and one that was told
//! to leave ends the connections before it takes that lock ([`Server::close`]), and waits for them a bounded time.

mod access;
mod answer;
mod cells;
mod connection;
mod feed;
mod place;
mod policy;
mod room;
mod scans;
mod turns;
mod watch;
mod write;

use crate::files::dir::Dir;
use crate::participant::engine::Engine;
use crate::participant::keeper::Host;
use crate::participant::options::Options;
use crate::participant::panics::Panics;
use crate::participant::rest::Rest;
use crate::shared::socket::Stream;
use crate::{Error, Result, Store};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use access::check_access;
use parking_lot::Mutex;
use place::{Place, Stamp};
use policy::Policy;
use room::{Bytes, NoSeat, Room, SMALL_BYTES};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use turns::Turns;
use untorn_wal::wire::hello::{Refusal, ServerHello};
use watch::{Change, Watch};

/// How often the listening thread looks whether socket and policy are as they should be.
const LOOK: Duration = Duration::from_secs(1);
/// The same while the store is not used.
const RESTING_LOOK: Duration = Duration::from_secs(5);
/// The same if no process has the store open, and the kernel does not report changes.
const UNREPORTED_LOOK: Duration = Duration::from_secs(10);
/// For how long it looks every [`LOOK`] after a change that the kernel has reported.
const CHANGED: Duration = Duration::from_secs(5);
/// For so long a policy that was read is not looked for again.
const POLICY_FRESH: Duration = Duration::from_millis(50);
/// How long a request may wait for the writer lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a long request may wait for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(30);
/// Requests for more items than this have turns.
const ITEMS_WITHOUT_TURN: u64 = 64;
/// How long a leaving logger waits for what its connections are being answered, and how long for them to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
const CLOSING: Duration = Duration::from_secs(5);

/// The server of one logger.
pub(crate) struct Server {
    shared: Arc<Shared>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

/// What its threads share.
struct Shared {
    dir: Dir,
    host: Host,
    policy: Mutex<Watched>,
    room: Arc<Room>,
    /// Those of messages.
    bytes: Bytes,
    /// For long reads. Half of the processors are left to the flush thread and to direct clients.
    reads: Turns,
    /// For long writes: they wait for the writer lock.
    writes: Turns,
    store: Mutex<Kept>,
    place: Mutex<Option<Arc<Place>>>,
}

/// The policy, and when it was read from what.
struct Watched {
    policy: Arc<Policy>,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// The store while somebody is connected.
#[derive(Default)]
struct Kept {
    store: Option<Store>,
    users: usize,
}

/// Makes the socket and listens. A failure is recorded, and the listening thread retries; `None` if that thread cannot
/// start. `wake_main` wakes the thread that serves, if the listening one panics or the directory loses a file.
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
            say(dir, host, Some(&error.to_string()));
            None
        }
    }
}

/// Says that there is no socket, and why; or that there is one.
fn say(dir: &Dir, host: Host, problem: Option<&str>) {
    // It may repeat a path of the access file.
    let problem = problem.map(untorn_wal::printable);
    let problem = problem.as_deref();
    place::note(dir, problem);
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
        let dir = dir.again()?;
        let stamp = Stamp::now(&dir);
        let policy = Arc::new(place::read_policy(&dir)?);
        let shared = Arc::new(Shared {
            dir,
            host,
            policy: Mutex::new(Watched { policy, stamp, looked: Instant::now() }),
            room: Arc::default(),
            bytes: Bytes::default(),
            reads: Turns::new((std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1)),
            writes: Turns::new(2),
            store: Mutex::default(),
            place: Mutex::default(),
        });
        let watch = if host == Host::Thread { None } else { shared.dir.with_fd(|fd| Ok(Watch::new(fd).ok()))? };
        let mut listener =
            Listener { shared: shared.clone(), bound_as: None, noted: None, watch, looks_until: Instant::now() };
        listener.look_after_place();
        let (panics, rest) = (panics.clone(), rest.clone());
        let on_loss = wake_main.clone();
        let run = move || panics.watch("listening", || listener.run(&rest, on_loss), wake_main);
        let thread = std::thread::Builder::new().name("untorn-listen".into()).spawn(run);
        let listening = Mutex::new(Some(thread.map_err(Error::io("starting a thread that listens"))?));
        Ok(Server { shared, listening })
    }

    /// Lets nobody connect any more, if nobody is connected. Says whether it did.
    pub(crate) fn close_if_idle(&self) -> bool {
        let closed = self.shared.room.close_if_empty();
        if closed {
            self.close();
        }
        closed
    }

    /// Whether nobody uses the store but those who pass messages, or are about to.
    pub(crate) fn is_sole_client(&self, engine: &Engine) -> bool {
        // The store of a host that runs the logger as a thread is the server's as well.
        if self.shared.host == Host::Thread {
            return false;
        }
        let kept = self.shared.store.lock();
        match &kept.store {
            Some(store) => !engine.has_clients_beside(store.client().engine.me),
            None => !engine.has_clients(),
        }
    }

    /// Ends all connections and takes the socket away. The initialisation lock is free meanwhile, or nobody is connected.
    pub(crate) fn close(&self) {
        let Some(listening) = self.listening.lock().take() else { return };
        let now = Instant::now();
        self.shared.room.close(now + LAST_ANSWERS, now + CLOSING);
        // Both waits of the listening thread: for a client, and for a place.
        if let Some(place) = &*self.shared.place.lock() {
            place.end();
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

impl Shared {
    /// The policy in force.
    fn policy(&self) -> Arc<Policy> {
        let mut watched = self.policy.lock();
        if watched.looked.elapsed() >= POLICY_FRESH {
            let stamp = Stamp::now(&self.dir);
            if stamp != watched.stamp || stamp.is_some_and(|stamp| !stamp.is_settled()) {
                // A directory that can't be looked at changes nothing.
                if let Ok(policy) = place::read_policy(&self.dir) {
                    watched.policy = Arc::new(policy);
                    watched.stamp = stamp;
                }
            }
            watched.looked = Instant::now();
        }
        watched.policy.clone()
    }

    /// Whether the logger is leaving.
    fn is_closing(&self) -> bool {
        self.room.is_closed()
    }

    /// The turns that a request has to wait for, if it is a long one.
    fn turns_for(&self, message: &[u8]) -> Option<&Turns> {
        let is_long = message.len() > SMALL_BYTES || answer::items_of(message) > ITEMS_WITHOUT_TURN;
        match answer::kind_of(message) {
            answer::COMMIT if is_long => Some(&self.writes),
            answer::MULTI_GET if is_long => Some(&self.reads),
            answer::SCAN | answer::SCAN_NEXT => Some(&self.reads),
            _ => None,
        }
    }

    /// The store, for one connection.
    fn open(&self) -> Result<Guest<'_>> {
        let mut kept = self.store.lock();
        let store = match &kept.store {
            Some(store) => store.clone(),
            None => {
                let mut options = Options::default();
                options.create(false).lock_timeout(LOCK_PATIENCE).logger_thread(self.host == Host::Thread);
                options.is_of_logger = true;
                let store = Store::open_in(self.dir.again()?, &options)?;
                kept.store.insert(store).clone()
            }
        };
        kept.users += 1;
        Ok(Guest { shared: self, store })
    }
}

/// One connection's use of the store.
struct Guest<'s> {
    shared: &'s Shared,
    store: Store,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let mut kept = self.shared.store.lock();
        kept.users -= 1;
        let last = if kept.users == 0 { kept.store.take() } else { None };
        drop(kept);
        drop(last);
    }
}

/// The thread that listens.
struct Listener {
    shared: Arc<Shared>,
    /// The policy by which the place was made.
    bound_as: Option<Arc<Policy>>,
    /// What was said of it last; at first nothing, so that an old note goes.
    noted: Option<Option<String>>,
    /// Reports changes of the directory.
    watch: Option<Watch>,
    /// Until then it looks as often as beside clients: the newest change was reported not long ago, and files' clocks are coarse.
    looks_until: Instant,
}

impl Listener {
    fn run(mut self, rest: &Rest, on_loss: impl Fn()) {
        let mut looked = Instant::now();
        while !self.shared.is_closing() {
            crash_point!("serve.looked");
            let is_unused = self.shared.room.is_empty();
            let is_changed = Instant::now() < self.looks_until;
            let interval = match is_unused && !is_changed {
                true => rest.nap_beside_clients(LOOK, RESTING_LOOK).min(self.longest_nap()),
                false => LOOK,
            };
            // Also if somebody connects all the time.
            if looked.elapsed() >= interval {
                self.look_after_place();
                self.shared.bytes.forget_unused();
                looked = Instant::now();
            }
            let place = self.shared.place.lock().clone();
            let next = match &place {
                Some(place) => place.next_client(interval.saturating_sub(looked.elapsed()), self.watch.as_ref()),
                None => {
                    std::thread::park_timeout(interval);
                    Ok(None)
                }
            };
            if let Some(change) = self.watch.as_ref().and_then(Watch::next_change) {
                // Not at once: a directory that is being removed must not get a new socket.
                looked = Instant::now();
                self.looks_until = looked + CHANGED;
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
                // No more descriptors, say, in which case those who wait go on waiting; or somebody has closed ours.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(100));
                    self.look_after_place();
                }
            }
        }
        if let Some(place) = self.shared.place.lock().take() {
            place.remove();
        }
    }

    /// How long the thread may sleep if no process has the store open. A change that the kernel does not report is looked for.
    fn longest_nap(&self) -> Duration {
        let place = self.shared.place.lock();
        match place.as_ref().is_some_and(|place| !place.is_elsewhere()) && self.watch.is_some() {
            true => Duration::MAX,
            false => UNREPORTED_LOOK,
        }
    }

    /// Makes the socket if there is none, or not where and how the policy wants it.
    fn look_after_place(&mut self) {
        let policy = self.shared.policy();
        let is_as_wanted = self
            .bound_as
            .as_ref()
            .is_some_and(|bound| bound.socket == policy.socket && bound.is_owners_alone() == policy.is_owners_alone());
        if is_as_wanted && self.shared.place.lock().as_ref().is_some_and(|place| !place.is_lost()) {
            return;
        }
        let taken = Place::take(&self.shared.dir, &policy);
        let problem = taken.as_ref().err().map(Error::to_string);
        if let Ok(place) = taken {
            // Under the same name it is the new one's by now.
            let old = self.shared.place.lock().replace(Arc::new(place));
            if let Some(old) = old {
                old.remove();
            }
            self.bound_as = Some(policy);
        }
        if self.noted.as_ref() != Some(&problem) {
            say(&self.shared.dir, self.shared.host, problem.as_deref());
            self.noted = Some(problem);
        }
    }
}

/// Lets a client in, on a thread of its own, or sends it away.
fn receive(shared: &Arc<Shared>, stream: Stream) {
    let stream = Arc::new(stream);
    let Ok(uid) = stream.peer_uid() else { return };
    let policy = shared.policy();
    if policy.rights(uid).is_none() {
        let text = match &policy.fault {
            None => format!("uid {uid} is not let in by the store's access file"),
            Some(fault) => format!("uid {uid} is not let in: {fault}"),
        };
        return refuse(&stream, Refusal::NotAllowed, &text);
    }
    if stream.is_among_the_last() {
        return refuse(&stream, Refusal::Busy, "the logger may not have more files open");
    }
    let seat = match shared.room.enter(uid, stream.clone(), &policy) {
        Ok(seat) => seat,
        Err(NoSeat::Closed) => return refuse(&stream, Refusal::Leaving, "the logger is leaving"),
        Err(NoSeat::Full { of_uid, limit }) => {
            let whose = if of_uid { format!(" of uid {uid}") } else { String::new() };
            return refuse(&stream, Refusal::Busy, &format!("there are {limit} connections{whose} already"));
        }
    };
    let (of_thread, at) = (shared.clone(), stream.clone());
    let spawned = std::thread::Builder::new().name("untorn-message".into()).spawn(move || {
        connection::run(&of_thread, &at, uid);
        drop(seat);
    });
    if let Err(error) = spawned {
        refuse(&stream, Refusal::Busy, &format!("there can be no more threads: {error}"));
    }
}

/// Sends a client away. What the socket does not take at once it does not get.
fn refuse(stream: &Stream, refusal: Refusal, text: &str) {
    tracing::info!(reason = text, "message client refused");
    let _ = stream.write(&ServerHello::encode(0, Some(refusal), text), Some(Instant::now()));
    stream.end();
}
