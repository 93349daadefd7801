//! A process of a store under test: its start in a role, the lines that it sends and receives, and
//! its end.

use crate::HANGS;
use crate::lines::{Lines, NoLine};
use crate::processes::{send, state_of, wait_until};
use crate::role::Role;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

/// The variable that names a planted bug of an instrumented program.
pub const BUG: &str = "UNTORN_BUG";

/// A process in a role. It is killed when dropped.
pub struct Process {
    child: Child,
    /// A pidfd, which identifies the process even after its id was reused. `None` if the kernel has
    /// no pidfds.
    handle: Option<OwnedFd>,
    /// Its role and arguments, for messages.
    name: String,
    lines: Lines,
    /// The number of lines that were taken.
    taken: Mutex<usize>,
    complaints: Complaints,
    was_killed: bool,
}

impl Process {
    /// Starts the process of `command`, to which this function adds the role.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn start(mut command: Command, role: &Role) -> Process {
        role.assign_to(&mut command);
        let complaints = Complaints::of(&mut command);
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.unwrap_or_else(|error| panic!("starting {}: {error}", command.get_program().display()));
        let lines = Lines::of(child.stdout.take().expect("piped"));
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        let name = [std::slice::from_ref(&role.name), &role.arguments[..]].concat().join(" ");
        Process { child, handle, name, lines, taken: Mutex::new(0), complaints, was_killed: false }
    }

    /// Returns its role and arguments.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    // ---- lines

    /// Returns all lines that it has sent so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.all()
    }

    /// Returns the number of lines that it has sent so far.
    pub fn lines_count(&self) -> usize {
        self.lines.with(<[String]>::len)
    }

    /// Returns the number of its lines so far that begin with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.lines.with(|lines| lines.iter().filter(|line| line.starts_with(prefix)).count())
    }

    /// Returns the number in the newest line that begins with `prefix`, or 0 if there is none.
    pub fn newest(&self, prefix: &str) -> u64 {
        let number = |line: &String| line.strip_prefix(prefix)?.trim().parse().ok();
        self.lines.with(|lines| lines.iter().rev().find_map(number)).unwrap_or(0)
    }

    /// Applies `found` to the lines so far, in order, and returns the first result that is `Some`.
    pub fn find_line<T>(&self, found: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.lines.with(|lines| lines.iter().find_map(|line| found(line)))
    }

    /// Waits for the line with this index, and takes it and those before it.
    ///
    /// # Panics
    /// If the process ends without it, or does not send it within [`HANGS`].
    #[track_caller]
    pub fn line(&self, index: usize) -> String {
        let line = self.lines.wait_for(HANGS, |lines| lines.get(index).cloned());
        let line = line.unwrap_or_else(|why| self.fail(why, "another line"));
        self.take(index + 1);
        line
    }

    /// Waits for the next line that was not taken, and takes it.
    ///
    /// # Panics
    /// As [`Process::line`].
    #[track_caller]
    pub fn hear(&self) -> String {
        let next = *self.taken.lock().expect("not poisoned");
        self.line(next)
    }

    /// Checks that the next line is `said`, and takes it.
    ///
    /// # Panics
    /// If the next line differs, or as [`Process::line`].
    #[track_caller]
    pub fn expect(&self, said: &str) {
        assert_eq!(self.hear(), said, "{} {}", self.name, self.pid());
    }

    /// Waits for a line that begins with `prefix`. A line that was already taken counts as well.
    /// Takes this line and all lines before it.
    ///
    /// # Panics
    /// As [`Process::line`].
    #[track_caller]
    pub fn hear_prefix(&self, prefix: &str) -> String {
        let found = self.lines.wait_for(HANGS, |lines| {
            let index = lines.iter().position(|line| line.starts_with(prefix))?;
            Some((index, lines[index].clone()))
        });
        let (index, line) = found.unwrap_or_else(|why| self.fail(why, &format!("a line with {prefix:?}")));
        self.take(index + 1);
        line
    }

    /// Takes the lines that have arrived and were not taken.
    pub fn heard(&self) -> Vec<String> {
        let mut taken = self.taken.lock().expect("not poisoned");
        let new = self.lines.with(|lines| lines[*taken..].to_vec());
        *taken += new.len();
        new
    }

    fn take(&self, count: usize) {
        let mut taken = self.taken.lock().expect("not poisoned");
        *taken = count.max(*taken);
    }

    #[track_caller]
    fn fail(&self, why: NoLine, missing: &str) -> ! {
        let last = self.lines.with(|lines| lines.last().cloned());
        panic!("{} {}: {missing}: {why:?}; its last line: {last:?}", self.name, self.pid());
    }

    /// Sends a line to the process: see [`crate::role::listen`].
    ///
    /// # Panics
    /// If its input was closed.
    pub fn tell(&mut self, line: &str) {
        let _ = writeln!(self.child.stdin.as_mut().expect("not closed yet"), "{line}");
    }

    /// Sends a line to the process and waits for the answer: the next line that was not taken.
    ///
    /// # Panics
    /// As [`Process::line`].
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    // ---- signals and the end

    /// Sends it a signal unless it has ended, since its id may have been reused by then. After
    /// SIGSTOP it waits until all threads of the process are stopped, or the process has ended.
    pub fn signal(&self, signal: Signal) {
        match &self.handle {
            Some(handle) if signal != Signal::STOP => drop(pidfd_send_signal(handle, signal)),
            _ => send(self.pid(), signal),
        }
    }

    /// Stops it.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues it after a stop.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Returns whether it still runs.
    ///
    /// # Panics
    /// If the system can't tell.
    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// Returns its exit status if it has ended.
    ///
    /// # Panics
    /// If the system can't tell.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of this process")
    }

    /// Returns whether [`Process::kill`] was called.
    pub fn was_killed(&self) -> bool {
        self.was_killed
    }

    /// Kills it, waits until it is gone and all its output is read, and takes the lines that were
    /// not taken.
    pub fn kill(&mut self) -> Vec<String> {
        self.kill_beside_children();
        self.lines.wait_until_ended();
        self.heard()
    }

    /// Kills the process and waits until it is gone. Children that it forked may survive, and may
    /// hold its output open.
    pub fn kill_beside_children(&mut self) {
        self.was_killed = true;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Closes the process's input, and waits until the process has ended and all its output is
    /// read. Returns whether the process ended with success.
    pub fn wait(&mut self) -> bool {
        drop(self.child.stdin.take());
        // A tracer may have collected its status already.
        let status = self.child.wait();
        self.lines.wait_until_ended();
        status.is_ok_and(|status| status.success())
    }

    /// As [`Process::wait`]; returns the lines that were not taken.
    ///
    /// # Panics
    /// If it ends with a failure.
    #[track_caller]
    pub fn finish(mut self) -> Vec<String> {
        let has_succeeded = self.wait();
        let (said, status) = (self.heard(), self.status());
        assert!(has_succeeded, "{} {}: {status:?}, {said:?}", self.name, self.pid());
        said
    }

    /// Describes the process's last line, and the events that its threads wait for according to the
    /// kernel.
    pub fn where_it_is(&mut self) -> String {
        let last = self.lines.with(|lines| lines.last().cloned());
        let last = last.map_or("it has sent nothing".into(), |line| format!("its last line is {line:?}"));
        if !self.is_running() {
            return format!("{last}; it has ended");
        }
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        let waits = threads.into_iter().flatten().flatten().map(|thread| {
            let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            format!("{} {} in {}", read("comm").trim(), state_of(&thread.path()), read("wchan").trim())
        });
        format!("{last}; its threads: {}", waits.collect::<Vec<_>>().join(", "))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_beside_children();
        self.complaints.show_on_failure(&self.name, self.pid());
    }
}

