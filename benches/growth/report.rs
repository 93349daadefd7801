//! The table and the charts.

use crate::axis::{Axis, Point};
use crate::load::Operation;
use crate::log_chart::{Chart, Series, Unit, label};
use std::fmt::Write;
use std::io;
use std::path::Path;

type Curve = (&'static Axis, Vec<Point>);

/// Returns all points as a table in Markdown.
pub(crate) fn table(curves: &[Curve]) -> String {
    let mut text = String::new();
    for (axis, points) in curves {
        let names = Operation::ALL.map(Operation::name).join(" | ");
        let _ =
            writeln!(text, "\n| {} | {names} | bytes a record | in the arena |\n|--:|--:|--:|--:|--:|--:|", axis.label);
        for point in points {
            let times = point.nanos.map(|nanos| label(Unit::Nanoseconds, nanos)).join(" | ");
            let bytes = point.bytes.map_or("– | –".into(), |[all, arena]| format!("{all:.0} | {arena:.0}"));
            let _ = writeln!(text, "| {} | {times} | {bytes} |", label(axis.unit, point.x));
        }
    }
    text
}

/// Writes a chart of the times for each axis. Writes a chart of the bytes as well, if they depend
/// on the axis.
pub(crate) fn write(dir: &Path, curves: &[Curve]) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (axis, points) in curves {
        let times = Operation::ALL.iter().enumerate().map(|(index, operation)| {
            series(operation.name(), points.iter().map(|point| (point.x, point.nanos[index])).collect())
        });
        let chart = |title: &str, y, series| Chart {
            title: title.into(),
            x: (axis.label, axis.unit),
            y,
            series,
            marks: Vec::new(),
        };
        let of_times = chart(axis.title, ("time", Unit::Nanoseconds), times.collect());
        std::fs::write(dir.join(format!("{}.svg", axis.file)), of_times.svg())?;
        let bytes = |index: usize| -> Vec<_> {
            points.iter().filter_map(|point| Some((point.x, point.bytes?[index]))).collect()
        };
        if !bytes(0).is_empty() {
            let title = format!("Bytes on the disk for each record, against: {}", axis.label);
            let lines = vec![series("all files of the store", bytes(0)), series("the arena alone", bytes(1))];
            let of_bytes = chart(&title, ("bytes", Unit::Bytes), lines);
            std::fs::write(dir.join(format!("{}-bytes.svg", axis.file)), of_bytes.svg())?;
        }
    }
    Ok(())
}

/// Returns points that straight lines connect.
fn series(name: &str, points: Vec<(f64, f64)>) -> Series {
    let through = points.clone();
    let line = move |x: f64| {
        let after = through.iter().position(|point| point.0 >= x).unwrap_or(through.len() - 1).max(1);
        let Some([(x0, y0), (x1, y1)]) = through.get(after - 1..=after) else { return through[0].1 };
        let share = (x / x0).ln() / (x1 / x0).ln();
        y0 * (y1 / y0).powf(share)
    };
    Series { name: name.into(), points, line: Some(Box::new(line)) }
}
