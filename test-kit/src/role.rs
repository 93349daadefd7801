//! Roles: a program under test starts itself, or a build of itself, as a process in a role. The
//! role is in the environment; the process sends lines to its parent by its standard output and
//! receives lines from its standard input.
//!
//! A role that reports what was acknowledged sends these lines:
//!
//! | line | means |
//! |---|---|
//! | `V n` | the n-th transaction of this writer is visible |
//! | `D n` | it is durable |
//! | `C n` | its cell's value n is durable |

use rustix::process::{Signal, set_parent_process_death_signal};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "UNTORN_TEST_ROLE";
const STORE: &str = "UNTORN_TEST_STORE";
const ARGUMENTS: &str = "UNTORN_TEST_ARGUMENTS";
/// Precedes each line of a role. A test harness writes to the same stream, and without an end of
/// line before the role's first.
const MARK: &str = "@@ ";

/// What a process was started for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Role {
    /// The name of the role.
    pub name: String,
    /// The store's directory.
    pub store: PathBuf,
    /// Everything else that the role depends on.
    pub arguments: Vec<String>,
}

impl Role {
    /// Returns a role.
    pub fn new(name: &str, store: &Path, arguments: &[&str]) -> Role {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Role { name: name.into(), store: store.into(), arguments }
    }

    /// Returns the role that this process was started for; `None` in the program that starts the
    /// others. From now on the process dies with its parent.
    ///
    /// # Panics
    /// If the environment has a part of a role only.
    #[must_use]
    pub fn of_this_process() -> Option<Role> {
        let name = std::env::var(NAME).ok()?;
        // However the parent ends. Loggers and forked children do not inherit it.
        set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
        let store = std::env::var_os(STORE).expect("set with the name").into();
        let arguments = std::env::var(ARGUMENTS).expect("set with the name");
        let arguments = serde_json::from_str(&arguments).expect("a list of strings");
        Some(Role { name, store, arguments })
    }

    /// Has the process that `command` starts play this role.
    pub fn assign_to(&self, command: &mut Command) {
        let arguments = serde_json::to_string(&self.arguments).expect("strings");
        command.env(NAME, &self.name).env(STORE, &self.store).env(ARGUMENTS, arguments);
    }

    /// Returns an argument, or an empty string if there are fewer.
    #[must_use]
    pub fn argument(&self, at: usize) -> &str {
        self.arguments.get(at).map_or("", String::as_str)
    }

    /// Returns an argument that is a number.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn number(&self, at: usize) -> u64 {
        let argument = self.argument(at);
        argument.parse().unwrap_or_else(|_| panic!("argument {at} of {}: {argument:?} is no number", self.name))
    }
}

/// Sends a line to the parent, by a single write: a kill leaves no part of a line.
pub fn say(line: impl std::fmt::Display) {
    let line = format!("{MARK}{line}\n");
    // The parent may have ended.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// Waits for the parent's next line; `None` if there will be no more.
///
/// # Panics
/// If the standard input can't be read.
#[allow(clippy::must_use_candidate)]
pub fn listen() -> Option<String> {
    let mut line = String::new();
    (std::io::stdin().read_line(&mut line).expect("readable") > 0).then(|| line.trim_end().to_string())
}

/// Returns what [`say`] sent, if a line of output contains it.
pub(crate) fn said(line: &str) -> Option<&str> {
    line.split_once(MARK).map(|(_, said)| said)
}
