//! Spawns the logger for a client, and reports why a spawned logger could not serve.
//!
//! The candidates for the program, in this order:
//! 1. the program named in the options or in `UNTORN_LOGGER`; if there is one, no other is tried;
//! 2. the running executable, executed again with a variable set, if this library is linked into
//!    it: a hook that runs before `main` becomes the logger and never returns (feature
//!    `logger-hook`);
//! 3. `untorn-logger` beside the executable, or on `PATH`.
//!
//! A host that loads this code as a plug-in would restart itself. So the hook counts only if it is
//! in the executable's own image.
//!
//! A client that misses the logger polls here while it waits for something else, under its own
//! timeout. So a poll never waits until a logger is ready. It spawns one if none is starting, and
//! returns the error of the last one that failed.

use crate::environment;
use crate::error::reason::{LoggerFailure, TriedProgram};
use crate::files::descriptor::Descriptor;
use crate::files::dir::Dir;
use crate::participant::engine::Engine;
use crate::participant::options::{LoggerEntry, Options};
use crate::participant::status;
use crate::shared::liveness;
use crate::shared::liveness::Tester;
use crate::shared::progress::Patience;
use crate::system::clock;
use crate::system::sync::Mutex;
use crate::system::threads;
use crate::{Error, Result};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::child_subreaper;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

/// The variable with the store's directory, for the hook.
pub(crate) const BECOME_LOGGER: &str = "UNTORN_BECOME_LOGGER";
/// The variable that makes a started program a daemon.
pub(crate) const DAEMON: &str = "UNTORN_DAEMON";
/// The variable that allows the hook a store of another user than root, which starts it.
pub(crate) const FOREIGN_OWNER: &str = "UNTORN_FOREIGN_OWNER";
/// The value of [`DAEMON`] if the daemon is its starter's child: see [`run_daemon`].
pub(crate) const DAEMON_OF_INIT: &str = "child";
/// Exit code of a daemon's first process that can't fork the second.
pub(crate) const NO_FORK: i32 = 71;
/// The variable with a program to start instead.
const PROGRAM_VARIABLE: &str = "UNTORN_LOGGER";
/// The most attempts with a program that exits without a status: it may have been killed.
const SPAWN_ATTEMPTS_MAX: u32 = 3;
/// How long a program may take to detach from its parent.
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two polls of a logger that is starting.
const STATUS_POLL_INTERVAL: Duration = Duration::from_micros(300);

/// What a logger runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Host {
    /// A process of its own, without standard error.
    Daemon,
    /// A process of its own, which prints to its standard error.
    Foreground,
    /// A thread of a process that uses the store.
    Thread,
}

/// Spawns loggers for one client.
pub(crate) struct LoggerSpawner {
    program: Option<PathBuf>,
    thread: bool,
    entry: LoggerEntry,
    /// The newest spawned logger, until its status is known. One thread of the process polls it.
    start: Mutex<Option<Spawned>>,
}

/// A logger that was spawned.
struct Spawned {
    pipe: StatusPipe,
    /// Index of the program among the candidates, and number of the attempt with it.
    program: usize,
    attempt: u32,
    /// The number of loggers that had entered `control` before; 0 if the client has no region yet.
    logger_starts: u64,
    /// The failures of the candidates before it.
    tried: Vec<TriedProgram>,
    mismatch: Option<Error>,
}

/// Whether the spawner waits until a program has detached from it, which reports more errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Detaching {
    Awaited,
    Behind,
}

/// The pipe by which a spawned logger reports its status.
enum StatusPipe {
    Process { pipe: Descriptor, output: Vec<u8> },
    Thread(Receiver<Result<()>>),
}

/// The status of a spawned logger.
enum SpawnStatus {
    /// It has reported nothing yet.
    Pending,
    /// It serves, or has served, or found that another logger serves.
    Ready,
    /// It can't serve, for this reason.
    Failed(Error),
    /// It exited without a status: it was killed, or is no logger.
    Exited,
}

impl LoggerSpawner {
    pub(crate) fn new(options: &Options) -> LoggerSpawner {
        LoggerSpawner {
            program: options.logger_program.clone(),
            thread: options.logger_thread,
            entry: options.logger_entry,
            start: Mutex::new(None),
        }
    }

