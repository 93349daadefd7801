//! How a process becomes the logger: by the hook that runs before `main`, by the program
//! `untorn-logger`, or by [`run_logger`]. Also how a logger is stopped.
//!
//! The hook and `untorn-logger` daemonise. [`run_logger`] never does: it is a safe function that a
//! host calls at any time with threads and descriptors of its own, and a daemon forks and closes
//! every descriptor.
//!
//! A daemon has its own session, no descriptors but its own, default signals, and the marking
//! variables unset. Its standard output is a pipe to its starter. To that pipe it writes that it is
//! ready, or why it cannot serve.
#![allow(unsafe_code)]

use crate::Options;
use crate::environment;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::owner::Ownership;
use crate::logger::privileges;
use crate::logger::process;
use crate::logger::process::{LoggerExit, Service};
use crate::participant::options::LoggerEntry;
use crate::participant::spawner::Host;
use crate::participant::spawner::{BECOME_LOGGER, DAEMON, DAEMON_OF_INIT, FOREIGN_OWNER, NO_FORK};
use crate::participant::status;
use crate::shared::control::Control;
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

/// Reports to the starter of this process why it could not serve.
fn say(error: &Error) {
    let _ = std::io::stdout().write_all(&status::failed(error));
    let _ = std::io::stdout().flush();
}

/// Reports to the starter of this process that it serves, and closes the pipe.
fn fall_silent() {
    let _ = std::io::stdout().write_all(&status::ready());
    let _ = std::io::stdout().flush();
    let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") else { return };
    // SAFETY: both descriptors are open, and no other code of this program uses standard output.
    unsafe { libc::dup2(null.as_raw_fd(), 1) };
}

/// Serves as the logger of the store at `path`, in the foreground, until it is no longer needed or
/// is stopped. Returns at once if another logger serves.
///
/// # Errors
/// The error that prevents opening or recovery.
pub fn run_logger(path: impl AsRef<Path>) -> Result<()> {
    LoggerOptions::default().run(path)
}

/// Options of a logger that is started by hand or by a supervisor: see [`run_logger`].
///
/// If all clients pass messages, no client starts a missing logger. A supervisor then runs one that
/// stays:
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
    /// Sets how long the logger stays after the last client has left, whatever the clients request.
    /// With [`Duration::MAX`], it stays until it is stopped. Default: what the clients request
    /// ([`crate::Options::logger_idle`]).
    pub fn idle(&mut self, idle: Duration) -> &mut LoggerOptions {
        self.idle = Some(idle);
        self
    }

    /// Sets whether to create the store if there is none. Default: false.
    pub fn create(&mut self, create: bool) -> &mut LoggerOptions {
        self.create = create;
        self
    }

    /// Allows root to serve a store whose directory belongs to another user. Default: false. See
    /// [`crate::Options::foreign_owner`].
    ///
    /// The whole process then becomes one of that user, before it reads or makes anything there,
    /// and remains one. It takes uid and gid of the directory, drops all other groups and all
    /// capabilities. The caller must make sure that the environment and the open files expose
    /// nothing to that user.
    pub fn foreign_owner(&mut self, allow: bool) -> &mut LoggerOptions {
        self.foreign_owner = allow;
        self
    }

    #[doc(hidden)]
    pub fn is_foreign_owner_allowed(&self) -> bool {
        self.foreign_owner
    }

    /// Returns whether a logger of another user's store keeps the variable `name` of root's
    /// environment.
    #[doc(hidden)]
    pub fn is_for_other_user(name: &std::ffi::OsStr) -> bool {
        environment::is_for_other_user(name)
    }

    /// Serves as [`run_logger`] does. If the idle time is [`Duration::MAX`], it waits while another
    /// logger serves.
    ///
    /// # Errors
    /// Those of [`run_logger`].
    pub fn run(&self, path: impl AsRef<Path>) -> Result<()> {
        self.serve(path.as_ref(), Host::Foreground)
    }

    /// Does what [`LoggerOptions::run`] does, for the main function of `untorn-logger`. If a client
    /// started the program, it daemonises first.
    ///
    /// # Errors
    /// Those of [`run_logger`].
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
        // SAFETY: guaranteed by the caller.
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

/// Requests that the logger of the store at `path` flush, take a checkpoint and exit, and waits for
/// its exit. Returns whether a logger ran. Clients that still have the store open start another
/// when they need one.
///
/// # Errors
/// [`Error::NotFound`] if there is no store, [`Error::LoggerStalled`] if the logger does not exit
/// in time.
pub fn stop_logger(path: impl AsRef<Path>, timeout: Duration) -> Result<bool> {
    stop_logger_as(path.as_ref(), timeout, Ownership::Own)
}

