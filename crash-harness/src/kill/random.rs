//! Deaths at random instants under load: of one process, of several and the logger at once, and of
//! all. Processes are also stopped and continued.

use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers};
use crate::processes::memory_mark::{MARKED, drop_from_memory};
use crate::processes::process::{Checked, Process, start_role};
use crate::workload;
use crate::workload::oracle::{self, Acknowledged};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// The concurrent processes: the role of each, and its argument.
const ROLES: [(&str, &str); 11] = [
    ("writer", ""),
    ("writer", ""),
    ("writer", ""),
    ("messenger", ""),
    ("transfer", "t"),
    ("reader", ""),
    ("holder", ""),
    ("follower", "visible"),
    ("follower", "durable"),
    ("opener", ""),
    ("checkpointer", ""),
];
/// Number of times that all processes of one store die.
const LIVES: usize = 3;
/// Number of deaths in each of these lives, before all processes die.
const DEATHS: usize = 10;

/// Runs rounds of random deaths, each in its own store, until the time is up.
pub(super) fn rounds(context: &Context, outcome: &mut Outcome) {
    let mut slowest = Duration::ZERO;
    for round in 0.. {
        let name = format!("random:{round}");
        if context.only.is_none() && !context.may_continue(outcome.states, "random kills") {
            break;
        }
        if context.wants(&name) {
            // In memory, deaths are more frequent. On a disk, they also hit syncs that take time.
            let name = format!("random-{round}");
            let path = if round % 2 == 0 { context.directory(&name) } else { context.directory_in_memory(&name) };
            let mut random = context.random(round);
            let done = Round { path: &path, outcome, slowest: &mut slowest, acknowledged: Vec::new() }.run(&mut random);
            kill_loggers(&path);
            let _ = std::fs::remove_dir_all(&path);
            if let Err(finding) = done {
                outcome.violated(finding, &name, context.replay(&name));
            }
        }
        if context.only.as_ref().is_some_and(|only| *only == name || !only.starts_with("random:")) {
            break;
        }
    }
    outcome.figures.insert("longest wait after a death, in seconds".into(), slowest.as_secs_f64());
}

/// One of the concurrent processes.
struct Member {
    role: &'static str,
    argument: &'static str,
    /// Each writer has its own name, under which its acknowledgements are checked.
    name: String,
    process: Process,
}

impl Member {
    fn start(path: &Path, (role, argument): (&'static str, &'static str), number: &str) -> Member {
        let name = match role {
            "writer" => format!("w{number}"),
            "messenger" => format!("m{number}"),
            _ => argument.to_string(),
        };
        let process = start_role(&instrumented::own(), role, path, &[&name], &[]);
        Member { role, argument, name, process }
    }

    fn acknowledged(&self) -> Option<(String, Acknowledged)> {
        let acknowledged = match self.role {
            "writer" => Acknowledged::by(&self.process),
            "messenger" => Acknowledged::by_messenger(&self.process),
            _ => return None,
        };
        Some((self.name.clone(), acknowledged))
    }

