//! `tour`: a real job on real input, done by processes that die.
//!
//! | file | job |
//! |---|---|
//! | `source` | the files that are indexed |
//! | `record` | the record of a file, and each writer's totals |
//! | `census` | checks one snapshot: every record whole, every total right |
//! | `event` | the reports of the processes to the parent, line by line |
//! | `writer`, `reader`, `janitor` | the processes |
//! | `children` | the parent's control of them |
//! | `stage` | the store and the processes; checks after each death that nothing acknowledged is missing |
//! | `script` | the faults, in order |
//! | `report` | the table at the end |

mod census;
mod children;
mod event;
mod janitor;
mod reader;
mod record;
mod report;
mod script;
mod source;
mod stage;
mod writer;

use crate::arguments::Format;
use crate::outcome::{CommandFailure, Outcome};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use untorn::Store;

/// The number of writers, each of which indexes its share of the files.
const WRITERS: usize = 4;
/// The number of readers, which check snapshots continuously.
const READERS: usize = 2;
/// The idle time of the tour's logger, so that it exits soon after the tour in any case.
const LOGGER_IDLE: Duration = Duration::from_secs(10);

/// The options of a tour.
#[derive(Args)]
pub(crate) struct TourOptions {
    /// The tree to index [default: the sources in cargo's registry, else the Rust toolchain]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Build the store here instead of in the temporary directory; removed at the end
    #[arg(long, value_name = "PATH", conflicts_with = "keep")]
    store: Option<PathBuf>,
    /// Build the store here and leave it there
    #[arg(long, value_name = "PATH")]
    keep: Option<PathBuf>,
    /// Index at most this many files [default: 20000, and at most 512 MiB of content]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

/// One process of the tour, as its parent starts it.
#[derive(Args)]
pub(crate) struct TourProcess {
    /// The store's directory
    store: PathBuf,
    /// The process that started it; without that process it ends
    parent: u32,
    #[command(subcommand)]
    role: TourRole,
}

#[derive(Subcommand)]
enum TourRole {
    /// Indexes the files that standard input lists
    Writer {
        /// The number of this writer
        slot: usize,
        /// The directory that the files' names are relative to
        directory: PathBuf,
    },
    /// Checks snapshots
    Reader,
    /// Cleans up after the parent has ended
    Janitor {
        /// Whether to remove the store, too
        #[arg(long)]
        remove: bool,
    },
}

/// Runs the tour.
pub(crate) fn run(options: &TourOptions, format: Format) -> Outcome {
    let source = source::find(options.directory.as_deref(), options.limit)?;
    let (path, remove) = match (&options.keep, &options.store) {
        (Some(path), _) => (path.clone(), false),
        (None, Some(path)) => (path.clone(), true),
        (None, None) => (fresh_path(), true),
    };
    if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(CommandFailure::Usage(format!("{} is not empty; the tour wants a fresh store", path.display())));
    }
    let mut janitor = children::Janitor::start(&path, remove)?;
    let played = script::play(&source, &path);
    // A store that failed a check is kept for analysis.
    let clean = match &played {
        Ok(report) => report.violations.is_empty(),
        Err(failure) => !matches!(failure, CommandFailure::CheckFailed(_)),
    };
    if !clean {
        janitor.keep_store();
        eprintln!("untorn: the store is kept at {}", path.display());
    }
    drop(janitor);
    let report = played?;
    report.print(format, if remove && clean { None } else { Some(&path) })?;
    match report.violations.len() {
        0 => Ok(()),
        1 => Err(CommandFailure::CheckFailed("1 violation".to_owned())),
        count => Err(CommandFailure::CheckFailed(format!("{count} violations"))),
    }
}

/// Runs one process of it.
pub(crate) fn run_child(child: &TourProcess) -> Outcome {
    if let TourRole::Janitor { remove } = child.role {
        return janitor::run(&child.store, remove);
    }
    children::end_with_parent(child.parent)?;
    match &child.role {
        TourRole::Writer { slot, directory } => writer::run(&child.store, directory, *slot),
        _ => reader::run(&child.store),
    }
}

/// Opens the store as all processes of the tour do.
fn open(path: &std::path::Path, create: bool) -> untorn::Result<Store> {
    Store::options().create(create).logger_idle(LOGGER_IDLE).open(path)
}

fn fresh_path() -> PathBuf {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    std::env::temp_dir().join(format!("untorn-tour-{}-{nanoseconds:09}", std::process::id()))
}