/// Does what [`stop_logger`] does, also for another user's store.
pub(crate) fn stop_logger_as(path: &Path, timeout: Duration, ownership: Ownership) -> Result<bool> {
    let start = clock::now();
    let dir = Dir::open(path, false, true, ownership)?;
    let tester = dir.with_fd(|fd| Tester::open(fd, None))?;
    let mut ran = false;
    let mut first = None;
    while tester.is_held(liveness::LOGGER_OFFSET)? {
        ran = true;
        let header = crate::files::header::CheckpointHeader::read(&dir.need_file(dir::CHECKPOINT, false)?)?.0;
        // Before a logger has begun the region, it would not see the request.
        let region = crate::process::client::attach(&dir, &header)?;
        if let Some(control) = region.filter(Control::is_begun) {
            // Clients may have started another one since. After an orderly end it has a new region,
            // which counts the starts from zero.
            let starts = control.fixed().counters.logger_starts();
            let life = (control.region(), starts);
            if *first.get_or_insert(life) != life {
                return Ok(true);
            }
            let words = &control.fixed().logger;
            // Notify each time: the process that stored the request first may have died before it
            // notified.
            words.request_stop();
        }
        if clock::since(start) > timeout {
            return Err(Error::LoggerStalled { waited: clock::since(start), visible: None });
        }
        clock::sleep(Duration::from_millis(1));
    }
    Ok(ran)
}

/// What a client needs to start a logger in its own process or executable.
const LOGGER_ENTRY: LoggerEntry = LoggerEntry {
    run_in_thread,
    #[cfg(feature = "logger-hook")]
    hook: HOOK,
};

impl Default for Options {
    fn default() -> Options {
        Options::new(LOGGER_ENTRY)
    }
}

fn run_in_thread(dir: Dir, on_ready: &mut dyn FnMut()) -> Result<()> {
    process::run(dir, Service::of(Host::Thread), on_ready).map(drop)
}

// ---- the hook

/// Runs before `main` in every executable that this library is linked into.
#[cfg(feature = "logger-hook")]
#[used]
#[unsafe(link_section = ".init_array")]
static HOOK: extern "C" fn() = hook;

#[cfg(feature = "logger-hook")]
extern "C" fn hook() {
    crate::shared::memory::fork::register_handlers();
    let Some(path) = environment::variable(BECOME_LOGGER) else { return };
    // In a library that a host loads, this runs in the host.
    if !LOGGER_ENTRY.is_linked_into_executable() {
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

/// Makes a panic end the logger: without one of its threads it would hold its byte and do nothing.
/// It writes the panic to a file and dies; the next client that waits starts another logger.
fn die_of_panics(path: PathBuf) {
    std::panic::set_hook(Box::new(move |info| {
        let dir = Dir::open(&path, false, true, Ownership::Own);
        // The region may be the cause: if no client lives, the next logger makes another one.
        let _ = dir.as_ref().map(crate::files::memory_mark::clear_all);
        let note = dir.and_then(|dir| dir.create_empty_file(LAST_WORDS));
        let _ = note.map(|mut note| writeln!(note, "{info}"));
        std::process::abort();
    }));
}

/// The file in which a logger records its panic.
const LAST_WORDS: &str = "logger.panic";

/// Detaches this process from its starter: a new session, no descriptors but the standard three,
/// default signals. The first process ends, so that no process has to wait for the second.
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
            // The starter waits for the end of this process. It reports the error, and may retry.
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
        // A closed pipe, a hang-up, or a soft limit must not kill a logger.
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGXFSZ, libc::SIGXCPU] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // A limit of its starter must not stop the commits of other processes: soft limits are
        // raised to the hard ones. Each connection is an open file.
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
            // A process is killed at its hard limit of CPU time. Only root may raise that limit.
            if resource == libc::RLIMIT_CPU && libc::setrlimit(resource, &raw const none) == 0 {
                continue;
            }
            let mut limit: libc::rlimit = std::mem::zeroed();
            if libc::getrlimit(resource, &raw mut limit) == 0 {
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(resource, &raw const limit);
            }
        }
        // All clients wait for the logger. So it gets default scheduling, not the higher or lower
        // priority of the thread that started it. If the system refuses that, the logger keeps what
        // it has.
        if libc::sched_getscheduler(0) != libc::SCHED_OTHER {
            let ordinary: libc::sched_param = std::mem::zeroed();
            libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ordinary);
        }
        if libc::getpriority(libc::PRIO_PROCESS, 0) > 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        }
        // Return the memory of a large message with the message. Otherwise the C library keeps as
        // much for each thread once it has seen one such message.
        #[cfg(target_env = "gnu")]
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::umask(0o077);
        let root = c"/".as_ptr();
        let _ = libc::chdir(root);
    }
}

/// Closes all descriptors but the standard three. If a system call filter refuses `close_range`, it
/// closes each by its number.
///
/// # Safety
/// No code of this process uses a descriptor above 2 that is open now.
unsafe fn close_descriptors() {
    /// Highest number of descriptors to try if the open ones can't be listed.
    const NUMBERS_MAX: libc::rlim_t = 1 << 20;
    // A system call, because not every C library has a function for it.
    // SAFETY: guaranteed by the caller.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
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
        // SAFETY: guaranteed by the caller. The descriptor that listed them is already closed;
        // closing it again fails without effect.
        unsafe { libc::close(number) };
    }
}

impl Options {
    /// Does what [`stop_logger`](crate::logger::stop_logger) does, also for another user's store if
    /// [`foreign_owner`](Options::foreign_owner) allows it.
    ///
    /// # Errors
    /// Those of [`stop_logger`](crate::logger::stop_logger).
    pub fn stop_logger(&self, path: impl AsRef<Path>, timeout: Duration) -> Result<bool> {
        stop_logger_as(path.as_ref(), timeout, self.ownership())
    }
}
