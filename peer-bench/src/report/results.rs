//! Rows of the result: the slices of one store and workload, and the JSON line made of them.

use super::statistics::{best_of_slices, bounds, median, median_ratio, percentile};
use crate::workload::Unit;
use serde::Serialize;

/// The values that one slice measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Values {
    pub(crate) value: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
}

impl Values {
    /// `micros` are the times of single operations.
    pub(crate) fn new(value: f64, micros: &[f64]) -> Values {
        Values { value, p50_us: percentile(micros, 0.5), p99_us: percentile(micros, 0.99) }
    }

    /// A value without times.
    pub(crate) fn single(value: f64) -> Values {
        Values::new(value, &[])
    }
}

/// The slices of one store and workload, in the order of the rounds.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) store: &'static str,
    pub(crate) workload: &'static str,
    pub(crate) unit: Unit,
    pub(crate) values: Vec<Option<Values>>,
}

impl Row {
    pub(crate) fn new(store: &'static str, workload: &'static str, unit: Unit) -> Row {
        Row { store, workload, unit, values: Vec::new() }
    }

    fn slices(&self) -> Vec<Option<f64>> {
        self.values.iter().map(|values| Some((*values)?.value)).collect()
    }
}

/// A line of the results.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) store: &'static str,
    pub(crate) workload: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Times of single operations, in microseconds.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Median over the slices of this store's value divided by LMDB's.
    pub(crate) ratio_lmdb: Option<f64>,
    /// The same, divided by the best of the other libraries (for untorn) or by the best peer.
    pub(crate) ratio_best: Option<f64>,
    pub(crate) entries: u64,
    pub(crate) commit: String,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    pub(crate) rounds: usize,
    pub(crate) smaller_is_better: bool,
}

/// The values that all lines of a run share.
pub(crate) struct Context {
    pub(crate) entries: u64,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    pub(crate) commit: String,
}

/// The store that the project is about; all others are peers.
pub(crate) const OWN: &str = "untorn";

/// Makes a line of each row that has a value.
pub(crate) fn lines(rows: &[Row], context: &Context) -> Vec<Line> {
    rows.iter().filter_map(|row| line(row, rows, context)).collect()
}

fn line(row: &Row, rows: &[Row], context: &Context) -> Option<Line> {
    let slices = row.slices();
    let values: Vec<f64> = slices.iter().copied().flatten().collect();
    let (min, max) = bounds(&values)?;
    let same: Vec<(&Row, Vec<Option<f64>>)> =
        rows.iter().filter(|other| other.workload == row.workload).map(|other| (other, other.slices())).collect();
    let lmdb = same.iter().find(|(other, _)| other.store == "lmdb");
    let peers: Vec<&[Option<f64>]> =
        same.iter().filter(|(other, _)| other.store != OWN).map(|(_, slices)| slices.as_slice()).collect();
    let best = best_of_slices(&peers, row.unit.is_smaller_better());
    let is_floor = row.store == crate::floor::NAME;
    let times =
        |get: fn(&Values) -> Option<f64>| median(&row.values.iter().flatten().filter_map(get).collect::<Vec<f64>>());
    Some(Line {
        store: row.store,
        workload: row.workload,
        unit: row.unit.name(),
        median: median(&values)?,
        min,
        max,
        p50_us: times(|values| values.p50_us),
        p99_us: times(|values| values.p99_us),
        ratio_lmdb: lmdb.and_then(|(_, lmdb)| median_ratio(&slices, lmdb)),
        ratio_best: if is_floor { None } else { median_ratio(&slices, &best) },
        entries: context.entries,
        commit: context.commit.clone(),
        key_bytes: context.key_bytes,
        value_bytes: context.value_bytes,
        rounds: values.len(),
        smaller_is_better: row.unit.is_smaller_better(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(store: &'static str, values: &[f64]) -> Row {
        let values = values.iter().map(|value| Some(Values::new(*value, &[1.0, 2.0]))).collect();
        Row { values, ..Row::new(store, "get", Unit::Nanoseconds) }
    }

    #[test]
    fn ratios_are_to_lmdb_and_to_the_best_peer() {
        let rows = [row(OWN, &[100.0, 300.0]), row("lmdb", &[200.0, 600.0]), row("redb", &[400.0, 300.0])];
        let context = Context { entries: 1000, key_bytes: 24, value_bytes: 150, commit: "abc".into() };
        let lines = lines(&rows, &context);
        assert_eq!(lines[0].ratio_lmdb, Some(0.5));
        // The best peer is LMDB in the first slice and redb in the second.
        assert_eq!(lines[0].ratio_best, Some(0.75));
        assert_eq!(lines[1].ratio_lmdb, Some(1.0));
        assert_eq!((lines[0].median, lines[0].min, lines[0].max), (200.0, 100.0, 300.0));
        assert_eq!((lines[0].p50_us, lines[0].p99_us), (Some(1.0), Some(2.0)));
    }

    #[test]
    fn a_line_has_the_names_that_programs_parse() {
        let context = Context { entries: 1000, key_bytes: 24, value_bytes: 150, commit: "abc".into() };
        let line = serde_json::to_value(&lines(&[row(OWN, &[1.0])], &context)[0]).unwrap();
        for name in [
            "store",
            "workload",
            "unit",
            "median",
            "min",
            "max",
            "p50_us",
            "p99_us",
            "ratio_lmdb",
            "ratio_best",
            "entries",
            "commit",
        ] {
            assert!(line.get(name).is_some(), "{name}");
        }
        assert!(line["ratio_lmdb"].is_null());
    }

    #[test]
    fn a_row_without_values_has_no_line() {
        let context = Context { entries: 1000, key_bytes: 24, value_bytes: 150, commit: "abc".into() };
        assert!(lines(&[row(OWN, &[])], &context).is_empty());
    }
}
