//! Processes that a test can kill, stop or hold at any named point: this test executable, built
//! once more with crash points and planted bugs.
#![allow(dead_code, unreachable_pub)]

use crate::common::{Limit, Process, TestStore, limit, spawn_by};
use std::path::{Path, PathBuf};
use std::process::Command;
use untorn_test_kit::loggers::kill_loggers;
use untorn_test_kit::process::{BUG, HoldPoint};

/// Returns the instrumented build of this test executable. The first call builds it; other threads
/// wait for that.
///
/// # Panics
/// If it cannot be built.
pub(crate) fn program() -> &'static Path {
    crate::common::program::instrumented("instrumented")
}

/// Starts a role in a process of the instrumented build.
pub(crate) fn spawn(role: &str, path: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Process {
    let mut command = Command::new(program());
    command.envs(env.iter().copied());
    spawn_by(command, role, path, arguments)
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
        HoldPoint::new(&self.path.with_file_name(name))
    }

    /// Starts a role of the instrumented build under orders.
    pub(crate) fn start(&self, role: &str, arguments: &[&str], orders: &[String], bug: &str) -> Process {
        spawn(role, &self.path, arguments, &[("UNTORN_CRASH", &orders.join(",")), (BUG, bug)])
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
