//! Goal: the benchmark `ipc` measures what its names promise. Its fits find the constants of points
//! that were made by the formulas. Each way of handing over carries every byte, between processes,
//! at sizes around each boundary that it has.
//!
//! Method: the benchmark's own code is compiled into this test. Durations are not checked.

#[path = "../../../benches/ipc/main.rs"]
#[allow(dead_code, unreachable_pub)]
mod bench;

use crate::common::limit;
use bench::channel::{Family, Kind};
use bench::digest::Digest;
use bench::fit::{self, Row};
use bench::measure::Point;
use bench::measure::batch::{self, Batches};
use bench::pair::{self, Pair};
use bench::report::model::{Crossing, Fits};
use std::process::Command;

/// The second process of a pair, when this executable is started as one.
#[test]
fn second() {
    pair::consume_if_asked().unwrap();
}

#[test]
fn every_byte_arrives() {
    let _limit = limit();
    for kind in Kind::ALL {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["repository::ipc::second", "--exact", "--test-threads=1"]).stdout(std::process::Stdio::null());
        let mut pair = Pair::start(kind, false, command).unwrap();
        // Around a page, a packet, what the pipe, the ring and the socket hold, and the longest.
        for bytes in [8, 16, 24, 4088, 4096, 4104, 65_536, 65_544, 262_144, 262_152, 1 << 20, 16 << 20] {
            let words = bytes / 8;
            let there = pair.one_way(words, 2).unwrap_or_else(|error| panic!("{kind:?}, {bytes} B: {error}"));
            assert_eq!(there.times.len(), 2);
            // Each message has to be written and read. With shared memory, a process that is still
            // awake makes no call.
            assert!(kind.family() != Family::Message || there.calls >= 2.0, "{kind:?}: {} calls", there.calls);
            pair.round_trip(words, 2).unwrap_or_else(|error| panic!("{kind:?}, {bytes} B and back: {error}"));
        }
        if matches!(kind, Kind::Stream | Kind::Ring) {
            pair.stream(8, 5000, 8).unwrap();
            pair.stream(40_000, 20, 8).unwrap();
        }
    }
}

fn rows(fixed: f64, per_byte: f64, noise: impl Fn(usize) -> f64) -> Vec<Row<2>> {
    let size = |i: usize| (8_u64 << i) as f64;
    (0..22).map(|i| Row { factors: [1.0, size(i)], found: (fixed + per_byte * size(i)) * (1.0 + noise(i)) }).collect()
}

#[test]
fn the_constants_of_a_line_are_found() {
    let found = fit::coefficients(&rows(7000.0, 0.25, |_| 0.0));
    assert!((found[0] / 7000.0 - 1.0).abs() < 1e-9 && (found[1] / 0.25 - 1.0).abs() < 1e-9, "{found:?}");
    // With each point off by a tenth, up and down by turns, both are found within a tenth: the
    // large do not decide.
    let rows = rows(7000.0, 0.25, |i| if i % 2 == 0 { 0.1 } else { -0.1 });
    let found = fit::coefficients(&rows);
    assert!((found[0] / 7000.0 - 1.0).abs() < 0.1 && (found[1] / 0.25 - 1.0).abs() < 0.1, "{found:?}");
    assert!((fit::error(&rows, &found) - 0.1).abs() < 0.02);
}

#[test]
fn no_cost_is_below_nothing() {
    // Without the bound, the best fit of these points has a negative fixed cost.
    let rows: Vec<_> =
        [(10.0, 9.0), (20.0, 20.0), (30.0, 31.0)].map(|(x, found)| Row { factors: [1.0, x], found }).into();
    let found = fit::coefficients(&rows);
    assert!(found[0] == 0.0 && (0.9..1.1).contains(&found[1]), "{found:?}");
}

#[test]
fn what_no_row_is_about_is_nothing() {
    let rows: Vec<_> = (1..5).map(|i| Row { factors: [1.0, 0.0, f64::from(i)], found: 3.0 + f64::from(i) }).collect();
    let found = fit::coefficients(&rows);
    assert!((found[0] - 3.0).abs() < 1e-9 && found[1] == 0.0 && (found[2] - 1.0).abs() < 1e-9, "{found:?}");
}

