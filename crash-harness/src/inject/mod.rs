//! Faults of single system calls: the n-th write, sync, open, … of a program on the files of one
//! directory fails, once or from then on, whatever store the program uses.
//!
//! A program is started under `ptrace` with a seccomp filter, so that only its calls about files
//! stop it; all else runs at full speed. Its threads, its children and what they execute are
//! followed, also a process that leaves it behind. At a stop the call is counted by its [`Site`],
//! and if a [`Fault`] is due, the kernel never sees it: the caller gets the error, or the call does
//! a part of what it was asked.
//!
//! | file | its one job |
//! |---|---|
//! | `call.rs` | which calls there are, and how each can fail |
//! | `fault.rs` | the names of sites and faults |
//! | `place.rs` | which file of the directory a call is about |
//! | `filter.rs` | the seccomp filter |
//! | `tracer.rs` | the loop that follows processes |
//!
//! A call that fails here leaves the file as it was. What a failed sync does to the page cache of a
//! real kernel (its pages count as clean, and are lost) is not shown by this, but by the recording
//! file system.

mod call;
mod fault;
mod filter;
mod place;
mod tracer;

pub use call::{Call, Effect};
pub use fault::{Fault, Site, Span};

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Watches the programs that it starts, and has their calls fail. All are killed when it is
/// dropped.
pub struct Injector {
    shared: Arc<Shared>,
    tracers: Mutex<Vec<JoinHandle<()>>>,
}

/// A process that has ended: one of those started, or of those that they started.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its process id.
    pub pid: i32,
    /// Who it was, as in a [`Site`]; empty if it never made a call that counts.
    pub who: String,
    /// How it ended.
    pub status: ExitStatus,
}

impl Ended {
    /// Whether it died of a signal that only a mistake of its own raises: a panic that aborts, a
    /// fault of memory.
    pub fn crashed(&self) -> bool {
        let of_mistakes = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];
        self.status.signal().is_some_and(|signal| of_mistakes.contains(&signal)) || self.status.code() == Some(101)
    }
}

/// What the tracers and their owner know in common.
struct Shared {
    /// The directory whose files count, without symbolic links.
    root: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    /// How many calls have failed by it.
    fired: u64,
    is_over: bool,
    counts: BTreeMap<Site, u64>,
    /// All tasks that are traced now.
    alive: BTreeSet<i32>,
    ended: Vec<Ended>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Injector {
    /// One for the files of a directory, which need not be there yet; with a fault, or only to
    /// count.
    ///
    /// # Errors
    /// Why nothing can be traced on this machine.
    pub fn new(directory: &Path, fault: Option<Fault>) -> Result<Injector, String> {
        filter::supported()?;
        let parent = directory.parent().unwrap_or(directory);
        let parent = parent.canonicalize().map_err(|error| format!("{}: {error}", parent.display()))?;
        let root = directory.file_name().map_or(parent.clone(), |name| parent.join(name));
        let state = Mutex::new(State { fault, ..State::default() });
        let shared = Arc::new(Shared { root, state, changed: Condvar::new() });
        Ok(Injector { shared, tracers: Mutex::default() })
    }

    /// Starts a program. `who` names it in sites; the programs that it executes are known by their
    /// own names. Its standard output is heard.
    ///
    /// # Errors
    /// As the system refuses: some containers forbid tracing.
    pub fn spawn(&self, who: &str, mut command: Command) -> Result<Traced, String> {
        command.stdout(Stdio::piped());
        let (say, hear) = std::sync::mpsc::sync_channel(1);
        let (shared, who) = (self.shared.clone(), who.to_string());
        // What a thread has started, only that thread can trace; so each program has one.
        let tracer = std::thread::spawn(move || tracer::run(&shared, &who, command, &say));
        let started = hear.recv().unwrap_or_else(|_| Err("the tracer has ended".into()));
        self.tracers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(tracer);
        let (pid, out) = started?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line);
            }
        });
        Ok(Traced { pid, shared: self.shared.clone(), lines, listener: Some(listener) })
    }

    /// The cause is gone: from now on nothing fails.
    pub fn heal(&self) {
        self.shared.lock().is_over = true;
    }

    /// How many calls have failed so far.
    pub fn fired(&self) -> u64 {
        self.shared.lock().fired
    }

    /// How often each site was come by.
    pub fn counts(&self) -> BTreeMap<Site, u64> {
        self.shared.lock().counts.clone()
    }

    /// The processes that have ended.
    pub fn ended(&self) -> Vec<Ended> {
        self.shared.lock().ended.clone()
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        let tracers = std::mem::take(&mut *self.tracers.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for tracer in tracers {
            // A process may start another just as it is killed, which is then found in the next
            // round.
            while !tracer.is_finished() {
                let alive: Vec<i32> = self.shared.lock().alive.iter().copied().collect();
                alive.into_iter().for_each(kill);
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = tracer.join();
        }
    }
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A program that was started. Killed when dropped; those that it left behind live on until the
/// injector is dropped.
pub struct Traced {
    pid: i32,
    shared: Arc<Shared>,
    lines: Arc<Mutex<Vec<String>>>,
    listener: Option<JoinHandle<()>>,
}

impl Traced {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// All lines that it has said so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Waits for its end, and until all that it said is heard; `None` if it goes on for longer than
    /// `time`.
    pub fn wait(&mut self, time: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + time;
        let mut state = self.shared.lock();
        let status = loop {
            if let Some(ended) = state.ended.iter().find(|ended| ended.pid == self.pid) {
                break ended.status;
            }
            let left = end.checked_duration_since(Instant::now())?;
            let woken = self.shared.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        };
        drop(state);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        Some(status)
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        kill(self.pid);
        self.wait(Duration::from_secs(60));
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.kill();
    }
}
