//! The command line.

use super::channel::Kind;
use std::path::PathBuf;
use std::time::Duration;

const USAGE: &str = "\
usage: cargo bench --bench ipc -- [--quick] [--free] [--only NAME] [--report DIR]
  --quick       fewer sizes and shorter measurements: about ten seconds
  --free        do not pin the two processes to two processors
  --only NAME   only the ways of handing over whose names contain this; or one of the words flushes, client
  --report DIR  where the page and its charts go (default: target/ipc)";

/// The arguments.
pub(crate) struct Arguments {
    pub(crate) quick: bool,
    pub(crate) is_pinned: bool,
    pub(crate) only: String,
    pub(crate) report: PathBuf,
}

impl Arguments {
    /// Parses the arguments. On an error, prints the usage and exits.
    pub(crate) fn read(words: impl Iterator<Item = String>) -> Arguments {
        let report = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ipc");
        let mut arguments = Arguments { quick: false, is_pinned: true, only: String::new(), report };
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| Arguments::refuse(&format!("{word} needs a value")));
            match &*word {
                // Cargo passes this to every benchmark.
                "--bench" => {}
                "--quick" => arguments.quick = true,
                "--free" => arguments.is_pinned = false,
                "--only" => arguments.only = value(),
                "--report" => arguments.report = value().into(),
                "--help" | "-h" => {
                    println!("{USAGE}");
                    std::process::exit(0)
                }
                other => Arguments::refuse(&format!("unknown argument {other}")),
            }
        }
        arguments
    }

    fn refuse(what: &str) -> ! {
        eprintln!("{what}\n{USAGE}");
        std::process::exit(2)
    }

    /// Returns the selected channels.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| kind.name().contains(&*self.only)).collect()
    }

    /// Returns the sizes of a record in bytes: 8 B to 16 MiB.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        (0..=21).step_by(if self.quick { 3 } else { 1 }).map(|doubling| 8 << doubling).collect()
    }

    /// Returns how long one point is measured. A point takes at least a few rounds, even if they
    /// take longer.
    pub(crate) fn time_of_a_point(&self) -> Duration {
        Duration::from_millis(if self.quick { 20 } else { 80 })
    }
}
