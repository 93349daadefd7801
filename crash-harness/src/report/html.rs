//! Outcomes as one self-contained page: a verdict, a table of all suites, and the coverage,
//! findings and omissions of each suite.

use crate::outcome::Outcome;
use crate::report::{machine, map};
use std::fmt::Write;
use std::path::Path;

/// Writes `index.html` to a directory, which is created if it is missing.
///
/// # Errors
/// If it can't be written.
pub fn write(outcomes: &[Outcome], directory: &Path) -> Result<(), String> {
    std::fs::create_dir_all(directory).map_err(|error| format!("making {}: {error}", directory.display()))?;
    let to = directory.join("index.html");
    std::fs::write(&to, page(outcomes)).map_err(|error| format!("writing {}: {error}", to.display()))?;
    crate::tradeoff::page::write_files(outcomes, directory)?;
    eprintln!("report: {}", to.display());
    Ok(())
}

fn page(outcomes: &[Outcome]) -> String {
    let states: u64 = outcomes.iter().map(|outcome| outcome.states).sum();
    let kills: u64 = outcomes.iter().map(|outcome| outcome.kills).sum();
    let seconds: f64 = outcomes.iter().map(|outcome| outcome.seconds).sum();
    let violations: usize = outcomes.iter().map(|outcome| outcome.violations.len()).sum();
    let uncaught = outcomes.iter().flat_map(|outcome| &outcome.variants).filter(|variant| !variant.caught).count();
    let is_good = outcomes.iter().all(Outcome::is_good);
    let verdict = match (violations, uncaught) {
        (0, 0) if states == 0 => "Nothing was tried".to_string(),
        (0, 0) => "Nothing was violated".to_string(),
        (0, uncaught) => format!("{uncaught} planted bugs were not caught"),
        (1, _) => "1 violation".into(),
        (violations, _) => format!("{violations} violations"),
    };
    let mut html = String::from(HEAD);
    let _ = write!(
        html,
        "<header class={}><h1>{verdict}</h1><p><b>{}</b> crash states and kill points checked, <b>{}</b> processes killed, in \
         {seconds:.0} seconds.</p><p class=sub>{}</p></header>",
        if is_good && states > 0 { "good" } else { "bad" },
        grouped(states),
        grouped(kills),
        escape(&machine::describe())
    );
    overview(&mut html, outcomes);
    outcomes.iter().for_each(|outcome| suite(&mut html, outcome));
    html.push_str("</main></body></html>\n");
    html
}

/// Writes a line per suite. The bar compares its number of states with the largest number, on a
/// logarithmic scale.
fn overview(html: &mut String, outcomes: &[Outcome]) {
    let most = outcomes.iter().map(|outcome| outcome.states).max().unwrap_or(0).max(1) as f64;
    html.push_str(
        "<table class=overview><tr><th>suite<th><th class=n>states<th class=n>kills<th class=n>torn<th class=n>lost\
         <th class=n>half<th class=n>order<th class=n>blocked<th class=n>all violations<th class=n>skipped<th>",
    );
    for o in outcomes {
        let width = 120.0 * (o.states as f64).ln_1p() / most.ln_1p();
        let _ = write!(
            html,
            "<tr><td><a href='#{0}'>{0}</a><td><svg class=bar width=120 height=12><rect class=hit width='{width:.0}' height=12 \
             rx=2 /></svg><td class=n>{1}<td class=n>{2}",
            o.suite,
            grouped(o.states),
            grouped(o.kills)
        );
        let counts = [o.torn_reads, o.lost_acked, o.half_applied, o.order_violations, o.blocked_readers];
        for count in counts.into_iter().chain([o.violations.len() as u64]) {
            let _ = write!(html, "<td class='n{}'>{count}", if count > 0 { " bad" } else { "" });
        }
        let verdict = match (o.is_good(), o.states) {
            (true, 0) => "<td class=bad>nothing tried",
            (true, _) if o.variants.is_empty() => "<td class=good>nothing violated",
            (true, _) => "<td class=good>caught",
            (false, _) if o.violations.is_empty() => "<td class=bad>not caught",
            (false, _) => "<td class=bad>violated",
        };
        let _ = write!(html, "<td class=n>{}{verdict}", o.skipped.len());
    }
    html.push_str("</table>");
}

