//! Processes that the harness starts, hears, stops and kills.

use crate::outcome::{Finding, Kind};
use crate::role;
use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A process in a role. Killed when dropped.
pub struct Process {
    child: Child,
    role: String,
    lines: Arc<Mutex<Vec<String>>>,
    listener: Option<std::thread::JoinHandle<()>>,
    was_killed: bool,
}

impl Process {
    /// Starts `program`, a build of the harness, in a role.
    pub fn start(program: &Path, role: &str, store: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Process {
        let mut command = Command::new(program);
        command.arg("role").arg(role).arg(store).args(arguments).envs(env.iter().copied());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {}: {error}", program.display()));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (heard, out) = (lines.clone(), child.stdout.take().expect("piped"));
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                heard.lock().expect("not poisoned").push(line);
            }
        });
        Process { child, role: role.to_string(), lines, listener: Some(listener), was_killed: false }
    }

    fn heard(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().expect("not poisoned")
    }

    /// All that it has said so far.
    pub fn lines(&self) -> Vec<String> {
        self.heard().clone()
    }

    /// How many lines that are.
    pub fn lines_count(&self) -> usize {
        self.heard().len()
    }

    /// Waits until it has said so many lines that begin with `what`.
    ///
    /// # Errors
    /// A finding if it does not within `time`, or says that a check failed.
    pub fn wait_for(&mut self, what: &str, count: usize, time: Duration) -> Result<(), Finding> {
        let start = Instant::now();
        loop {
            self.refuse_finding()?;
            if self.heard().iter().filter(|line| line.starts_with(what)).count() >= count {
                return Ok(());
            }
            if start.elapsed() > time {
                let what = format!("{} has not said {what:?} {count} times within {time:?}", self.role);
                return Err(Finding::new(Kind::BlockedReader, what));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// What the newest line that begins with `what` says, as a number; 0 if there is none.
    pub fn newest(&self, what: &str) -> u64 {
        let lines = self.heard();
        let number = |line: &String| line.strip_prefix(what)?.trim().parse().ok();
        lines.iter().rev().find_map(number).unwrap_or(0)
    }

    /// An error if a check of the process failed, or if it ended by itself in another way than a good one.
    ///
    /// # Errors
    /// The finding.
    pub fn refuse_finding(&mut self) -> Result<(), Finding> {
        let found = self.heard().iter().find_map(|line| role::finding(line));
        if let Some(found) = found {
            return Err(found);
        }
        match self.child.try_wait().expect("a child of ours") {
            Some(status) if !status.success() && !self.was_killed && status.signal() != Some(libc::SIGKILL) => {
                Err(Finding::new(Kind::Misbehaved, format!("{} ended by itself: {status}", self.role)))
            }
            _ => Ok(()),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(self.pid(), signal);
    }

    /// Kills it, and waits until it is gone and all that it said is heard.
    pub fn kill(&mut self) {
        self.was_killed = true;
        let _ = self.child.kill();
        self.wait();
    }

    /// Waits for its end; whether that was a good one.
    pub fn wait(&mut self) -> bool {
        // Whoever traced it may have heard of its end already.
        let status = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        status.is_ok_and(|status| status.success())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Does something with each logger of the store at `path`, also with those that are not ready yet. They are known by the
/// store's path in their environment.
fn for_each_logger(path: &Path, mut act: impl FnMut(Pid)) {
    let wanted = format!("UNTORN_BECOME_LOGGER={}", path.display());
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let variables = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if let Some(pid) = pid
            && variables.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
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

/// Kills the loggers of the store at `path`, and waits until they are gone. How many there were.
pub fn kill_loggers(path: &Path) -> usize {
    let mut killed = 0;
    // One may be starting another just now.
    for _ in 0..2 {
        for_each_logger(path, |pid| {
            killed += usize::from(rustix::process::kill_process(pid, Signal::KILL).is_ok());
            let start = Instant::now();
            // It is gone when its memory is; a zombie has none.
            let maps = format!("/proc/{}/maps", pid.as_raw_nonzero());
            while std::fs::read(&maps).is_ok_and(|maps| !maps.is_empty()) && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_micros(200));
            }
        });
    }
    killed
}

/// What a kernel crash leaves of a store whose clients have been killed: no logger, and no shared region.
pub fn crash_kernel(path: &Path) {
    let start = Instant::now();
    // A logger that was just being started when its client died is not known by its environment yet.
    while kill_loggers(path) > 0 || (is_in_use(path) && start.elapsed() < Duration::from_secs(5)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = std::fs::remove_file(path.join("control"));
}

/// Whether any process has the store at `path` open: whether any byte of its file `lock` is locked.
#[allow(unsafe_code)]
fn is_in_use(path: &Path) -> bool {
    let Ok(lock) = std::fs::File::options().read(true).write(true).open(path.join("lock")) else { return false };
    // The length 0 reaches to the end.
    let mut asked = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the call writes to a structure of ours that is valid.
    let answered = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_OFD_GETLK, &raw mut asked) };
    answered == 0 && asked.l_type != libc::F_UNLCK as libc::c_short
}
