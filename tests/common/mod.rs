//! Shared by the integration tests: a store in a temporary directory, other processes that run a
//! role of the same test executable, and a limit on how long a test may hang.
//!
//! A module whose tests start processes has one test `child`. It does nothing unless the
//! environment names a role; then the process plays that role. `module::role` names a role: the
//! process runs the test `module::child`, which gets the name `role`. A role sends lines to its
//! parent, each with a single write, so that a kill leaves no partial line.
#![allow(dead_code, unreachable_pub)]

pub mod device;
pub mod program;
pub mod store_files;

use rustix::process::Signal;
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_res_uid};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use untorn::{Options, Store};
pub use untorn_test_kit::HANGS;
pub use untorn_test_kit::processes::{exists, send, wait_until};

const ROLE: &str = "UNTORN_TEST_ROLE";
const STORE: &str = "UNTORN_TEST_STORE";
const ARGUMENTS: &str = "UNTORN_TEST_ARGUMENTS";
/// Precedes each line of a role; the test harness writes to the same stream.
const MARK: &str = "@@ ";

/// A test that lasts this long hangs. A test waits several times, and may build another program.
const TEST_HANGS: Duration = HANGS.saturating_mul(4);

/// Ends the whole test process if the test hangs, and names the test.
pub struct Limit(std::sync::mpsc::Sender<()>);

pub fn limit() -> Limit {
    let (alive, ended) = std::sync::mpsc::channel::<()>();
    let name = std::thread::current().name().unwrap_or("?").to_string();
    std::thread::spawn(move || {
        if ended.recv_timeout(TEST_HANGS) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name} has not ended within {TEST_HANGS:?}");
            std::process::abort();
        }
    });
    Limit(alive)
}

/// The directory of a store. When it is dropped, the store's logger has left.
pub struct TestStore {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
}

impl TestStore {
    pub fn new() -> TestStore {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        TestStore { _dir: dir, path }
    }

    pub fn open(&self) -> Store {
        self.open_with(|_| {})
    }

    pub fn open_with(&self, set: impl FnOnce(&mut Options)) -> Store {
        let mut options = Store::options();
        set(&mut options);
        options.open(&self.path).unwrap()
    }

    /// Has the logger leave.
    pub fn stop_logger(&self) {
        Store::options().foreign_owner(true).stop_logger(&self.path, HANGS).unwrap();
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        if let Err(error) = Store::options().foreign_owner(true).stop_logger(&self.path, Duration::from_secs(20))
            && !std::thread::panicking()
            && self.path.exists()
        {
            eprintln!("the logger did not leave: {error}");
        }
    }
}

/// Splits `module::role` into the name of a test of that module and the name of the role.
///
/// # Panics
/// If the role names no module.
pub fn role_test<'a>(role: &'a str, test: &str) -> (String, &'a str) {
    let (module, name) = role.rsplit_once("::").unwrap_or_else(|| panic!("role {role} names no module"));
    (format!("{module}::{test}"), name)
}

/// What a process writes to its standard error: shown if its test fails, else dropped.
///
/// It goes to a file. A logger that outlives its starter keeps it open; a pipe would break then.
pub struct Complaints(std::fs::File);

impl Complaints {
    /// Takes them from the process that `command` starts.
    pub fn of(command: &mut Command) -> Complaints {
        let file = tempfile::tempfile().unwrap();
        command.stderr(file.try_clone().unwrap());
        Complaints(file)
    }

    /// Shows them if the calling test is about to fail.
    pub fn show_on_failure(&self, role: &str, pid: u32) {
        if !std::thread::panicking() {
            return;
        }
        let mut bytes = vec![0; self.0.metadata().map_or(0, |file| file.len() as usize)];
        if self.0.read_exact_at(&mut bytes, 0).is_ok() && !bytes.is_empty() {
            eprintln!("{role} {pid} wrote to its standard error:\n{}", String::from_utf8_lossy(&bytes));
        }
    }
}

/// Another process, in a role of this test executable. Killed when dropped.
pub struct Child {
    process: std::process::Child,
    lines: Receiver<String>,
    role: String,
    complaints: Complaints,
}

impl Child {
    /// Starts `role`, which is named `module::role`.
    pub fn spawn(role: &str, store: &Path, arguments: &[&str]) -> Child {
        Child::start(Command::new(std::env::current_exe().unwrap()), role, store, arguments)
    }

