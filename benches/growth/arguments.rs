//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

const USAGE: &str = "\
usage: cargo bench --bench growth -- [--quick] [--entries N] [--dir DIR] [--report DIR]
  --quick       fewer points and shorter measurements: some twenty seconds
  --entries N   the most entries of a store (default: 10,000,000; with --quick 10,000)
  --dir DIR     where the stores are, on the disk to measure (default: directory for temporary files)
  --report DIR  where the charts go (default: target/growth)";

/// The arguments.
pub(crate) struct Arguments {
    pub(crate) quick: bool,
    pub(crate) entries_max: u64,
    pub(crate) dir: PathBuf,
    pub(crate) report: PathBuf,
}

impl Arguments {
    /// Parses the arguments. On an error, prints the usage and exits.
    pub(crate) fn read(mut words: impl Iterator<Item = String>) -> Arguments {
        let report = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/growth");
        let (mut quick, mut entries_max, mut dir, mut report) = (false, None, std::env::temp_dir(), report);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| refuse(&format!("{word} needs a value")));
            match &*word {
                // Cargo passes this to every benchmark.
                "--bench" => {}
                "--quick" => quick = true,
                "--entries" => match value().parse() {
                    Ok(entries @ 1_000..=100_000_000) => entries_max = Some(entries),
                    _ => refuse("--entries needs a number from 1000 to 100000000"),
                },
                "--dir" => dir = value().into(),
                "--report" => report = value().into(),
                "--help" | "-h" => {
                    println!("{USAGE}");
                    std::process::exit(0)
                }
                other => refuse(&format!("unknown argument {other}")),
            }
        }
        let entries_max = entries_max.unwrap_or(if quick { 10_000 } else { 10_000_000 });
        Arguments { quick, entries_max, dir, report }
    }

    /// Returns how long one operation is repeated for a point, in each of [`ROUNDS`].
    pub(crate) fn time_of_a_round(&self) -> Duration {
        Duration::from_millis(if self.quick { 60 } else { 400 })
    }

    /// Returns the number of entries in a store, for every axis except the number of entries.
    pub(crate) fn entries(&self) -> u64 {
        self.entries_max.min(if self.quick { 5_000 } else { 100_000 })
    }
}

/// Repetitions of the measurement of a point.
pub(crate) const ROUNDS: usize = 3;

fn refuse(what: &str) -> ! {
    eprintln!("{what}\n{USAGE}");
    std::process::exit(2)
}
