//! Shared by the integration tests: a store in a temporary directory, other processes that run a
//! role of the same test executable, and a limit on how long a test may hang.
//!
//! A module whose tests start processes has one test `child`. It does nothing unless the
//! environment names a role; then the process plays that role. `module::role` names a role: the
//! process runs the test `module::child`, which gets the name `role`.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod device;
pub mod program;
pub mod store_files;

use rustix::process::Signal;
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_res_uid};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use untorn::{Options, Store};
pub use untorn_test_kit::HANGS;
pub use untorn_test_kit::process::Process;
pub use untorn_test_kit::processes::{exists, send, wait_until};
pub use untorn_test_kit::role::{Role, listen, say};
pub use untorn_test_kit::sealed::seed;

/// A test that takes this long counts as hanging. A test waits several times, and may build another
/// program.
const TEST_HANGS: Duration = HANGS.saturating_mul(10);

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

/// The directory of a store. Dropping it makes the store's logger leave.
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

    /// Makes the logger leave.
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

/// Starts `role` in a process of this test executable. It is named `module::role`.
pub fn spawn(role: &str, store: &Path, arguments: &[&str]) -> Process {
    spawn_by(Command::new(std::env::current_exe().unwrap()), role, store, arguments)
}

/// As [`spawn`], with a command to which only the arguments of the test executable are added.
///
/// # Panics
/// If the role names no module, or can't be started.
pub fn spawn_by(mut command: Command, role: &str, store: &Path, arguments: &[&str]) -> Process {
    let (module, name) = role.rsplit_once("::").unwrap_or_else(|| panic!("role {role} names no module"));
    command.args([&format!("{module}::child"), "--exact", "--nocapture", "--test-threads=1"]);
    Process::start(command, &Role::new(name, store, arguments))
}

/// Kills the store's logger and waits until it is gone.
pub fn kill_logger(store: &Store) {
    if let Some(pid) = store.stats().unwrap().logger_pid {
        send(pid, Signal::KILL);
        wait_until(|| !exists(pid));
    }
}

/// Copies an executable with another process. If this process made the copy, another thread that
/// forks in the meantime would have the copy open for writing, and the copy could not be executed.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
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