    /// Spawns a logger if the store has none and none is starting. Does not wait for it: the caller
    /// polls again.
    ///
    /// # Errors
    /// The error that the last logger reported, if it could not serve; [`Error::LoggerUnavailable`]
    /// if there is no program to spawn.
    pub(crate) fn ensure(&self, engine: &Engine) -> Result<()> {
        match engine.has_logger() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // If no logger can run here at all, report that.
            Err(error) => {
                engine.dir.check_lock(engine.lock_file)?;
                return Err(error);
            }
        }
        // Another thread polls already.
        let Some(mut start) = self.start.try_lock() else { return Ok(()) };
        // A logger that has entered `control` serves before its client reads that from the pipe. If
        // it is killed in between, its program still counts as working, and the attempt as
        // successful.
        let logger_starts = engine.control.fixed().counters.logger_starts();
        if let Some(last) = start.as_mut().filter(|last| last.logger_starts != logger_starts) {
            last.attempt = 0;
        }
        self.look(&mut start, &engine.dir, logger_starts, Detaching::Awaited, &|| engine.has_logger())
    }

    /// Spawns a logger for a region that the caller has made, and does not even wait until the
    /// program has detached. What it reports is found by the next [`LoggerSpawner::ensure`].
    ///
    /// # Errors
    /// [`Error::LoggerUnavailable`] if there is no program that can be spawned.
    pub(crate) fn start_behind(&self, engine: &Engine) -> Result<()> {
        let mut start = self.start.lock();
        self.look(&mut start, &engine.dir, 0, Detaching::Behind, &|| engine.has_logger())
    }

    /// Spawns a logger as [`LoggerSpawner::ensure`] does, and waits until a logger holds its byte
    /// of `lock`, or until `patience` is over.
    ///
    /// # Errors
    /// Those of [`LoggerSpawner::ensure`].
    pub(crate) fn start(&self, dir: &Dir, tester: &Tester<'_>, patience: &mut Patience) -> Result<()> {
        let has_logger = || tester.is_held(liveness::LOGGER_OFFSET);
        let mut start = self.start.lock();
        while !has_logger()? && !patience.is_over() {
            self.look(&mut start, dir, 0, Detaching::Awaited, &has_logger)?;
            // The logger waits for the initialisation lock while another process makes progress
            // under it.
            patience.look(tester);
            clock::sleep(STATUS_POLL_INTERVAL);
        }
        Ok(())
    }

    fn look(
        &self,
        start: &mut Option<Spawned>,
        dir: &Dir,
        logger_starts: u64,
        detaching: Detaching,
        has_logger: &dyn Fn() -> Result<bool>,
    ) -> Result<()> {
        let (mut program, mut attempt, mut tried, mut mismatch) = (0, 1, Vec::new(), None);
        let commands = self.commands(dir)?;
        if let Some(mut last) = start.take() {
            let status = last.pipe.poll();
            let name = commands.get(last.program).map_or("a thread".into(), name_of);
            match status {
                SpawnStatus::Pending => {
                    *start = Some(last);
                    return Ok(());
                }
                // If the byte is free, the logger has died since.
                SpawnStatus::Ready => {}
                // A program of another version: the next candidate may fit.
                SpawnStatus::Failed(error @ (Error::Mismatch { .. } | Error::FormatVersion { .. })) => {
                    (program, tried, mismatch) = (last.program + 1, last.tried, Some(error));
                }
                SpawnStatus::Failed(error) => return Err(error),
                SpawnStatus::Exited if last.attempt < SPAWN_ATTEMPTS_MAX => {
                    (program, attempt, tried, mismatch) = (last.program, last.attempt + 1, last.tried, last.mismatch);
                }
                SpawnStatus::Exited => {
                    (program, tried, mismatch) = (last.program + 1, last.tried, last.mismatch);
                    tried.push(TriedProgram::new(name, "it ended at once"));
                }
            }
            if has_logger()? {
                return Ok(());
            }
        }
        if self.thread {
            if program > 0 {
                return Err(mismatch.unwrap_or(Error::LoggerUnavailable { reason: LoggerFailure::Programs { tried } }));
            }
            let pipe = self.start_thread(dir)?;
            *start = Some(Spawned { pipe, program, attempt, logger_starts, tried, mismatch });
            return Ok(());
        }
        for (index, mut command) in commands.into_iter().enumerate().skip(program) {
            match run_daemon(&mut command, detaching) {
                Ok(pipe) => {
                    *start = Some(Spawned { pipe, program: index, attempt, logger_starts, tried, mismatch });
                    return Ok(());
                }
                Err(error) => tried.push(TriedProgram::new(name_of(&command), error.to_string())),
            }
            attempt = 1;
        }
        if tried.is_empty() && mismatch.is_none() {
            return Err(Error::LoggerUnavailable { reason: LoggerFailure::NoProgram });
        }
        Err(mismatch.unwrap_or(Error::LoggerUnavailable { reason: LoggerFailure::Programs { tried } }))
    }

    fn start_thread(&self, dir: &Dir) -> Result<StatusPipe> {
        // A single thread can't become another user.
        if dir.is_foreign() {
            let what = "a logger that is a thread of root would serve another user's store with root's rights: \
                        Options::logger_thread and Options::foreign_owner exclude each other";
            return Err(Error::Invalid { what: what.into() });
        }
        let dir = dir.again()?;
        let (sender, receiver) = sync_channel(1);
        let run = self.entry.run_in_thread;
        threads::spawn("untorn-logger", move || {
            if let Err(error) = run(dir, &mut || drop(sender.try_send(Ok(())))) {
                let _ = sender.try_send(Err(error));
            }
        })
        .map_err(|source| Error::LoggerUnavailable { reason: LoggerFailure::Thread { error: source.to_string() } })?;
        Ok(StatusPipe::Thread(receiver))
    }

    fn commands(&self, dir: &Dir) -> Result<Vec<Command>> {
        if self.thread {
            return Ok(Vec::new());
        }
        let named = self.program.clone().or_else(|| environment::variable(PROGRAM_VARIABLE).map(PathBuf::from));
        // The path by which the store was opened may lead to another store by now.
        let path = dir.path_for_others()?;
        let external = |program: PathBuf| {
            let mut command = Command::new(program);
            command.arg(&path);
            environment::shed_caller(&mut command);
            if dir.is_foreign() {
                command.arg("--foreign-owner");
                keep_little_environment(&mut command);
            }
            command
        };
        if let Some(program) = named {
            return Ok(vec![external(program)]);
        }
        let mut commands = Vec::new();
        if self.entry.is_linked_into_executable() {
            let mut command = Command::new("/proc/self/exe");
            // The hook reads the variable only; name and argument are for `ps`.
            command.arg0("untorn-logger").arg(&path);
            environment::shed_caller(&mut command);
            if dir.is_foreign() {
                keep_little_environment(&mut command);
                command.env(FOREIGN_OWNER, "1");
            }
            command.env(BECOME_LOGGER, &path);
            commands.push(command);
        }
        // In a setuid program, the caller chooses where a hard link to the executable lies and what
        // is on `PATH`.
        if environment::is_of_caller() {
            return Ok(commands);
        }
        if let Ok(own) = std::env::current_exe() {
            let beside = own.with_file_name("untorn-logger");
            if beside.exists() {
                commands.push(external(beside));
            }
        }
        commands.push(external("untorn-logger".into()));
        Ok(commands)
    }
}

