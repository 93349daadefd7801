//! Coverage maps as inline SVG. What the cells are decides how they are drawn: stretches of instructions as a strip, `call:file`
//! as a matrix, `area.point` as a row of squares per area, everything else as rows of squares.

use super::html::escape;
use crate::outcome::Coverage;
use std::fmt::Write;

/// Width of a map in units of its own.
const WIDTH: usize = 960;
/// Width of the names at its left.
const NAMES: usize = 200;
/// Height of a line.
const LINE: usize = 20;
/// Side of a square with its gap.
const SQUARE: usize = 18;

/// Draws the maps of a suite; strips that follow each other share a figure.
pub(super) fn draw(html: &mut String, coverages: &[Coverage]) {
    let mut rest = coverages;
    while let Some(first) = rest.first() {
        let strips = rest.iter().take_while(|coverage| is_strip(coverage)).count();
        if strips > 0 {
            draw_strips(html, &rest[..strips]);
        } else if let Some(names) = split(first, ':') {
            draw_matrix(html, first, &names);
        } else {
            draw_rows(html, first);
        }
        rest = &rest[strips.max(1)..];
    }
}

fn is_strip(coverage: &Coverage) -> bool {
    !coverage.hits.is_empty() && coverage.hits.iter().all(|(name, _)| name.starts_with("instructions "))
}

/// Every name in two, if all have the separator.
fn split(coverage: &Coverage, separator: char) -> Option<Vec<(&str, &str)>> {
    coverage.hits.iter().map(|(name, _)| name.split_once(separator)).collect()
}

fn begin(html: &mut String, height: usize, label: &str) {
    let label = escape(label);
    let _ = write!(html, "<figure><svg viewBox='0 0 {WIDTH} {height}' role=img aria-label='coverage of {label}'>");
}

fn end(html: &mut String, caption: &str) {
    let _ = write!(html, "</svg><figcaption>{}</figcaption></figure>", escape(caption));
}

/// One line per update: its instructions from left to right, the fuller the more of them changed what is shared.
fn draw_strips(html: &mut String, coverages: &[Coverage]) {
    begin(html, coverages.len() * LINE, "instructions");
    for (line, coverage) in coverages.iter().enumerate() {
        let y = line * LINE;
        let (kind, steps) = coverage.of.split_once(": ").unwrap_or((&coverage.of, ""));
        let states: u64 = coverage.hits.iter().map(|(_, hits)| hits).sum();
        let _ = write!(html, "<text x=0 y='{}'>{}</text>", y + 14, escape(kind));
        let cells = coverage.hits.len().max(1);
        let width = (WIDTH - NAMES - 220) as f64 / cells as f64;
        let most = most(coverage);
        for (index, (name, hits)) in coverage.hits.iter().enumerate() {
            let x = NAMES as f64 + index as f64 * width;
            let _ = write!(
                html,
                "<rect x='{x:.2}' y='{}' width='{width:.2}' height='{}' {}><title>{}: {hits}</title></rect>",
                y + 1,
                LINE - 3,
                if *hits == 0 { "class=base".into() } else { fill(*hits, most) },
                escape(name)
            );
        }
        let right = WIDTH - 210;
        let _ = write!(html, "<text class=sub x='{right}' y='{}'>{}, {states} states</text>", y + 14, escape(steps));
    }
    end(html, "The instructions of each update, from left to right; full where shared memory or a file changed.");
}

/// Rows are what stands before the colon, columns what stands after it.
fn draw_matrix(html: &mut String, coverage: &Coverage, names: &[(&str, &str)]) {
    let (mut rows, mut columns) = (Vec::new(), Vec::new());
    for (row, column) in names {
        if !rows.contains(row) {
            rows.push(*row);
        }
        if !columns.contains(column) {
            columns.push(*column);
        }
    }
    let width = ((WIDTH - NAMES) / columns.len().max(1)).min(130);
    let most = most(coverage);
    begin(html, (rows.len() + 1) * LINE, &coverage.of);
    for (index, column) in columns.iter().enumerate() {
        let _ = write!(html, "<text class=sub x='{}' y=14>{}</text>", NAMES + index * width, escape(column));
    }
    for (index, row) in rows.iter().enumerate() {
        let _ = write!(html, "<text x=0 y='{}'>{}</text>", (index + 1) * LINE + 14, escape(row));
    }
    for ((row, column), (name, hits)) in names.iter().zip(&coverage.hits) {
        let at = |of: &[&str], name: &str| of.iter().position(|known| *known == name).unwrap_or(0);
        let (x, y) = (NAMES + at(&columns, column) * width, (at(&rows, row) + 1) * LINE);
        let _ = write!(
            html,
            "<rect x='{x}' y='{}' width='{}' height='{}' rx=3 {}><title>{}: {hits}</title></rect><text x='{}' y='{}'>{hits}</text>",
            y + 1,
            width - 4,
            LINE - 3,
            fill(*hits, most),
            escape(name),
            x + 6,
            y + 14
        );
    }
    end(html, &caption(coverage));
}

/// Squares; those whose names begin alike, up to a dot, on lines of their own.
fn draw_rows(html: &mut String, coverage: &Coverage) {
    let area = |name: &str| name.split_once('.').map_or(String::new(), |(area, _)| area.to_string());
    let mut groups: Vec<(String, Vec<&(String, u64)>)> = Vec::new();
    for hit in &coverage.hits {
        let area = area(&hit.0);
        match groups.iter_mut().find(|(known, _)| *known == area) {
            Some((_, hits)) => hits.push(hit),
            None => groups.push((area, vec![hit])),
        }
    }
    let columns = (WIDTH - NAMES - 60) / SQUARE;
    let lines: usize = groups.iter().map(|(_, hits)| hits.len().div_ceil(columns)).sum();
    let most = most(coverage);
    begin(html, lines * LINE, &coverage.of);
    let mut y = 0;
    for (area, hits) in groups {
        let hit = hits.iter().filter(|(_, hits)| *hits > 0).count();
        let _ = write!(html, "<text x=0 y='{}'>{}</text>", y + 14, escape(&area));
        let _ = write!(html, "<text class=sub x='{}' y='{}'>{hit}/{}</text>", NAMES - 50, y + 14, hits.len());
        for (index, (name, hits)) in hits.iter().enumerate() {
            let (x, y) = (NAMES + index % columns * SQUARE, y + index / columns * LINE);
            let _ = write!(
                html,
                "<rect x='{x}' y='{}' width='{2}' height='{2}' rx=3 {1}><title>{3}: {hits}</title></rect>",
                y + 1,
                fill(*hits, most),
                SQUARE - 3,
                escape(name)
            );
        }
        y += hits.len().div_ceil(columns) * LINE;
    }
    end(html, &caption(coverage));
}

fn caption(coverage: &Coverage) -> String {
    let hit = coverage.hits.iter().filter(|(_, hits)| *hits > 0).count();
    format!(
        "{}: {hit} of {} hit; one cell each, red where never. Hover for names and numbers.",
        coverage.of,
        coverage.hits.len()
    )
}

fn most(coverage: &Coverage) -> f64 {
    coverage.hits.iter().map(|(_, hits)| *hits).max().unwrap_or(0).max(1) as f64
}

fn fill(hits: u64, most: f64) -> String {
    let strength = 0.25 + 0.75 * (hits as f64).ln_1p() / most.ln_1p();
    if hits == 0 { "class=never".into() } else { format!("class=hit fill-opacity='{strength:.2}'") }
}
