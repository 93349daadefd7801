//! Process deaths at each named point in turn: the process that reaches the point dies, or its
//! successor at the same point, too. Other deaths happen at random instants under load, some of
//! several processes at once. Processes are also stopped and continued.
//!
//! After each death the other processes must make progress within a fixed time, without
//! intervention, and find everything that was acknowledged. Then all processes die, which must lose
//! nothing visible. Then a kernel crash is simulated (`control` is removed), which must lose
//! nothing durable.

pub mod end;
mod random;
pub mod scenarios;

use crate::context::Context;
use crate::outcome::{Coverage, Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers, signal_loggers};
use crate::processes::memory_mark::{MARKED, drop_from_memory};
use crate::processes::process::{Checked, Process, start_role};
use crate::workload;
use crate::workload::oracle::{self, Acknowledged};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The value of `--only` that tries one death at each point, whatever the limit.
pub const EVERY_POINT: &str = "every point";

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    match instrumented::program() {
        Ok(program) => at_points(context, &mut outcome, program),
        Err(why) => outcome.skip("deaths at named points", why),
    }
    if context.only.as_deref() != Some(EVERY_POINT) {
        crate::kill::scenarios::run(context, &mut outcome);
        random::rounds(context, &mut outcome);
    }
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

// ---- at named points

/// The state of the store when the doomed process starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Empty,
    Used,
    /// Without cells, and left in order, so that the first client makes the region.
    InOrder,
    /// Used; then all processes died.
    Killed,
    /// Used; then all processes died and the kernel crashed.
    Crashed,
}

/// Returns how a process reaches a point: the value of `UNTORN_CRASH`, the state of the store, and
/// the number of rounds after which the process leaves.
fn way_to(point: &str, action: &str, path: &Path) -> (String, Start, &'static str) {
    let act = match action {
        // For the action `end`, only the thread that reaches the point is held. The other threads
        // of its process continue, so that a premature acknowledgement by one of them is found.
        "end" => format!("hold={}", path.with_extension("hold").display()),
        "twice" => "kill".to_string(),
        action => action.to_string(),
    };
    let at = |passage: u32| format!("{point}@{passage}:{act}");
    match point {
        // Skips the passages during the logger's recovery. At the chosen passage there must be data
        // to lose, and the follower must have started.
        _ if action == "end" && point.starts_with("flush.") && point != "flush.failed" => (at(150), Start::Used, ""),
        _ if action == "end" && point.starts_with("sample.") => (at(12), Start::Used, ""),
        _ if action == "end" && point.starts_with("header.") => (at(3), Start::Used, ""),
        "flush.failed" => (format!("wal.sync@3:fail,{}", at(1)), Start::Used, ""),
        "logger.unneeded" | "logger.leave_begun" | "logger.byte_dropped" => (at(1), Start::Used, "1"),
        // These points are reached rarely, or once in the life of a process.
        "grow.before_zeros" | "readers.chunk_claimed" => (at(1), Start::Empty, ""),
        "cell.resolved" => (format!("cell.dropped@2:kill,{}", at(1)), Start::Used, ""),
        "logger.byte_taken" | "logger.ready" | "client.entered" => (at(1), Start::Used, ""),
        // The logger also commits, for recovery and for samples. Its deaths at these points are
        // tried by "twice".
        _ if point.starts_with("commit.") => (at(9), Start::Used, ""),
        _ if point.starts_with("create.") => (at(1), Start::Empty, ""),
        "client.region_made" | "client.region_placed" | "region.before_begin" => (at(1), Start::InOrder, ""),
        _ if point.starts_with("adopt.") => (at(1), Start::Killed, ""),
        _ if point.starts_with("recover.") || point.starts_with("replay.") => (at(1), Start::Crashed, ""),
        _ => (at(2), Start::Used, ""),
    }
}

