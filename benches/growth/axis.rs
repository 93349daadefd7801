//! The axes of the measurement: each varies one property of the store, in several points.

use crate::arguments::Arguments;
use crate::load::{Loaded, VALUE_BYTES};
use crate::log_chart::Unit;
use crate::worker;
use std::time::Duration;

/// A property of the store that is varied.
pub(crate) struct Axis {
    /// The name of the chart's file.
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    pub(crate) label: &'static str,
    pub(crate) unit: Unit,
    pub(crate) measure: fn(&Arguments) -> Vec<Point>,
}

/// The costs at one value of the axis.
pub(crate) struct Point {
    pub(crate) x: f64,
    /// The nanoseconds of each of [`crate::load::Operation::ALL`].
    pub(crate) nanos: [f64; 3],
    /// The bytes on the disk per entry: of all files, and of the arena alone. `None` if they do not
    /// depend on the axis.
    pub(crate) bytes: Option<[f64; 2]>,
}

pub(crate) const ALL: [&Axis; 4] = [
    &Axis {
        file: "growth-entries",
        title: "Time of an operation against the entries",
        label: "entries",
        unit: Unit::Count,
        measure: entries,
    },
    &Axis {
        file: "growth-values",
        title: "Time of an operation against the size of a value",
        label: "size of a value",
        unit: Unit::Bytes,
        measure: values,
    },
    &Axis {
        file: "growth-processes",
        title: "Wall time for each operation of all processes together",
        label: "processes",
        unit: Unit::Count,
        measure: processes,
    },
    &Axis {
        file: "growth-snapshot",
        title: "Time of an operation while an old snapshot is held",
        label: "commits since the oldest snapshot",
        unit: Unit::Count,
        measure: snapshot,
    },
];

/// The total bytes of all values, on the axis of the value size.
const VALUES_BYTES: u64 = 64 << 20;

fn entries(arguments: &Arguments) -> Vec<Point> {
    let counts = (3..).map(|power| 10_u64.pow(power)).take_while(|count| *count <= arguments.entries_max);
    let point = |count: u64| {
        let mut loaded = Loaded::new(arguments, count, VALUE_BYTES);
        let bytes = Some(loaded.bytes_of_a_record());
        Point { x: count as f64, nanos: loaded.time_all(arguments.time_of_a_round()), bytes }
    };
    counts.map(point).collect()
}

fn values(arguments: &Arguments) -> Vec<Point> {
    let sizes = (0..=8).step_by(if arguments.quick { 4 } else { 1 }).map(|power| 8 << (2 * power));
    let point = |size: usize| {
        let entries = (VALUES_BYTES / size as u64).clamp(16, arguments.entries());
        let mut loaded = Loaded::new(arguments, entries, size);
        let bytes = Some(loaded.bytes_of_a_record());
        Point { x: size as f64, nanos: loaded.time_all(arguments.time_of_a_round()), bytes }
    };
    sizes.map(point).collect()
}

fn processes(arguments: &Arguments) -> Vec<Point> {
    let loaded = Loaded::new(arguments, arguments.entries(), VALUE_BYTES);
    let counts = (0..=6).step_by(if arguments.quick { 3 } else { 1 }).map(|power| 1_usize << power);
    let point =
        |count: usize| Point { x: count as f64, nanos: worker::time_all(&loaded, count, arguments), bytes: None };
    counts.map(point).collect()
}

/// The measurement of a point adds few commits to those that the point stands for.
fn snapshot(arguments: &Arguments) -> Vec<Point> {
    let mut loaded = Loaded::new(arguments, arguments.entries(), VALUE_BYTES);
    let oldest = loaded.store.snapshot().unwrap();
    let since = |loaded: &Loaded| loaded.store.snapshot().unwrap().txn_id().sequence() - oldest.txn_id().sequence();
    let ages = [1, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    let point = |age: u64| {
        loaded.overwrite(age.saturating_sub(since(&loaded)));
        let (x, bytes) = (since(&loaded) as f64, Some(loaded.bytes_of_a_record()));
        let time = Duration::from_micros(age).clamp(Duration::from_millis(3), arguments.time_of_a_round());
        Point { x, nanos: loaded.time_all(time), bytes }
    };
    ages.into_iter().take(if arguments.quick { 4 } else { 6 }).map(point).collect()
}
