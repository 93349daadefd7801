//! The command line.

use crate::dataset::Dataset;
use crate::store::Engine;
use crate::workload::{self, Workload};
use crate::{floor, stores};
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Benchmarks of untorn and of other embedded key-value stores, side by side.
///
/// Stores: untorn, lmdb, lmdb-writemap, redb, redb-multi-writer, sqlite, fjall, and the
/// pseudo-store floor, which measures what the machine allows.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub(crate) struct Arguments {
    /// Stores, separated by commas [default: all].
    #[arg(long, value_delimiter = ',')]
    pub(crate) stores: Vec<String>,
    /// Workloads, separated by commas; `put-durable` means all that begin so [default: all].
    #[arg(long, value_delimiter = ',')]
    pub(crate) workloads: Vec<String>,
    /// Entries that are loaded into each store.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    pub(crate) entries: u64,
    /// Slices of each store and workload.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Length of a slice in milliseconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub(crate) slice_ms: u64,
    /// Bytes of keys and values, such as 24/150, 8/100 or 16/4096.
    #[arg(long, default_value = "24/150", value_parser = parse_sizes)]
    pub(crate) sizes: (usize, usize),
    /// Directory for the stores, on the disk to measure; they are removed at the end [default: the
    /// directory for temporary files].
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Write the results to this file, one JSON object a line; `-` is the standard output.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write a report in Markdown and charts in SVG to this directory.
    #[arg(long)]
    pub(crate) report: Option<PathBuf>,
}

impl Arguments {
    /// Returns the engines to run, in the order of the table.
    ///
    /// # Errors
    /// If a name is unknown.
    pub(crate) fn engines(&self) -> Result<Vec<&'static dyn Engine>, String> {
        let names: Vec<_> = stores::ALL.iter().map(|engine| engine.name()).chain([floor::NAME]).collect();
        if let Some(unknown) = self.stores.iter().find(|store| !names.contains(&store.as_str())) {
            return Err(format!("no store is named {unknown:?}; there are {}", names.join(", ")));
        }
        let is_wanted = |name: &str| self.stores.is_empty() || self.stores.iter().any(|store| store == name);
        Ok(stores::ALL.iter().copied().filter(|engine| is_wanted(engine.name())).collect())
    }

    /// Returns whether to measure the machine.
    pub(crate) fn has_floor(&self) -> bool {
        self.stores.is_empty() || self.stores.iter().any(|store| store == floor::NAME)
    }

    /// Returns the workloads to run, in the order of the table.
    ///
    /// # Errors
    /// If a name is unknown.
    pub(crate) fn workloads(&self) -> Result<Vec<&'static Workload>, String> {
        let means = |asked: &str, name: &str| {
            name == asked || name.strip_prefix(asked).is_some_and(|rest| rest.starts_with('-'))
        };
        // `get` is a workload, and `get-snapshot` another.
        let means =
            |asked: &str, name: &str| if workload::find(asked).is_some() { name == asked } else { means(asked, name) };
        let all = || workload::ALL.iter();
        if let Some(unknown) = self.workloads.iter().find(|asked| !all().any(|known| means(asked, known.name))) {
            let names: Vec<_> = all().map(|known| known.name).collect();
            return Err(format!("no workload is named {unknown:?}; there are {}", names.join(", ")));
        }
        let is_wanted = |name: &str| self.workloads.is_empty() || self.workloads.iter().any(|asked| means(asked, name));
        Ok(all().filter(|known| is_wanted(known.name)).collect())
    }

    /// Returns what the stores are loaded with.
    pub(crate) fn dataset(&self) -> Dataset {
        Dataset { entries: self.entries, key_bytes: self.sizes.0, value_bytes: self.sizes.1 }
    }

    /// Returns the length of a slice.
    pub(crate) fn slice(&self) -> Duration {
        Duration::from_millis(self.slice_ms)
    }
}

/// The longest key that all stores accept: LMDB's limit.
const MAX_KEY_BYTES: usize = 511;

fn parse_sizes(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('/').and_then(|(key, value)| Some((key.parse().ok()?, value.parse().ok()?)));
    match parsed {
        Some((key @ 8..=MAX_KEY_BYTES, value @ 8..=8192)) => Ok((key, value)),
        _ => Err(format!(
            "{text:?} is not KEY/VALUE with keys of 8 to {MAX_KEY_BYTES} bytes and values of 8 to 8192 bytes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())
    }

    fn names(line: &str) -> Result<(Vec<&'static str>, Vec<&'static str>), String> {
        let arguments = parse(line)?;
        let stores = arguments.engines()?.iter().map(|engine| engine.name()).collect();
        Ok((stores, arguments.workloads()?.iter().map(|workload| workload.name).collect()))
    }

    #[test]
    fn the_defaults_are_everything() {
        let arguments = parse("peer-bench").unwrap();
        assert_eq!((arguments.entries, arguments.rounds, arguments.sizes), (1_000_000, 5, (24, 150)));
        assert!(arguments.has_floor());
        let (stores, workloads) = names("peer-bench").unwrap();
        assert_eq!(stores.len(), stores::ALL.len());
        assert_eq!(workloads.len(), workload::ALL.len());
    }

    #[test]
    fn names_and_families_select() {
        let (stores, workloads) = names("peer-bench --stores lmdb,untorn --workloads put-durable,get").unwrap();
        assert_eq!(stores, ["untorn", "lmdb"]);
        assert_eq!(workloads[0], "get");
        assert_eq!(workloads[1..].len(), 5);
        assert!(workloads[1..].iter().all(|name| name.starts_with("put-durable-")));
        assert!(!parse("peer-bench --stores lmdb").unwrap().has_floor());
        assert!(parse("peer-bench --stores floor").unwrap().engines().unwrap().is_empty());
    }

    #[test]
    fn unknown_names_are_errors_that_list_the_known_ones() {
        let error = names("peer-bench --stores rocks").unwrap_err();
        assert!(error.contains("\"rocks\"") && error.contains("lmdb-writemap"), "{error}");
        let error = names("peer-bench --workloads put-dur").unwrap_err();
        assert!(error.contains("\"put-dur\"") && error.contains("seek10"), "{error}");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse("peer-bench --sizes 16/4096").unwrap().sizes, (16, 4096));
        for bad in ["16", "7/100", "16/", "16/9000", "512/100", "a/b"] {
            assert!(parse(&format!("peer-bench --sizes {bad}")).is_err(), "{bad}");
        }
        assert!(parse("peer-bench --entries 10").is_err());
        assert!(parse("peer-bench --rounds 0").is_err());
    }
}