fn at_points(context: &Context, outcome: &mut Outcome, program: &Path) {
    let mut coverage = Coverage { of: "crash points".into(), hits: Vec::new() };
    for (index, point) in untorn::crash_points::ALL.iter().enumerate() {
        let mut hits = 0;
        // A store is created once. If a logger dies after it adopted a region, the next logger
        // recovers the region.
        let is_passed_once = ["create.done", "adopt.attached"].contains(point);
        let actions = if is_passed_once { &["kill", "stop", "end"][..] } else { &["kill", "stop", "twice", "end"] };
        for action in actions {
            let name = format!("{point}:{action}");
            let is_one_of_every = *action == "kill" && context.wants(EVERY_POINT);
            if !(context.wants(&name) || is_one_of_every)
                || (context.only.is_none() && !context.may_continue(outcome.states, &name))
            {
                if context.only.is_none() {
                    outcome.uncovered.push(format!("{name}: the time was up"));
                }
                continue;
            }
            let path = context.directory_in_memory(&format!("at-{index}-{action}"));
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

/// Tries an action at a point: the process dies there, its successor dies there, too, the process
/// is stopped there for a while, or all processes are killed while it is held there. Then checks
/// everything that must hold, also after the deaths of all processes.
fn death_at(path: &Path, program: &Path, point: &str, action: &str, outcome: &mut Outcome) -> Result<(), Finding> {
    let (orders, start, rounds) = way_to(point, action, path);
    prepare(path, start)?;
    let once = path.with_extension("once").to_string_lossy().into_owned();
    let (times, mark) = if action == "twice" { ("2", "-2") } else { ("1", "") };
    let mut env =
        vec![("UNTORN_CRASH", orders.as_str()), ("UNTORN_CRASH_ONCE", once.as_str()), ("UNTORN_CRASH_TIMES", times)];
    if action == "kill" && point.starts_with("commit.") {
        env.push(("UNTORN_CRASH_CLIENT", "1"));
    }
    let mut name = "writer".to_string();
    let mut doomed = start_role(program, "writer", path, &[&name, rounds], &env);
    let first = PathBuf::from(format!("{once}-{point}"));
    let mark = PathBuf::from(format!("{once}-{point}{mark}"));
    let mut acknowledged = Vec::new();
    let begun = Instant::now();
    let mut others = None;
    while !mark.exists() {
        // The process may find a violation before it reaches the point.
        doomed.refuse_finding()?;
        // Once the process has written, it has started the logger itself, so the logger has crash
        // points. If the process must be alone with its logger, no other process is started.
        if action == "end" && rounds.is_empty() && others.is_none() && doomed.newest("S ") > 0 {
            others = Some(crate::kill::end::Others::start(path));
        }
        // The next process must reach the same point. After the death of a logger, that is the next
        // logger of the same writer. If the writer had to leave the logger alone, it is the logger
        // of the next writer.
        let is_next = rounds.is_empty() || (first.exists() && acknowledged.is_empty());
        if action == "twice" && is_next && !doomed.is_running() {
            doomed.kill();
            acknowledged.push((name, Acknowledged::by(&doomed)));
            name = format!("successor {}", acknowledged.len());
            doomed = start_role(program, "writer", path, &[&name, rounds], &env);
        }
        if begun.elapsed() > HANGS {
            return Err(Finding::new(Kind::Misbehaved, format!("no process reached {point} within {HANGS:?}")));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_millis(20));
    if action == "stop" {
        return while_stopped(path, &mut doomed);
    }
    if action == "end" {
        outcome.kills += 2 + 2 * u64::from(others.is_some());
        return crate::kill::end::end(path, doomed, others);
    }
    outcome.kills += 1 + u64::from(action == "twice");
    let kept = |acknowledged: &[(String, Acknowledged)], is_kernel_dead: bool| {
        let store = workload::open(path)?;
        oracle::kept(
            &store,
            acknowledged.iter().map(|(name, acknowledged)| (name.as_str(), *acknowledged)),
            is_kernel_dead,
        )?;
        oracle::verified(&store)?;
        Ok::<_, Finding>(store)
    };
    acknowledged.push((name.clone(), Acknowledged::by(&doomed)));
    // This writer is killed at its first commit, before its log is long enough for a checkpoint.
    let mut other = start_role(&instrumented::own(), "writer", path, &["other"], &[]);
    other.wait_for("C", 1, HANGS)?;
    other.kill();
    other.refuse_finding()?;
    acknowledged.push(("other".to_string(), Acknowledged::by(&other)));
    let store = kept(&acknowledged, false)?;
    // The process may have died after it published a transaction and before it acknowledged it.
    // Everything that a reader saw before a sync is durable all the same. The sync does not cover
    // cells, which become durable with the next sample.
    let seen = oracle::made_durable(&store)?;
    acknowledged.extend(seen.into_iter().map(|(name, acknowledged)| (name, Acknowledged { cell: 0, ..acknowledged })));
    // A checkpoint must succeed after any number of interrupted ones. After a single death no
    // checkpoint is requested, because recovery would then not need the records that the log may
    // lack.
    if action == "twice" {
        store.checkpoint().map_err(workload::misbehaved("checkpoint"))?;
    }
    drop(store);
    doomed.kill();
    acknowledged.push((name, Acknowledged::by(&doomed)));
    outcome.kills += 2 + kill_loggers(path) as u64;
    if action == "twice" {
        // Recovery then replays the log and the ring. Otherwise the next logger continues the
        // region.
        drop_from_memory(path, &MARKED);
    }
    oracle::counters_not_ahead(&kept(&acknowledged, false)?)?;
    crash_kernel(path);
    oracle::counters_not_ahead(&kept(&acknowledged, true)?)
}

/// Checks that readers continue while a process is stopped in the middle of an operation. When the
/// process is continued, all other processes must continue, too.
fn while_stopped(path: &Path, stopped: &mut Process) -> Result<(), Finding> {
    // If the stopped process is a logger in recovery or a client that opens the store, other
    // processes wait to open it.
    let mut reader = start_role(&instrumented::own(), "reader", path, &[], &[]);
    let is_reading = reader.wait_for("ok", 1, Duration::from_millis(300));
    if let Ok(()) = is_reading {
        let seen = reader.lines().len();
        reader.wait_for("ok", seen + 3, HANGS)?;
    }
    reader.refuse_finding()?;
    // The stopped process is the writer or a logger that it started.
    stopped.signal(Signal::CONT);
    signal_loggers(path, Signal::CONT);
    let mut other = start_role(&instrumented::own(), "writer", path, &["other"], &[]);
    other.wait_for("C", 1, HANGS)?;
    // This covers a reader that had to wait and one that did not.
    reader.wait_for("ok", reader.lines_count() + 1, HANGS)?;
    stopped.refuse_finding()?;
    other.refuse_finding()?;
    reader.kill();
    stopped.kill();
    other.kill();
    kill_loggers(path);
    let store = workload::open(path)?;
    oracle::kept(&store, [("writer", Acknowledged::by(stopped)), ("other", Acknowledged::by(&other))], false)?;
    oracle::counters_not_ahead(&store)?;
    oracle::verified(&store)
}

fn prepare(path: &Path, start: Start) -> Result<(), Finding> {
    if start == Start::Empty {
        return Ok(());
    }
    if start == Start::InOrder {
        let store = workload::open(path)?;
        let keys = store.keyspace("before").map_err(workload::misbehaved("keyspace"))?;
        keys.put(b"key", b"value").map_err(workload::misbehaved("put"))?;
        drop((keys, store));
        untorn::logger::stop_logger(path, HANGS).map_err(workload::misbehaved("stopping the logger"))?;
        return Ok(());
    }
    let mut before = start_role(&instrumented::own(), "writer", path, &["before", "4"], &[]);
    if !before.wait() {
        before.refuse_finding()?;
        return Err(Finding::new(Kind::Misbehaved, "the writer that fills the store failed"));
    }
    if matches!(start, Start::Killed | Start::Crashed) {
        // Ensures that there is something to replay, whenever the last checkpoint was.
        let store = workload::open(path)?;
        store.checkpoint().map_err(workload::misbehaved("checkpoint"))?;
        let late = workload::Writer::open(store, "late").map_err(workload::misbehaved("opening"))?;
        for n in 1..4 {
            late.commit(n, untorn::Durability::Durable).map_err(workload::misbehaved("commit"))?;
        }
    }
    // The next logger must be one with crash points.
    kill_loggers(path);
    if start == Start::Crashed {
        crash_kernel(path);
    }
    Ok(())
}
