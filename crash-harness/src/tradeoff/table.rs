//! The comparison on a terminal: a line for each setting, followed by reasons and advice.

use crate::outcome::Outcome;
use std::fmt::Write;

/// Returns the table with its explanations; empty for a suite without one.
pub fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    if outcome.rows.is_empty() {
        return text;
    }
    let _ = writeln!(
        text,
        "\n{:<15} {:>9} {:>7} | {:>9} {:>9} {:>9} {:>9} {:>5} | {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} | {:>8} {:>7} {:>7} {:>9} | {:>6}",
        "scheme",
        "sync",
        "rate/s",
        "lost",
        "most",
        "model",
        "refined",
        "cuts",
        "ack ms",
        "p50",
        "p99",
        "p99.9",
        "model",
        "refined",
        "done/s",
        "sync/s",
        "sync ms",
        "bytes/s",
        "off by"
    );
    for row in &outcome.rows {
        let lost = |lost: Option<f64>| lost.map_or("-".into(), short);
        let _ = writeln!(
            text,
            "{:<15} {:>9} {:>7} | {:>9} {:>9} {:>9} {:>9} {:>5} | {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} | {:>8.0} {:>7.1} {:>7.2} {:>9} | {:>6}",
            row.scheme,
            row.frequency(),
            row.rate,
            lost(row.lost_mean),
            lost(row.lost_max.map(|most| most as f64)),
            short(row.lost_predicted),
            short(row.lost_refined),
            row.cuts,
            short(row.ack_ms_mean),
            short(row.ack_ms_p50),
            short(row.ack_ms_p99),
            short(row.ack_ms_p999),
            short(row.ack_predicted_ms),
            short(row.ack_refined_ms),
            row.throughput,
            row.fsyncs_per_second,
            row.fsync_ms,
            row.bytes_written.map_or("-".into(), |bytes| bytes_in_words(bytes as f64 / row.seconds)),
            row.deviation.map_or("-".into(), percent)
        );
    }
    for row in outcome.rows.iter().filter(|row| !row.why.is_empty()) {
        let _ = writeln!(text, "{}, {}, {}/s: {}", row.scheme, row.frequency(), row.rate, row.why);
    }
    if let Some(first) = outcome.rows.iter().find(|row| row.lost_mean.is_some()) {
        let _ = writeln!(
            text,
            "lost: acknowledged records that a power cut at a random instant loses, mean and maximum; the first such line had {} cuts",
            first.cuts
        );
    }
    for advice in &outcome.advice {
        let _ = writeln!(text, "for {} at risk at {} records/s: {}", advice.at_most, advice.rate, advice.text);
    }
    text
}

/// Formats a number with three digits, or with all digits before the point.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 0.001 => format!("{value:.1e}"),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Formats a fraction as a percentage with its sign.
pub(super) fn percent(part: f64) -> String {
    if part.abs() < 10.0 { format!("{:+.0}%", part * 100.0) } else { format!("{part:+.0}x") }
}

/// Formats a number of bytes.
pub(super) fn bytes_in_words(bytes: f64) -> String {
    match bytes {
        bytes if bytes < 1e4 => format!("{bytes:.0} B"),
        bytes if bytes < 1e7 => format!("{:.0} kB", bytes / 1e3),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown: Vec<String> = [0.0, 0.0001, 0.0123, 1.234, 12.34, 1234.5].into_iter().map(short).collect();
        assert_eq!(shown, ["0", "1.0e-4", "0.012", "1.23", "12.3", "1234"]);
        assert_eq!((percent(0.12), percent(-0.5), percent(12.0)), ("+12%".into(), "-50%".into(), "+12x".into()));
        assert_eq!((bytes_in_words(500.0), bytes_in_words(2e6)), ("500 B".to_string(), "2000 kB".to_string()));
    }
}
