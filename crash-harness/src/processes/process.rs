//! Processes that the harness starts, reads from, stops and kills.

use crate::outcome::{Finding, Kind};
use crate::processes::role;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A process in a role. It is killed when dropped.
pub struct Process {
    child: Child,
    /// Identifies the process even after its id was reused. `None` if the kernel has no pidfds.
    handle: Option<OwnedFd>,
    /// Its role and arguments.
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
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        let role = std::iter::once(role).chain(arguments.iter().copied()).collect::<Vec<_>>().join(" ");
        Process { child, handle, role, lines, listener: Some(listener), was_killed: false }
    }

    fn heard(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().expect("not poisoned")
    }

    /// Returns all lines that it has printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.heard().clone()
    }

    /// Returns the number of those lines.
    pub fn lines_count(&self) -> usize {
        self.heard().len()
    }

    /// Waits until it has printed `count` lines that begin with `what`.
    ///
    /// # Errors
    /// A finding if it does not within `time`, or if a check of the process failed.
    pub fn wait_for(&mut self, what: &str, count: usize, time: Duration) -> Result<(), Finding> {
        let start = Instant::now();
        loop {
            self.refuse_finding()?;
            if self.heard().iter().filter(|line| line.starts_with(what)).count() >= count {
                return Ok(());
            }
            if start.elapsed() > time {
                let where_it_is = self.where_it_is();
                let what =
                    format!("`{}` has not printed {what:?} {count} times within {time:?}: {where_it_is}", self.role);
                return Err(Finding::new(Kind::BlockedReader, what));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Returns the number in the newest line that begins with `what`, or 0 if there is none.
    pub fn newest(&self, what: &str) -> u64 {
        let lines = self.heard();
        let number = |line: &String| line.strip_prefix(what)?.trim().parse().ok();
        lines.iter().rev().find_map(number).unwrap_or(0)
    }

    /// Describes its last line, and what its threads wait for according to the kernel.
    pub fn where_it_is(&mut self) -> String {
        let last = self.heard().last().cloned();
        let said = last.map_or("it has printed nothing".into(), |line| format!("its last line is {line:?}"));
        if !self.is_running() {
            return format!("{said}; it has ended");
        }
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid().as_raw_nonzero()));
        let waits = threads.into_iter().flatten().flatten().map(|thread| {
            let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            format!(
                "{} {} in {}",
                read("comm").trim(),
                untorn_test_kit::processes::state_of(&thread.path()),
                read("wchan").trim()
            )
        });
        format!("{said}; its threads: {}", waits.collect::<Vec<_>>().join(", "))
    }

    /// Checks that no check of the process failed, and that the process has not ended with a
    /// failure.
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
                Err(Finding::new(Kind::Misbehaved, format!("{} ended unexpectedly: {status}", self.role)))
            }
            _ => Ok(()),
        }
    }

    /// Returns its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal unless it has ended, since its id may have been reused by then.
    pub fn signal(&self, signal: Signal) {
        let _ = match &self.handle {
            Some(handle) => pidfd_send_signal(handle, signal),
            None => rustix::process::kill_process(self.pid(), signal),
        };
    }

    /// Kills it and waits until it is gone and all its output is read.
    pub fn kill(&mut self) {
        self.was_killed = true;
        let _ = self.child.kill();
        self.wait();
    }

    /// Waits for its end and returns whether it ended with success.
    pub fn wait(&mut self) -> bool {
        // A tracer may have collected its status already.
        let status = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        status.is_ok_and(|status| status.success())
    }

    /// Returns whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the mappings of a task: the addresses of each, and its path or `[name]`, which may be
/// empty. Returns none if the task is gone.
pub(crate) fn mappings(tid: i32) -> Vec<(Range<u64>, String)> {
    let maps = std::fs::read_to_string(format!("/proc/{tid}/maps")).unwrap_or_default();
    let mapping = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (from, to) = fields.next()?.split_once('-')?;
        let addresses = u64::from_str_radix(from, 16).ok()?..u64::from_str_radix(to, 16).ok()?;
        Some((addresses, fields.nth(4)?.trim_start().to_owned()))
    };
    maps.lines().filter_map(mapping).collect()
}
