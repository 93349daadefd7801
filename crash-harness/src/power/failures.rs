//! Syncs that fail while processes die. The data of a failed sync is lost unless it is written
//! again, although the page cache holds it and later syncs succeed. The next process must therefore
//! not rely on data that it reads from the page cache.

use super::lives::{Life, Lived};
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::loggers::is_logger_of;
use crate::processes::memory_mark::{MARKED, drop_from_memory};
use rustix::process::{Pid, Signal};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn_test_kit::processes::state_of;

/// The prefix of the names of the log's files. The log writes to one file at a time.
const LOG: &str = "wal/seg-";
const ARENA: &str = "arena";
const HEADER: &str = "checkpoint";

/// The processes that die while a sync is held. The sync fails after that.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Dies {
    None,
    Logger,
    /// The logger and, at the first failure, the clients. The store is recovered.
    All,
    /// As `All`, but the next logger continues the region.
    AllInMemory,
}

/// A scenario of syncs that fail one after the other: the file of each, and the number of syncs of
/// that file that succeed before. The logger that made the call dies each time, unless no process
/// is to die. The next failure then affects the next logger.
#[derive(Clone, Copy, Debug)]
pub struct Failures {
    dies: Dies,
    syncs: &'static [(&'static str, usize)],
    /// Whether the store refuses writes after the failures, until all processes have closed it.
    sticky: bool,
}

const fn failures(dies: Dies, syncs: &'static [(&'static str, usize)]) -> Failures {
    Failures { dies, syncs, sticky: false }
}

const fn sticky(syncs: &'static [(&'static str, usize)]) -> Failures {
    Failures { dies: Dies::None, syncs, sticky: true }
}

/// All scenarios.
///
/// After a failed sync of the log, its bytes must be written again elsewhere. The same logger does
/// that, or its successor beside living clients, or recovery. Recovery reads the bytes from the
/// page cache although the disk never received them. The successor may fail, too, at each of the
/// syncs of its new segment. A third logger then starts at the same position.
///
/// In a failed sync of the arena, the logger dies before it can report the failure. Its successor
/// finds clean pages that the disk never received. A failed sync of the checkpoint's header is
/// similar.
pub const ALL: &[Failures] = &[
    failures(Dies::None, &[(LOG, 0)]),
    sticky(&[(ARENA, 0)]),
    sticky(&[(HEADER, 0)]),
    failures(Dies::Logger, &[(LOG, 0)]),
    failures(Dies::Logger, &[(ARENA, 0)]),
    failures(Dies::Logger, &[(HEADER, 0)]),
    failures(Dies::All, &[(LOG, 0)]),
    failures(Dies::All, &[(ARENA, 0)]),
    failures(Dies::All, &[(HEADER, 0)]),
    failures(Dies::AllInMemory, &[(LOG, 0)]),
    failures(Dies::AllInMemory, &[(ARENA, 0)]),
    failures(Dies::AllInMemory, &[(HEADER, 0)]),
    sticky(&[(LOG, 0), (LOG, 0)]),
    failures(Dies::Logger, &[(LOG, 0), (LOG, 0)]),
    failures(Dies::Logger, &[(LOG, 0), (LOG, 1)]),
    failures(Dies::Logger, &[(LOG, 0), (LOG, 2), (LOG, 0)]),
    failures(Dies::All, &[(LOG, 0), (LOG, 0)]),
    failures(Dies::All, &[(LOG, 0), (LOG, 1)]),
    failures(Dies::All, &[(LOG, 0), (LOG, 2), (LOG, 1)]),
    failures(Dies::All, &[(LOG, 0), (HEADER, 0)]),
    failures(Dies::Logger, &[(ARENA, 0), (ARENA, 0)]),
    failures(Dies::Logger, &[(ARENA, 0), (HEADER, 0)]),
    failures(Dies::All, &[(ARENA, 0), (LOG, 1)]),
    failures(Dies::Logger, &[(HEADER, 0), (HEADER, 0)]),
    failures(Dies::Logger, &[(HEADER, 0), (ARENA, 0)]),
    failures(Dies::All, &[(HEADER, 0), (HEADER, 0)]),
    failures(Dies::All, &[(HEADER, 0), (LOG, 2)]),
];

impl Failures {
    /// Returns the name: the syncs that fail and the processes that die. In `failed syncs log+1
    /// header, logger dies`, the second sync of the log and then the first of the header fail.
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
        let dies = match self.dies {
            Dies::None => "no process dies",
            Dies::Logger => "logger dies",
            Dies::All => "all processes die",
            Dies::AllInMemory => "all processes die and the region is continued",
        };
        format!("failed syncs {}, {dies}", syncs.join(" "))
    }

    /// Runs writers while syncs fail and lose their data. The writers continue after that. Cuts are
    /// made only from the first failure on.
    ///
    /// # Errors
    /// The findings of the processes.
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
                Dies::None => None,
                _ => Some(logger_of_thread(held.thread, &life.processes.store)?),
            };
            let writers_die = matches!(self.dies, Dies::All | Dies::AllInMemory) && nth == 0;
            if writers_die {
                life.processes.signal_writers();
            }
            if let Some(logger) = logger {
                // The signal is pending when the sync returns, so the logger never acts on the
                // error.
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
            if writers_die {
                life.processes.kill_writers();
            }
            if self.dies == Dies::All {
                drop_from_memory(&life.processes.store, &MARKED);
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

/// Returns the process of a thread, which must be the logger of this store.
fn logger_of_thread(thread: u32, store: &Path) -> Result<Pid, Finding> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<i32>().ok());
    let other = || Finding::new(Kind::Misbehaved, format!("the process {process:?} called sync but is not a logger"));
    process.and_then(Pid::from_raw).filter(|process| is_logger_of(*process, store)).ok_or_else(other)
}

/// Waits until all threads of a killed process have ended, except one that hangs in a call. Other
/// threads may then hang as well, because they wait for a kernel lock that this thread holds.
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
            return Err(Finding::new(Kind::Misbehaved, format!("the killed process {process} did not end")));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
