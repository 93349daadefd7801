//! The loggers of a store. The store's path in a logger's environment identifies the logger. The
//! environment is set when the logger's program starts.

use crate::HANGS;
use crate::processes::are_threads_in;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Returns whether a process is a logger of the store at `path`, ready or not.
pub fn is_logger_of(process: Pid, path: &Path) -> bool {
    let wanted = format!("UNTORN_BECOME_LOGGER={}", path.display());
    let variables = std::fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())).unwrap_or_default();
    variables.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
}

/// Calls `act` for each logger of the store at `path`.
fn for_each_logger(path: &Path, mut act: impl FnMut(Pid)) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && is_logger_of(pid, path)
        {
            act(pid);
        }
    }
}

/// Sends a signal to the loggers of the store at `path`.
pub fn signal_loggers(path: &Path, signal: Signal) {
    for_each_logger(path, |pid| {
        let _ = rustix::process::kill_process(pid, signal);
    });
}

/// Waits until a killed process is gone with all its threads. The process holds its locks as long
/// as one thread is left. A client that opens the store then sees a live process and starts no
/// logger. On a busy machine this takes many milliseconds.
fn wait_until_gone(handle: &OwnedFd) {
    let start = Instant::now();
    let mut asked = [PollFd::new(handle, PollFlags::IN)];
    let bound = Timespec { tv_sec: 1, tv_nsec: 0 };
    while !poll(&mut asked, Some(&bound)).is_ok_and(|count| count > 0) && start.elapsed() < HANGS {}
}

/// Returns whether all threads of all loggers of the store at `path` are stopped. After a stop
/// signal each thread first leaves the kernel, which takes time on a busy machine.
pub fn are_loggers_stopped(path: &Path) -> bool {
    let mut all = true;
    for_each_logger(path, |pid| {
        // An ended thread counts as stopped. A thread that a tracer holds does not.
        all &= are_threads_in(pid.as_raw_nonzero().get().cast_unsigned(), &['T', 'Z', 'X']).unwrap_or(true);
    });
    all
}

/// Returns the number of loggers of the store at `path`, including those that are starting.
pub fn loggers(path: &Path) -> usize {
    let mut count = 0;
    for_each_logger(path, |_| count += 1);
    count
}

/// Kills the loggers of the store at `path`, waits for their ends, and returns their number.
pub fn kill_loggers(path: &Path) -> usize {
    let mut killed = 0;
    // A logger may be starting another one.
    for _ in 0..2 {
        for_each_logger(path, |pid| {
            // The handle is opened before the kill, so it refers to this process even if the id is
            // reused.
            let handle = pidfd_open(pid, PidfdFlags::empty());
            killed += usize::from(rustix::process::kill_process(pid, Signal::KILL).is_ok());
            if let Ok(handle) = handle {
                wait_until_gone(&handle);
            }
        });
    }
    killed
}

/// Simulates a kernel crash of a store whose clients were killed: no logger is left, and no shared
/// region.
///
/// # Panics
/// If a process has the store open for longer than [`HANGS`].
#[track_caller]
pub fn crash_kernel(path: &Path) {
    let start = Instant::now();
    loop {
        // If a client died while it started a logger, the environment of that logger does not
        // identify it yet.
        while kill_loggers(path) > 0 || is_in_use(path) {
            assert!(start.elapsed() < HANGS, "a process still has the store at {} open", path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = std::fs::remove_file(path.join("control"));
        // A logger that appeared only now may have mapped the removed region.
        if kill_loggers(path) == 0 && !is_in_use(path) {
            return;
        }
    }
}

/// Returns whether any process has the store at `path` open, that is, whether any byte of its file
/// `lock` is locked.
#[allow(unsafe_code)]
fn is_in_use(path: &Path) -> bool {
    let Ok(lock) = std::fs::File::options().read(true).write(true).open(path.join("lock")) else { return false };
    // A length of 0 extends to the end of the file.
    let mut asked = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the call writes to a valid structure of this function.
    let answered = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_OFD_GETLK, &raw mut asked) };
    answered == 0 && asked.l_type != libc::F_UNLCK as libc::c_short
}
