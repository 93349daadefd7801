//! Syncs that fail while somebody dies. What they were to make durable is lost unless it is written
//! again, although the page cache has it and later syncs succeed: so whoever comes next must not
//! build on what it reads.

use super::lives::{Life, Lived};
use crate::limits::HANGS;
use crate::outcome::{Finding, Kind};
use crate::process::{is_logger_of, state_of};
use rustix::process::{Pid, Signal};
use std::path::Path;
use std::time::{Duration, Instant};

/// The files of the log, of which one takes bytes just now.
const LOG: &str = "wal/seg-";
const ARENA: &str = "arena";
const HEADER: &str = "checkpoint";

/// Who dies while a sync is held that then fails.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Dies {
    Nobody,
    Logger,
    /// The clients too, at the first one.
    Everyone,
}

/// Syncs that fail one after the other: of which file, and how many of its syncs pass before. The
/// logger that called dies each time, unless nobody is to die. Who comes next meets the next one.
#[derive(Clone, Copy, Debug)]
pub struct Failures {
    dies: Dies,
    syncs: &'static [(&'static str, usize)],
    /// The store then refuses writes until all have closed it.
    sticky: bool,
}

const fn failures(dies: Dies, syncs: &'static [(&'static str, usize)]) -> Failures {
    Failures { dies, syncs, sticky: false }
}

const fn sticky(syncs: &'static [(&'static str, usize)]) -> Failures {
    Failures { dies: Dies::Nobody, syncs, sticky: true }
}

/// All of them.
///
/// Of the log: its bytes are written again elsewhere, by the same logger, by its successor beside
/// living clients, or by the recovery that reads them from the page cache although the disk never
/// got them. The successor may fail too, at each of the syncs of its new segment: the third one
/// starts at the same position. Of the arena: a checkpoint's logger dies before it can say so, and
/// its successor finds clean pages that the disk never got. The same for the checkpoint's header.
pub const ALL: &[Failures] = &[
    failures(Dies::Nobody, &[(LOG, 0)]),
    sticky(&[(ARENA, 0)]),
    sticky(&[(HEADER, 0)]),
    failures(Dies::Logger, &[(LOG, 0)]),
    failures(Dies::Logger, &[(ARENA, 0)]),
    failures(Dies::Logger, &[(HEADER, 0)]),
    failures(Dies::Everyone, &[(LOG, 0)]),
    failures(Dies::Everyone, &[(ARENA, 0)]),
    failures(Dies::Everyone, &[(HEADER, 0)]),
    sticky(&[(LOG, 0), (LOG, 0)]),
    failures(Dies::Logger, &[(LOG, 0), (LOG, 0)]),
    failures(Dies::Logger, &[(LOG, 0), (LOG, 1)]),
    failures(Dies::Logger, &[(LOG, 0), (LOG, 2), (LOG, 0)]),
    failures(Dies::Everyone, &[(LOG, 0), (LOG, 0)]),
    failures(Dies::Everyone, &[(LOG, 0), (LOG, 1)]),
    failures(Dies::Everyone, &[(LOG, 0), (LOG, 2), (LOG, 1)]),
    failures(Dies::Everyone, &[(LOG, 0), (HEADER, 0)]),
    failures(Dies::Logger, &[(ARENA, 0), (ARENA, 0)]),
    failures(Dies::Logger, &[(ARENA, 0), (HEADER, 0)]),
    failures(Dies::Everyone, &[(ARENA, 0), (LOG, 1)]),
    failures(Dies::Logger, &[(HEADER, 0), (HEADER, 0)]),
    failures(Dies::Logger, &[(HEADER, 0), (ARENA, 0)]),
    failures(Dies::Everyone, &[(HEADER, 0), (HEADER, 0)]),
    failures(Dies::Everyone, &[(HEADER, 0), (LOG, 2)]),
];

