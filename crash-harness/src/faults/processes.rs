//! The processes of one scenario, including the loggers that they start. All are traced, so that
//! the harness records their output and how they end.

use super::acknowledged;
use crate::inject::{Ended, Injector, Traced};
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::loggers::kill_loggers;
use crate::processes::role::Role;
use crate::processes::{instrumented, role};
use crate::workload::oracle::Acknowledged;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Why a scenario failed.
pub(super) enum ScenarioFailure {
    /// The scenario can't be played on this machine.
    Skipped(String),
    /// A promise is violated.
    Found(Finding),
}

impl From<Finding> for ScenarioFailure {
    fn from(finding: Finding) -> ScenarioFailure {
        ScenarioFailure::Found(finding)
    }
}

/// The result of a scenario.
pub(super) type ScenarioResult<T> = Result<T, ScenarioFailure>;

/// Returns a violation.
pub(super) fn found<T>(kind: Kind, what: impl Into<String>) -> ScenarioResult<T> {
    Err(ScenarioFailure::Found(Finding::new(kind, what)))
}

/// The processes of a scenario.
pub(super) struct ScenarioProcesses {
    path: PathBuf,
    injector: Injector,
    processes: Vec<(String, Traced)>,
}

impl ScenarioProcesses {
    /// Creates the list for the store at `path`, with no process yet.
    pub(super) fn new(path: &Path) -> ScenarioResult<ScenarioProcesses> {
        let injector = Injector::new(path, None).map_err(ScenarioFailure::Skipped)?;
        Ok(ScenarioProcesses { path: path.into(), injector, processes: Vec::new() })
    }

    /// Starts a process in a role and returns its index.
    pub(super) fn start(&mut self, name: &str, role: &str, arguments: &[&str]) -> ScenarioResult<usize> {
        let mut command = Command::new(instrumented::own());
        Role::new(role, &self.path, arguments).assign_to(&mut command);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let process = self.injector.spawn(name, command).map_err(ScenarioFailure::Skipped)?;
        self.processes.push((name.to_string(), process));
        Ok(self.processes.len() - 1)
    }

    /// Returns the name of a process.
    pub(super) fn name(&self, process: usize) -> String {
        self.processes[process].0.clone()
    }

    /// Returns all lines that a process has printed so far.
    pub(super) fn lines(&self, process: usize) -> Vec<String> {
        self.processes[process].1.lines()
    }

    /// Returns the number of printed lines that begin with `what`.
    pub(super) fn count(&self, process: usize, what: &str) -> usize {
        self.processes[process].1.lines().iter().filter(|line| line.starts_with(what)).count()
    }

    /// Waits until a process has printed `count` lines that begin with `what`.
    pub(super) fn wait_for(&mut self, process: usize, what: &str, count: usize) -> ScenarioResult<()> {
        let start = Instant::now();
        while self.count(process, what) < count {
            self.check()?;
            let (name, traced) = &mut self.processes[process];
            // After the end of a process all its output has been read.
            let has_ended = traced.wait(Duration::from_millis(2)).is_some();
            let said = traced.lines();
            if said.iter().filter(|line| line.starts_with(what)).count() >= count {
                break;
            }
            let said = said.into_iter().rev().take(6).collect::<Vec<_>>().join("; ");
            if has_ended {
                return found(Kind::Misbehaved, format!("{name} ended before it printed {what:?}: {said}"));
            }
            if start.elapsed() > HANGS {
                let what = format!("{name} has not printed {what:?} {count} times within {HANGS:?}: {said}");
                return found(Kind::BlockedReader, what);
            }
        }
        Ok(())
    }

    /// Waits for the end of a process and returns its status.
    pub(super) fn wait(&mut self, process: usize, time: Duration) -> ScenarioResult<std::process::ExitStatus> {
        let (name, traced) = &mut self.processes[process];
        match traced.wait(time) {
            Some(status) => Ok(status),
            None => {
                let said = traced.lines().join("; ");
                found(Kind::BlockedReader, format!("{name} did not end within {time:?}: {said}"))
            }
        }
    }

    /// Describes the loggers that have ended so far.
    pub(super) fn loggers_ended(&self) -> String {
        let ended = self.injector.ended();
        let loggers = ended.iter().filter(|ended| ended.process == "untorn-logger");
        loggers.map(|ended| format!("{} ended: {}", ended.pid, ended.status)).collect::<Vec<_>>().join(", ")
    }

    /// Checks that no process has reported a finding or crashed.
    pub(super) fn check(&self) -> ScenarioResult<()> {
        for (name, traced) in &self.processes {
            let lines = traced.lines();
            if let Some(finding) = lines.iter().find_map(|line| role::finding(line)) {
                let last = lines.iter().rev().take(6).cloned().collect::<Vec<_>>().join("; ");
                return found(finding.kind, format!("{name}: {}; before that: {last}", finding.what));
            }
        }
        match self.injector.ended().iter().find(|ended| ended.crashed()) {
            Some(ended) => found(Kind::Misbehaved, self.obituary(ended)),
            None => Ok(()),
        }
    }

    fn obituary(&self, ended: &Ended) -> String {
        let note = std::fs::read_to_string(self.path.join("logger.panic")).unwrap_or_default();
        let name = self.processes.iter().find(|(_, traced)| traced.pid() == ended.pid);
        let name = name.map_or(&*ended.process, |(name, _)| name);
        let signal = ended.status.signal().map_or(String::new(), |signal| format!(" (signal {signal})"));
        format!("{name} ended unexpectedly: {}{signal} {}", ended.status, note.trim())
    }

    /// Kills all processes and returns their acknowledgements.
    pub(super) fn end(mut self) -> ScenarioResult<Vec<(String, Acknowledged)>> {
        for (_, traced) in &mut self.processes {
            traced.kill();
        }
        kill_loggers(&self.path);
        self.check()?;
        Ok(self.processes.iter().map(|(name, traced)| (name.clone(), acknowledged::by(&traced.lines()))).collect())
    }
}
