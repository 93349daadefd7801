//! Lives on a recorder: the processes of a store, what happens to them, and how they end.

use super::roles::{KEEPS_ALL, KEEPS_LITTLE, PREFIX};
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::loggers::kill_loggers;
use crate::processes::process::{Checked, Process, start_role};
use crate::recorder::image::Image;
use crate::recorder::{OfOneBoot, Record, Recorder};
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::Signal;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Returns the names of untorn's files that have no meaning after a power cut.
pub fn of_one_boot() -> OfOneBoot {
    OfOneBoot::names(&["control", "logger.sock"])
}

/// The processes that use a store and write marks. All are killed when this is dropped.
pub struct Processes {
    program: PathBuf,
    /// The store.
    pub store: PathBuf,
    mark: PathBuf,
    /// How much of the log is retained.
    keeps: &'static str,
    /// The processes to wait for.
    pub writers: Vec<Process>,
    presser: Option<Process>,
    /// Number of killed processes.
    pub kills: u64,
}

impl Processes {
    /// Starts only the process that makes the kernel write mapped pages back. `program` is a build
    /// of the harness.
    pub fn new(program: PathBuf, store: PathBuf, mark: PathBuf) -> Processes {
        let mut processes =
            Processes { program, store, mark, keeps: KEEPS_ALL, writers: Vec::new(), presser: None, kills: 0 };
        processes.presser = Some(processes.start_without_mark("press"));
        processes
    }

    /// Retains little of the log, so that its segments are reused often.
    pub fn keep_little(&mut self) {
        self.keeps = KEEPS_LITTLE;
    }

    /// Starts a role that writes marks.
    pub fn start(&self, role: &str, arguments: &[&str]) -> Process {
        let mark = self.mark.to_string_lossy();
        let arguments: Vec<&str> = [&*mark, self.keeps].into_iter().chain(arguments.iter().copied()).collect();
        start_role(&self.program, &format!("{PREFIX}{role}"), &self.store, &arguments, &[])
    }

    /// Starts a role that writes no marks.
    pub fn start_without_mark(&self, role: &str) -> Process {
        start_role(&self.program, &format!("{PREFIX}{role}"), &self.store, &[], &[])
    }

    /// Starts `count` writers that do `rounds` rounds each.
    pub fn start_writers(&mut self, count: usize, rounds: u64) {
        for i in 0..count {
            let writer = self.start("busy", &[&format!("w{i}"), &rounds.to_string()]);
            self.writers.push(writer);
        }
    }

    /// Makes the logger leave in order.
    ///
    /// # Errors
    /// If it does not leave.
    pub fn stop_logger(&mut self) -> Result<(), Finding> {
        self.writers.push(self.start_without_mark("leave"));
        self.wait_for_writers()
    }