impl Failures {
    /// What fails, and who dies of it: `failed syncs log+1 header, logger dies` are the second sync
    /// of the log from some time on, and then the first of the header.
    pub fn name(&self) -> String {
        let sync = |(file, skip): &(&str, usize)| {
            let file = match *file {
                LOG => "log",
                HEADER => "header",
                file => file,
            };
            if *skip == 0 { file.to_string() } else { format!("{file}+{skip}") }
        };
        let syncs: Vec<String> = self.syncs.iter().map(sync).collect();
        let dies = format!("{:?}", self.dies).to_lowercase();
        format!("failed syncs {}, {dies} dies", syncs.join(" "))
    }

    /// Work, during which syncs fail and take with them what they covered, and work after that.
    /// Cuts are of interest from the first failure on.
    ///
    /// # Errors
    /// What the processes found.
    pub fn live(&self, mut life: Life) -> Result<Lived, Finding> {
        life.processes.keep_little();
        life.processes.start_writers(2, u64::MAX);
        life.wait_for("work", |recorder| recorder.marks(0, "D ") >= 20 && recorder.syncs(0, HEADER) >= 3)?;
        let failed = life.recorder.position();
        life.recorder.hold_sync(self.syncs[0].0, self.syncs[0].1);
        for nth in 0..self.syncs.len() {
            let held = life.recorder.held(HANGS);
            let held = held.ok_or_else(|| Finding::new(Kind::BlockedReader, format!("no sync {nth} came")))?;
            let logger = match self.dies {
                Dies::Nobody => None,
                _ => Some(logger_of_thread(held.thread, &life.processes.store)?),
            };
            if self.dies == Dies::Everyone && nth == 0 {
                life.processes.kill_writers();
            }
            if let Some(logger) = logger {
                // It has the signal when the sync returns, so it never acts on the error.
                let _ = rustix::process::kill_process(logger, Signal::KILL);
                life.processes.kills += 1;
                wait_until_gone(logger, Some(held.thread))?;
            }
            if let Some((file, skip)) = self.syncs.get(nth + 1) {
                life.recorder.hold_sync(file, *skip);
            }
            held.fail();
            if let Some(logger) = logger {
                wait_until_gone(logger, None)?;
            }
            if life.processes.writers.is_empty() {
                life.processes.start_writers(2, u64::MAX);
            }
        }
        if self.sticky {
            life.processes.wait_for_refusals()?;
            life.processes.stop_logger()?;
            life.processes.start_writers(2, u64::MAX);
        }
        let so_far = life.recorder.position();
        life.wait_for("more work", |recorder| {
            recorder.marks(so_far, "D ") >= 20 && recorder.syncs(so_far, HEADER) >= 3
        })?;
        Ok(life.end(failed))
    }
}

/// The process of a thread, which must be the logger of this store.
fn logger_of_thread(thread: u32, store: &Path) -> Result<Pid, Finding> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<i32>().ok());
    let other = || Finding::new(Kind::Misbehaved, format!("the process {process:?} syncs, and is no logger"));
    process.and_then(Pid::from_raw).filter(|process| is_logger_of(*process, store)).ok_or_else(other)
}

/// Waits until of a killed process no thread runs any more, one that hangs in a call excepted; then
/// others may hang as well, behind a lock of the kernel that it holds.
fn wait_until_gone(process: Pid, hanging: Option<u32>) -> Result<(), Finding> {
    let process = process.as_raw_nonzero();
    let start = Instant::now();
    let runs = |thread: &std::fs::DirEntry| {
        let is_hanging = hanging.is_some_and(|hanging| thread.file_name().to_str() == Some(&hanging.to_string()));
        let state = state_of(&thread.path());
        let is_behind = hanging.is_some() && state == 'D' && start.elapsed() > Duration::from_millis(300);
        !is_hanging && !is_behind && !matches!(state, 'Z' | 'X')
    };
    let any_runs = || {
        let threads = std::fs::read_dir(format!("/proc/{process}/task"));
        threads.is_ok_and(|threads| threads.flatten().any(|thread| runs(&thread)))
    };
    while any_runs() {
        if start.elapsed() > HANGS {
            return Err(Finding::new(Kind::Misbehaved, format!("the killed process {process} does not end")));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
