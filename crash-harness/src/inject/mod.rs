//! Faults of single system calls: the n-th write, sync, open, … of a program on the files of one
//! directory fails, once or from then on. The program may use any store.
//!
//! A program runs under `ptrace` with a seccomp filter, so that only its calls on files stop it;
//! everything else runs at full speed. Its threads, its children and the programs that they execute
//! are traced, even a process that outlives the program. At each stop the tracer counts the call
//! under its [`Site`]. If a [`Fault`] is due, either the kernel skips the call and the caller gets
//! the error, or the call does only a part of its work.
//!
//! | file | its one job |
//! |---|---|
//! | `call.rs` | the kinds of calls, and how each can fail |
//! | `fault.rs` | the names of sites and faults |
//! | `file_class.rs` | the file of the directory that a call is about |
//! | `filter.rs` | the seccomp filter |
//! | `tracer.rs` | the loop that follows processes |
//!
//! A call that fails here leaves the file as it was. After a failed sync, a real kernel marks the
//! pages as clean, and their data is lost. The recording file system simulates that; this module
//! does not.

mod call;
mod fault;
mod file_class;
mod filter;
mod tracer;

pub use call::{Call, Effect};
pub use fault::{Fault, Site, Span};

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use untorn_test_kit::lines::Lines;

/// Traces the programs that it starts and makes their calls fail. Dropping the injector kills all
/// of them.
pub struct Injector {
    shared: Arc<Shared>,
    tracers: Mutex<Vec<JoinHandle<()>>>,
}

/// A process that has ended: a started program or one of its descendants.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its process id.
    pub pid: i32,
    /// Its name, as in a [`Site`]; empty if it made no call that counts.
    pub process: String,
    /// Its exit status.
    pub status: ExitStatus,
}

impl Ended {
    /// Returns whether a signal or exit code shows a programming error: a panic or a memory fault.
    pub fn crashed(&self) -> bool {
        let of_mistakes = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];
        self.status.signal().is_some_and(|signal| of_mistakes.contains(&signal)) || self.status.code() == Some(101)
    }
}

/// The state that the tracers and the injector share.
struct Shared {
    /// The directory whose files count. Its path contains no symbolic links.
    root: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    /// Number of calls that the fault made fail.
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
    /// Creates an injector for the files of a directory, which need not exist yet. Without a fault
    /// it only counts.
    ///
    /// # Errors
    /// The reason why nothing can be traced on this machine.
    pub fn new(directory: &Path, fault: Option<Fault>) -> Result<Injector, String> {
        filter::supported()?;
        let parent = directory.parent().unwrap_or(directory);
        let parent = parent.canonicalize().map_err(|error| format!("{}: {error}", parent.display()))?;
        let root = directory.file_name().map_or(parent.clone(), |name| parent.join(name));
        let state = Mutex::new(State { fault, ..State::default() });
        let shared = Arc::new(Shared { root, state, changed: Condvar::new() });
        Ok(Injector { shared, tracers: Mutex::default() })
    }

    /// Starts a program. `process` is its name in sites; programs that it executes have their own
    /// names. The lines that it sends as a role are collected.
    ///
    /// # Errors
    /// If the system refuses. Some containers forbid tracing.
    pub fn spawn(&self, process: &str, mut command: Command) -> Result<Traced, String> {
        command.stdout(Stdio::piped());
        let (say, hear) = std::sync::mpsc::sync_channel(1);
        let (shared, process) = (self.shared.clone(), process.to_string());
        // Only the thread that started a process can trace it, so each program has a tracer thread.
        let tracer = std::thread::spawn(move || tracer::run(&shared, &process, command, &say));
        let started = hear.recv().unwrap_or_else(|_| Err("the tracer has ended".into()));
        self.tracers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(tracer);
        let (pid, out) = started?;
        Ok(Traced { pid, shared: self.shared.clone(), lines: Lines::of(out) })
    }

    /// Ends the fault: from now on no call fails.
    pub fn heal(&self) {
        self.shared.lock().is_over = true;
    }

    /// Returns how many calls have failed so far.
    pub fn fired(&self) -> u64 {
        self.shared.lock().fired
    }

    /// Returns the number of calls of each site.
    pub fn counts(&self) -> BTreeMap<Site, u64> {
        self.shared.lock().counts.clone()
    }

    /// Returns the processes that have ended.
    pub fn ended(&self) -> Vec<Ended> {
        self.shared.lock().ended.clone()
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        let tracers = std::mem::take(&mut *self.tracers.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for tracer in tracers {
            // A process may start another one before it is killed. The next iteration kills that
            // one.
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

/// A program that was started. Dropping this value kills the program. Processes that it left behind
/// live until the injector is dropped.
pub struct Traced {
    pid: i32,
    shared: Arc<Shared>,
    lines: Lines,
}

impl Traced {
    /// Returns its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns all lines that it has printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.all()
    }

    /// Waits until the program has ended and all its output is read. Returns `None` after `time`.
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
        self.lines.wait_until_ended();
        Some(status)
    }

    /// Kills the program and waits for its end.
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
