//! How a client starts the logger.
//!
//! The program is the one named in the options or in `UNTORN_LOGGER`; else the running executable itself,
//! executed again with a variable set, if this library is linked into it: a hook that runs before `main`
//! becomes the logger and never returns; else `untorn-logger` beside it or on `PATH`. A host that loads this
//! code as a plug-in would restart itself, so the hook counts only in the executable's own image.
//!
//! The logger is a daemon: a new session, no descriptors but its own, default signals, the variable unset.
#![allow(unsafe_code)]

use super::process;
use crate::dir::{self, Dir};
use crate::engine::Engine;
use crate::options::Options;
use crate::shm::liveness::{self, Tester};
use crate::{Error, Result};
use parking_lot::Mutex;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the store's directory for the hook.
const VARIABLE: &str = "UNTORN_BECOME_LOGGER";
/// Names a program to start instead.
const PROGRAM: &str = "UNTORN_LOGGER";

/// Starts loggers for one client.
pub(crate) struct Keeper {
    program: Option<PathBuf>,
    thread: bool,
    any_file_system: bool,
    /// One thread of the process starts a logger at a time; the others wait for it.
    starting: Mutex<()>,
}

impl Keeper {
    pub(crate) fn new(_dir: &Dir, options: &Options) -> Keeper {
        Keeper {
            program: options.logger_program.clone(),
            thread: options.logger_thread,
            any_file_system: options.any_file_system,
            starting: Mutex::new(()),
        }
    }

    /// Starts a logger if the store's byte is free, and returns when it has the byte.
    pub(crate) fn ensure(&self, engine: &Engine) -> Result<()> {
        if engine.has_logger() {
            return Ok(());
        }
        let tester = engine.dir.with_fd(|fd| Tester::open(fd, Some(engine.lock_file)))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        self.start(&engine.dir, &tester, deadline, Until::ByteTaken)
    }

    /// Starts a logger if the store's byte is free, and waits for it. A logger that finds another one to
    /// have the byte ends, which is as good.
    ///
    /// # Errors
    /// What the logger met if it could not start, as it says itself; [`Error::LoggerUnavailable`] if there
    /// is no program to start.
    pub(crate) fn start(&self, dir: &Dir, tester: &Tester, deadline: Instant, until: Until) -> Result<()> {
        let _starting = self.starting.lock();
        if tester.is_held(liveness::LOGGER_OFFSET) {
            return Ok(());
        }
        if self.thread {
            return self.start_thread(dir, deadline);
        }
        let mut tried = Vec::new();
        for mut command in self.commands(dir) {
            let name = command.get_program().to_string_lossy().into_owned();
            for attempt in 1..=ATTEMPTS {
                let heard = match run_daemon(&mut command) {
                    Ok(said) => listen(said, tester, deadline, until),
                    Err(error) => Heard::Ended(Some(error.to_string())),
                };
                match heard {
                    Heard::Lives => return Ok(()),
                    Heard::Failed(error) => return Err(error),
                    Heard::Ended(Some(reason)) => {
                        tried.push(format!("{name}: {reason}"));
                        break;
                    }
                    // Killed, or no logger at all.
                    Heard::Ended(None) if attempt == ATTEMPTS => tried.push(format!("{name} ended at once")),
                    Heard::Ended(None) => {}
                }
            }
        }
        Err(Error::LoggerUnavailable { reason: tried.join("; ") })
    }

    fn start_thread(&self, dir: &Dir, deadline: Instant) -> Result<()> {
        let dir = Dir::open(dir.path(), false, self.any_file_system)?;
        let (say, said) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("untorn-logger".into())
            .spawn(move || {
                let ended = process::run(dir, || drop(say.try_send(Ok(()))));
                let _ = say.try_send(ended.map(|_| ()));
            })
            .map_err(|source| Error::LoggerUnavailable { reason: format!("thread: {source}") })?;
        // A thread that says nothing in time is waited for in the caller's way.
        said.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or(Ok(()))
    }

