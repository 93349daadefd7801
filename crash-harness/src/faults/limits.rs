//! A process reaches a resource limit: bytes of a file (`RLIMIT_FSIZE`) or descriptors
//! (`RLIMIT_NOFILE`). The process gets an error, other processes continue, and a later process
//! finds all data.
//!
//! A soft limit affects only the process that maps the store: the logger that it starts raises its
//! own soft limit to the hard one. A hard limit affects the logger, too.

use super::after;
use super::processes::{ScenarioProcesses, ScenarioResult, found};
use super::worker;
use crate::context::Context;
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::process::{Checked, start_role};
use crate::processes::role::Role;
use rand::seq::SliceRandom;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

/// One limit.
#[derive(Clone, Debug)]
pub(super) struct Limited {
    /// `file-size-limit` or `descriptors`.
    what: &'static str,
    /// Whether the limit applies to the logger that the process starts, too.
    is_hard: bool,
    /// Whether the process ignores the signal that the limit sends.
    ignores: bool,
    limit: u64,
}

/// Returns all limits in the order of the tries.
pub(super) fn all(context: &Context) -> Vec<Limited> {
    let mut all = Vec::new();
    for is_hard in [false, true] {
        for limit in [0, 4096, 100_000, 300_000, 1 << 20, 2 << 20, (2 << 20) + 1, 3 << 20, 5 << 20] {
            for ignores in [true, false] {
                all.push(Limited { what: "file-size-limit", is_hard, ignores, limit });
            }
        }
        all.extend((3..36).map(|limit| Limited { what: "descriptors", is_hard, ignores: true, limit }));
    }
    all.shuffle(&mut context.random(2));
    all
}

impl Limited {
    /// Returns the name of the scenario in a replay line.
    pub(super) fn name(&self) -> String {
        let whose = if self.is_hard { "all" } else { "client" };
        let signal = if self.ignores { "" } else { ":signal" };
        format!("{}:{whose}:{}{signal}", self.what, self.limit)
    }

    /// Plays the scenario.
    pub(super) fn play(&self, path: &Path) -> ScenarioResult<()> {
        let mut before = start_role(&instrumented::own(), "writer", path, &["before", "1"], &[]);
        if !before.wait() {
            before.refuse_finding()?;
            return found(Kind::Misbehaved, "the writer without a limit failed");
        }
        // The limited process must start its own logger, so no logger may remain.
        crate::processes::loggers::kill_loggers(path);
        let mut processes = ScenarioProcesses::new(path)?;
        let kind = if self.is_hard { "hard" } else { "soft" };
        let signal = if self.ignores { "ignored" } else { "default" };
        let limit = self.limit.to_string();
        let limited = processes.start(
            "limited",
            "limited",
            &[self.what, &limit, kind, signal, "limited", "2", "die", "", "visible"],
        )?;
        // With a hard limit the logger is limited, too, so there is no other writer.
        let other = if self.is_hard {
            None
        } else {
            Some(processes.start("other", "enduring", &["other", "3", "stay", "", "visible"])?)
        };
        let status = processes.wait(limited, HANGS * 2)?;
        let died_of_it = status.signal() == Some(libc::SIGXFSZ) && self.what == "file-size-limit" && !self.ignores;
        if !status.success() && !died_of_it {
            processes.check()?;
            return found(Kind::Misbehaved, format!("the limited process ended unexpectedly: {status}"));
        }
        if let Some(other) = other {
            processes.wait_for(other, "done", 1)?;
        }
        let acknowledged = processes.end()?;
        Ok(after::judge(path, &acknowledged, self.is_hard)?)
    }
}

/// Plays the role of a process that sets its own limit and then acts as a [`worker`]. The arguments
/// are `WHAT LIMIT hard|soft ignored|default …`.
///
/// # Errors
/// As the worker.
#[allow(unsafe_code)]
pub(crate) fn play(role: &Role) -> Result<(), Finding> {
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    let resource = if argument(0) == "descriptors" { Resource::Nofile } else { Resource::Fsize };
    let limit = argument(1).parse().unwrap_or(0);
    let hard = rustix::process::getrlimit(resource).maximum;
    let maximum = if argument(2) == "hard" { Some(limit) } else { hard };
    if argument(3) == "ignored" {
        // SAFETY: no handler is installed, and this program does not use the signal otherwise.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }
    let set = setrlimit(resource, Rlimit { current: Some(limit), maximum });
    set.map_err(|error| Finding::new(Kind::Misbehaved, format!("setting a limit: {error}")))?;
    let rest = role.arguments.iter().skip(4).cloned().collect();
    worker::play(&Role { arguments: rest, ..role.clone() })
}