/// Reduces the environment of a logger that becomes another user to what it needs. The variables
/// that mark a spawned logger are set after this.
fn keep_little_environment(command: &mut Command) {
    command.env_clear();
    let is_kept = |name: &OsStr| !environment::is_of_caller() && environment::is_for_other_user(name);
    command.envs(std::env::vars_os().filter(|(name, _)| is_kept(name)));
}

fn name_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

impl StatusPipe {
    fn poll(&mut self) -> SpawnStatus {
        match self {
            StatusPipe::Thread(receiver) => match receiver.try_recv() {
                Ok(Ok(())) => SpawnStatus::Ready,
                Ok(Err(error)) => SpawnStatus::Failed(error),
                Err(TryRecvError::Empty) => SpawnStatus::Pending,
                Err(TryRecvError::Disconnected) => SpawnStatus::Exited,
            },
            StatusPipe::Process { pipe, output } => {
                // If the host closed the descriptor, the status is lost.
                while let Some(fd) = pipe.get() {
                    let mut bytes = [0; 512];
                    match rustix::io::read(fd, &mut bytes) {
                        Err(rustix::io::Errno::AGAIN) => return SpawnStatus::Pending,
                        Err(rustix::io::Errno::INTR) => {}
                        Ok(0) | Err(_) => break,
                        // No logger writes more than this; another program may.
                        Ok(count) if output.len() < 1 << 16 => output.extend_from_slice(&bytes[..count]),
                        Ok(_) => {}
                    }
                }
                match status::read(output) {
                    None => SpawnStatus::Exited,
                    Some(Ok(())) => SpawnStatus::Ready,
                    Some(Err(error)) => SpawnStatus::Failed(error),
                }
            }
        }
    }
}