fn suite(html: &mut String, outcome: &Outcome) {
    let suite = crate::suites::ALL.iter().find(|suite| suite.name == outcome.suite);
    let about = suite.map_or(outcome.about.as_str(), |suite| suite.about);
    let _ = write!(
        html,
        "<section id='{0}'><h2>{0}</h2><p>{1}</p><p class=sub>{2:.1} s, seed {3}</p>",
        outcome.suite,
        escape(about),
        outcome.seconds,
        outcome.seed
    );
    for violation in &outcome.violations {
        let _ = write!(
            html,
            "<div class=violation><b>{:?}</b> {}<pre>{}</pre></div>",
            violation.kind,
            escape(&violation.what),
            escape(&violation.replay)
        );
    }
    map::draw(html, &outcome.coverage);
    crate::tradeoff::page::draw(html, outcome);
    if !outcome.variants.is_empty() {
        html.push_str("<table><tr><th>planted bug<th>meant for<th class=n>states until caught<th>");
        for v in &outcome.variants {
            let caught = if v.caught { "<td class=good>caught" } else { "<td class=bad>not caught" };
            let _ = write!(html, "<tr><td>{}<td>{}<td class=n>{}{caught}", escape(&v.name), escape(&v.suite), v.states);
        }
        html.push_str("</table>");
    }
    if !outcome.figures.is_empty() {
        let _ = write!(html, "<details><summary>Figures: {}</summary><table>", outcome.figures.len());
        for (name, value) in &outcome.figures {
            let value = if value.fract() == 0.0 { grouped(*value as u64) } else { format!("{value:.3}") };
            let _ = write!(html, "<tr><td>{}<td class=n>{value}", escape(name));
        }
        html.push_str("</table></details>");
    }
    let skipped = outcome.skipped.iter().map(|s| format!("{}: {}", s.what, s.why)).collect();
    for (title, lines) in
        [("Remarks", outcome.remarks.clone()), ("Skipped", skipped), ("Not covered", outcome.uncovered_in_short())]
    {
        if !lines.is_empty() {
            let _ = write!(html, "<details><summary>{title}: {}</summary><ul>", lines.len());
            for line in &lines {
                let _ = write!(html, "<li>{}", escape(line));
            }
            html.push_str("</ul></details>");
        }
    }
    html.push_str("</section>");
}

/// Formats a number with separated thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    parts.join("\u{202f}")
}

/// Escapes text for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

const HEAD: &str = "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>\
<title>Crash report</title><style>\
:root{color-scheme:light dark;--good:#1a7f4b;--bad:#c0352b;--line:#8884;--hit:#2a7ab8}\
@media(prefers-color-scheme:dark){:root{--good:#4cc38a;--bad:#ff7b6b;--hit:#4d9fdc}}\
body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:64rem;margin:auto;padding:1.5rem}\
header{border-left:6px solid;padding:.2rem 1rem}header p{margin:.3rem 0}header.good{border-color:var(--good)}header.bad{border-color:var(--bad)}\
h1{margin:0;font-size:1.6rem}h2{margin:2.5rem 0 0;border-top:1px solid var(--line);padding-top:1rem}\
section p{margin:.2rem 0}.sub{opacity:.7;font-size:.85rem}a{color:var(--hit)}\
table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}td,th{text-align:left;padding:.2rem .9rem .2rem 0}\
th{font-size:.75rem;font-weight:normal;opacity:.7}.n{text-align:right}.overview{width:100%}.overview td{border-top:1px solid var(--line)}\
.bad{color:var(--bad)}header.bad,header.good{color:inherit}.good{color:var(--good)}\
figure{margin:1rem 0}svg{vertical-align:middle}figure svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:currentColor}\
rect.hit{fill:var(--hit)}rect.base{fill:var(--line)}rect.never{fill:none;stroke:var(--bad)}svg text.sub{font-size:11px;opacity:.6}svg text.on{fill:#fff}\
figcaption{font-size:.85rem}details{margin:.5rem 0}summary{cursor:pointer}\
.violation{border-left:4px solid var(--bad);padding:.2rem 1rem;margin:.6rem 0}\
pre{white-space:pre-wrap;background:#8881;padding:.5rem;border-radius:4px;overflow-wrap:anywhere}\
@media print{main{max-width:none;padding:0}figure,.violation,tr{break-inside:avoid}*{print-color-adjust:exact}}\
</style></head><body><main>";
