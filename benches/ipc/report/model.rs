//! The expected cost of a transfer: a fixed part and a part per byte, and the crossing of two such
//! lines.
//!
//! T_msg(x) = n σ + 2 x / B_k: n system calls, and two copies by the kernel. T_shm(x) = n′ σ + x /
//! B_cc: n′ system calls (to wake, to sleep), and one transfer of each byte from cache to cache.
//! The straight line of cost over size is Hockney's (1994). σ and n together are the fixed part,
//! which LogP (Culler and others, 1993) calls overhead and latency.

use super::super::channel::{Family, Kind};
use super::super::fit::{self, Row};
use super::super::measure::Point;

/// The line of one channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) kind: Kind,
    /// System calls for one small record, both sides together, as counted.
    pub(crate) calls: f64,
    pub(crate) fixed_ns: f64,
    pub(crate) ns_per_byte: f64,
    /// The root of the mean squared relative error.
    pub(crate) error: f64,
}

impl Line {
    fn of(kind: Kind, points: &[Point]) -> Option<Line> {
        let of_kind: Vec<_> = points.iter().filter(|point| point.kind == kind).collect();
        let smallest = of_kind.first()?;
        let rows: Vec<_> =
            of_kind.iter().map(|point| Row { factors: [1.0, point.bytes as f64], found: point.one_way }).collect();
        let found = fit::coefficients(&rows);
        let error = fit::error(&rows, &found);
        Some(Line { kind, calls: smallest.calls, fixed_ns: found[0], ns_per_byte: found[1], error })
    }

    pub(crate) fn at(&self, bytes: f64) -> f64 {
        self.fixed_ns + self.ns_per_byte * bytes
    }

    /// Returns B_k or B_cc, in bytes per nanosecond. B_k is twice the bandwidth that the line
    /// implies, because the bytes of a message are copied twice.
    pub(crate) fn bandwidth(&self) -> f64 {
        let times = if self.kind.family() == Family::Message { 2.0 } else { 1.0 };
        times / self.ns_per_byte
    }
}

/// The two formulas with one σ for both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joint {
    /// Nanoseconds per system call, including its share of the wake-up.
    pub(crate) sigma_ns: f64,
    /// Bytes per nanosecond.
    pub(crate) b_k: f64,
    pub(crate) b_cc: f64,
    pub(crate) error: f64,
}

/// The size from which the second channel is the faster one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Crossing {
    /// Always.
    Always,
    /// From this many bytes on.
    From(f64),
    /// At no measured size.
    Never,
}

/// All fitted values.
pub(crate) struct Fits {
    pub(crate) lines: Vec<Line>,
    pub(crate) joint: Option<Joint>,
    /// Channels, each with the size from which it is faster than the stream socket: by the fitted
    /// lines, and by the measured points.
    pub(crate) against_stream: Vec<(Kind, Crossing, Crossing)>,
}

impl Fits {
    pub(crate) fn of(points: &[Point]) -> Fits {
        let lines: Vec<Line> = Kind::ALL.into_iter().filter_map(|kind| Line::of(kind, points)).collect();
        let stream = lines.iter().find(|line| line.kind == Kind::Stream);
        let against_stream = stream.map_or(Vec::new(), |stream| {
            let others = lines.iter().filter(|line| line.kind.family() != Family::Message);
            others.map(|line| (line.kind, crossing(stream, line), measured_crossing(points, line.kind))).collect()
        });
        Fits { joint: joint(&lines, points), against_stream, lines }
    }
}

/// Fits one σ, B_k and B_cc for all messages and for the shared memory whose users sleep.
fn joint(lines: &[Line], points: &[Point]) -> Option<Joint> {
    let calls = |kind: Kind| lines.iter().find(|line| line.kind == kind).map(|line| line.calls);
    let row = |point: &Point| {
        let bytes = point.bytes as f64;
        let (copies, lines) = match point.kind {
            Kind::Pipe | Kind::Stream | Kind::Seqpacket => (2.0 * bytes, 0.0),
            Kind::Ring | Kind::Arena => (0.0, bytes),
            _ => return None,
        };
        Some(Row { factors: [calls(point.kind)?, copies, lines], found: point.one_way })
    };
    let rows: Vec<Row<3>> = points.iter().filter_map(row).collect();
    let both = |at: usize| rows.iter().any(|row| row.factors[at] > 0.0);
    if !(both(1) && both(2)) {
        return None;
    }
    let found = fit::coefficients(&rows);
    let error = fit::error(&rows, &found);
    Some(Joint { sigma_ns: found[0], b_k: 1.0 / found[1], b_cc: 1.0 / found[2], error })
}

/// Returns the crossing of the lines: x* = (fixed′ − fixed) / (slope − slope′).
fn crossing(first: &Line, second: &Line) -> Crossing {
    let dearer = second.fixed_ns - first.fixed_ns;
    let saved = first.ns_per_byte - second.ns_per_byte;
    match (dearer <= 0.0, saved > 0.0) {
        (true, true) => Crossing::Always,
        (false, true) if dearer / saved <= (16 << 20) as f64 => Crossing::From(dearer / saved),
        // A channel that is cheaper only for small records has no useful crossing.
        _ => Crossing::Never,
    }
}

/// Returns the smallest measured size such that the channel is faster at that size and at all
/// larger ones.
fn measured_crossing(points: &[Point], kind: Kind) -> Crossing {
    let of = |kind| points.iter().filter(move |point: &&Point| point.kind == kind);
    let mut from = None;
    for (stream, other) in of(Kind::Stream).zip(of(kind)).collect::<Vec<_>>().into_iter().rev() {
        if other.one_way >= stream.one_way {
            break;
        }
        from = Some(other.bytes);
    }
    let smallest = of(kind).map(|point| point.bytes).min();
    match from {
        None => Crossing::Never,
        Some(bytes) if Some(bytes) == smallest => Crossing::Always,
        Some(bytes) => Crossing::From(bytes as f64),
    }
}