/// Runs a command as a daemon. Its first process ends when the second lives on by itself; the
/// standard output of the second is a pipe.
///
/// An init process, or a subreaper, becomes the parent of its children's orphans. The second
/// process would become its child again, and remain a zombie when it ends if the host does not reap
/// it. In that case the first process is the logger, and a thread waits for its end. The thread
/// waits for that process alone, so the host can wait for its other children.
fn run_daemon(command: &mut Command, detaching: Detaching) -> std::io::Result<StatusPipe> {
    let adopts_orphans = std::process::id() == 1 || child_subreaper().is_ok_and(|subreaper| subreaper.is_some());
    command.env(DAEMON, if adopts_orphans { DAEMON_OF_INIT } else { "1" });
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let pipe: OwnedFd = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe"))?.into();
    fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
    let pipe = StatusPipe::Process { pipe: Descriptor::new(pipe)?, output: Vec::new() };
    if adopts_orphans {
        let wait = threads::spawn("untorn-reaper", move || child.wait());
        return wait.map(|_| pipe);
    }
    if detaching == Detaching::Behind {
        // If the program fails, the pipe ends without a status.
        let wait = threads::spawn("untorn-reaper", move || drop(wait_until_detached(&mut child)));
        return wait.map(|_| pipe);
    }
    wait_until_detached(&mut child).map(|()| pipe)
}

/// Waits until the first process of a daemon has ended.
fn wait_until_detached(child: &mut Child) -> std::io::Result<()> {
    let since = clock::now();
    loop {
        match child.try_wait() {
            Ok(None) if clock::since(since) > DETACH_TIMEOUT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(std::io::Error::other(format!(
                    "it did not become a daemon within {DETACH_TIMEOUT:?}, as untorn-logger does"
                )));
            }
            Ok(None) => clock::sleep(STATUS_POLL_INTERVAL),
            // If it was killed, the pipe shows whether the second process lives.
            Ok(Some(status)) if status.success() || status.signal().is_some() => return Ok(()),
            Ok(Some(status)) if status.code() == Some(NO_FORK) => {
                return Err(std::io::Error::other("the system lets it start no process"));
            }
            Ok(Some(status)) => return Err(std::io::Error::other(format!("{status}"))),
            // If a host ignores SIGCHLD, the kernel reaps its children.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

impl LoggerEntry {
    /// Without the hook, the executable can't become a logger.
    #[cfg(not(feature = "logger-hook"))]
    fn is_linked_into_executable(self) -> bool {
        false
    }

    /// Returns whether the hook is in the executable's image, not in a plug-in that it loaded.
    #[cfg(feature = "logger-hook")]
    pub(crate) fn is_linked_into_executable(self) -> bool {
        let hook = self.hook as usize;
        let Ok(own) = std::fs::read_link("/proc/self/exe") else { return false };
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return false };
        maps.lines().any(|line| {
            let mut fields = line.splitn(6, ' ');
            let range = fields.next().and_then(|range| range.split_once('-'));
            let Some((from, to)) = range else { return false };
            let bounds = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16));
            let (Ok(from), Ok(to)) = bounds else { return false };
            (from..to).contains(&hook) && line.trim_end().ends_with(&*own.to_string_lossy())
        })
    }
}
