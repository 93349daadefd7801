//! The results: tables for a terminal, and a page with charts.

pub(crate) mod model;

use super::channel::{Family, Kind};
use super::log_chart::{Chart, Mark, Series, Unit, label};
use super::machine::Machine;
use super::measure::Point;
use super::measure::batch::{Batches, RECORD_BYTES};
use super::measure::flushes::{Flushes, VALUE_BYTES};
use super::measure::remote::{self, Call};
use model::{Crossing, Fits, Line};
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// All results.
pub(crate) struct Found {
    pub(crate) machine: Machine,
    pub(crate) points: Vec<Point>,
    pub(crate) fits: Fits,
    pub(crate) batches: Vec<Batches>,
    pub(crate) flushes: Vec<Flushes>,
    pub(crate) calls: Vec<Call>,
}

/// Returns all results as text.
pub(crate) fn text(found: &Found) -> String {
    let Found { machine, points, fits, batches, flushes, calls } = found;
    let mut out = format!("{machine}\n");
    for kind in Kind::ALL {
        let of_kind: Vec<_> = points.iter().filter(|point| point.kind == kind).collect();
        if !of_kind.is_empty() {
            let _ = writeln!(out, "\n{}: {}; copies of each byte: {}", kind.name(), kind.meaning(), kind.copies());
            let _ = writeln!(out, "      size     one way  round trip/2  system calls  lines crossing    rounds");
        }
        for point in of_kind {
            let calls = if kind.counts_all_calls() { format!("{:.1}", point.calls) } else { "–".into() };
            let _ = writeln!(
                out,
                "{:>10}  {:>10}  {:>12}  {calls:>12}  {:>14}  {:>8}",
                label(Unit::Bytes, point.bytes as f64),
                label(Unit::Nanoseconds, point.one_way),
                label(Unit::Nanoseconds, point.round_trip / 2.0),
                point.bytes.div_ceil(LINE_BYTES),
                point.rounds
            );
        }
    }
    lines(&mut out, fits);
    for batch in batches {
        batch_table(&mut out, batch);
    }
    for flush in flushes {
        flush_table(&mut out, flush);
    }
    out + &remote::table(calls)
}

fn lines(out: &mut String, fits: &Fits) {
    let _ = writeln!(
        out,
        "\nLines T(x) = n σ + x / B by least squares of relative errors; B_k counts both copies of a message"
    );
    let _ = writeln!(out, "              n      n σ        σ     GB/s (B)   error");
    for line in &fits.lines {
        let sigma = if line.calls >= 0.5 && line.kind.counts_all_calls() {
            label(Unit::Nanoseconds, line.fixed_ns / line.calls)
        } else {
            "–".into()
        };
        let calls = if line.kind.counts_all_calls() { format!("{:.1}", line.calls) } else { "–".into() };
        let _ = writeln!(
            out,
            "{:<12} {calls:>4} {:>8} {sigma:>8} {:>12.2} {:>6.0} %",
            line.kind.name(),
            label(Unit::Nanoseconds, line.fixed_ns),
            line.bandwidth(),
            100.0 * line.error
        );
    }
    if let Some(joint) = fits.joint {
        let _ = writeln!(
            out,
            "all messages, ring and arena with one σ: σ = {}, B_k = {:.2} GB/s, B_cc = {:.2} GB/s; error {:.0} %",
            label(Unit::Nanoseconds, joint.sigma_ns),
            joint.b_k,
            joint.b_cc,
            100.0 * joint.error
        );
    }
    let _ = writeln!(out, "\nx*: faster than the stream socket     by the lines    as measured");
    for (kind, by_lines, by_points) in &fits.against_stream {
        let _ = writeln!(out, "{:<32} {:>17} {:>14}", kind.name(), crossing(*by_lines), crossing(*by_points));
    }
}

fn crossing(found: Crossing) -> String {
    match found {
        Crossing::Always => "always".into(),
        Crossing::Never => "never".into(),
        Crossing::From(bytes) => format!("from {}", label(Unit::Bytes, bytes)),
    }
}

