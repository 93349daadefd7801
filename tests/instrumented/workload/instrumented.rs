//! Processes that a test can kill, stop or hold at any named point: this test executable, built
//! once more with crash points and planted bugs; and hold points, at which such processes wait.
#![allow(dead_code, unreachable_pub)]

use super::Role;
use crate::common::program::instrumented as build;
use crate::common::{Limit, TestStore, limit, wait_until};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use untorn_test_kit::loggers::kill_loggers;

/// Returns the instrumented build of this test executable. The first call builds it; other threads
/// wait for that.
///
/// # Panics
/// If it cannot be built.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(|| build("instrumented")) {
        Ok(path) => path,
        Err(error) => panic!("building the instrumented tests: {error}"),
    }
}

/// The limit of a test that begins once the instrumented build is there.
pub(crate) fn limit_after_build() -> Limit {
    program();
    limit()
}

/// The logger of a store, if one lives.
pub(crate) fn logger_of(path: &Path) -> Option<i32> {
    let store = untorn::Store::options().read_only(true).create(false).open(path).ok()?;
    store.stats().unwrap().logger_pid.map(|pid| pid as i32)
}

/// Sends a signal to a process that the test started, or its store's clients did: see
/// [`crate::common::send`].
pub(crate) fn signal(pid: i32, signal: i32) {
    let signal = rustix::process::Signal::from_named_raw(signal).expect("a signal");
    crate::common::send(pid as u32, signal);
}

/// A point at which processes wait while it is armed.
///
/// A process under the order [`HoldPoint::at`] passes it while it is not armed.
pub(crate) struct HoldPoint {
    path: PathBuf,
}

impl HoldPoint {
    /// A hold point that the file `path` represents. It is not armed.
    pub(crate) fn new(path: PathBuf) -> HoldPoint {
        let hold = HoldPoint { path };
        hold.release();
        hold
    }

    /// The order that holds a process at the crash point `point` while this is armed.
    pub(crate) fn at(&self, point: &str) -> String {
        format!("{point}@0:hold={}", self.path.display())
    }

    /// Disarms the point: the processes that it holds continue.
    pub(crate) fn release(&self) {
        std::fs::write(&self.path, "").unwrap();
    }

    /// Holds each process that arrives from now on.
    pub(crate) fn arm(&self) {
        let _ = std::fs::remove_file(&self.path);
        // A held process creates this file whenever it is missing, so an older one can be removed.
        let _ = std::fs::remove_file(self.path.with_extension("reached"));
    }

    /// Waits until a process is held.
    #[track_caller]
    pub(crate) fn wait(&self) {
        wait_until(|| self.is_reached());
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.path.with_extension("reached").exists()
    }
}

/// A store's directory with hold points beside it. When it is dropped, all loggers of the store are
/// killed, also those that are held.
pub(crate) struct Scenario {
    pub(crate) path: PathBuf,
    _test: TestStore,
}

impl Scenario {
    pub(crate) fn new() -> Scenario {
        let test = TestStore::new();
        Scenario { path: test.path.clone(), _test: test }
    }

    /// A hold point that is not armed.
    pub(crate) fn hold_point(&self, name: &str) -> HoldPoint {
        HoldPoint::new(self.path.with_file_name(name))
    }

    /// Starts a role of the instrumented build under orders.
    pub(crate) fn start(&self, role: &str, arguments: &str, orders: &[String], bug: &str) -> Role {
        let env = [("UNTORN_CRASH", orders.join(",")), ("UNTORN_BUG", bug.to_string())];
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Role::start(program(), role, &self.path, arguments, &env)
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        kill_loggers(&self.path);
    }
}

/// Runs a check; what it panicked with, if it did.
pub(crate) fn caught(check: impl FnOnce()) -> Result<(), String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| "a panic".into(), |text| text.to_string()),
    })
}
