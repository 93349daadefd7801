//! Histories: the answers that real clients receive while processes are killed. The answers must be
//! consistent with one map whose transactions happen one after the other.
//!
//! Clients of each kind work on a few keys while clients and the logger are killed. Each beginning
//! and each answer is recorded. Stateright's linearizability tester checks the history. If all
//! answers are durable, the history continues across a kernel crash, which must make no difference.
//! Otherwise it continues only across the deaths of all processes.

mod client;
mod event;
mod judge;
mod model;

pub(crate) use client::play;

use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers, loggers};
use crate::processes::memory_mark::{MARKED, drop_from_memory};
use crate::processes::process::{Checked, Process, start_role};
use crate::workload;
use crate::workload::misbehaved;
use crate::workload::oracle;
use client::{KEYS, KEYSPACE, KINDS, Orders, key_in, seen, starting_flag};
use event::{Answer, Event, Operation, What};
use judge::{Verdict, judge};
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// Concurrent clients.
const CLIENTS: usize = 8;
/// Number of operations of each client.
const OPERATIONS: u32 = 12;
/// Maximum number of clients that are killed in one history. Each leaves an operation whose outcome
/// is unknown.
const DEATHS_MAX: usize = 6;
/// Number of histories of one store.
const HISTORIES: u32 = 4;

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    let mut figures = Figures::default();
    if let Some(path) = context.only.as_deref().and_then(|only| only.strip_prefix("history:")) {
        again(context, Path::new(path), &mut outcome, &mut figures);
    } else {
        rounds(context, &mut outcome, &mut figures);
    }
    figures.tell(&mut outcome);
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

fn rounds(context: &Context, outcome: &mut Outcome, figures: &mut Figures) {
    for round in 0.. {
        let name = format!("round:{round}");
        if context.only.is_none() && !context.may_continue(outcome.states, &name) {
            return;
        }
        if context.wants(&name) {
            // Rounds that kill only processes need no disk. Rounds with kernel crashes use a disk,
            // whose syncs take time.
            let is_durable = round % 2 == 1;
            let name = format!("history-{round}");
            let path = if is_durable { context.directory(&name) } else { context.directory_in_memory(&name) };
            let mut round = Round { context, outcome, figures, name: &name, path: &path, is_durable };
            if let Err(finding) = round.run(&mut context.random(round_purpose(&name))) {
                outcome.violated(finding, &name, context.replay(&name));
            }
            kill_loggers(&path);
            let _ = std::fs::remove_dir_all(&path);
        }
        if context.only.as_ref().is_some_and(|only| *only == name || !only.starts_with("round:")) {
            return;
        }
    }
}

fn round_purpose(name: &str) -> u64 {
    name.bytes().fold(17, |sum, byte| sum * 31 + u64::from(byte))
}

/// Checks a saved history.
fn again(context: &Context, path: &Path, outcome: &mut Outcome, figures: &mut Figures) {
    let name = format!("history:{}", path.display());
    match event::load(path) {
        Ok(events) => {
            if let Err(finding) = figures.judge(&events) {
                outcome.violated(finding, &name, context.replay(&name));
            }
        }
        Err(finding) => outcome.violated(finding, &name, context.replay(&name)),
    }
    outcome.states += 1;
}

#[derive(Default)]
struct Figures {
    histories: u64,
    operations: u64,
    unanswered: u64,
    kernel_crashes: u64,
    undecided: u64,
    longest: Duration,
}

impl Figures {
    fn judge(&mut self, events: &[Event]) -> Result<(), Finding> {
        let begun = Instant::now();
        let verdict = judge(events).map_err(|what| Finding::new(Kind::Misbehaved, format!("not a history: {what}")))?;
        self.longest = self.longest.max(begun.elapsed());
        self.histories += 1;
        let operations = events.iter().filter(|event| matches!(event.what, What::Began(_))).count();
        let answered = events.iter().filter(|event| matches!(event.what, What::Answered(_))).count();
        self.operations += operations as u64;
        self.unanswered += (operations - answered) as u64;
        match verdict {
            Verdict::Linearizable => Ok(()),
            Verdict::NotLinearizable => {
                let what = format!("a history of {operations} operations is not linearizable");
                Err(Finding::new(Kind::OrderViolation, what))
            }
            Verdict::Undecided => {
                self.undecided += 1;
                Ok(())
            }
        }
    }

    fn tell(&self, outcome: &mut Outcome) {
        if self.undecided > 0 {
            outcome.uncovered.push(format!("{} histories with too many orders to try", self.undecided));
        }
        let figures = [
            ("histories", self.histories as f64),
            ("operations", self.operations as f64),
            ("operations without an answer", self.unanswered as f64),
            ("histories over a crash of the kernel", self.kernel_crashes as f64),
            ("longest check of a history, in seconds", self.longest.as_secs_f64()),
        ];
        outcome.figures.extend(figures.map(|(name, figure)| (name.to_string(), figure)));
    }
}