    /// As [`Child::spawn`], by a command that lacks nothing but the arguments of the test
    /// executable.
    pub fn start(mut command: Command, role: &str, store: &Path, arguments: &[&str]) -> Child {
        let (test, name) = role_test(role, "child");
        let complaints = Complaints::of(&mut command);
        let mut process = command
            .args([&test, "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, name)
            .env(STORE, store)
            .env(ARGUMENTS, arguments.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { return };
                if let Some((_, said)) = line.split_once(MARK)
                    && sender.send(said.to_string()).is_err()
                {
                    return;
                }
            }
        });
        Child { process, lines, role: role.to_string(), complaints }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next line of the process.
    pub fn hear(&self) -> String {
        match self.lines.recv_timeout(HANGS) {
            Ok(line) => line,
            Err(error) => panic!("{} {}: {error}", self.role, self.pid()),
        }
    }

    /// Requires that the next line of the process is `said`.
    pub fn expect(&self, said: &str) {
        assert_eq!(self.hear(), said, "{} {}", self.role, self.pid());
    }

    /// The lines that have arrived and were not yet taken.
    pub fn heard(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Sends the process a line: see [`listen`].
    pub fn tell(&mut self, line: &str) {
        let _ = writeln!(self.process.stdin.as_mut().unwrap(), "{line}");
    }

    /// Sends a line to the process and returns the line that it answers.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Kills the process; returns all its lines that were not yet taken.
    pub fn kill(&mut self) -> Vec<String> {
        let _ = self.process.kill();
        self.process.wait().unwrap();
        self.lines.iter().collect()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits until the process exits, which must be with success; returns the remaining lines.
    pub fn finish(mut self) -> Vec<String> {
        drop(self.process.stdin.take());
        let said = self.lines.iter().collect::<Vec<_>>();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{} {}: {status}, {said:?}", self.role, self.pid());
        said
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.complaints.show_on_failure(&self.role, self.pid());
    }
}

/// What a process was started for.
pub struct Role {
    pub name: String,
    pub store: PathBuf,
    pub arguments: Vec<String>,
}

impl Role {
    /// The role that this process is to play, if it is not the test itself.
    pub fn of_this_process() -> Option<Role> {
        let name = std::env::var(ROLE).ok()?;
        // The process dies with the test, however the test ends.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        let store = std::env::var_os(STORE).unwrap().into();
        let arguments = std::env::var(ARGUMENTS).unwrap();
        let arguments = arguments.split('\n').map(str::to_string).collect();
        Some(Role { name, store, arguments })
    }

    pub fn number(&self, index: usize) -> u64 {
        self.arguments[index].parse().unwrap()
    }
}

/// Sends a line to the parent.
pub fn say(line: impl std::fmt::Display) {
    let line = format!("{MARK}{line}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

/// Waits for the parent's next line; `None` when there will be nothing more.
pub fn listen() -> Option<String> {
    let mut line = String::new();
    (std::io::stdin().read_line(&mut line).unwrap() > 0).then(|| line.trim_end().to_string())
}

/// Kills the store's logger and waits until it is gone.
pub fn kill_logger(store: &Store) {
    if let Some(pid) = store.stats().unwrap().logger_pid {
        send(pid, Signal::KILL);
        wait_until(|| !exists(pid));
    }
}

/// Copies an executable. Not by this process: another thread that forks meanwhile would have the
/// copy open for writing, and it could not be run.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// The seed of a random test: `UNTORN_SEED`, else a new one. Printed, so that a failure shows how
/// to replay it.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("UNTORN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random::<u64>);
    eprintln!("replay: UNTORN_SEED={seed} cargo test {test}");
    seed
}

#[track_caller]
pub fn assert_clean(store: &Store) {
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// Calls `act` in a thread that has the uid and gid `uid`, and no other groups. Needs root.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| {
            let id = rustix::process::Uid::from_raw(uid);
            set_thread_groups(&[]).unwrap();
            set_thread_gid(rustix::process::Gid::from_raw(uid)).unwrap();
            set_thread_res_uid(id, id, id).unwrap();
            act()
        });
        acting.join().unwrap()
    })
}

/// The error that a server's reply reports, or `None` if it is another reply.
pub fn error_in(reply: &[u8]) -> Option<untorn::Error> {
    match untorn_wal::wire::decode(reply) {
        Ok(untorn_wal::wire::Reply::Failed(failure)) => untorn::internals::decode_error(failure.error).ok(),
        _ => None,
    }
}