fn batch_table(out: &mut String, batch: &Batches) {
    let _ = writeln!(out, "\nbatches by {}, records of {RECORD_BYTES} B: cost of a record", batch.kind.name());
    for (bytes, cost) in &batch.costs {
        let _ = writeln!(
            out,
            "{:>10}  {:>8} records  {:>10}  model {:>10}",
            label(Unit::Bytes, *bytes as f64),
            bytes / RECORD_BYTES,
            label(Unit::Nanoseconds, *cost),
            label(Unit::Nanoseconds, batch.at(*bytes as f64))
        );
    }
    let [sigma, within, beyond] = batch.found;
    let best = batch.best_by_model();
    let (measured, cost) = batch.best_measured();
    let _ = writeln!(
        out,
        "a message {}, a record {} within M = {}, {} more far beyond; error {:.0} %",
        label(Unit::Nanoseconds, sigma),
        label(Unit::Nanoseconds, within),
        label(Unit::Bytes, batch.cache_bytes),
        label(Unit::Nanoseconds, beyond),
        100.0 * batch.error
    );
    let _ = writeln!(
        out,
        "best batch: by the model {}; measured {} ({}); within a tenth of that from {} on",
        if best.is_finite() { label(Unit::Bytes, best) } else { "the largest".into() },
        label(Unit::Bytes, measured as f64),
        label(Unit::Nanoseconds, cost),
        label(Unit::Bytes, batch.good_enough() as f64)
    );
}

fn flush_table(out: &mut String, flush: &Flushes) {
    let _ = writeln!(out, "\nrecords of {VALUE_BYTES} B to an fsync, {}: cost of a record", flush.sharing.name());
    for (count, cost) in &flush.costs {
        let _ = writeln!(
            out,
            "{count:>8}  {:>10}  model {:>10}",
            label(Unit::Nanoseconds, *cost),
            label(Unit::Nanoseconds, flush.at(*count as f64))
        );
    }
    let _ = writeln!(
        out,
        "F = {}, p = {}; error {:.0} %; the fsync is a tenth of the cost at {:.0} records",
        label(Unit::Nanoseconds, flush.found[0]),
        label(Unit::Nanoseconds, flush.found[1]),
        100.0 * flush.error,
        flush.enough()
    );
}