/// One store and its histories.
struct Round<'r> {
    context: &'r Context,
    outcome: &'r mut Outcome,
    figures: &'r mut Figures,
    name: &'r str,
    path: &'r Path,
    is_durable: bool,
}

impl Round<'_> {
    fn run(&mut self, random: &mut StdRng) -> Result<(), Finding> {
        {
            let store = workload::open(self.path)?;
            store.keyspace(KEYSPACE).map_err(misbehaved("keyspace"))?;
        }
        for history in 0..HISTORIES {
            let events = self.record(history, random);
            let _ = std::fs::remove_file(starting_flag(self.path, history));
            let events = events?;
            self.outcome.states += 1;
            if let Err(finding) = self.figures.judge(&events) {
                let file = event::save(&events, &format!("{}-{}-{history}", self.context.seed, self.name))?;
                let replay = self.context.replay(&format!("history:{}", file.display()));
                self.outcome.violated(finding, self.name, replay);
            }
        }
        let store = workload::open(self.path)?;
        oracle::verified(&store)
    }

    /// Lets clients work, kills some and finally all, and reads the remaining state.
    fn record(&mut self, history: u32, random: &mut StdRng) -> Result<Vec<Event>, Finding> {
        let mut clients = Clients::start(self.path, history, self.is_durable, random);
        clients.wait_until_ready()?;
        let begun = std::fs::write(starting_flag(self.path, history), "");
        begun.map_err(|error| Finding::new(Kind::Misbehaved, format!("the starting flag: {error}")))?;
        self.deaths(&mut clients, random)?;
        let mut events = clients.end(self.outcome)?;
        if random.random_bool(0.7) {
            self.outcome.kills += kill_loggers(self.path) as u64;
        }
        if self.is_durable && random.random_bool(0.7) {
            crash_kernel(self.path);
            self.figures.kernel_crashes += 1;
        } else if random.random_bool(0.3) {
            // If all processes were killed, the next logger now recovers the store instead of
            // continuing its region.
            drop_from_memory(self.path, &MARKED);
        }
        events.extend(self.look(clients.next, history)?);
        Ok(events)
    }

    /// Kills and stops clients until all have finished. A short history ends earlier, and the
    /// caller kills the remaining clients.
    fn deaths(&mut self, clients: &mut Clients, random: &mut StdRng) -> Result<(), Finding> {
        let is_short = random.random_bool(0.5);
        let mut left = DEATHS_MAX;
        let begun = Instant::now();
        while clients.are_running() {
            if begun.elapsed() > HANGS {
                let what = format!("clients were blocked for {HANGS:?}: {}", clients.where_they_are());
                return Err(Finding::new(Kind::BlockedReader, what));
            }
            std::thread::sleep(Duration::from_micros(random.random_range(300..6000)));
            // A message-passing client can't start a logger.
            if !clients.can_start_a_logger() {
                workload::open(self.path)?;
            }
            match random.random_range(0..8) {
                0 => self.outcome.kills += kill_loggers(self.path) as u64,
                1 => clients.stop_one(random),
                // Kills several processes at once, including the logger.
                2 if left > 1 => {
                    self.outcome.kills += kill_loggers(self.path) as u64 + clients.kill(2, random);
                    left -= 2;
                }
                3..6 if left > 0 => {
                    self.outcome.kills += clients.kill(1, random);
                    left -= 1;
                }
                _ => continue,
            }
            self.outcome.states += 1;
            if is_short && left < DEATHS_MAX / 2 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads all keys at the end.
    fn look(&self, client: u32, history: u32) -> Result<Vec<Event>, Finding> {
        let store = workload::open(self.path)?;
        let keyspace = store.keyspace(KEYSPACE).map_err(misbehaved("keyspace"))?;
        let keys: Vec<u8> = (0..KEYS).collect();
        let began = Event::now(client, What::Began(Operation { read: keys.clone(), ..Operation::default() }));
        let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
        let mut read = Vec::new();
        for key in keys {
            let found = snapshot.get_versioned(&keyspace, &key_in(history, key)).map_err(misbehaved("get"))?;
            read.push(seen(found));
        }
        let at = Some(snapshot.txn_id().as_u64());
        Ok(vec![began, Event::now(client, What::Answered(Answer::Done { read, at }))])
    }
}

/// The clients of one history.
struct Clients<'c> {
    path: &'c Path,
    history: u32,
    is_durable: bool,
    running: Vec<Process>,
    kinds: Vec<&'static str>,
    gone: Vec<Process>,
    next: u32,
}

