//! Coverage maps as inline SVG. The form of the cells' names selects the drawing. Ranges of
//! instructions become a strip. `call:file` and `process:call:file` become a matrix if it is not
//! too wide. `area.point` and other names with parts become a row of squares per area. Names
//! without parts become bars.

use super::html::escape;
use crate::outcome::Coverage;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Width of a map in user units.
const WIDTH: usize = 960;
/// Width of the names at the left.
const NAMES: usize = 200;
/// Width of the names of strips.
const STRIP_NAMES: usize = 230;
/// Largest width of a letter in a column's name.
const LETTER: usize = 7;
/// Height of a line.
const LINE: usize = 20;
/// Side of a square with its gap.
const SQUARE: usize = 18;
/// Longest bar.
const BAR: usize = 130;
/// Number of letters that fit beside a bar.
const BAR_NAME: usize = 44;
/// Largest number of columns of a matrix, limited by the width of their names.
const COLUMNS_MAX: usize = 12;
/// Largest number of rows of a matrix, one or two screens.
const ROWS_MAX: usize = 70;

/// Draws the maps of a suite. Consecutive strips share a figure.
pub(super) fn draw(html: &mut String, coverages: &[Coverage]) {
    let mut rest = coverages;
    while let Some(first) = rest.first() {
        let strips = rest.iter().take_while(|coverage| is_strip(coverage)).count();
        if strips > 0 {
            draw_strips(html, &rest[..strips]);
        } else if let Some(names) = in_two(first) {
            draw_matrix(html, first, &names);
        } else if first.hits.iter().all(|(name, _)| name.contains(PARTS)) {
            draw_rows(html, first);
        } else {
            draw_bars(html, first);
        }
        rest = &rest[strips.max(1)..];
    }
}

fn is_strip(coverage: &Coverage) -> bool {
    !coverage.hits.is_empty() && coverage.hits.iter().all(|(name, _)| name.starts_with("instructions "))
}

/// Separators between the parts of a name.
const PARTS: [char; 2] = ['.', ':'];

/// Splits each name into a row and a column, if all names have both and the matrix has a suitable
/// size.
fn in_two(coverage: &Coverage) -> Option<Vec<(String, String)>> {
    let names: Option<Vec<(&str, &str)>> = coverage.hits.iter().map(|(name, _)| name.split_once(':')).collect();
    let names: Vec<(String, String)> = names?.into_iter().map(arranged).collect();
    let count = |part: fn(&(String, String)) -> &String| names.iter().map(part).collect::<BTreeSet<_>>().len();
    let (rows, columns) = (count(|name| &name.0), count(|name| &name.1));
    (rows.max(columns) > 1 && rows <= ROWS_MAX && columns <= COLUMNS_MAX).then_some(names)
}

/// Returns the row and the column of a name. For `call:file` the call is the row. For
/// `process:call:file` the program is the column, because there are few programs. A thread is shown
/// by its own name alone.
fn arranged((first, rest): (&str, &str)) -> (String, String) {
    if rest.contains(':') {
        let thread = first.rsplit('/').next().unwrap_or(first);
        (rest.replace(':', " "), thread.trim_start_matches("untorn-").to_string())
    } else {
        (first.to_string(), rest.to_string())
    }
}

fn begin(html: &mut String, height: usize, label: &str) {
    let label = escape(label);
    let _ = write!(html, "<figure><svg viewBox='0 0 {WIDTH} {height}' role=img aria-label='coverage of {label}'>");
}

fn end(html: &mut String, caption: &str) {
    let _ = write!(html, "</svg><figcaption>{}</figcaption></figure>", escape(caption));
}