/// Writes the charts as separate files, and a page that shows them; returns its path.
pub(crate) fn write(dir: &Path, found: &Found) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let mut figures = String::new();
    for (name, chart) in charts(&found.points, &found.fits, &found.batches, &found.flushes) {
        let svg = chart.svg();
        std::fs::write(dir.join(format!("{name}.svg")), &svg)?;
        let _ = writeln!(figures, "<figure id=\"{name}\">{svg}</figure>");
    }
    let text = text(found).replace('&', "&amp;").replace('<', "&lt;");
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Handing records to another process</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>:root{{color-scheme:light dark}}\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}figure{{margin:1.5rem 0}}\
         pre{{overflow-x:auto;font-size:12.5px}}@media screen and (prefers-color-scheme:dark){{body{{background:#16181c;\
         color:#e6e6e6}}}}@media print{{figure{{break-inside:avoid}}}}</style>\
         <h1>Handing records to another process</h1><p>Points are medians, lines the model fitted to them. The project's \
         docs/ipc.md explains both.</p>\n{figures}<h2>The figures</h2><pre>{text}</pre></html>\n"
    );
    let path = dir.join("index.html");
    std::fs::write(&path, page)?;
    Ok(path)
}

fn charts(points: &[Point], fits: &Fits, batches: &[Batches], flushes: &[Flushes]) -> Vec<(&'static str, Chart)> {
    let mut charts = Vec::new();
    let mut add = |name, chart: Chart| {
        if !chart.series.is_empty() {
            charts.push((name, chart));
        }
    };
    let of_families = |kinds: &[Kind]| -> Vec<Series> {
        kinds.iter().filter_map(|kind| series(*kind, points, &fits.lines)).collect()
    };
    let mark = |kind: Kind| {
        fits.against_stream.iter().find(|found| found.0 == kind).and_then(|(_, by_lines, _)| match by_lines {
            Crossing::From(x) => {
                Some(Mark { x: *x, text: format!("x* stream / {}: {}", kind.name(), label(Unit::Bytes, *x)) })
            }
            Crossing::Always | Crossing::Never => None,
        })
    };
    let marks =
        |family: Family| Kind::ALL.into_iter().filter(|kind| kind.family() == family).filter_map(mark).collect();
    let x = ("size of the record", Unit::Bytes);
    let y = ("one way", Unit::Nanoseconds);
    let shared = [Kind::Pipe, Kind::Stream, Kind::Seqpacket, Kind::Ring, Kind::Arena, Kind::ArenaSpin];
    let title = "Messages and shared memory".to_string();
    add("messages-and-shared", Chart { title, x, y, series: of_families(&shared), marks: marks(Family::Shared) });
    let title = "Inline, or a sealed buffer beside the message".to_string();
    let buffers = [Kind::Stream, Kind::SealedRead, Kind::SealedMapped, Kind::Kept];
    add("inline-or-buffer", Chart { title, x, y, series: of_families(&buffers), marks: marks(Family::Buffer) });
    let title = "The store beside the bare means".to_string();
    let stores = [Kind::Stream, Kind::Arena, Kind::StoreSpin, Kind::StoreFeed];
    add("store", Chart { title, x, y, series: of_families(&stores), marks: Vec::new() });
    let series = batches.iter().map(|batch| {
        let (found, cache_bytes) = (batch.found, batch.cache_bytes);
        let model = Batches { kind: batch.kind, costs: Vec::new(), found, cache_bytes, error: 0.0 };
        Series {
            name: format!("{}: {}", batch.kind.name(), batch.kind.meaning()),
            points: batch.costs.iter().map(|(bytes, cost)| (*bytes as f64, *cost)).collect(),
            line: Some(Box::new(move |bytes| model.at(bytes))),
        }
    });
    let mut marks: Vec<Mark> = batches
        .iter()
        .map(|batch| {
            let best = batch.best_measured().0 as f64;
            Mark { x: best, text: format!("best measured, {}: {}", batch.kind.name(), label(Unit::Bytes, best)) }
        })
        .collect();
    if let Some(batch) = batches.first() {
        let text = format!("M, half of the second-level cache: {}", label(Unit::Bytes, batch.cache_bytes));
        marks.push(Mark { x: batch.cache_bytes, text });
    }
    let title = format!("A record of {RECORD_BYTES} B in a batch");
    let x = ("bytes of the batch", Unit::Bytes);
    let y = ("cost of a record", Unit::Nanoseconds);
    add("batches", Chart { title, x, y, series: series.collect(), marks });
    let series = flushes.iter().map(|flush| {
        let found = flush.found;
        Series {
            name: flush.sharing.name().to_string(),
            points: flush.costs.iter().map(|(count, cost)| (*count as f64, *cost)).collect(),
            line: Some(Box::new(move |count| found[0] / count + found[1])),
        }
    });
    let mark = |flush: &Flushes| Mark {
        x: flush.enough(),
        text: format!("fsync a tenth, {}: {:.0}", flush.sharing.name(), flush.enough()),
    };
    let title = format!("A record of {VALUE_BYTES} B in the store, by records to an fsync");
    let x = ("records to an fsync", Unit::Count);
    let marks = flushes.iter().map(mark).collect();
    add("flushes", Chart { title, x, y, series: series.collect(), marks });
    charts
}

fn series(kind: Kind, points: &[Point], lines: &[Line]) -> Option<Series> {
    let line = *lines.iter().find(|line| line.kind == kind)?;
    Some(Series {
        name: format!("{}: {}", kind.name(), kind.meaning()),
        points: points
            .iter()
            .filter(|point| point.kind == kind)
            .map(|point| (point.bytes as f64, point.one_way))
            .collect(),
        line: Some(Box::new(move |bytes| line.at(bytes))),
    })
}