impl<'c> Clients<'c> {
    fn start(path: &'c Path, history: u32, is_durable: bool, random: &mut StdRng) -> Clients<'c> {
        let kinds: Vec<&'static str> = (0..CLIENTS).map(|at| KINDS[at % KINDS.len()]).collect();
        let mut clients =
            Clients { path, history, is_durable, running: Vec::new(), kinds: kinds.clone(), gone: Vec::new(), next: 0 };
        clients.running = kinds.into_iter().map(|kind| clients.one(kind, OPERATIONS, random)).collect();
        clients
    }

    fn one(&mut self, kind: &'static str, operations: u32, random: &mut StdRng) -> Process {
        let (client, history, is_durable) = (self.next, self.history, self.is_durable);
        self.next += 1;
        let orders = Orders { kind, client, history, seed: random.random(), operations, is_durable };
        let arguments = orders.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        start_role(&instrumented::own(), "client", self.path, &arguments, &[])
    }

    fn are_running(&mut self) -> bool {
        self.running.iter_mut().any(Process::is_running)
    }

    fn can_start_a_logger(&mut self) -> bool {
        let kinds = self.kinds.clone();
        self.running.iter_mut().zip(kinds).any(|(client, kind)| kind != "messages" && client.is_running())
    }

    /// Waits until all have opened the store or are connected. No process is killed during this
    /// time, so no other process is needed to recover.
    fn wait_until_ready(&mut self) -> Result<(), Finding> {
        for at in 0..CLIENTS {
            if let Err(finding) = self.running[at].wait_for("ready", 1, HANGS) {
                // The failure of another client may be the cause.
                self.running.iter_mut().try_for_each(Checked::refuse_finding)?;
                return Err(Finding::new(finding.kind, format!("{}; {}", finding.what, self.how_the_store_is())));
            }
        }
        Ok(())
    }

    /// Describes the store after a timeout: its loggers, the errors that they wrote, the clients,
    /// and whether one more client succeeds.
    fn how_the_store_is(&mut self) -> String {
        let loggers = loggers(self.path);
        let left = ["logger.panic", "logger.note"].map(|name| {
            let text = std::fs::read_to_string(self.path.join(name)).unwrap_or_default();
            if text.is_empty() { String::new() } else { format!("{name}: {}; ", text.trim()) }
        });
        let clients = self.where_they_are();
        let another = workload::open(self.path).and_then(|store| store.checkpoint().map_err(misbehaved("checkpoint")));
        let another = another.map_or_else(|finding| finding.what, |_| "could work".into());
        format!("{} loggers; {}one more client {another}; those that run: {clients}", loggers, left.concat())
    }

    /// Describes where the running clients are.
    fn where_they_are(&mut self) -> String {
        let kinds = self.kinds.clone();
        let running = self
            .running
            .iter_mut()
            .zip(kinds)
            .filter_map(|(client, kind)| client.is_running().then(|| format!("{kind}: {}", client.where_it_is())));
        running.collect::<Vec<_>>().join("; ")
    }

    /// Kills `count` clients at once and replaces them. Returns how many of them were still
    /// running.
    fn kill(&mut self, count: usize, random: &mut StdRng) -> u64 {
        let first = random.random_range(0..CLIENTS);
        let dying: Vec<usize> = (first..first + count).map(|at| at % CLIENTS).collect();
        let killed = dying.iter().filter(|at| self.running[**at].is_running()).count();
        dying.iter().for_each(|at| self.running[*at].signal(Signal::KILL));
        for at in dying {
            let next = self.one(self.kinds[at], OPERATIONS / 2, random);
            let mut dead = std::mem::replace(&mut self.running[at], next);
            dead.kill();
            self.gone.push(dead);
        }
        killed as u64
    }

    fn stop_one(&self, random: &mut StdRng) {
        let client = &self.running[random.random_range(0..CLIENTS)];
        client.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(random.random_range(1..8)));
        client.signal(Signal::CONT);
    }

    /// Kills all running clients at once and returns all recorded events.
    fn end(&mut self, outcome: &mut Outcome) -> Result<Vec<Event>, Finding> {
        let mut running = std::mem::take(&mut self.running);
        for client in &mut running {
            if client.is_running() {
                client.signal(Signal::KILL);
                outcome.kills += 1;
            }
        }
        let mut events = Vec::new();
        for mut client in running.into_iter().chain(std::mem::take(&mut self.gone)) {
            client.kill();
            client.refuse_finding()?;
            let lines = client.lines();
            events.extend(event::parse(lines.iter().map(String::as_str))?);
        }
        Ok(events)
    }
}
