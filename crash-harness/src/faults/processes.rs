//! The processes of one scenario, all of them watched, the loggers that they start too: who says
//! what, who ends how.

use super::acknowledged;
use crate::inject::{Ended, Injector, Traced};
use crate::limits::HANGS;
use crate::oracle::Acknowledged;
use crate::outcome::{Finding, Kind};
use crate::process::kill_loggers;
use crate::{instrumented, role};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Why a scenario did not come to its good end.
pub(super) enum ScenarioFailure {
    /// This machine does not let it be played.
    Skipped(String),
    /// Something is violated.
    Found(Finding),
}

impl From<Finding> for ScenarioFailure {
    fn from(finding: Finding) -> ScenarioFailure {
        ScenarioFailure::Found(finding)
    }
}

/// What becomes of a scenario.
pub(super) type ScenarioResult<T> = Result<T, ScenarioFailure>;

/// A violation.
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
    /// Nobody yet, about the store at `path`.
    pub(super) fn new(path: &Path) -> ScenarioResult<ScenarioProcesses> {
        let injector = Injector::new(path, None).map_err(ScenarioFailure::Skipped)?;
        Ok(ScenarioProcesses { path: path.into(), injector, processes: Vec::new() })
    }

    /// Starts a process in a role. Its number in the cast.
    pub(super) fn start(&mut self, name: &str, role: &str, arguments: &[&str]) -> ScenarioResult<usize> {
        let mut command = Command::new(instrumented::own());
        command.args(["role", role]).arg(&self.path).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        let process = self.injector.spawn(name, command).map_err(ScenarioFailure::Skipped)?;
        self.processes.push((name.to_string(), process));
        Ok(self.processes.len() - 1)
    }

    /// The name of a process.
    pub(super) fn name(&self, process: usize) -> String {
        self.processes[process].0.clone()
    }

    /// All that a process has said so far.
    pub(super) fn lines(&self, process: usize) -> Vec<String> {
        self.processes[process].1.lines()
    }

    /// How many lines that begin so a process has said.
    pub(super) fn count(&self, process: usize, what: &str) -> usize {
        self.processes[process].1.lines().iter().filter(|line| line.starts_with(what)).count()
    }

    /// Waits until a process has said so many lines that begin so.
    pub(super) fn wait_for(&mut self, process: usize, what: &str, count: usize) -> ScenarioResult<()> {
        let start = Instant::now();
        while self.count(process, what) < count {
            self.check()?;
            let (name, traced) = &mut self.processes[process];
            // When its end is known, all that it said is heard.
            let has_ended = traced.wait(Duration::from_millis(2)).is_some();
            let said = traced.lines();
            if said.iter().filter(|line| line.starts_with(what)).count() >= count {
                break;
            }
            let said = said.into_iter().rev().take(6).collect::<Vec<_>>().join("; ");
            if has_ended {
                return found(Kind::Misbehaved, format!("{name} ended before it said {what:?}: {said}"));
            }
            if start.elapsed() > HANGS {
                let what = format!("{name} has not said {what:?} {count} times within {HANGS:?}: {said}");
                return found(Kind::BlockedReader, what);
            }
        }
        Ok(())
    }

    /// Waits for the end of a process; how it ended.
    pub(super) fn wait(&mut self, process: usize, time: Duration) -> ScenarioResult<std::process::ExitStatus> {
        let (name, traced) = &mut self.processes[process];
        match traced.wait(time) {
            Some(status) => Ok(status),
            None => {
                let said = traced.lines().join("; ");
                found(Kind::BlockedReader, format!("{name} goes on for {time:?}: {said}"))
            }
        }
    }

    /// The loggers that have ended so far, and how.
    pub(super) fn loggers_ended(&self) -> String {
        let ended = self.injector.ended();
        let loggers = ended.iter().filter(|ended| ended.who == "untorn-logger");
        loggers.map(|ended| format!("{} ended: {}", ended.pid, ended.status)).collect::<Vec<_>>().join(", ")
    }

    /// Nobody has found anything, and nobody has crashed.
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
        let name = name.map_or(&*ended.who, |(name, _)| name);
        let signal = ended.status.signal().map_or(String::new(), |signal| format!(" (signal {signal})"));
        format!("{name} ended by itself: {}{signal} {}", ended.status, note.trim())
    }

    /// Everybody is killed. What they were told.
    pub(super) fn end(mut self) -> ScenarioResult<Vec<(String, Acknowledged)>> {
        for (_, traced) in &mut self.processes {
            traced.kill();
        }
        kill_loggers(&self.path);
        self.check()?;
        Ok(self.processes.iter().map(|(name, traced)| (name.clone(), acknowledged::by(&traced.lines()))).collect())
    }
}
