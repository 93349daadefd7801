//! Arranged deaths: the process that dies and the actions of the others are chosen to test one
//! promise.
//!
//! | scenario | what happens | what is tested |
//! |---|---|---|
//! | `unfinished stream` | a writer dies in the middle of a streamed transaction, and the next writer streams, too | recovery does not combine the frames of both |
//! | `recycled segment` | the log reuses its segments, then all processes die and the kernel crashes | recovery does not replay data of a segment's former use |
//! | `overwritten large values` | large values are overwritten again and again without a checkpoint, then all processes die and the kernel crashes | an extent to which the log refers is not reused |
//! | `stalled reader` | a reader is held between its pin and its copy of the image, while a writer commits | the pin protects the pages of its snapshot |
//! | `recycled under a follower` | a follower is held while the log that it has not read is recycled | it gets an error instead of continuing after the gap |
//! | `namespaces` | writers in pid namespaces of their own, where each is process 1, are killed | no live process is taken for dead, and no dead process for live |

use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers};
use crate::processes::process::{Checked, Process, start_role};
use crate::processes::role::{Role, say};
use crate::processes::sealed::{sealed, unsealed};
use crate::workload::oracle::{self, Acknowledged};
use crate::workload::{self, Writer, misbehaved};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Durability, Error, Feed};
use untorn_test_kit::process::HoldPoint;

/// A scenario. It returns false if it can't be played on this machine.
type Scenario = fn(&Path, &mut Outcome) -> Result<bool, Finding>;

/// All scenarios.
const ALL: &[(&str, Scenario)] = &[
    ("unfinished stream", unfinished_stream),
    ("recycled segment", recycled_segment),
    ("overwritten large values", overwritten_large_values),
    ("stalled reader", stalled_reader),
    ("recycled under a follower", recycled_under_a_follower),
    ("namespaces", namespaces),
];

/// Number of values of a stream, several times the size of the ring in total.
const STREAM: u64 = 80;
/// Length of each value.
const STREAM_VALUE: usize = 3000;

/// Plays all scenarios.
pub fn run(context: &Context, outcome: &mut Outcome) {
    for (scenario, play) in ALL {
        let name = format!("scenario:{scenario}");
        if !context.wants(&name) || (context.only.is_none() && !context.may_continue(outcome.states, &name)) {
            if context.only.is_none() {
                outcome.uncovered.push(format!("{name}: the time was up"));
            }
            continue;
        }
        let path = context.directory(&name.replace([' ', ':'], "-"));
        let played = play(&path, outcome);
        kill_loggers(&path);
        let _ = std::fs::remove_dir_all(&path);
        match played {
            Ok(true) => outcome.states += 1,
            Ok(false) => outcome.skip(name, "this machine lacks a feature or a permission that it needs"),
            Err(finding) => outcome.violated(finding, &name, context.replay(&name)),
        }
    }
}

/// Plays a role of a scenario. Returns `None` for other roles.
///
/// # Errors
/// The first violation.
pub fn play(role: &Role) -> Option<Result<(), Finding>> {
    end_with_the_parent();
    match role.name.as_str() {
        "streamer" => Some(stream_and_wait(&role.store)),
        "contained" => Some(contained(role)),
        _ => None,
    }
}

// ---- a stream that never commits

/// Returns options without samples and without checkpoints. The small transactions of samples would
/// come between the streams. A checkpoint would make recovery skip the streams.
fn unsampled() -> untorn::Options {
    let mut options = workload::options();
    options.sample_interval(Duration::from_secs(3600)).checkpoint_bytes(1 << 30).segment_size(4 << 20);
    options
}

fn stream(txn: &mut untorn::WriteTxn, name: &str) -> untorn::Result<()> {
    let keyspace = txn.keyspace(name)?;
    (0..STREAM).try_for_each(|i| txn.put(&keyspace, &i.to_be_bytes(), &sealed(i, STREAM_VALUE)))
}

/// Streams most of a transaction, prints `ok`, and waits to be killed.
fn stream_and_wait(path: &Path) -> Result<(), Finding> {
    let store = unsampled().open(path).map_err(misbehaved("opening"))?;
    let mut txn = store.begin().map_err(misbehaved("begin"))?;
    stream(&mut txn, "lost").map_err(misbehaved("streaming"))?;
    say("ok");
    loop {
        std::thread::park();
    }
}

