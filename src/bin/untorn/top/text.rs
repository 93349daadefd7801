//! Numbers for display, in a few columns.

use std::time::Duration;

/// Placeholder for an unknown value.
pub(crate) const UNKNOWN: &str = "–";

/// Formats a count or a rate: whole up to a million, then with a suffix.
pub(crate) fn number(value: f64) -> String {
    match value {
        _ if value >= 1e9 => format!("{:.2}G", value / 1e9),
        _ if value >= 1e6 => format!("{:.2}M", value / 1e6),
        _ if value >= 10.0 || value.fract() == 0.0 => grouped(value.round() as u64),
        _ => format!("{value:.1}"),
    }
}

pub(crate) fn count(value: u64) -> String {
    number(value as f64)
}

/// Formats a number with a comma after each thousand.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 || scaled >= 100.0 {
        format!("{scaled:.0} {}", UNITS[unit])
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

/// Formats a latency, with three digits.
pub(crate) fn latency(value: Duration) -> String {
    let ns = value.as_nanos() as f64;
    let (scaled, unit) = match ns {
        _ if ns < 1e3 => (ns, "ns"),
        _ if ns < 1e6 => (ns / 1e3, "µs"),
        _ if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let decimals = if unit == "ns" || scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.decimals$} {unit}")
}

/// Formats an age in the largest fitting unit.
pub(crate) fn age(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        0..10 => format!("{:.1} s", ns as f64 / 1e9),
        10..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Formats a value, or the placeholder if it is unknown.
pub(crate) fn or_unknown(value: Option<f64>) -> String {
    value.map_or_else(|| UNKNOWN.to_string(), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_true() {
        let numbers = [0.0, 0.26, 3.0, 12.4, 1_234.0, 999_999.0, 1_234_567.0, 2.5e9].map(number);
        assert_eq!(numbers, ["0", "0.3", "3", "12", "1,234", "999,999", "1.23M", "2.50G"]);
        assert_eq!([0, 1023, 1024, 200 << 20, 1 << 40].map(bytes), ["0 B", "1023 B", "1.0 KiB", "200 MiB", "1.0 TiB"]);
        let latencies = [0, 999, 1_500, 45_600, 456_000, 7_000_000, 61_000_000_000].map(Duration::from_nanos);
        assert_eq!(latencies.map(latency), ["0 ns", "999 ns", "1.50 µs", "45.6 µs", "456 µs", "7.00 ms", "61.0 s"]);
        let seconds = [0, 3, 100, 600, 10_000, 1_000_000].map(|seconds: u64| age(seconds * 1_000_000_000));
        assert_eq!(seconds, ["0.0 s", "3.0 s", "100 s", "10 min", "2 h", "11 d"]);
    }
}