    /// Waits until the process has printed another line.
    fn check_progress(&mut self) -> Result<(), Finding> {
        let heard = self.process.lines_count();
        let begun = Instant::now();
        while self.process.lines_count() <= heard {
            self.process.refuse_finding()?;
            if begun.elapsed() > HANGS {
                let where_it_is = self.process.where_it_is();
                let what = format!("{} {} was blocked for {HANGS:?}: {where_it_is}", self.role, self.name);
                return Err(Finding::new(Kind::BlockedReader, what));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

/// One store.
struct Round<'r> {
    path: &'r Path,
    outcome: &'r mut Outcome,
    slowest: &'r mut Duration,
    acknowledged: Vec<(String, Acknowledged)>,
}

impl Round<'_> {
    fn run(&mut self, random: &mut StdRng) -> Result<(), Finding> {
        for life in 0..LIVES {
            let start = |at: usize| Member::start(self.path, ROLES[at], &format!("{at}-{life}"));
            let mut processes: Vec<Member> = (0..ROLES.len()).map(start).collect();
            for writer in processes.iter_mut().filter(|member| member.role == "writer") {
                writer.process.wait_for("V", 1, HANGS)?;
            }
            for death in 0..DEATHS {
                std::thread::sleep(Duration::from_micros(random.random_range(500..30_000)));
                self.death(&mut processes, &format!("{life}-{death}"), random)?;
                self.outcome.states += 1;
            }
            // All processes must make progress without intervention.
            let begun = Instant::now();
            for member in &mut processes {
                member.check_progress()?;
            }
            *self.slowest = begun.elapsed().max(*self.slowest);
            self.end(processes, random)?;
            self.outcome.states += 1;
        }
        Ok(())
    }

    /// Kills or stops some processes. Then a writer must make progress, and no process may have
    /// found a violation.
    fn death(&mut self, processes: &mut [Member], name: &str, random: &mut StdRng) -> Result<(), Finding> {
        match random.random_range(0..8) {
            0 => self.outcome.kills += kill_loggers(self.path) as u64,
            1 => {
                let member = &processes[random.random_range(0..processes.len())];
                member.process.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(random.random_range(1..20)));
                member.process.signal(Signal::CONT);
            }
            2 | 3 => self.kill(processes, random.random_range(2..6), random.random_bool(0.7), name, random)?,
            _ => self.kill(processes, 1, false, name, random)?,
        }
        let begun = Instant::now();
        let heard: Vec<usize> = processes.iter().map(|member| member.process.lines_count()).collect();
        let have_progressed = |processes: &[Member]| {
            let writers = processes.iter().zip(&heard).filter(|(member, _)| member.role == "writer");
            writers.into_iter().any(|(writer, heard)| writer.process.lines_count() > *heard)
        };
        while !have_progressed(processes) {
            if begun.elapsed() > HANGS {
                let writers = processes.iter_mut().filter(|member| member.role == "writer");
                let writers: Vec<_> = writers.map(|writer| writer.process.where_it_is()).collect();
                let what = format!("all writers were blocked for {HANGS:?}: {}", writers.join(" | "));
                return Err(Finding::new(Kind::BlockedReader, what));
            }
            std::thread::sleep(Duration::from_micros(200));
            processes.iter_mut().try_for_each(|member| member.process.refuse_finding())?;
        }
        *self.slowest = begun.elapsed().max(*self.slowest);
        processes.iter_mut().try_for_each(|member| member.process.refuse_finding())
    }

    /// Kills `count` processes at once, optionally the logger as well, and replaces them.
    fn kill(
        &mut self,
        processes: &mut [Member],
        count: usize,
        logger_too: bool,
        name: &str,
        random: &mut StdRng,
    ) -> Result<(), Finding> {
        let mut dying: Vec<usize> = (0..processes.len()).collect();
        dying.shuffle(random);
        dying.truncate(count);
        dying.iter().for_each(|at| processes[*at].process.signal(Signal::KILL));
        if logger_too {
            self.outcome.kills += kill_loggers(self.path) as u64;
        }
        for at in dying {
            let next = Member::start(self.path, (processes[at].role, processes[at].argument), &format!("{at}-{name}"));
            let mut dead = std::mem::replace(&mut processes[at], next);
            dead.process.kill();
            // Collects a finding that was printed since the last check.
            dead.process.refuse_finding()?;
            self.acknowledged.extend(dead.acknowledged());
            self.outcome.kills += 1;
        }
        Ok(())
    }

    /// Kills all processes, sometimes simulates a kernel crash, and checks the remaining store.
    fn end(&mut self, mut processes: Vec<Member>, random: &mut StdRng) -> Result<(), Finding> {
        // The processes are killed at once. The loggers are killed before or after them.
        let logger_first = random.random_bool(0.5);
        if logger_first {
            self.outcome.kills += kill_loggers(self.path) as u64;
        }
        processes.iter().for_each(|member| member.process.signal(Signal::KILL));
        for member in &mut processes {
            member.process.kill();
            member.process.refuse_finding()?;
            self.acknowledged.extend(member.acknowledged());
            self.outcome.kills += 1;
        }
        drop(processes);
        self.outcome.kills += kill_loggers(self.path) as u64;
        let is_kernel_dead = random.random_bool(0.4);
        if is_kernel_dead {
            crash_kernel(self.path);
        } else if random.random_bool(0.5) {
            // Recovery then replays the log and the ring. Otherwise the next logger continues the
            // region.
            drop_from_memory(self.path, &MARKED);
        }
        let store = workload::open(self.path)?;
        oracle::kept(
            &store,
            self.acknowledged.iter().map(|(name, acknowledged)| (name.as_str(), *acknowledged)),
            is_kernel_dead,
        )?;
        oracle::counters_not_ahead(&store)?;
        oracle::verified(&store)?;
        // What a recovery found is durable.
        self.acknowledged = oracle::made_durable(&store)?;
        Ok(())
    }
}
