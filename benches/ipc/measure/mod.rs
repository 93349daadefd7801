//! Measures one record at a time: every channel, at every size, one way and as a round trip.

pub(crate) mod batch;
pub(crate) mod flushes;
pub(crate) mod remote;

use super::arguments::Arguments;
use super::channel::Kind;
use super::clock::median;
use super::pair::{Pair, Phase};
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

/// Rounds before the counted ones. Their time determines the number of rounds in a phase.
const ROUNDS_BEFORE: usize = 3;
/// The least rounds of a phase, however long or short a transfer takes.
const ROUNDS_MIN: usize = 5;
const ROUNDS_MAX: usize = 500;

/// The measurements at one size. Times are medians, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) kind: Kind,
    pub(crate) bytes: usize,
    pub(crate) one_way: f64,
    pub(crate) round_trip: f64,
    /// System calls of both processes per transfer.
    pub(crate) calls: f64,
    pub(crate) rounds: usize,
}

/// Returns a command that runs this executable as the second process.
pub(crate) fn second() -> io::Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

/// Measures all points.
pub(crate) fn all(arguments: &Arguments) -> io::Result<Vec<Point>> {
    let mut points = Vec::new();
    for kind in arguments.kinds() {
        eprintln!("{}: {}", kind.name(), kind.meaning());
        let mut pair = Pair::start(kind, arguments.is_pinned, second()?)?;
        for bytes in arguments.sizes() {
            points.push(point(&mut pair, kind, bytes, arguments)?);
        }
    }
    Ok(points)
}

fn point(pair: &mut Pair, kind: Kind, bytes: usize, arguments: &Arguments) -> io::Result<Point> {
    let words = bytes / 8;
    let budget = arguments.time_of_a_point() / 2;
    let mut there = repeat(budget, |rounds| pair.one_way(words, rounds))?;
    let mut and_back = repeat(budget, |rounds| pair.round_trip(words, rounds))?;
    Ok(Point {
        kind,
        bytes,
        one_way: median(&mut there.times),
        round_trip: median(&mut and_back.times),
        calls: there.calls,
        rounds: there.times.len(),
    })
}

/// Repeats phases until their time is over. Phases are short, because the time is checked only
/// between two of them.
fn repeat(budget: Duration, mut phase: impl FnMut(usize) -> io::Result<Phase>) -> io::Result<Phase> {
    let begun = Instant::now();
    phase(ROUNDS_BEFORE)?;
    let of_one = begun.elapsed().as_nanos() as f64 / ROUNDS_BEFORE as f64;
    let rounds = (budget.as_nanos() as f64 / of_one / 8.0) as usize;
    let rounds = rounds.clamp(ROUNDS_MIN, ROUNDS_MAX);
    let mut all = Phase::default();
    let (begun, mut phases) = (Instant::now(), 0.0);
    while phases == 0.0 || begun.elapsed() < budget {
        let next = phase(rounds)?;
        all.times.extend(next.times);
        all.calls += next.calls;
        phases += 1.0;
    }
    all.calls /= phases;
    Ok(all)
}
