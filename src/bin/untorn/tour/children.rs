//! The parent's control of the processes of the tour: it starts them, reads their output, and
//! leaves none behind.
//!
//! A child ends when it is killed, when its handle is dropped, and when the parent ends: the kernel
//! kills it then. Children are signalled through their `Child`: until it has been waited for, its
//! pid belongs to no other process.

use super::event::{Nanoseconds, TourEvent};
use super::{janitor, writer};
use crate::outcome::{CommandFailure, Outcome};
use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// The reports for a writer's share so far, from all writers that had it.
#[derive(Default)]
pub(crate) struct WriterLog {
    /// The newest commit reported as visible.
    pub(crate) commit: u64,
    /// The newest commit reported as durable.
    pub(crate) commit_durable: u64,
    /// Passes through the list.
    pub(crate) passes: u64,
    /// Files done in this pass.
    pub(crate) done: u64,
    /// (requested, locked) of each commit.
    pub(crate) commits: Vec<(Nanoseconds, Nanoseconds)>,
    /// (requested, acknowledged) of each durable commit.
    pub(crate) durable: Vec<(Nanoseconds, Nanoseconds)>,
    /// Since when it is held within a transaction.
    pub(crate) holding: Option<Nanoseconds>,
    /// Bytes it has read that no writer wrote.
    pub(crate) torn: Vec<String>,
    /// Commits whose durability was refused.
    pub(crate) refused: Vec<String>,
    /// Errors that stopped it, or errors in its reports.
    pub(crate) failures: Vec<String>,
}

/// The reports of a reader so far.
#[derive(Default)]
pub(crate) struct ReaderLog {
    pub(crate) snapshots: u64,
    pub(crate) records: u64,
    pub(crate) torn: Vec<String>,
    pub(crate) violations: Vec<String>,
    pub(crate) failures: Vec<String>,
}

/// A log that receives events.
pub(crate) trait ProcessLog: Default + Send + 'static {
    fn take(&mut self, event: TourEvent);
    fn fail(&mut self, what: String);
}

impl ProcessLog for WriterLog {
    fn take(&mut self, event: TourEvent) {
        match event {
            TourEvent::Committed { commit, passes, done, asked, locked } => {
                if commit != self.commit + 1 {
                    self.failures.push(format!("commit {commit} follows {}", self.commit));
                }
                (self.commit, self.passes, self.done) = (commit, passes, done);
                self.commits.push((asked, locked));
            }
            TourEvent::Durable { commit, asked, acknowledged } => {
                self.commit_durable = commit.max(self.commit_durable);
                self.durable.push((asked, acknowledged));
            }
            TourEvent::Holding { locked } => self.holding = Some(locked),
            TourEvent::Torn(what) => self.torn.push(what),
            TourEvent::Refused(what) => self.refused.push(what),
            TourEvent::Failed(what) => self.failures.push(what),
            other => self.failures.push(format!("unexpected report of a writer: {other:?}")),
        }
    }

    fn fail(&mut self, what: String) {
        self.failures.push(what);
    }
}

impl ProcessLog for ReaderLog {
    fn take(&mut self, event: TourEvent) {
        match event {
            TourEvent::Checked { snapshots, records } => (self.snapshots, self.records) = (snapshots, records),
            TourEvent::Torn(what) => self.torn.push(what),
            TourEvent::Violation(what) => self.violations.push(what),
            TourEvent::Failed(what) => self.failures.push(what),
            other => self.failures.push(format!("unexpected report of a reader: {other:?}")),
        }
    }

    fn fail(&mut self, what: String) {
        self.failures.push(what);
    }
}

/// A log that a listening thread fills.
pub(crate) type ChildOutput<L> = Arc<Mutex<L>>;

/// Returns the log as it is now. A listener that panicked has left whole entries only.
pub(crate) fn look<L>(log: &ChildOutput<L>) -> MutexGuard<'_, L> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running child.
pub(crate) struct TourProcess {
    child: Child,
    input: Option<ChildStdin>,
    listener: Option<JoinHandle<()>>,
}

impl TourProcess {
    /// Starts a writer for a share of the files.
    pub(crate) fn writer(
        store: &Path,
        directory: &Path,
        slot: usize,
        names: &[&[u8]],
        log: &ChildOutput<WriterLog>,
    ) -> Outcome<TourProcess> {
        let mut command = child_command(store)?;
        command.arg("writer").arg(slot.to_string()).arg(directory);
        let mut process = TourProcess::start(command, log)?;
        if let Some(input) = &mut process.input {
            writer::write_list(input, names.iter().copied())
                .map_err(CommandFailure::system("handing a writer its list of files"))?;
        }
        Ok(process)
    }

    /// Starts a reader.
    pub(crate) fn reader(store: &Path, log: &ChildOutput<ReaderLog>) -> Outcome<TourProcess> {
        let mut command = child_command(store)?;
        command.arg("reader");
        TourProcess::start(command, log)
    }

    fn start<L: ProcessLog>(mut command: Command, log: &ChildOutput<L>) -> Outcome<TourProcess> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(CommandFailure::system("starting a process of the tour"))?;
        let input = child.stdin.take();
        let listener = child.stdout.take().map(|output| {
            let log = Arc::clone(log);
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    match TourEvent::parse(&line) {
                        Some(event) => look(&log).take(event),
                        None => look(&log).fail(format!("unexpected output of a process: {line:?}")),
                    }
                }
            })
        });
        Ok(TourProcess { child, input, listener })
    }

    /// Sends a command to a writer.
    pub(crate) fn command(&mut self, command: u8) -> Outcome {
        match &mut self.input {
            Some(input) => input.write_all(&[command]).map_err(CommandFailure::system("commanding a writer")),
            None => Ok(()),
        }
    }

    /// Stops or continues it.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome {
        rustix::process::kill_process(Pid::from_child(&self.child), signal)
            .map_err(|errno| CommandFailure::System(format!("signalling a process of the tour: {errno}")))
    }

    /// Returns whether it still runs. No child ends by itself.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGKILL and returns at once.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; then there is no process to kill.
        let _ = self.child.kill();
    }

    /// Waits for the end of a killed process and of its output.
    pub(crate) fn reap(&mut self) {
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for TourProcess {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

/// The process that cleans up after the parent.
pub(crate) struct Janitor {
    child: Child,
}

impl Janitor {
    pub(crate) fn start(store: &Path, remove: bool) -> Outcome<Janitor> {
        let mut command = child_command(store)?;
        command.arg("janitor").args(remove.then_some("--remove"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(CommandFailure::system("starting a process of the tour"))?;
        Ok(Janitor { child })
    }

    /// Requests that it leave the store in place.
    pub(crate) fn keep_store(&mut self) {
        if let Some(input) = &mut self.child.stdin {
            let _ = input.write_all(&[janitor::COMMAND_KEEP]);
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn child_command(store: &Path) -> Outcome<Command> {
    let program = std::env::current_exe().map_err(CommandFailure::system("finding this program's file"))?;
    let mut command = Command::new(program);
    command.arg("tour-child").arg(store).arg(std::process::id().to_string());
    Ok(command)
}

/// Makes the kernel kill this child when the parent ends.
pub(crate) fn end_with_parent(parent: u32) -> Outcome {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| CommandFailure::System(format!("asking to end with the parent: {errno}")))?;
    // The parent may have ended just before.
    let is_there = rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent);
    if is_there { Ok(()) } else { Err(CommandFailure::System("the tour has ended".to_owned())) }
}
