//! How a process becomes the logger: by the hook that runs before `main`, by the program
//! `untorn-logger`, or by [`run_logger`]; and how a logger is told to leave.
//!
//! The hook and `untorn-logger` daemonise. [`run_logger`] never does: it is a safe function that a
//! host calls at any time with threads and descriptors of its own, and a daemon forks and closes
//! every descriptor.
//!
//! A daemon has a session of its own, no descriptors but its own, default signals, and the marking
//! variables unset. Its standard output is a pipe to its starter. It writes there that it is ready,
//! or why it cannot serve.
#![allow(unsafe_code)]

use crate::Options;
use crate::environment;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::owner::Ownership;
use crate::logger::privileges;
use crate::logger::process;
use crate::logger::process::{LoggerExit, Service};
use crate::participant::spawner::Host;
use crate::participant::spawner::{BECOME_LOGGER, DAEMON, DAEMON_OF_INIT, FOREIGN_OWNER, NO_FORK};
use crate::participant::status;
use crate::shared::liveness;
use crate::shared::liveness::Tester;
use crate::shared::progress::Patience;
use crate::system::clock;
use crate::{Error, Result};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Tells whoever started this process why it could not serve.
fn say(error: &Error) {
    let _ = std::io::stdout().write_all(&status::failed(error));
    let _ = std::io::stdout().flush();
}

/// Tells whoever started this process that it serves, and closes the pipe: there is nothing more to
/// say.
fn fall_silent() {
    let _ = std::io::stdout().write_all(&status::ready());
    let _ = std::io::stdout().flush();
    let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") else { return };
    // SAFETY: both descriptors are open, and replacing standard output is this program's own
    // affair.
    unsafe { libc::dup2(null.as_raw_fd(), 1) };
}

/// Serves as the logger of the store at `path`, in the foreground, until it is no longer needed or
/// told to leave. Returns at once if another logger serves.
///
/// # Errors
/// What stands in the way of recovery or of opening.
pub fn run_logger(path: impl AsRef<Path>) -> Result<()> {
    LoggerOptions::default().run(path)
}

/// How a logger serves that is run by hand or by a supervisor: see [`run_logger`].
///
/// Where all clients pass messages, nobody starts a logger when one is missing. There a supervisor
/// runs one that stays:
///
/// ```no_run
/// untorn::logger::LoggerOptions::default().create(true).idle(std::time::Duration::MAX).run("data")?;
/// # Ok::<(), untorn::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoggerOptions {
    idle: Option<Duration>,
    create: bool,
    foreign_owner: bool,
}

impl LoggerOptions {
    /// How long it stays when the last client has left, whatever clients say; [`Duration::MAX`]:
    /// until it is told to leave. Default: what clients say ([`crate::Options::logger_idle`]).
    pub fn idle(&mut self, idle: Duration) -> &mut LoggerOptions {
        self.idle = Some(idle);
        self
    }

    /// Whether to create the store if there is none. Default: false.
    pub fn create(&mut self, create: bool) -> &mut LoggerOptions {
        self.create = create;
        self
    }

    /// Lets root serve a store whose directory belongs to another user. Default: false. See
    /// [`crate::Options::foreign_owner`].
    ///
    /// The whole process then becomes one of that user before it reads or makes anything there, and
    /// stays that: uid and gid of the directory, no other groups, no capabilities. Its environment
    /// and its open files are the caller's to choose: the owner is not to see anything by them.
    pub fn foreign_owner(&mut self, allow: bool) -> &mut LoggerOptions {
        self.foreign_owner = allow;
        self
    }

    #[doc(hidden)]
    pub fn is_foreign_owner_allowed(&self) -> bool {
        self.foreign_owner
    }

    /// Whether a logger of another user's store keeps the variable `name` of root's environment.
    #[doc(hidden)]
    pub fn is_for_other_user(name: &std::ffi::OsStr) -> bool {
        environment::is_for_other_user(name)
    }

    /// Serves as [`run_logger`] does. One that is to stay for ever waits while another logger
    /// serves.
    ///
    /// # Errors
    /// As [`run_logger`].
    pub fn run(&self, path: impl AsRef<Path>) -> Result<()> {
        self.serve(path.as_ref(), Host::Foreground)
    }

    /// As [`LoggerOptions::run`], for the main function of `untorn-logger`: daemonises first if the
    /// program was started by a client.
    ///
    /// # Errors
    /// As [`run_logger`].
    ///
    /// # Safety
    /// The process has one thread, and no code of it uses a descriptor above 2 that is open now, or
    /// the variables that mark a started logger.
    #[doc(hidden)]
    #[allow(unsafe_code)]
    pub unsafe fn run_as_program(&self, path: impl AsRef<Path>) -> Result<()> {
        if environment::variable(DAEMON).is_none() {
            return self.run(path);
        }
        // SAFETY: the caller's promise.
        unsafe { become_daemon() };
        self.serve(path.as_ref(), Host::Daemon).inspect_err(say)
    }