/// The standard error of a process. It is shown if the test of the process fails, unless the
/// process has a planted bug, whose panics would look like a failure of the test.
///
/// The standard error goes to a file. A logger that outlives its starter keeps the file open. A
/// pipe would break when the starter ends.
struct Complaints {
    file: Option<File>,
    has_bug: bool,
}

impl Complaints {
    /// Redirects the standard error of the process that `command` starts.
    fn of(command: &mut Command) -> Complaints {
        let has_bug = command.get_envs().any(|(name, value)| name == BUG && value.is_some_and(|bug| !bug.is_empty()));
        let file = tempfile::tempfile().ok();
        let copy = file.as_ref().and_then(|file| file.try_clone().ok());
        command.stderr(copy.map_or_else(Stdio::null, Stdio::from));
        Complaints { file, has_bug }
    }

    fn show_on_failure(&self, name: &str, pid: u32) {
        if self.has_bug || !std::thread::panicking() {
            return;
        }
        let Some(file) = &self.file else { return };
        let mut bytes = vec![0; file.metadata().map_or(0, |file| file.len() as usize)];
        if file.read_exact_at(&mut bytes, 0).is_ok() && !bytes.is_empty() {
            eprintln!("{name} {pid} wrote to its standard error:\n{}", String::from_utf8_lossy(&bytes));
        }
    }
}

/// A point at which processes wait while it is armed.
///
/// A process with the order [`HoldPoint::at`] passes the point while the point is not armed.
pub struct HoldPoint {
    path: std::path::PathBuf,
}

impl HoldPoint {
    /// Returns a hold point that the file `path` represents. It is not armed.
    #[must_use]
    pub fn new(path: &Path) -> HoldPoint {
        let hold = HoldPoint { path: path.into() };
        hold.release();
        hold
    }

    /// Returns the order that holds a process at the crash point `point` while this is armed.
    #[must_use]
    pub fn at(&self, point: &str) -> String {
        format!("{point}@0:hold={}", self.path.display())
    }

    /// Disarms the point: the processes that it holds continue.
    ///
    /// # Panics
    /// If its file can't be written.
    pub fn release(&self) {
        std::fs::write(&self.path, "").expect("writable");
    }

    /// Arms the point: it holds each process that arrives from now on.
    pub fn arm(&self) {
        let _ = std::fs::remove_file(&self.path);
        // A held process creates this file whenever it is missing, so an older one can be removed.
        let _ = std::fs::remove_file(self.path.with_extension("reached"));
    }

    /// Waits until a process is held.
    ///
    /// # Panics
    /// If none is within [`HANGS`].
    #[track_caller]
    pub fn wait(&self) {
        wait_until(|| self.is_reached());
    }

    /// Returns whether a process is held, or was since the point was armed.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.path.with_extension("reached").exists()
    }
}