/// Draws one line per update with its instructions from left to right. The more instructions of a
/// cell changed shared memory or files, the stronger is its color.
fn draw_strips(html: &mut String, coverages: &[Coverage]) {
    begin(html, coverages.len() * LINE, "instructions");
    for (line, coverage) in coverages.iter().enumerate() {
        let y = line * LINE;
        let (kind, steps) = coverage.of.rsplit_once(": ").unwrap_or((&coverage.of, ""));
        let states: u64 = coverage.hits.iter().map(|(_, hits)| hits).sum();
        let _ = write!(html, "<text x=0 y='{}'>{}</text>", y + 14, escape(kind));
        let cells = coverage.hits.len().max(1);
        let width = (WIDTH - STRIP_NAMES - 220) as f64 / cells as f64;
        let most = most(coverage);
        for (index, (name, hits)) in coverage.hits.iter().enumerate() {
            let x = STRIP_NAMES as f64 + index as f64 * width;
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

/// Draws a cell for each name in its row and column, with its number.
fn draw_matrix(html: &mut String, coverage: &Coverage, names: &[(String, String)]) {
    let rows: BTreeSet<&str> = names.iter().map(|(row, _)| row.as_str()).collect();
    let columns: BTreeSet<&str> = names.iter().map(|(_, column)| column.as_str()).collect();
    let width = ((WIDTH - NAMES) / columns.len().max(1)).min(130);
    let most = most(coverage);
    begin(html, (rows.len() + 1) * LINE, &coverage.of);
    for (index, column) in columns.iter().enumerate() {
        let _ = write!(
            html,
            "<text class=sub x='{}' y=14>{}<title>{}</title></text>",
            NAMES + index * width,
            escape(&shortened(column, width / LETTER)),
            escape(column)
        );
    }
    for (index, row) in rows.iter().enumerate() {
        let _ = write!(html, "<text x=0 y='{}'>{}</text>", (index + 1) * LINE + 14, escape(row));
    }
    for ((row, column), (name, hits)) in names.iter().zip(&coverage.hits) {
        let at = |of: &BTreeSet<&str>, name: &str| of.range(..name).count();
        let (x, y) = (NAMES + at(&columns, column) * width, (at(&rows, row) + 1) * LINE);
        let _ = write!(
            html,
            "<rect x='{x}' y='{}' width='{}' height='{}' rx=3 {}><title>{}: {hits}</title></rect><text{} x='{}' y='{}'>{hits}</text>",
            y + 1,
            width - 4,
            LINE - 3,
            fill(*hits, most),
            escape(name),
            if *hits > 0 && strength(*hits, most) > 0.6 { " class=on" } else { "" },
            x + 6,
            y + 14
        );
    }
    end(html, &caption(coverage));
}

/// Draws squares; names with the same first part share a line.
fn draw_rows(html: &mut String, coverage: &Coverage) {
    let area = |name: &str| name.split_once(PARTS).map_or(String::new(), |(area, _)| area.to_string());
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

/// Draws a line for each name, in two columns: the name, a bar on a logarithmic scale, the number.
fn draw_bars(html: &mut String, coverage: &Coverage) {
    let lines = coverage.hits.len().div_ceil(2);
    let most = most(coverage);
    begin(html, lines * LINE, &coverage.of);
    for (index, (name, hits)) in coverage.hits.iter().enumerate() {
        let (x, y) = (index / lines * (WIDTH / 2), index % lines * LINE);
        // A long name is truncated; the tooltip contains all of it.
        let cut = shortened(name, BAR_NAME);
        let width = (BAR as f64 * (*hits as f64).ln_1p() / most.ln_1p()).max(4.0);
        let fill = if *hits == 0 { "class=never" } else { "class=hit fill-opacity=.8" };
        let bar = x + WIDTH / 2 - BAR - 60;
        let _ = write!(
            html,
            "<text x='{x}' y='{0}'>{1}<title>{2}</title></text><rect x='{bar}' y='{3}' width='{width:.0}' height='{4}' rx=3 \
             {fill}><title>{2}: {hits}</title></rect><text class=sub x='{5:.0}' y='{0}'>{hits}</text>",
            y + 14,
            escape(&cut),
            escape(name),
            y + 1,
            LINE - 4,
            bar as f64 + width + 6.0
        );
    }
    end(html, &caption(coverage));
}

/// Truncates a name to `letters` letters.
fn shortened(name: &str, letters: usize) -> String {
    if name.chars().count() <= letters {
        return name.into();
    }
    name.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}

fn caption(coverage: &Coverage) -> String {
    let hit = coverage.hits.iter().filter(|(_, hits)| *hits > 0).count();
    format!(
        "{}: {hit} of {} hit; a stronger color means more often, an empty red cell never. Hover over a cell for its name and number.",
        coverage.of,
        coverage.hits.len()
    )
}

fn most(coverage: &Coverage) -> f64 {
    coverage.hits.iter().map(|(_, hits)| *hits).max().unwrap_or(0).max(1) as f64
}

/// Returns the opacity of a cell, by the logarithm of its number.
fn strength(hits: u64, most: f64) -> f64 {
    0.25 + 0.75 * (hits as f64).ln_1p() / most.ln_1p()
}

fn fill(hits: u64, most: f64) -> String {
    let strength = strength(hits, most);
    if hits == 0 { "class=never".into() } else { format!("class=hit fill-opacity='{strength:.2}'") }
}