    fn serve(&self, path: &Path, host: Host) -> Result<()> {
        let daemon = host == Host::Daemon;
        let service = Service { stay: self.idle, host };
        loop {
            let ownership = if self.foreign_owner { Ownership::Foreign } else { Ownership::Own };
            let dir = Dir::open(path, self.create, !self.create, ownership)?;
            privileges::become_owner(&dir)?;
            if daemon {
                die_of_panics(path.into());
            }
            if self.create {
                dir.ensure_lock_file()?;
                let mut patience = Patience::new(process::INIT_TIMEOUT);
                let init = crate::process::client::lock_init(&dir, &mut patience, &Arc::default())?;
                crate::process::create::ensure_store(&dir, &crate::Options::default().geometry()?, &init)?;
            }
            let ended = process::run(dir, service, || {
                if daemon {
                    fall_silent();
                }
            })?;
            if ended == LoggerExit::Left || daemon || self.idle != Some(Duration::MAX) {
                return Ok(());
            }
            clock::sleep(Duration::from_millis(200));
        }
    }
}

/// Tells the logger of the store at `path` to flush, checkpoint and leave, and waits until it has.
/// Says whether one ran. Clients that still have the store open start another when they need one.
///
/// # Errors
/// [`Error::NotFound`] if there is no store, [`Error::LoggerStalled`] if it does not leave in time.
pub fn stop_logger(path: impl AsRef<Path>, timeout: Duration) -> Result<bool> {
    stop_logger_as(path.as_ref(), timeout, Ownership::Own)
}

/// As [`stop_logger`], also of another user's store.
pub(crate) fn stop_logger_as(path: &Path, timeout: Duration, ownership: Ownership) -> Result<bool> {
    let start = clock::now();
    let dir = Dir::open(path, false, true, ownership)?;
    let tester = dir.with_fd(|fd| Tester::open(fd, None))?;
    let mut ran = false;
    let mut first = None;
    while tester.is_held(liveness::LOGGER_OFFSET)? {
        ran = true;
        let header = crate::files::header::CheckpointHeader::read(&dir.need_file(dir::CHECKPOINT, false)?)?.0;
        if let Some(control) = crate::process::client::attach(&dir, &header)? {
            // Clients may have started another one since. After an orderly end it has a region of
            // its own, in which the starts are counted anew.
            let starts = control.fixed().counters.logger_starts();
            let life = (control.region(), starts);
            if *first.get_or_insert(life) != life {
                return Ok(true);
            }
            let words = &control.fixed().logger;
            // Each time: the process that stored it first may have died before it notified.
            words.request_stop();
        }
        if clock::since(start) > timeout {
            return Err(Error::LoggerStalled { waited: clock::since(start), visible: None });
        }
        clock::sleep(Duration::from_millis(1));
    }
    Ok(ran)
}

// ---- the hook

/// Runs before `main` in every executable that this library is linked into.
#[cfg(feature = "logger-hook")]
#[used]
#[unsafe(link_section = ".init_array")]
pub(crate) static HOOK: extern "C" fn() = hook;

#[cfg(feature = "logger-hook")]
extern "C" fn hook() {
    crate::shared::memory::fork::register_handlers();
    let Some(path) = environment::variable(BECOME_LOGGER) else { return };
    // In a library that a host loads, this runs in the host.
    if !crate::participant::spawner::is_linked_into_executable() {
        return;
    }
    // A panic must not unwind into the loader.
    let code = std::panic::catch_unwind(|| become_logger(&path)).unwrap_or(70);
    std::process::exit(code);
}

#[cfg(feature = "logger-hook")]
fn become_logger(path: &std::ffi::OsStr) -> i32 {
    let ownership = if environment::variable(FOREIGN_OWNER).is_some() { Ownership::Foreign } else { Ownership::Own };
    // SAFETY: this runs before `main` in the executable itself, so the process has one thread, and
    // none of its code has opened anything yet.
    unsafe { become_daemon() };
    let served = Dir::open(Path::new(path), false, true, ownership).and_then(|dir| {
        privileges::become_owner(&dir)?;
        die_of_panics(PathBuf::from(path));
        process::run(dir, Service::of(Host::Daemon), fall_silent)
    });
    match served {
        Ok(_) => 0,
        Err(error) => {
            say(&error);
            3
        }
    }
}

