//! Outcomes as one self-contained page: a table, a coverage map per suite as inline SVG, and the violations.

use crate::outcome::{Coverage, Outcome};
use std::fmt::Write;
use std::path::Path;

/// Cells of a coverage map side by side.
const COLUMNS: usize = 24;
/// Side of a cell, with its gap, in pixels.
const CELL: usize = 20;

/// Writes `index.html` to a directory, which is made if it is missing.
///
/// # Errors
/// If that can't be written.
pub fn write(outcomes: &[Outcome], directory: &Path) -> Result<(), String> {
    std::fs::create_dir_all(directory).map_err(|error| format!("making {}: {error}", directory.display()))?;
    let to = directory.join("index.html");
    std::fs::write(&to, page(outcomes)).map_err(|error| format!("writing {}: {error}", to.display()))?;
    eprintln!("report: {}", to.display());
    Ok(())
}

fn page(outcomes: &[Outcome]) -> String {
    let good = outcomes.iter().all(Outcome::is_good);
    let states: u64 = outcomes.iter().map(|outcome| outcome.states).sum();
    let kills: u64 = outcomes.iter().map(|outcome| outcome.kills).sum();
    let violations: usize = outcomes.iter().map(|outcome| outcome.violations.len()).sum();
    let mut html = String::from(HEAD);
    let verdict = if good { "Nothing was violated" } else { "Something was violated" };
    let _ = write!(
        html,
        "<header class={}><h1>{verdict}</h1><p><b>{states}</b> crash states and kill points checked, <b>{kills}</b> processes \
         killed, <b>{violations}</b> violations.</p></header>",
        if good { "good" } else { "bad" }
    );
    for outcome in outcomes {
        suite(&mut html, outcome);
    }
    html.push_str("</main></body></html>\n");
    html
}

fn suite(html: &mut String, outcome: &Outcome) {
    let _ = write!(
        html,
        "<section><h2>{}</h2><p class=sub>{:.1} s, seed {}</p><dl>",
        outcome.suite, outcome.seconds, outcome.seed
    );
    let figures = [
        ("states", outcome.states),
        ("kills", outcome.kills),
        ("torn reads", outcome.torn_reads),
        ("acknowledged, lost", outcome.lost_acked),
        ("half applied", outcome.half_applied),
        ("out of order", outcome.order_violations),
        ("blocked", outcome.blocked_readers),
    ];
    for (name, value) in figures {
        let class = if value > 0 && !["states", "kills"].contains(&name) { " class=bad" } else { "" };
        let _ = write!(html, "<div{class}><dt>{name}</dt><dd>{value}</dd></div>");
    }
    html.push_str("</dl>");
    for (name, value) in &outcome.figures {
        let _ = write!(html, "<p class=sub>{}: {value:.3}</p>", escape(name));
    }
    outcome.coverage.iter().for_each(|coverage| map(html, coverage));
    if !outcome.variants.is_empty() {
        html.push_str("<table><tr><th>planted bug</th><th>meant for</th><th>states</th><th></th></tr>");
        for v in &outcome.variants {
            let caught = if v.caught { "<td class=good>caught" } else { "<td class=bad>not caught" };
            let _ = write!(html, "<tr><td>{}<td>{}<td>{}{caught}</tr>", escape(&v.name), escape(&v.suite), v.states);
        }
        html.push_str("</table>");
    }
    let lists = [
        ("Violations", outcome.violations.iter().map(|v| format!("{:?}: {}\n{}", v.kind, v.what, v.replay)).collect()),
        ("Skipped", outcome.skipped.iter().map(|s| format!("{}: {}", s.what, s.why)).collect::<Vec<_>>()),
        ("Not covered", outcome.uncovered.clone()),
    ];
    for (title, lines) in lists.iter().filter(|(_, lines)| !lines.is_empty()) {
        let _ = write!(
            html,
            "<details{}><summary>{title}: {}</summary>",
            if *title == "Violations" { " open" } else { "" },
            lines.len()
        );
        for line in lines {
            let _ = write!(html, "<pre>{}</pre>", escape(line));
        }
        html.push_str("</details>");
    }
    html.push_str("</section>");
}

/// One square per thing that can be hit, the fuller the more often it was; red if never.
fn map(html: &mut String, coverage: &Coverage) {
    let most = coverage.hits.iter().map(|(_, hits)| *hits).max().unwrap_or(0).max(1);
    let hit = coverage.hits.iter().filter(|(_, hits)| *hits > 0).count();
    let rows = coverage.hits.len().div_ceil(COLUMNS);
    let _ = write!(
        html,
        "<figure><svg viewBox='0 0 {} {}' role=img aria-label='coverage of {}'>",
        COLUMNS * CELL,
        rows * CELL,
        escape(&coverage.of)
    );
    for (index, (name, hits)) in coverage.hits.iter().enumerate() {
        let (x, y) = (index % COLUMNS * CELL, index / COLUMNS * CELL);
        let strength = 0.35 + 0.65 * ((*hits as f64).ln_1p() / (most as f64).ln_1p());
        let fill = if *hits == 0 { "class=never".into() } else { format!("class=hit fill-opacity='{strength:.2}'") };
        let _ = write!(
            html,
            "<rect x='{x}' y='{y}' width='{0}' height='{0}' rx='3' {fill}><title>{1}: {hits}</title></rect>",
            CELL - 3,
            escape(name)
        );
    }
    let _ = write!(
        html,
        "</svg><figcaption>{}: {hit} of {} hit. One square each; hover for its name.</figcaption></figure>",
        escape(&coverage.of),
        coverage.hits.len()
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

const HEAD: &str = "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>\
<title>Crash report</title><style>\
:root{color-scheme:light dark;--good:#1a7f4b;--bad:#c0352b;--line:#8884;--hit:#2a7ab8}\
body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:64rem;margin:auto;padding:1.5rem}\
header{border-left:6px solid;padding:.2rem 1rem}header.good{border-color:var(--good)}header.bad{border-color:var(--bad)}\
h1{margin:0;font-size:1.6rem}h2{margin:2rem 0 0;text-transform:capitalize}.sub{margin:0;opacity:.7}\
dl{display:flex;flex-wrap:wrap;gap:.6rem;margin:.8rem 0}dl div{border:1px solid var(--line);border-radius:6px;padding:.3rem .8rem}\
dt{font-size:.75rem;opacity:.7}dd{margin:0;font-size:1.3rem;font-variant-numeric:tabular-nums}\
.bad,.bad dd{color:var(--bad)}td.good{color:var(--good)}\
figure{margin:1rem 0}svg{width:100%;max-width:44rem}rect.hit{fill:var(--hit)}rect.never{fill:none;stroke:var(--bad)}\
figcaption{font-size:.85rem;opacity:.7}table{border-collapse:collapse}td,th{text-align:left;padding:.2rem .8rem .2rem 0}\
pre{white-space:pre-wrap;background:#8881;padding:.5rem;border-radius:4px;overflow-wrap:anywhere}\
</style></head><body><main>";
