//! Processes that the harness starts. A violation that a process reports becomes a finding.

use crate::outcome::{Finding, Kind};
use crate::processes::role;
use crate::processes::role::Role;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub use untorn_test_kit::process::Process;

/// Starts `program`, a build of the harness, in a role.
pub fn start_role(program: &Path, role: &str, store: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Process {
    let mut command = Command::new(program);
    command.envs(env.iter().copied());
    Process::start(command, &Role::new(role, store, arguments))
}

/// Waits for the output of a process, and reports the checks that failed in the process.
pub trait Checked {
    /// Waits until the process has sent `count` lines that begin with `prefix`.
    ///
    /// # Errors
    /// A finding if the lines do not come within `time`, or if a check of the process failed.
    fn wait_for(&mut self, prefix: &str, count: usize, time: Duration) -> Result<(), Finding>;

    /// Checks that no check of the process failed, and that the process has not ended with a
    /// failure.
    ///
    /// # Errors
    /// The finding.
    fn refuse_finding(&mut self) -> Result<(), Finding>;
}

impl Checked for Process {
    fn wait_for(&mut self, prefix: &str, count: usize, time: Duration) -> Result<(), Finding> {
        let start = Instant::now();
        loop {
            self.refuse_finding()?;
            if self.count(prefix) >= count {
                return Ok(());
            }
            if start.elapsed() > time {
                let (name, where_it_is) = (self.name().to_string(), self.where_it_is());
                let what = format!("`{name}` has not printed {prefix:?} {count} times within {time:?}: {where_it_is}");
                return Err(Finding::new(Kind::BlockedReader, what));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn refuse_finding(&mut self) -> Result<(), Finding> {
        if let Some(found) = self.find_line(role::finding) {
            return Err(found);
        }
        match self.status() {
            Some(status) if !status.success() && !self.was_killed() && status.signal() != Some(libc::SIGKILL) => {
                Err(Finding::new(Kind::Misbehaved, format!("{} ended unexpectedly: {status}", self.name())))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the mappings of a task: the addresses of each, and its path or `[name]`, which may be
/// empty. Returns none if the task is gone.
pub(crate) fn mappings(tid: i32) -> Vec<(Range<u64>, String)> {
    let maps = std::fs::read_to_string(format!("/proc/{tid}/maps")).unwrap_or_default();
    let mapping = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (from, to) = fields.next()?.split_once('-')?;
        let addresses = u64::from_str_radix(from, 16).ok()?..u64::from_str_radix(to, 16).ok()?;
        Some((addresses, fields.nth(4)?.trim_start().to_owned()))
    };
    maps.lines().filter_map(mapping).collect()
}