/// A logger without one of its threads would hold its byte and do nothing. It leaves a note and
/// dies instead; the next client that waits starts another.
fn die_of_panics(path: PathBuf) {
    std::panic::set_hook(Box::new(move |info| {
        let note = Dir::open(&path, false, true, Ownership::Own).and_then(|dir| dir.make_file(LAST_WORDS));
        let _ = note.map(|mut note| writeln!(note, "{info}"));
        std::process::abort();
    }));
}

/// Where a logger that panics says so.
const LAST_WORDS: &str = "logger.panic";

/// Leaves the process that started this one: a new session, no descriptors but the standard three,
/// default signals, and a first process that ends, so that nobody has to wait for the second.
///
/// # Safety
/// The process has one thread, and no code of it uses a descriptor above 2 that is open now, or the
/// marking variables.
unsafe fn become_daemon() {
    // SAFETY: no other thread reads the environment or holds a lock across the fork, and the
    // descriptors that are closed are used by nothing: both are the caller's promise.
    unsafe {
        let is_child_of_init = environment::variable(DAEMON).is_some_and(|value| value == DAEMON_OF_INIT);
        std::env::remove_var(BECOME_LOGGER);
        std::env::remove_var(DAEMON);
        std::env::remove_var(FOREIGN_OWNER);
        match if is_child_of_init { 0 } else { libc::fork() } {
            0 => {}
            // Whoever started this waits for its end. It says why, and may try again.
            -1 => libc::_exit(NO_FORK),
            _ => libc::_exit(0),
        }
        libc::setsid();
        close_descriptors();
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // A logger must not die of a closed pipe, of a hang-up, or of a soft limit.
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGXFSZ, libc::SIGXCPU] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // What its starter may not write, the logger of others' commits may: soft limits go up to
        // the hard ones. Each connection is an open file.
        let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        let resources = [
            libc::RLIMIT_FSIZE,
            libc::RLIMIT_NOFILE,
            libc::RLIMIT_CPU,
            libc::RLIMIT_AS,
            libc::RLIMIT_DATA,
            libc::RLIMIT_NPROC,
        ];
        for resource in resources {
            // At its hard limit of CPU time a process is killed. Root, and no other, may lift that.
            if resource == libc::RLIMIT_CPU && libc::setrlimit(resource, &raw const none) == 0 {
                continue;
            }
            let mut limit: libc::rlimit = std::mem::zeroed();
            if libc::getrlimit(resource, &raw mut limit) == 0 {
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(resource, &raw const limit);
            }
        }
        // All clients wait for the logger, so it runs neither after everything else nor before it,
        // as the thread that started it may. Where the system refuses that, the logger keeps what
        // it has.
        if libc::sched_getscheduler(0) != libc::SCHED_OTHER {
            let ordinary: libc::sched_param = std::mem::zeroed();
            libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ordinary);
        }
        if libc::getpriority(libc::PRIO_PROCESS, 0) > 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        }
        // Memory of a large message goes back with the message. Else the C library, once it has
        // seen one, keeps as much for each thread.
        #[cfg(target_env = "gnu")]
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::umask(0o077);
        let root = c"/".as_ptr();
        let _ = libc::chdir(root);
    }
}

/// Closes all descriptors but the standard three. A system call filter may refuse `close_range`;
/// then each is closed by its number.
///
/// # Safety
/// No code of this process uses a descriptor above 2 that is open now.
unsafe fn close_descriptors() {
    /// More numbers than this are not tried where nothing lists the open ones.
    const NUMBERS_MAX: libc::rlim_t = 1 << 20;
    // SAFETY: the caller's promise.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    let listed = std::fs::read_dir("/proc/self/fd").map(|numbers| {
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
        numbers.flatten().filter_map(number).collect::<Vec<i32>>()
    });
    let numbers = listed.unwrap_or_else(|_| {
        let mut limit = libc::rlimit { rlim_cur: NUMBERS_MAX, rlim_max: NUMBERS_MAX };
        // SAFETY: the call writes into a value on this stack.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
        (3..limit.rlim_max.min(NUMBERS_MAX) as i32).collect()
    });
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // SAFETY: the caller's promise. The directory that listed them is closed already, which is
        // an error without effect.
        unsafe { libc::close(number) };
    }
}

impl Options {
    /// As [`stop_logger`](crate::logger::stop_logger), also of another user's store if
    /// [`foreign_owner`](Options::foreign_owner) allows.
    ///
    /// # Errors
    /// As [`stop_logger`](crate::logger::stop_logger).
    pub fn stop_logger(&self, path: impl AsRef<Path>, timeout: Duration) -> Result<bool> {
        stop_logger_as(path.as_ref(), timeout, self.ownership())
    }
}
