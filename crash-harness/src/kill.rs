//! Deaths: at each named point in turn, at random instants under load, of several at once, and stops in the middle.
//!
//! After each death others must go on within a stated time, with nobody's help, and see all that was acknowledged. Then everybody
//! dies, which must lose nothing that was visible; then the kernel (`control` is gone), which must lose nothing durable.

use crate::context::Context;
use crate::oracle::{self, Told};
use crate::outcome::{Coverage, Finding, Kind, Outcome};
use crate::process::{Process, crash_kernel, kill_loggers, signal_loggers};
use crate::{victim, workload};
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long others may be held up by a death, on a machine that is busy with other things as well.
pub const BLOCKED_MAX: Duration = Duration::from_secs(20);
/// How long it may take until a process comes by a point.
const REACH: Duration = Duration::from_secs(20);

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    match victim::program() {
        Ok(program) => at_points(context, &mut outcome, program),
        Err(why) => outcome.skip("deaths at named points", why),
    }
    crate::scenes::run(context, &mut outcome);
    at_random(context, &mut outcome);
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

// ---- at named points

/// In which state the victim finds the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Empty,
    Used,
    /// Used, and then everybody died, and the kernel.
    Crashed,
}

/// How a process is brought to a point: the orders, the store, and after how many rounds the victim leaves.
fn way_to(point: &str, action: &str, path: &Path) -> (String, Start, &'static str) {
    // Before an end only the thread that comes by is held: others of its process may acknowledge what they must not.
    let act = match action {
        "end" => format!("hold={}", path.with_extension("gate").display()),
        action => action.to_string(),
    };
    let at = |passage: u32| format!("{point}@{passage}:{act}");
    match point {
        // Not those of the logger's recovery: there must be something to lose.
        _ if action == "end"
            && (point.starts_with("flush.") || point.starts_with("sample."))
            && point != "flush.failed" =>
        {
            (at(12), Start::Used, "")
        }
        _ if action == "end" && point.starts_with("header.") => (at(3), Start::Used, ""),
        "flush.failed" => (format!("wal.sync@3:fail,{}", at(1)), Start::Used, ""),
        "logger.unneeded" | "logger.leaving" | "logger.byte_dropped" => (at(1), Start::Used, "1"),
        // Seldom passed, or once in a life.
        "grow.before_zeros" => (at(1), Start::Empty, ""),
        "cell.resolved" => (format!("cell.dropped@2:kill,{}", at(1)), Start::Used, ""),
        "logger.byte_taken" | "logger.ready" | "client.entered" => (at(1), Start::Used, ""),
        // The logger commits as well, when it recovers and when it samples; later on it is the victim that comes first.
        _ if point.starts_with("commit.") => (at(9), Start::Used, ""),
        _ if point.starts_with("create.") => (at(1), Start::Empty, ""),
        _ if point.starts_with("recover.") || point.starts_with("replay.") => (at(1), Start::Crashed, ""),
        _ => (at(2), Start::Used, ""),
    }
}

fn at_points(context: &Context, outcome: &mut Outcome, program: &Path) {
    let mut coverage = Coverage { of: "crash points".into(), hits: Vec::new() };
    for (index, point) in untorn::crash_points::ALL.iter().enumerate() {
        let mut hits = 0;
        for action in ["kill", "stop", "end"] {
            let name = format!("{point}:{action}");
            if !context.wants(&name) || (context.only.is_none() && !context.may_go_on(outcome.states, &name)) {
                if context.only.is_none() {
                    outcome.uncovered.push(format!("{name}: the time was up"));
                }
                continue;
            }
            let path = context.place(&format!("at-{index}-{action}"));
            let done = death_at(&path, program, point, action, outcome);
            kill_loggers(&path);
            let _ = std::fs::remove_dir_all(&path);
            outcome.states += 1;
            match done {
                Ok(()) => hits += 1,
                Err(finding) => outcome.violated(finding, &name, context.replay(&name)),
            }
        }
        coverage.hits.push(((*point).to_string(), hits));
    }
    outcome.coverage.push(coverage);
}

