//! The comparison in the report: charts, the complete table, reasons and advice; and the same data
//! as separate files.

use super::table::{bytes_in_words, percent, short};
use super::{chart, row};
use crate::outcome::Outcome;
use crate::report::html::{escape, grouped};
use std::fmt::Write;
use std::path::Path;

/// Draws the comparison, if the suite has one.
pub fn draw(html: &mut String, outcome: &Outcome) {
    if outcome.rows.is_empty() {
        return;
    }
    for (_, caption, svg) in chart::all(&outcome.rows) {
        // Only a separate file needs the XML namespace.
        let svg = svg.replacen(" xmlns='http://www.w3.org/2000/svg'", "", 1);
        let _ = write!(html, "<figure>{svg}<figcaption>{}</figcaption></figure>", escape(caption));
    }
    html.push_str("<h3>What to use</h3><table><tr><th>at risk<th class=n>records/s<th>setting");
    for advice in &outcome.advice {
        let rate = grouped(u64::from(advice.rate));
        let _ = write!(
            html,
            "<tr><td style='white-space:nowrap'>{}<td class=n>{rate}<td>{}",
            advice.at_most,
            escape(&advice.text)
        );
    }
    html.push_str(
        "</table><h3>All settings</h3><div style='overflow-x:auto'><table><tr><th>scheme<th>sync<th class=n>records/s<th class=n>lost, mean<th class=n>most\
         <th class=n>model<th class=n>refined<th class=n>cuts<th class=n>ack ms, mean<th class=n>p50<th class=n>p99<th class=n>p99.9<th class=n>model\
         <th class=n>refined<th class=n>done/s<th class=n>syncs/s<th class=n>sync ms<th class=n>bytes/s<th class=n>off by<th>why",
    );
    for row in &outcome.rows {
        let _ = write!(html, "<tr><td>{}<td>{}", row.scheme, row.frequency());
        let known = |value: Option<f64>| value.map_or("–".into(), short);
        let cells = [
            grouped(u64::from(row.rate)),
            known(row.lost_mean),
            known(row.lost_max.map(|most| most as f64)),
            short(row.lost_predicted),
            short(row.lost_refined),
            row.cuts.to_string(),
            short(row.ack_ms_mean),
            short(row.ack_ms_p50),
            short(row.ack_ms_p99),
            short(row.ack_ms_p999),
            short(row.ack_predicted_ms),
            short(row.ack_refined_ms),
            format!("{:.0}", row.throughput),
            format!("{:.1}", row.fsyncs_per_second),
            short(row.fsync_ms),
            row.bytes_written.map_or("–".into(), |bytes| bytes_in_words(bytes as f64 / row.seconds)),
            row.deviation.map_or("–".into(), percent),
        ];
        for cell in cells {
            let _ = write!(html, "<td class=n>{cell}");
        }
        let _ = write!(html, "<td class=sub style='min-width:16rem'>{}", escape(&row.why));
    }
    html.push_str("</table></div>");
}

/// Writes the rows as `tradeoff.csv` and each chart as a separate file.
///
/// # Errors
/// If they can't be written.
pub fn write_files(outcomes: &[Outcome], directory: &Path) -> Result<(), String> {
    for outcome in outcomes.iter().filter(|outcome| !outcome.rows.is_empty()) {
        let charts = chart::all(&outcome.rows).into_iter();
        let files = charts.map(|(name, _, svg)| (format!("tradeoff-{name}.svg"), svg.into_bytes()));
        for (name, bytes) in files.chain([("tradeoff.csv".to_string(), row::csv(&outcome.rows)?)]) {
            let to = directory.join(name);
            std::fs::write(&to, bytes).map_err(|error| format!("writing {}: {error}", to.display()))?;
        }
    }
    Ok(())
}
