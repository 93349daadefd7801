//! The processes of one scene, all of them watched, the loggers that they start too: who says what, who ends how.

use super::told;
use crate::inject::{Ended, Injector, Traced};
use crate::limits::HANGS;
use crate::oracle::Told;
use crate::outcome::{Finding, Kind};
use crate::process::kill_loggers;
use crate::{role, victim};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Why a scene did not come to its good end.
pub(super) enum Trouble {
    /// This machine does not let it be played.
    Skipped(String),
    /// Something is violated.
    Found(Finding),
}

impl From<Finding> for Trouble {
    fn from(finding: Finding) -> Trouble {
        Trouble::Found(finding)
    }
}

/// What becomes of a scene.
pub(super) type Played<T> = Result<T, Trouble>;

/// A violation.
pub(super) fn found<T>(kind: Kind, what: impl Into<String>) -> Played<T> {
    Err(Trouble::Found(Finding::new(kind, what)))
}

/// The processes of a scene.
pub(super) struct Cast {
    path: PathBuf,
    injector: Injector,
    players: Vec<(String, Traced)>,
}

impl Cast {
    /// Nobody yet, about the store at `path`.
    pub(super) fn new(path: &Path) -> Played<Cast> {
        let injector = Injector::new(path, None).map_err(Trouble::Skipped)?;
        Ok(Cast { path: path.into(), injector, players: Vec::new() })
    }

    /// Starts a process in a role. Its number in the cast.
    pub(super) fn start(&mut self, name: &str, role: &str, arguments: &[&str]) -> Played<usize> {
        let mut command = Command::new(victim::own());
        command.args(["role", role]).arg(&self.path).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        let player = self.injector.spawn(name, command).map_err(Trouble::Skipped)?;
        self.players.push((name.to_string(), player));
        Ok(self.players.len() - 1)
    }

    /// The name of a player.
    pub(super) fn name(&self, player: usize) -> String {
        self.players[player].0.clone()
    }

    /// All that a player has said so far.
    pub(super) fn lines(&self, player: usize) -> Vec<String> {
        self.players[player].1.lines()
    }

    /// How many lines that begin so a player has said.
    pub(super) fn count(&self, player: usize, what: &str) -> usize {
        self.players[player].1.lines().iter().filter(|line| line.starts_with(what)).count()
    }

    /// Waits until a player has said so many lines that begin so.
    pub(super) fn wait_for(&mut self, player: usize, what: &str, count: usize) -> Played<()> {
        let start = Instant::now();
        while self.count(player, what) < count {
            self.check()?;
            let (name, traced) = &mut self.players[player];
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

    /// Waits for the end of a player; how it ended.
    pub(super) fn wait(&mut self, player: usize, time: Duration) -> Played<std::process::ExitStatus> {
        let (name, traced) = &mut self.players[player];
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
    pub(super) fn check(&self) -> Played<()> {
        for (name, traced) in &self.players {
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
        let name = self.players.iter().find(|(_, traced)| traced.pid() == ended.pid);
        let name = name.map_or(&*ended.who, |(name, _)| name);
        let signal = ended.status.signal().map_or(String::new(), |signal| format!(" (signal {signal})"));
        format!("{name} ended by itself: {}{signal} {}", ended.status, note.trim())
    }

    /// Everybody is killed. What they were told.
    pub(super) fn end(mut self) -> Played<Vec<(String, Told)>> {
        for (_, traced) in &mut self.players {
            traced.kill();
        }
        kill_loggers(&self.path);
        self.check()?;
        Ok(self.players.iter().map(|(name, traced)| (name.clone(), told::by(&traced.lines()))).collect())
    }
}