    fn commands(&self, dir: &Dir) -> Vec<Command> {
        let named = self.program.clone().or_else(|| std::env::var_os(PROGRAM).map(PathBuf::from));
        let external = |program: PathBuf| {
            let mut command = Command::new(program);
            command.arg(dir.path());
            command
        };
        if let Some(program) = named {
            return vec![external(program)];
        }
        let mut commands = Vec::new();
        if is_linked_into_executable() {
            let mut command = Command::new("/proc/self/exe");
            command.env(VARIABLE, dir.path());
            commands.push(command);
        }
        if let Ok(own) = std::env::current_exe() {
            let beside = own.with_file_name("untorn-logger");
            if beside.exists() {
                commands.push(external(beside));
            }
        }
        commands.push(external("untorn-logger".into()));
        commands
    }
}

/// What a starter waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Until {
    /// The logger has its byte: it lives, and others know.
    ByteTaken,
    /// The logger serves, or has ended.
    Ready,
}

/// Runs a command as a daemon: its first process ends when the second lives on by itself. What that says on
/// its standard output, until it is ready, comes through the pipe.
fn run_daemon(command: &mut Command) -> std::io::Result<ChildStdout> {
    command.env(DAEMON, "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let said = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
    match child.wait() {
        Ok(status) if status.success() => Ok(said),
        Ok(status) if status.code() == Some(NO_FORK) => Err(std::io::Error::other("the system lets it start no process")),
        Ok(status) => Err(std::io::Error::other(format!("{status}"))),
        // A host that ignores SIGCHLD has its children reaped by the kernel.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(said),
        Err(error) => Err(error),
    }
}

/// Exit code of a daemon's first process that can't fork the second.
const NO_FORK: i32 = 71;

/// Asks a started program to become a daemon.
const DAEMON: &str = "UNTORN_DAEMON";

/// How often a program is started that ends without a word: somebody may have killed it.
const ATTEMPTS: u32 = 3;

/// What was heard of a started logger.
enum Heard {
    /// It serves, another one does, or nothing is known yet.
    Lives,
    /// It can't serve.
    Failed(Error),
    /// It is gone, or never was; perhaps with a reason.
    Ended(Option<String>),
}

/// Hears the started logger out: it closes its end of the pipe when it is ready, and says there why it can't be.
fn listen(mut said: ChildStdout, tester: &Tester, deadline: Instant, until: Until) -> Heard {
    let mut words = Vec::new();
    let mut nap = 1;
    loop {
        let mut poll = libc::pollfd { fd: said.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid structure, which the call may write; the descriptor is open.
        let ready = unsafe { libc::poll(&raw mut poll, 1, nap) };
        if ready > 0 {
            let mut bytes = [0; 512];
            match said.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => words.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        } else {
            let taken = until == Until::ByteTaken && tester.is_held(liveness::LOGGER_OFFSET);
            if taken || Instant::now() >= deadline {
                return Heard::Lives;
            }
            nap = (nap * 2).min(20);
        }
        if words.len() > 1 << 16 {
            break;
        }
    }
    match Error::from_words(&String::from_utf8_lossy(&words)) {
        Some(error) => Heard::Failed(error),
        None if tester.is_held(liveness::LOGGER_OFFSET) => Heard::Lives,
        None => Heard::Ended(None),
    }
}

/// Tells whoever started this process why it could not serve.
fn say(error: &Error) {
    let _ = std::io::stdout().write_all(error.to_words().as_bytes());
    let _ = std::io::stdout().flush();
}

/// Closes the pipe to whoever started this process: from now on there is nothing more to say.
fn fall_silent() {
    let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") else { return };
    // SAFETY: both descriptors are open, and replacing standard output is this program's own affair.
    unsafe { libc::dup2(null.as_raw_fd(), 1) };
}

/// Serves as the logger of the store at `path`, in the foreground, until it is no longer needed or told
/// to leave. Returns at once if another logger serves.
///
/// # Errors
/// What stands in the way of recovery or of opening.
pub fn run_logger(path: impl AsRef<Path>) -> Result<()> {
    let daemon = std::env::var_os(DAEMON).is_some();
    if daemon {
        become_daemon();
    }
    let ended = Dir::open(path.as_ref(), false, true).and_then(|dir| {
        process::run(dir, || {
            if daemon {
                fall_silent();
            }
        })
    });
    if let (true, Err(error)) = (daemon, &ended) {
        say(error);
    }
    ended.map(|_| ())
}

/// Tells the logger of the store at `path` to flush, checkpoint and leave, and waits until it has. Says
/// whether one ran. Clients that still have the store open start another when they need one.
///
/// # Errors
/// [`Error::NotFound`] if there is no store, [`Error::LoggerStalled`] if it does not leave in time.
pub fn stop_logger(path: impl AsRef<Path>, timeout: Duration) -> Result<bool> {
    let start = Instant::now();
    let dir = Dir::open(path.as_ref(), false, true)?;
    let tester = dir.with_fd(|fd| Tester::open(fd, None))?;
    let mut ran = false;
    let mut first = None;
    while tester.is_held(liveness::LOGGER_OFFSET) {
        ran = true;
        let header = crate::header::Header::read(&dir.need_file(dir::CHECKPOINT, false)?)?.0;
        if let Some(control) = crate::client::attach(&dir, &header)? {
            // Clients may have started another one since.
            let starts = control.fixed().counters.logger_starts.load(std::sync::atomic::Ordering::Acquire);
            if *first.get_or_insert(starts) != starts {
                return Ok(true);
            }
            control.fixed().logger.stop.store(1, std::sync::atomic::Ordering::SeqCst);
        }
        if start.elapsed() > timeout {
            return Err(Error::LoggerStalled { waited: start.elapsed() });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(ran)
}

// ---- the hook

/// Runs before `main` in every executable that this library is linked into.
#[used]
#[unsafe(link_section = ".init_array")]
static HOOK: extern "C" fn() = hook;

extern "C" fn hook() {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    // A panic must not unwind into the loader.
    let code = std::panic::catch_unwind(|| become_logger(&path)).unwrap_or(70);
    std::process::exit(code);
}

fn become_logger(path: &OsString) -> i32 {
    become_daemon();
    die_of_panics(Path::new(path).join(LAST_WORDS));
    match Dir::open(Path::new(path), false, true).and_then(|dir| process::run(dir, fall_silent)) {
        Ok(_) => 0,
        Err(error) => {
            say(&error);
            3
        }
    }
}

/// A logger without one of its threads would hold its byte and do nothing. It leaves a note and dies instead;
/// the next client that waits starts another.
fn die_of_panics(note: PathBuf) {
    std::panic::set_hook(Box::new(move |info| {
        let _ = std::fs::write(&note, format!("{info}\n"));
        std::process::abort();
    }));
}

/// Where a logger that panics says so.
const LAST_WORDS: &str = "logger.panic";

/// Whether the hook lies in the executable's image, not in a plug-in that it loaded.
fn is_linked_into_executable() -> bool {
    let hook = HOOK as usize;
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

/// Leaves the process that started this one: a new session, no descriptors but the standard three, default
/// signals, and a first process that ends, so that nobody has to wait for the second.
fn become_daemon() {
    // SAFETY: called before `main`, or at the start of a program whose one thread this is; no other
    // thread reads the environment or holds a lock across the fork.
    unsafe {
        std::env::remove_var(VARIABLE);
        std::env::remove_var(DAEMON);
        match libc::fork() {
            0 => {}
            // Whoever started this waits for its end. It says why, and may try again.
            -1 => libc::_exit(NO_FORK),
            _ => libc::_exit(0),
        }
        libc::setsid();
        libc::close_range(3, libc::c_uint::MAX, 0);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // A logger must not die of a closed pipe, of a hang-up, or of a file-size limit.
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGXFSZ] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // What its starter may not write, the logger of others' commits may: soft limits go up to the hard ones.
        let mut limit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
        }
        libc::umask(0o077);
        let root = c"/".as_ptr();
        let _ = libc::chdir(root);
    }
}