fn unfinished_stream(path: &Path, outcome: &mut Outcome) -> Result<bool, Finding> {
    let store = unsampled().open(path).map_err(misbehaved("opening"))?;
    let mut streamer = start_role(&instrumented::own(), "streamer", path, &[], &[]);
    streamer.wait_for("ok", 1, HANGS)?;
    streamer.kill();
    let kept = || -> untorn::Result<()> {
        let mut txn = store.begin_with(Durability::Durable)?;
        stream(&mut txn, "kept")?;
        txn.commit().map(drop)
    };
    kept().map_err(misbehaved("streaming after a dead stream"))?;
    drop(store);
    outcome.kills += 1 + kill_loggers(path) as u64;
    crash_kernel(path);
    let store = unsampled().open(path).map_err(misbehaved("opening"))?;
    let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
    if snapshot.find_keyspace("lost").map_err(misbehaved("find_keyspace"))?.is_some() {
        return Err(Finding::new(Kind::HalfApplied, "a transaction that never committed is there in part"));
    }
    let Some(kept) = snapshot.find_keyspace("kept").map_err(misbehaved("find_keyspace"))? else {
        return Err(Finding::new(Kind::LostAcked, "the stream that was committed is gone"));
    };
    for i in 0..STREAM {
        let value = snapshot.get(&kept, &i.to_be_bytes()).map_err(misbehaved("get"))?;
        if value.map(unsealed).transpose()? != Some(i) {
            return Err(Finding::new(
                Kind::HalfApplied,
                format!("value {i} of the stream that was committed is not there"),
            ));
        }
    }
    oracle::verified(&store).map(|()| true)
}

// ---- a reused segment

/// Rounds after which the log has reused its segments.
const ROUNDS: u64 = 12;
/// Commits of a round, about as many as a segment has blocks.
const PER_ROUND: u64 = 60;

fn recycled_segment(path: &Path, outcome: &mut Outcome) -> Result<bool, Finding> {
    let mut options = workload::options();
    // Samples and checkpoints are taken only on request.
    options.sample_interval(Duration::from_secs(3600)).checkpoint_bytes(1 << 30).retain_changes(0, Duration::ZERO);
    let store = options.open(path).map_err(misbehaved("opening"))?;
    let keys = store.keyspace("keys").map_err(misbehaved("keyspace"))?;
    let mut n = 0;
    for round in 0..ROUNDS {
        for _ in 0..PER_ROUND {
            n += 1;
            keys.put(b"n", &sealed(n, 60)).map_err(misbehaved("put"))?;
        }
        // The last round is not covered by a checkpoint and is replayed.
        if round + 1 < ROUNDS {
            store.checkpoint().map_err(misbehaved("checkpoint"))?;
        }
    }
    drop((keys, store));
    outcome.kills += kill_loggers(path) as u64;
    crash_kernel(path);
    let store = options.open(path).map_err(misbehaved("opening"))?;
    let there = store.keyspace("keys").and_then(|keys| keys.get(b"n")).map_err(misbehaved("get"))?;
    let there = there.map(|value| unsealed(&value)).transpose()?;
    if there != Some(n) {
        let kind = if there < Some(n) { Kind::LostAcked } else { Kind::OrderViolation };
        return Err(Finding::new(kind, format!("{n} was acknowledged last, {there:?} is there")));
    }
    oracle::verified(&store).map(|()| true)
}

// ---- large values that the log refers to

/// Times that each large value is overwritten.
const OVERWRITES: u64 = 12;

fn overwritten_large_values(path: &Path, outcome: &mut Outcome) -> Result<bool, Finding> {
    let store = unsampled().open(path).map_err(misbehaved("opening"))?;
    let keys = store.keyspace("keys").map_err(misbehaved("keyspace"))?;
    for n in 1..=OVERWRITES {
        keys.put(b"large", sealed(n, 100_000)).map_err(misbehaved("put"))?;
    }
    drop((keys, store));
    outcome.kills += kill_loggers(path) as u64;
    crash_kernel(path);
    let store = unsampled().open(path).map_err(misbehaved("opening"))?;
    let there = store.keyspace("keys").and_then(|keys| keys.get(b"large")).map_err(misbehaved("get"))?;
    let there = there.map(|value| unsealed(&value)).transpose()?;
    if there != Some(OVERWRITES) {
        let what = format!("{OVERWRITES} was acknowledged last, {there:?} is there");
        return Err(Finding::new(Kind::LostAcked, what));
    }
    oracle::verified(&store).map(|()| true)
}

