//! Lives on a recorder: real processes of a store, what happens to them, and how it ends.

use crate::recorder::{Event, Recorder};
use crate::store_files::kill;
use crate::workload::Role;
use crate::workload::victim::kill_loggers;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// The processes on a recorder; all are gone when it is dropped.
pub(crate) struct Processes {
    program: PathBuf,
    bug: &'static str,
    pub(crate) store: PathBuf,
    pub(crate) writers: Vec<Role>,
    presser: Option<Role>,
}

impl Processes {
    pub(crate) fn start(&self, role: &str, arguments: &str) -> Role {
        // Errors that a role dies of are expected now and then; where it was is of no interest.
        let env = [("UNTORN_BUG", self.bug), ("RUST_BACKTRACE", "0")];
        Role::start(&self.program, role, &self.store, arguments, &env)
    }

    pub(crate) fn start_writers(&mut self, count: usize, rounds: u64) {
        for i in 0..count {
            let writer = self.start("busy", &format!("w{i} {rounds}"));
            self.writers.push(writer);
        }
    }

    /// Has the logger leave in good order.
    pub(crate) fn stop_logger(&mut self) {
        let role = self.start("leave", "");
        self.writers.push(role);
        self.wait_for_writers();
    }

    /// Waits until all writers have done what they were to do.
    pub(crate) fn wait_for_writers(&mut self) {
        let start = Instant::now();
        for writer in &mut self.writers {
            while writer.child.try_wait().unwrap().is_none() {
                assert!(start.elapsed() < PATIENCE, "a writer is blocked");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(writer.end(), "a writer failed");
        }
        self.writers.clear();
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.writers.clear();
        self.presser = None;
        kill_loggers(&self.store);
    }
}

/// A recorder with processes on it. They go first, then the file system.
pub(crate) struct Life {
    pub(crate) processes: Processes,
    pub(crate) recorder: Recorder,
}

impl Life {
    pub(crate) fn begin(recorder: Recorder, program: &Path, bug: &'static str) -> Life {
        let store = recorder.store();
        let mut processes = Processes { program: program.into(), bug, store, writers: Vec::new(), presser: None };
        processes.presser = Some(processes.start("presser", ""));
        Life { processes, recorder }
    }

    /// Waits until something holds, and the writers live.
    pub(crate) fn wait_for(&mut self, what: &str, holds: impl Fn(&Recorder) -> bool) {
        let start = Instant::now();
        while !holds(&self.recorder) {
            assert!(start.elapsed() < PATIENCE, "{what}: not in time");
            for writer in &mut self.processes.writers {
                let ended = writer.child.try_wait().unwrap();
                assert!(ended.is_none_or(|status| status.success()), "{what}: a writer failed before");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The power goes. What was recorded.
    pub(crate) fn end(self) -> Vec<Event> {
        let Life { processes, recorder } = self;
        drop(processes);
        recorder.finish()
    }
}

// ---- syncs that fail

/// The files of the log, of which one takes bytes just now.
pub(crate) const LOG: &str = "wal/seg-";
pub(crate) const ARENA: &str = "arena";
pub(crate) const HEADER: &str = "checkpoint";

/// Who dies while a sync is held that then fails.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Dies {
    Nobody,
    Logger,
    /// The clients too, at the first one.
    Everyone,
}

/// Syncs that fail one after the other: of which file, and how many of its syncs pass before. The logger that
/// called dies each time, unless nobody is to die. Who comes next meets the next one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failures {
    pub(crate) dies: Dies,
    pub(crate) syncs: &'static [(&'static str, usize)],
    /// The store then refuses writes until all have closed it.
    pub(crate) sticky: bool,
}

impl Life {
    /// Work, during which syncs fail and take with them what they covered, and work after that. The record, and where
    /// the first one failed.
    pub(crate) fn with_failures(mut self, failures: &Failures) -> (Vec<Event>, usize) {
        self.processes.start_writers(2, u64::MAX);
        self.wait_for("work", |recorder| recorder.marks(0, "D ") >= 20 && recorder.syncs(0, HEADER) >= 3);
        let failed = self.recorder.len();
        self.recorder.hold_sync(failures.syncs[0].0, failures.syncs[0].1);
        for nth in 0..failures.syncs.len() {
            let held = self.recorder.held(PATIENCE).unwrap_or_else(|| panic!("{failures:?}: no sync {nth}"));
            let logger = (failures.dies != Dies::Nobody).then(|| logger_of_thread(held.thread, &self.processes.store));
            if failures.dies == Dies::Everyone && nth == 0 {
                self.processes.writers.clear();
            }
            if let Some(logger) = logger {
                // It has the signal when the sync returns, so it never acts on the error.
                kill(logger);
                wait_until_gone(logger, Some(held.thread));
            }
            if let Some((file, skip)) = failures.syncs.get(nth + 1) {
                self.recorder.hold_sync(file, *skip);
            }
            held.fail();
            if let Some(logger) = logger {
                wait_until_gone(logger, None);
            }
            if self.processes.writers.is_empty() {
                self.processes.start_writers(2, u64::MAX);
            }
        }
        if failures.sticky {
            self.processes.wait_for_refusals();
            self.processes.stop_logger();
            self.processes.start_writers(2, u64::MAX);
        }
        let so_far = self.recorder.len();
        self.wait_for("more work", |recorder| {
            recorder.marks(so_far, "D ") >= 20 && recorder.syncs(so_far, HEADER) >= 3
        });
        (self.end(), failed)
    }
}

impl Processes {
    /// Waits until all writers have met an error.
    fn wait_for_refusals(&mut self) {
        let start = Instant::now();
        for writer in &mut self.writers {
            while writer.child.try_wait().unwrap().is_none() {
                assert!(start.elapsed() < PATIENCE, "a writer goes on");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!writer.end(), "a writer did not hear of it");
        }
        self.writers.clear();
    }
}

/// The process of a thread, which must be the logger of this store.
fn logger_of_thread(thread: u32, store: &Path) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")).unwrap().trim().parse().unwrap();
    let variables = std::fs::read(format!("/proc/{process}/environ")).unwrap();
    let wanted = format!("UNTORN_BECOME_LOGGER={}", store.display());
    assert!(variables.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()), "{process} is no logger");
    process
}

/// Waits until of a killed process no thread runs any more, one that hangs in a call excepted; then others may hang as
/// well, behind a lock of the kernel that it holds.
fn wait_until_gone(process: u32, hanging: Option<u32>) {
    let start = Instant::now();
    let runs = |thread: &std::fs::DirEntry| {
        let is_hanging = hanging.is_some_and(|hanging| thread.file_name().to_str() == Some(&hanging.to_string()));
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('X');
        let is_behind = hanging.is_some() && state == 'D' && start.elapsed() > Duration::from_millis(300);
        !is_hanging && !is_behind && !matches!(state, 'Z' | 'X')
    };
    let any_runs = || {
        let threads = std::fs::read_dir(format!("/proc/{process}/task"));
        threads.is_ok_and(|threads| threads.flatten().any(|thread| runs(&thread)))
    };
    while any_runs() {
        assert!(start.elapsed() < PATIENCE, "{process} does not end");
        std::thread::sleep(Duration::from_micros(200));
    }
}
