//! The states of processes, and signals to them.

use crate::HANGS;
use rustix::process::{Pid, Signal};
use std::path::Path;
use std::time::{Duration, Instant};

/// Waits until something holds.
///
/// # Panics
/// If it does not hold within [`HANGS`].
#[track_caller]
pub fn wait_until(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANGS, "not within {HANGS:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the state of a thread from its `stat` below `/proc`: `R`, `S`, `D`, `T`, `Z`; `X` also
/// if the thread does not exist.
#[must_use]
pub fn state_of(thread: &Path) -> char {
    let stat = std::fs::read_to_string(thread.join("stat")).unwrap_or_default();
    // The state follows the name, which ends with the last parenthesis.
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('X')
}

/// Returns whether all threads of a process are stopped or have ended. After a stop signal each
/// thread first leaves the kernel, which takes time on a busy machine. Returns false if the process
/// does not exist.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    are_threads_in(pid, &['T', 't', 'Z', 'X']).unwrap_or(false)
}

/// Returns whether the state of each thread of a process is one of these; `None` if the process
/// does not exist.
pub(crate) fn are_threads_in(pid: u32, states: &[char]) -> Option<bool> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    Some(threads.flatten().all(|thread| states.contains(&state_of(&thread.path()))))
}

/// Returns whether any thread of the process is left, running or stopped. A process whose main
/// thread has ended stays a zombie; while another thread is left, it still holds its memory and its
/// locks.
#[must_use]
pub fn exists(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    !matches!(state_of(Path::new(&format!("/proc/{pid}"))), 'Z' | 'X') || threads.count() > 1
}

/// Sends a signal. After SIGSTOP it waits until all threads of the process are stopped, or the
/// process has ended.
///
/// # Panics
/// If `pid` is no process id, or the process does not stop within [`HANGS`].
pub fn send(pid: u32, signal: Signal) {
    let process = Pid::from_raw(pid.cast_signed()).expect("a process id");
    let _ = rustix::process::kill_process(process, signal);
    if signal == Signal::STOP {
        wait_until(|| is_stopped(pid) || !exists(pid));
    }
}
