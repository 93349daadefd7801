//! The expected counts, in `counts.json` beside this file, by compiler and C library.

use crate::callgrind::Counts;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

/// The growth of a workload at which the guard fails.
const TOLERANCE: f64 = 0.03;

/// The counts of one toolchain, by workload.
pub(crate) type Row = BTreeMap<String, Counts>;

pub(crate) struct Table {
    pub(crate) rows: BTreeMap<String, Row>,
}

impl Table {
    fn path() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/counts.json")
    }

    /// Reads the table; an absent one is empty.
    pub(crate) fn read() -> Table {
        match std::fs::read(Table::path()) {
            Ok(bytes) => Table { rows: serde_json::from_slice(&bytes).expect("counts.json is a table of counts") },
            Err(_) => Table { rows: BTreeMap::new() },
        }
    }

    pub(crate) fn write(&self) {
        let text = serde_json::to_string_pretty(&self.rows).unwrap();
        std::fs::write(Table::path(), text + "\n").unwrap();
    }
}

/// The properties, besides the code, on which the counts depend.
pub(crate) struct Toolchain {
    rustc: String,
    libc: String,
}

impl Toolchain {
    pub(crate) fn current() -> Toolchain {
        let version = |program: &str, flag: &str| {
            let output = Command::new(program).arg(flag).output().unwrap_or_else(|e| panic!("{program}: {e}"));
            String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_string()
        };
        let rustc = version("rustc", "--version").split(' ').take(2).collect::<Vec<_>>().join(" ");
        let libc = version("getconf", "GNU_LIBC_VERSION");
        Toolchain { rustc, libc }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.rustc, self.libc, std::env::consts::ARCH)
    }
}

/// Returns one line for each workload that exceeds the tolerance, with the functions that grew
/// most.
pub(crate) fn compare(expected: &Row, counted: &Row) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, now) in counted {
        let Some(before) = expected.get(name) else {
            lines.push(format!("{name}: the table has no count; record it with `-- --record`"));
            continue;
        };
        let change = now.total / before.total - 1.0;
        if change > TOLERANCE {
            lines.push(format!(
                "{name}: {:.1} instructions a call, {:.1} expected: {:+.1} % (at most {:+.0} %); most grew:",
                now.total,
                before.total,
                100.0 * change,
                100.0 * TOLERANCE
            ));
            let before_of = |function: &String| before.functions.get(function).copied().unwrap_or(0.0);
            let mut grown: Vec<_> = now.functions.iter().map(|(f, count)| (count - before_of(f), f, count)).collect();
            grown.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (more, function, count) in grown.into_iter().take(5).filter(|(more, ..)| *more > 0.0) {
                lines.push(format!("  {more:+9.1} to {count:9.1}  {function}"));
            }
        } else if change < -TOLERANCE {
            println!("{name}: {:.1} % fewer instructions than the table has; record it", -100.0 * change);
        }
    }
    lines
}