const SIGMA: f64 = 4000.0;
const B_K: f64 = 8.0;
const B_CC: f64 = 5.0;

fn made(kind: Kind, calls: f64, ns_per_byte: f64) -> impl Iterator<Item = Point> {
    (0..22).map(move |doubling| {
        let bytes = 8 << doubling;
        let one_way = calls * SIGMA + bytes as f64 * ns_per_byte;
        Point { kind, bytes, one_way, round_trip: 2.0 * one_way, calls, rounds: 1 }
    })
}

#[test]
fn the_constants_of_the_formulas_are_found() {
    let points: Vec<Point> = made(Kind::Stream, 2.0, 2.0 / B_K)
        .chain(made(Kind::SealedMapped, 12.0, 1.0 / B_CC))
        .chain(made(Kind::Arena, 2.0, 1.0 / B_CC))
        .collect();
    let fits = Fits::of(&points);
    let joint = fits.joint.unwrap();
    for (found, meant) in [(joint.sigma_ns, SIGMA), (joint.b_k, B_K), (joint.b_cc, B_CC)] {
        assert!((found / meant - 1.0).abs() < 1e-6, "{joint:?}");
    }
    let meant = 10.0 * SIGMA / (2.0 / B_K - 1.0 / B_CC);
    for (kind, by_lines, by_points) in &fits.against_stream {
        match (kind, by_lines, by_points) {
            (Kind::SealedMapped, Crossing::From(x), Crossing::From(measured)) => {
                assert!((x / meant - 1.0).abs() < 1e-6 && *measured >= meant && *measured < 2.0 * meant);
            }
            // As many calls, and cheaper bytes.
            (Kind::Arena, Crossing::Always, Crossing::Always) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fits.against_stream.len(), 2);
}

#[test]
fn what_is_dearer_at_every_size_never_pays() {
    let points: Vec<Point> = made(Kind::Stream, 2.0, 0.1).chain(made(Kind::StoreFeed, 5.0, 0.3)).collect();
    let fits = Fits::of(&points);
    assert_eq!(fits.against_stream, [(Kind::StoreFeed, Crossing::Never, Crossing::Never)]);
    assert!(fits.joint.is_none(), "there is no shared memory among the points");
}

#[test]
fn the_best_batch_is_the_one_that_fits() {
    let (cache, sigma, within, beyond) = (512e3, 9000.0, 10.0, 15.0);
    let cost = |bytes: usize| {
        let factors = batch::factors(bytes as f64, cache);
        sigma * factors[0] + within * factors[1] + beyond * factors[2]
    };
    let costs: Vec<_> = (3..22).map(|doubling| (8 << doubling, cost(8 << doubling))).collect();
    let batches = Batches::of(Kind::Ring, costs.clone(), cache);
    for (found, meant) in batches.found.iter().zip([sigma, within, beyond]) {
        assert!((found / meant - 1.0).abs() < 1e-6, "{:?}", batches.found);
    }
    assert_eq!(batches.best_by_model(), cache);
    assert_eq!(batches.best_measured().0, 512 << 10);
    // Where misses cost next to nothing, the largest is the best.
    let costs = costs.iter().map(|(bytes, _)| (*bytes, sigma * 64.0 / *bytes as f64 + within)).collect();
    assert_eq!(Batches::of(Kind::Ring, costs, cache).best_by_model(), f64::INFINITY);
}

#[test]
fn each_word_and_its_place_count() {
    let words = [3, 1 << 60, 7, 0, u64::MAX];
    let digest = Digest::of(&words);
    for at in 0..words.len() {
        let mut other = words;
        other[at] ^= 1;
        assert_ne!(Digest::of(&other).folded(), digest.folded(), "word {at}");
    }
    let mut swapped = words;
    swapped.swap(1, 2);
    assert_ne!(Digest::of(&swapped).folded(), digest.folded());
    let mut raised = words;
    raised[0] += 40;
    assert_eq!(digest.with_first_raised(40, words.len()), Digest::of(&raised));
}