    /// Waits until all writers have finished.
    ///
    /// # Errors
    /// If a writer fails or is blocked.
    pub fn wait_for_writers(&mut self) -> Result<(), Finding> {
        let start = Instant::now();
        for writer in &mut self.writers {
            while writer.is_running() {
                if start.elapsed() > HANGS {
                    return Err(Finding::new(Kind::BlockedReader, format!("a writer was blocked for {HANGS:?}")));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let ended_well = writer.wait();
            writer.refuse_finding()?;
            if !ended_well {
                return Err(Finding::new(Kind::Misbehaved, "a writer did not finish its work"));
            }
        }
        self.writers.clear();
        Ok(())
    }

    /// Waits until all writers have received an error.
    pub(super) fn wait_for_refusals(&mut self) -> Result<(), Finding> {
        let start = Instant::now();
        for writer in &mut self.writers {
            while writer.is_running() {
                if start.elapsed() > HANGS {
                    return Err(Finding::new(Kind::Misbehaved, "a writer continues after a sync that failed for good"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.writers.clear();
        Ok(())
    }

    /// Sends SIGKILL to all writers, and does not wait until they are dead. While a sync of a file
    /// is held, a writer that writes to that file can't die: it waits for the file's lock in the
    /// kernel.
    pub fn signal_writers(&mut self) {
        self.writers.iter().for_each(|writer| writer.signal(Signal::KILL));
    }

    /// Kills all writers, and waits until they are dead.
    pub fn kill_writers(&mut self) {
        self.kills += self.writers.len() as u64;
        self.writers.clear();
    }

    /// Kills the logger, including one that is starting.
    pub fn kill_loggers(&mut self) {
        self.kills += kill_loggers(&self.store) as u64;
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.writers.clear();
        self.presser = None;
        kill_loggers(&self.store);
    }
}

/// A recorder and the processes on it. The processes are dropped first, then the file system.
pub struct Life {
    /// The processes.
    pub processes: Processes,
    /// The file system.
    pub recorder: Recorder,
}

/// The result of a life.
pub struct Lived {
    /// The record.
    pub record: Record,
    /// Cuts are of interest from this position on.
    pub from: usize,
    /// Number of killed processes.
    pub kills: u64,
}

impl Life {
    /// Begins on an empty file system, or on the state after a cut.
    ///
    /// # Errors
    /// If nothing can be mounted.
    pub fn begin(program: PathBuf, image: Option<&Image>) -> io::Result<Life> {
        let recorder = Recorder::mount(of_one_boot(), image)?;
        Ok(Life { processes: Processes::new(program, recorder.store(), recorder.mark()), recorder })
    }

    /// Waits until a condition holds, while the writers live.
    ///
    /// # Errors
    /// If it does not hold in time, or if a writer failed.
    pub fn wait_for(&mut self, what: &str, holds: impl Fn(&Recorder) -> bool) -> Result<(), Finding> {
        let start = Instant::now();
        while !holds(&self.recorder) {
            if start.elapsed() > HANGS {
                return Err(Finding::new(Kind::BlockedReader, format!("{what}: not within {HANGS:?}")));
            }
            for writer in &mut self.processes.writers {
                writer.refuse_finding()?;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Simulates the loss of power.
    pub fn end(self, from: usize) -> Lived {
        let Life { processes, recorder } = self;
        let kills = processes.kills;
        drop(processes);
        Lived { record: recorder.finish(), from, kills }
    }
}

/// Runs several writers from the creation of the store on. In between, all processes leave in order
/// and are started again.
///
/// # Errors
/// The findings of the processes.
pub fn plain(mut life: Life, _: &mut StdRng) -> Result<Lived, Finding> {
    life.processes.start_writers(3, 2);
    life.processes.wait_for_writers()?;
    life.processes.stop_logger()?;
    life.processes.start_writers(2, 1);
    life.processes.wait_for_writers()?;
    Ok(life.end(0))
}

/// Runs several message-passing writers.
///
/// # Errors
/// The findings of the processes.
pub fn by_message(mut life: Life, _: &mut StdRng) -> Result<Lived, Finding> {
    for writer in 0..3 {
        let names: Vec<String> = (0..6).map(|name| format!("m{writer}{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let role = life.processes.start("remote", &names);
        life.processes.writers.push(role);
    }
    life.processes.wait_for_writers()?;
    Ok(life.end(0))
}

/// Kills loggers, and at times all writers, during their work. The remaining processes continue,
/// and the power fails later.
///
/// # Errors
/// The findings of the processes.
pub fn with_kills(mut life: Life, random: &mut StdRng) -> Result<Lived, Finding> {
    life.processes.keep_little();
    life.processes.start_writers(3, u64::MAX);
    for kill in 0..6 {
        let so_far = life.recorder.marks(0, "D ");
        life.wait_for("acknowledgements", |recorder| recorder.marks(0, "D ") >= so_far + 12)?;
        std::thread::sleep(Duration::from_micros(random.random_range(0..3000)));
        if kill % 3 == 2 {
            life.processes.kill_writers();
            if kill == 5 {
                life.processes.kill_loggers();
            }
            life.processes.start_writers(3, if kill == 5 { 2 } else { u64::MAX });
        } else {
            life.processes.kill_loggers();
        }
    }
    life.processes.wait_for_writers()?;
    Ok(life.end(0))
}

/// Runs a process that takes one checkpoint after the other while others write.
///
/// # Errors
/// The findings of the processes.
pub fn checkpoints(mut life: Life, _: &mut StdRng) -> Result<Lived, Finding> {
    life.processes.keep_little();
    life.processes.start_writers(2, u64::MAX);
    life.wait_for("work", |recorder| recorder.marks(0, "D ") >= 8)?;
    let from = life.recorder.position();
    let role = life.processes.start("checkpoint", &["c0"]);
    let mut busy = std::mem::replace(&mut life.processes.writers, vec![role]);
    life.processes.wait_for_writers()?;
    for writer in &mut busy {
        writer.refuse_finding()?;
    }
    life.processes.writers = busy;
    life.processes.kill_writers();
    Ok(life.end(from))
}

/// Commits so much at once that one sync of the log covers two batches.
///
/// # Errors
/// The finding of the process.
pub fn two_batches(mut life: Life, _: &mut StdRng) -> Result<Lived, Finding> {
    let writer = life.processes.start("bulk", &["w0"]);
    life.processes.writers.push(writer);
    life.processes.wait_for_writers()?;
    Ok(life.end(0))
}

/// Continues from a state, in the role `role`. Before that, `kills` processes are killed during or
/// soon after recovery.
///
/// # Errors
/// The findings of the processes.
pub fn live_on(mut life: Life, random: &mut StdRng, role: &str, kills: u64) -> Result<Lived, Finding> {
    let from = life.recorder.position();
    for _ in 0..kills {
        let short = life.processes.start(role, &["x0"]);
        // The kills come roughly within the time of a recovery. Opening fails after a few dead
        // loggers, so the process is killed, too.
        std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
        life.processes.kill_loggers();
        drop(short);
        life.processes.kills += 1;
    }
    let writer = life.processes.start(role, &["x0"]);
    life.processes.writers.push(writer);
    life.processes.wait_for_writers()?;
    Ok(life.end(from))
}