// ---- a reader that stalls

/// Number of commits while the reader is held, and again after that. This number suffices to reuse
/// the pages that no pin protects.
const COMMITS_AROUND: u64 = 200;

fn stalled_reader(path: &Path, outcome: &mut Outcome) -> Result<bool, Finding> {
    let Ok(program) = instrumented::program() else { return Ok(false) };
    let store = workload::open(path)?;
    let writer = Writer::open(store, "w").map_err(misbehaved("opening"))?;
    let commit = |numbers: std::ops::Range<u64>| {
        numbers.into_iter().try_for_each(|n| writer.commit(n, Durability::Visible)).map_err(misbehaved("commit"))
    };
    commit(1..COMMITS_AROUND)?;
    let pinned = HoldPoint::new(&path.with_extension("hold"));
    pinned.arm();
    let mut reader = start_role(program, "holder", path, &[], &[("UNTORN_CRASH", &pinned.at("reader.pinned"))]);
    let begun = Instant::now();
    while !pinned.is_reached() {
        reader.refuse_finding()?;
        if begun.elapsed() > HANGS {
            return Err(Finding::new(Kind::Misbehaved, format!("no reader came to its pin within {HANGS:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    commit(COMMITS_AROUND..2 * COMMITS_AROUND)?;
    pinned.release();
    // The reader prints its first `ok` when it holds a snapshot. Before each later one it compares
    // the snapshot with the first reading.
    reader.wait_for("ok", 1, HANGS)?;
    commit(2 * COMMITS_AROUND..3 * COMMITS_AROUND)?;
    reader.wait_for("ok", reader.lines_count() + 2, HANGS)?;
    reader.kill();
    outcome.kills += 1;
    Ok(true)
}

// ---- a follower whose log is recycled

fn recycled_under_a_follower(path: &Path, outcome: &mut Outcome) -> Result<bool, Finding> {
    let Ok(program) = instrumented::program() else { return Ok(false) };
    let store = workload::options().retain_changes(0, Duration::ZERO).open(path).map_err(misbehaved("opening"))?;
    let writer = Writer::open(store.clone(), "w").map_err(misbehaved("opening"))?;
    let mut n = 0;
    let mut commit = |times: u64| -> untorn::Result<()> {
        for _ in 0..times {
            n += 1;
            writer.commit(n, Durability::Visible)?;
        }
        store.sync()
    };
    commit(3).map_err(misbehaved("commit"))?;
    let copy = HoldPoint::new(&path.with_extension("hold"));
    let orders = copy.at("feed.before_copy");
    let mut follower = start_role(program, "follower", path, &["durable"], &[("UNTORN_CRASH", &orders)]);
    follower.wait_for("ok", 1, HANGS)?;
    copy.arm();
    // The follower reaches the hold with the next commit or one soon after. By then the loop has
    // made more commits than the follower has read.
    let begun = Instant::now();
    while !copy.is_reached() {
        commit(1).map_err(misbehaved("commit"))?;
        std::thread::sleep(Duration::from_millis(1));
        if begun.elapsed() > HANGS {
            return Err(Finding::new(Kind::BlockedReader, format!("a follower read nothing for {HANGS:?}")));
        }
    }
    let seen = store.snapshot().map_err(misbehaved("snapshot"))?.txn_id();
    loop {
        commit(200).map_err(misbehaved("commit"))?;
        store.checkpoint().map_err(misbehaved("checkpoint"))?;
        let from_there = store.changes(seen, Feed::Durable).and_then(|mut feed| feed.try_next(Duration::ZERO));
        if matches!(from_there, Err(Error::Lagged { .. })) {
            break;
        }
        if begun.elapsed() > HANGS {
            return Err(Finding::new(Kind::Misbehaved, format!("nothing was recycled within {HANGS:?}")));
        }
    }
    copy.release();
    // Waits until the follower has received the newest change or an error about the gap.
    let heard = follower.lines().iter().filter(|line| line.as_str() == "ok").count();
    follower.wait_for("ok", heard + 2, HANGS)?;
    follower.kill();
    outcome.kills += 1;
    Ok(true)
}

// ---- namespaces

/// The finding of a role that can't create a pid namespace.
const NO_NAMESPACES: &str = "no pid namespaces here";

/// If this variable is set, the process ends when its standard input is closed.
const TIED: &str = "CRASH_HARNESS_TIED";

/// Ends this process when its parent ends, if [`TIED`] is set.
fn end_with_the_parent() {
    if std::env::var_os(TIED).is_some() {
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(1);
        });
    }
}

/// Plays another role as process 1 of a new pid namespace.
#[allow(unsafe_code)]
fn contained(role: &Role) -> Result<(), Finding> {
    // SAFETY: the flags affect only future children of this process, which has one thread.
    let unshared = unsafe {
        libc::unshare(libc::CLONE_NEWPID) == 0 || libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID) == 0
    };
    if !unshared {
        return Err(Finding::new(Kind::Misbehaved, NO_NAMESPACES));
    }
    let mut command = std::process::Command::new(instrumented::own());
    let (name, arguments) = role.arguments.split_first().expect("the role to play");
    Role { name: name.clone(), store: role.store.clone(), arguments: arguments.to_vec() }.assign_to(&mut command);
    // The child prints its findings on the same output. A parent-death signal is not enough: if the
    // parent is killed before the child requests the signal, the child stays. Process 1 of a
    // namespace can't learn its parent's id either. The child therefore waits for the end of a
    // pipe, which the parent's death closes.
    command.stdin(std::process::Stdio::piped()).env(TIED, "1");
    let failed = |error| Finding::new(Kind::Misbehaved, format!("starting {name}: {error}"));
    let mut child = command.spawn().map_err(failed)?;
    let _tie = child.stdin.take();
    let ended = child.wait().map_err(failed)?;
    std::process::exit(ended.code().unwrap_or(1));
}

fn namespaces(path: &Path, outcome: &mut Outcome) -> Result<bool, Finding> {
    let own = instrumented::own();
    let start = |name: &str| start_role(&own, "contained", path, &["writer", name], &[]);
    let mut host = start_role(&own, "writer", path, &["host"], &[]);
    host.wait_for("V", 1, HANGS)?;
    let mut writers: Vec<(String, Process)> =
        ["in-a", "in-b"].into_iter().map(|name| (name.to_string(), start(name))).collect();
    let mut reader = start_role(&own, "contained", path, &["reader"], &[]);
    let mut acknowledged = Vec::new();
    for death in 0..4 {
        for (_, writer) in &mut writers {
            match writer.wait_for("C", 1, HANGS) {
                Err(finding) if finding.what == NO_NAMESPACES => return Ok(false),
                waited => waited?,
            }
        }
        reader.refuse_finding()?;
        host.refuse_finding()?;
        let name = format!("in-{death}");
        let (dead, mut process) = std::mem::replace(&mut writers[death % 2], (name.clone(), start(&name)));
        process.kill();
        acknowledged.push((dead, Acknowledged::by(&process)));
        outcome.kills += 1;
        // The host must not wait for the dead writer.
        let heard = host.lines().len();
        let begun = Instant::now();
        while host.lines().len() < heard + 8 {
            host.refuse_finding()?;
            if begun.elapsed() > HANGS {
                return Err(Finding::new(Kind::BlockedReader, format!("a writer was blocked for {HANGS:?}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    reader.refuse_finding()?;
    reader.kill();
    for (name, mut writer) in writers.into_iter().chain([("host".to_string(), host)]) {
        writer.refuse_finding()?;
        writer.kill();
        acknowledged.push((name, Acknowledged::by(&writer)));
        outcome.kills += 1;
    }
    outcome.kills += 1 + kill_loggers(path) as u64;
    let store = workload::open(path)?;
    oracle::kept(&store, acknowledged.iter().map(|(name, acknowledged)| (name.as_str(), *acknowledged)), false)?;
    oracle::verified(&store).map(|()| true)
}