/// A process dies at a point, or is stopped there for a while; all that must hold then, and after the deaths of all.
fn death_at(path: &Path, program: &Path, point: &str, action: &str, outcome: &mut Outcome) -> Result<(), Finding> {
    let (orders, start, rounds) = way_to(point, action, path);
    prepare(path, start)?;
    let once = path.with_extension("once").to_string_lossy().into_owned();
    let env = [("UNTORN_CRASH", orders.as_str()), ("UNTORN_CRASH_ONCE", once.as_str())];
    let mut doomed = Process::start(program, "writer", path, &["victim", rounds], &env);
    let mark = PathBuf::from(format!("{once}-{point}"));
    let begun = Instant::now();
    let mut others = None;
    while !mark.exists() {
        // Once the victim works the logger is its own, and not one without crash points that somebody else started. Where it is
        // to be left alone with its logger, nobody else comes.
        if action == "end" && rounds.is_empty() && others.is_none() && doomed.newest("S ") > 0 {
            others = Some(crate::end::Others::start(path));
        }
        // A check of its own may fail before it comes there.
        doomed.refuse_finding()?;
        if begun.elapsed() > REACH {
            return Err(Finding::new(Kind::Misbehaved, format!("nobody came by {point} within {REACH:?}")));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_millis(20));
    outcome.kills += u64::from(action == "kill");
    if action == "stop" {
        return while_stopped(path, &mut doomed);
    }
    if action == "end" {
        outcome.kills += 2 + 2 * u64::from(others.is_some());
        return crate::end::end(path, doomed, others);
    }
    let told = Told::by(&doomed);
    let mut other = Process::start(&victim::own(), "writer", path, &["other"], &[]);
    other.wait_for("C", 1, BLOCKED_MAX)?;
    {
        let store = workload::open(path)?;
        oracle::kept(&store, [("victim", told)], false)?;
        oracle::verified(&store)?;
    }
    doomed.kill();
    other.refuse_finding()?;
    other.kill();
    let told = [("victim", Told::by(&doomed)), ("other", Told::by(&other))];
    outcome.kills += 2 + kill_loggers(path) as u64;
    {
        let store = workload::open(path)?;
        oracle::kept(&store, told, false)?;
        oracle::verified(&store)?;
    }
    crash_kernel(path);
    let store = workload::open(path)?;
    oracle::kept(&store, told, true)?;
    oracle::verified(&store)
}

/// Somebody is stopped in the middle of something: readers go on; and when it is continued, so does everybody else.
fn while_stopped(path: &Path, stopped: &mut Process) -> Result<(), Finding> {
    // A logger that is stopped while it recovers, or a client while it opens, keeps others from opening: they wait.
    let mut reader = Process::start(&victim::own(), "reader", path, &[], &[]);
    let is_reading = reader.wait_for("ok", 1, Duration::from_millis(300));
    if let Ok(()) = is_reading {
        let seen = reader.lines().len();
        reader.wait_for("ok", seen + 3, BLOCKED_MAX)?;
    }
    reader.refuse_finding()?;
    // Whoever it is: the victim, or a logger that it started.
    stopped.signal(Signal::CONT);
    signal_loggers(path, Signal::CONT);
    let mut other = Process::start(&victim::own(), "writer", path, &["other"], &[]);
    other.wait_for("C", 1, BLOCKED_MAX)?;
    reader.refuse_finding()?;
    stopped.refuse_finding()?;
    other.refuse_finding()?;
    reader.kill();
    stopped.kill();
    other.kill();
    kill_loggers(path);
    let store = workload::open(path)?;
    oracle::kept(&store, [("victim", Told::by(stopped)), ("other", Told::by(&other))], false)?;
    oracle::verified(&store)
}

fn prepare(path: &Path, start: Start) -> Result<(), Finding> {
    if start == Start::Empty {
        return Ok(());
    }
    let mut before = Process::start(&victim::own(), "writer", path, &["before", "4"], &[]);
    if !before.wait() {
        before.refuse_finding()?;
        return Err(Finding::new(Kind::Misbehaved, "the writer before failed"));
    }
    if start == Start::Crashed {
        // Something to replay, whenever the last checkpoint was.
        let store = workload::open(path)?;
        store.checkpoint().map_err(workload::misbehaved("checkpoint"))?;
        let late = workload::Writer::open(store, "late").map_err(workload::misbehaved("opening"))?;
        for n in 1..4 {
            late.commit(n, untorn::Durability::Durable).map_err(workload::misbehaved("commit"))?;
        }
    }
    // The victim's logger is to be one with crash points.
    kill_loggers(path);
    if start == Start::Crashed {
        let _ = std::fs::remove_file(path.join("control"));
    }
    Ok(())
}

// ---- at random instants

const WRITERS: usize = 3;

fn at_random(context: &Context, outcome: &mut Outcome) {
    let mut round = 0;
    let mut slowest = Duration::ZERO;
    while context.only.is_some() || context.may_go_on(outcome.states, "random kills") {
        let name = format!("random:{round}");
        if context.wants(&name) {
            let path = context.place(&format!("random-{round}"));
            let mut random = context.random(round);
            let done = random_deaths(&path, &mut random, outcome, &mut slowest);
            kill_loggers(&path);
            let _ = std::fs::remove_dir_all(&path);
            if let Err(finding) = done {
                outcome.violated(finding, &name, context.replay(&name));
            }
            if context.only.is_some() {
                break;
            }
        } else if context.only.as_deref().is_none_or(|only| !only.starts_with("random:")) {
            break;
        }
        round += 1;
    }
    outcome.figures.insert("longest wait after a death, in seconds".into(), slowest.as_secs_f64());
}

/// Writers, transfers, readers and openers; some of them and the logger are killed or stopped, one by one and several at
/// once; at the end all, and now and then the kernel. A store lives through several of these.
fn random_deaths(
    path: &Path,
    random: &mut StdRng,
    outcome: &mut Outcome,
    slowest: &mut Duration,
) -> Result<(), Finding> {
    let own = victim::own();
    let mut told: Vec<(String, Told)> = Vec::new();
    for life in 0..3 {
        let start = |role: &str, name: &str| Process::start(&own, role, path, &[name], &[]);
        let mut writers: Vec<(String, Process)> =
            (0..WRITERS).map(|i| format!("w{i}-{life}")).map(|name| (name.clone(), start("writer", &name))).collect();
        let mut others = vec![
            start("reader", ""),
            start("follower", "visible"),
            start("follower", "durable"),
            start("transfer", "t"),
            start("opener", ""),
        ];
        let messenger_name = format!("m-{life}");
        let mut messenger = start("messenger", &messenger_name);
        for (_, writer) in &mut writers {
            writer.wait_for("V", 1, BLOCKED_MAX)?;
        }
        for death in 0..6 {
            std::thread::sleep(Duration::from_millis(random.random_range(2..60)));
            match random.random_range(0..6) {
                0 => outcome.kills += kill_loggers(path) as u64,
                1 => {
                    let at = random.random_range(0..others.len());
                    others[at].signal(Signal::STOP);
                    std::thread::sleep(Duration::from_millis(random.random_range(1..30)));
                    others[at].signal(Signal::CONT);
                }
                2 => {
                    // Several at once.
                    for (_, writer) in &writers[1..] {
                        writer.signal(Signal::KILL);
                    }
                    outcome.kills += writers.len() as u64 - 1;
                    for (at, writer) in writers.iter_mut().enumerate().skip(1) {
                        respawn(writer, &mut told, &own, path, &format!("{life}-{death}-{at}"));
                    }
                }
                _ => {
                    let at = random.random_range(0..writers.len());
                    respawn(&mut writers[at], &mut told, &own, path, &format!("{life}-{death}"));
                    outcome.kills += 1;
                }
            }
            outcome.states += 1;
            // With nobody's help, somebody goes on.
            let begun = Instant::now();
            let heard = writers[0].1.lines().len();
            while writers[0].1.lines().len() <= heard {
                writers[0].1.refuse_finding()?;
                if begun.elapsed() > BLOCKED_MAX {
                    return Err(Finding::new(Kind::BlockedReader, format!("a writer was held up for {BLOCKED_MAX:?}")));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            *slowest = begun.elapsed().max(*slowest);
            for other in &mut others {
                other.refuse_finding()?;
            }
        }
        for (name, mut writer) in writers {
            writer.refuse_finding()?;
            writer.kill();
            told.push((name, Told::by(&writer)));
            outcome.kills += 1;
        }
        messenger.refuse_finding()?;
        messenger.kill();
        told.push((messenger_name, Told::by_messenger(&messenger)));
        for other in &mut others {
            other.refuse_finding()?;
            other.kill();
            outcome.kills += 1;
        }
        outcome.kills += kill_loggers(path) as u64;
        let is_power_cut = random.random_bool(0.4);
        if is_power_cut {
            crash_kernel(path);
        }
        let store = workload::open(path)?;
        oracle::kept(&store, told.iter().map(|(name, told)| (name.as_str(), *told)), is_power_cut)?;
        oracle::verified(&store)?;
        outcome.states += 1;
        // What a recovery found is durable.
        store.sync().map_err(workload::misbehaved("sync"))?;
        let snapshot = store.snapshot().map_err(workload::misbehaved("snapshot"))?;
        let found = oracle::check(&snapshot)?;
        told.clear();
        for (name, n) in found {
            let cell = oracle::cells_of(&store, &name)?.0;
            let is_messenger = name.starts_with('m');
            let visible = if is_messenger { n } else { n.min(cell) };
            told.push((name, Told { visible, durable: n, cell, is_messenger }));
        }
        // The counter of a writer that died between its commit and its addition is behind.
        for (name, told) in told.iter_mut().filter(|(_, told)| !told.is_messenger) {
            told.visible = told.visible.min(oracle::cells_of(&store, name)?.1);
        }
    }
    Ok(())
}

/// Kills a writer and starts another one, under a name of its own.
fn respawn(writer: &mut (String, Process), told: &mut Vec<(String, Told)>, program: &Path, path: &Path, name: &str) {
    writer.1.kill();
    told.push((writer.0.clone(), Told::by(&writer.1)));
    let name = format!("r{name}");
    let process = Process::start(program, "writer", path, &[&name], &[]);
    *writer = (name, process);
}
