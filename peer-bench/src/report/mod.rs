//! Turns slices into output: statistics (`statistics.rs`), rows and JSON lines (`results.rs`), the
//! table on the standard output and the report in Markdown (this file), and its charts
//! (`chart.rs`).

mod chart;
pub(crate) mod results;
mod statistics;

use crate::arguments::Arguments;
use crate::store::Result;
use crate::stores;
use chart::{Bar, Chart};
use results::{Context, Line};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// Returns the names of the workloads that have lines, in their order.
fn workloads(lines: &[Line]) -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    lines.iter().map(|line| line.workload).filter(|workload| seen.insert(*workload)).collect()
}

/// Returns all lines as a table in Markdown.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut text = String::from(
        "| workload | store | median | min | max | unit | p50 µs | p99 µs | to LMDB | to the best peer |\n\
         |---|---|--:|--:|--:|---|--:|--:|--:|--:|\n",
    );
    for workload in workloads(lines) {
        for line in lines.iter().filter(|line| line.workload == workload) {
            let optional = |value: Option<f64>| value.map_or(String::new(), number);
            let ratio = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                line.workload,
                line.store,
                number(line.median),
                number(line.min),
                number(line.max),
                line.unit,
                optional(line.p50_us),
                optional(line.p99_us),
                ratio(line.ratio_lmdb),
                ratio(line.ratio_best),
            );
        }
    }
    text
}

/// Returns a number with three or more significant digits, and commas between thousands.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// The workloads of `overview.svg`.
const OVERVIEW_WORKLOADS: &[&str] = &[
    "get",
    "scan",
    "put-durable-1",
    "put-durable-32",
    "put-durable-processes-8",
    "put-visible-1",
    "load-sorted",
    "disk-bytes",
];
/// The stores of `overview.svg`.
const OVERVIEW_STORES: &[&str] = &["untorn", "lmdb", "redb", "sqlite", "fjall"];

/// Writes `report.md`, a chart of each workload that compares stores, and an overview of some of
/// them.
pub(crate) fn write(dir: &Path, arguments: &Arguments, context: &Context, lines: &[Line]) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut text = format!(
        "# Benchmarks of commit {}\n\n{} entries, keys of {} bytes, values of {} bytes, {} rounds of slices of {} ms. \
         {}. The ratios are medians of the ratios of each round. `docs/performance.md` describes the workloads.\n\n",
        context.commit,
        number(context.entries as f64),
        context.key_bytes,
        context.value_bytes,
        arguments.rounds,
        arguments.slice_ms,
        machine(),
    );
    text.push_str("Versions: ");
    let measured: BTreeSet<_> = lines.iter().map(|line| line.store).collect();
    let engines = stores::ALL.iter().filter(|engine| measured.contains(engine.name()));
    let versions: Vec<_> = engines.map(|engine| format!("{} {}", engine.name(), engine.version())).collect();
    let _ = write!(text, "{}.\n\n{}", versions.join(", "), table(lines));
    for workload in workloads(lines) {
        let of_workload: Vec<&Line> = lines.iter().filter(|line| line.workload == workload).collect();
        if of_workload.len() < 2 {
            continue;
        }
        let name = format!("{workload}.svg");
        std::fs::write(dir.join(&name), chart(workload, &of_workload).svg())?;
        let _ = write!(text, "\n![{workload}]({name})\n");
    }
    if let Some(overview) = overview(lines) {
        std::fs::write(dir.join("overview.svg"), overview)?;
    }
    Ok(std::fs::write(dir.join("report.md"), text)?)
}

/// Returns the charts of the overview, if any of them compares stores.
fn overview(lines: &[Line]) -> Option<String> {
    let charts = OVERVIEW_WORKLOADS.iter().filter_map(|workload| {
        let is_shown = |line: &&Line| line.workload == *workload && OVERVIEW_STORES.contains(&line.store);
        let shown: Vec<&Line> = lines.iter().filter(is_shown).collect();
        (shown.len() > 1).then(|| chart(workload, &shown))
    });
    let charts: Vec<Chart> = charts.collect();
    (!charts.is_empty()).then(|| chart::side_by_side("untorn beside other stores", &charts))
}

fn chart(workload: &str, lines: &[&Line]) -> Chart {
    let unit = lines[0].unit;
    let better = if lines[0].smaller_is_better { "less is better" } else { "more is better" };
    let bar = |line: &&Line| Bar {
        name: line.store.into(),
        value: line.median,
        range: (line.min, line.max),
        label: number(line.median),
    };
    Chart { title: format!("{workload}, {unit}, {better}"), bars: lines.iter().map(bar).collect() }
}

/// Returns the processors and the kernel.
fn machine() -> String {
    let uname = rustix::system::uname();
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!(
        "{} × {}, Linux {}",
        crate::processors::allowed().len(),
        model.map_or("unknown processor", |(_, name)| name),
        uname.release().to_string_lossy()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(number(999.6), "1,000");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(1.234), "1.23");
        assert_eq!(number(0.1234), "0.123");
        assert_eq!(number(100.0), "100");
    }
}
