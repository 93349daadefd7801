//! Advice: the measured setting to use if at most a given number of records, or of milliseconds,
//! may be at risk.
//!
//! A setting fits a limit if no cut lost more and if the model's worst case is not more either. The
//! model is needed because a few dozen cuts do not show the worst case. Among the settings that
//! fit, the one with the shortest wait is best. Among those that are about as fast, the one with
//! the fewest syncs is best, because syncs wear disks and block other writers. Settings that did
//! not sustain the rate are excluded. The mapped file is not a setting of untorn and is never
//! advised.

use super::row::Row;
use super::setting::Scheme;
use serde::Serialize;

/// The limit on what may be at risk.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// This many acknowledged records.
    Records(u64),
    /// The records that were acknowledged in this many milliseconds before a cut.
    Ms(f64),
}

/// Limits for which advice is always given.
pub const LIMITS: [Limit; 7] = [
    Limit::Records(0),
    Limit::Records(10),
    Limit::Records(100),
    Limit::Records(1000),
    Limit::Ms(10.0),
    Limit::Ms(100.0),
    Limit::Ms(1000.0),
];

/// A recommendation.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    /// The limit.
    pub at_most: Limit,
    /// The rate in records per second.
    pub rate: u32,
    /// Index of the recommended row; `None` if none fits.
    pub row: Option<usize>,
    /// The recommendation as text.
    pub text: String,
}

/// A setting counts as about as fast as another one if its wait is at most this many times as long,
/// or at most [`ABOUT_MS`] longer.
const ABOUT: f64 = 1.3;
/// See [`ABOUT`]; in milliseconds.
const ABOUT_MS: f64 = 0.1;
/// A setting sustains a rate if it acknowledges at least this fraction of it.
const CARRIED: f64 = 0.9;

/// Returns recommendations for each measured rate.
pub fn advise(rows: &[Row], limits: &[Limit]) -> Vec<Advice> {
    let mut rates: Vec<u32> = rows.iter().map(|row| row.rate).collect();
    rates.sort_unstable();
    rates.dedup();
    let answer = |rate: u32, at_most: Limit| {
        let row = best(rows, rate, at_most);
        let text = match row.map(|at| &rows[at]) {
            None => "none of the measured settings".into(),
            Some(row) => format!(
                "{}: {} in {} cuts, acknowledged after {} on average ({} in 99 of 100), {:.0} syncs/s",
                row.setting,
                lost(row),
                row.cuts,
                ms(row.ack_ms_mean),
                ms(row.ack_ms_p99),
                row.fsyncs_per_second
            ),
        };
        Advice { at_most, rate, row, text }
    };
    rates.iter().flat_map(|rate| limits.iter().map(|limit| answer(*rate, *limit))).collect()
}

fn lost(row: &Row) -> String {
    match row.lost_max {
        Some(0) | None => "nothing lost".into(),
        Some(most) => format!("at most {most} lost"),
    }
}

fn ms(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} µs", ms * 1e3),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

fn best(rows: &[Row], rate: u32, at_most: Limit) -> Option<usize> {
    let fits = |row: &Row| {
        let is_untorns = row.scheme != Scheme::MmapInterval.name();
        let is_within = match (at_most, row.lost_max, row.at_risk_ms_max) {
            (Limit::Records(most), Some(lost), _) => lost <= most && row.lost_worst <= most as f64,
            (Limit::Ms(most), _, Some(ms)) => ms <= most && row.at_risk_ms_worst <= most,
            // Without cuts the loss is unknown.
            _ => false,
        };
        is_untorns && row.rate == rate && row.throughput >= CARRIED * f64::from(rate) && is_within
    };
    let fitting: Vec<usize> = (0..rows.len()).filter(|at| fits(&rows[*at])).collect();
    // The median is robust against delays of single records by a busy machine.
    let fastest = fitting.iter().map(|at| rows[*at].ack_ms_p50).min_by(f64::total_cmp)?;
    let is_fast = |at: &usize| rows[*at].ack_ms_p50 <= (fastest * ABOUT).max(fastest + ABOUT_MS);
    let fast = fitting.into_iter().filter(is_fast);
    fast.min_by(|a, b| rows[*a].fsyncs_per_second.total_cmp(&rows[*b].fsyncs_per_second))
}

impl std::fmt::Display for Limit {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Limit::Records(0) => write!(to, "no record"),
            Limit::Records(most) => write!(to, "at most {most} records"),
            Limit::Ms(most) => write!(to, "at most {most} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::Measured;
    use super::super::setting::Setting;
    use super::*;

    fn row(scheme: Scheme, hz: u32, lost: u64, ack_ms: f64) -> Row {
        let setting = Setting { scheme, hz: Some(hz), rate: 100 };
        let mut row = Row::new(&setting, &Measured::default(), None, 1e6);
        row.throughput = 100.0;
        row.fsyncs_per_second = f64::from(hz);
        (row.lost_max, row.at_risk_ms_max) = (Some(lost), Some(lost as f64 * 10.0));
        (row.lost_worst, row.at_risk_ms_worst) = (lost as f64, lost as f64 * 10.0);
        row.ack_ms_p50 = ack_ms;
        row
    }

    fn rows() -> Vec<Row> {
        vec![
            row(Scheme::MmapInterval, 1, 5, 0.001),
            row(Scheme::LoggerVisible, 1, 100, 0.02),
            row(Scheme::LoggerVisible, 10, 10, 0.02),
            row(Scheme::LoggerVisible, 100, 1, 0.03),
            row(Scheme::LoggerDurable, 100, 0, 6.0),
            row(Scheme::LoggerDurable, 1000, 0, 2.0),
        ]
    }

    /// Goal: settings are compared first by what may be lost, then by the time that writers wait,
    /// then by syncs.
    #[test]
    fn the_cheapest_setting_that_keeps_the_limit() {
        let rows = rows();
        assert_eq!(best(&rows, 100, Limit::Records(0)), Some(5));
        assert_eq!(best(&rows, 100, Limit::Records(5)), Some(3));
        assert_eq!(best(&rows, 100, Limit::Records(10)), Some(2));
        assert_eq!(best(&rows, 100, Limit::Records(1000)), Some(1));
        assert_eq!(best(&rows, 100, Limit::Ms(100.0)), Some(2));
        assert_eq!(best(&rows, 100, Limit::Ms(5.0)), Some(5));
        assert_eq!(best(&rows, 1, Limit::Records(1000)), None);
    }

    /// Goal: a setting whose cuts lost less than they could have is not advised for the smaller
    /// loss.
    #[test]
    fn what_can_be_lost_counts_and_a_rate_that_is_not_carried_does_not() {
        let mut lucky = rows();
        lucky[3].lost_worst = 30.0;
        assert_eq!(best(&lucky, 100, Limit::Records(5)), Some(5));
        let mut slow = rows();
        slow[5].throughput = 50.0;
        assert_eq!(best(&slow, 100, Limit::Records(0)), Some(4));
        let mut unknown = rows();
        unknown.iter_mut().for_each(|row| row.lost_max = None);
        assert_eq!(best(&unknown, 100, Limit::Records(1000)), None);
    }
}
