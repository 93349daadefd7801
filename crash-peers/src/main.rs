//! The crash harness for other embedded stores, and for untorn in the same way.
//!
//! Exit codes: 0 if no promise was broken and every control was caught, 1 otherwise, 2 for a usage
//! error, 3 if the program itself failed.

mod fjall;
mod lmdb;
mod plain_files;
mod redb;
mod sqlite;
mod stores;
mod table;

use clap::{Parser, ValueEnum};
use crash_harness::context::{Context, Limit};
use crash_harness::outcome::{Outcome, Variant};
use crash_harness::processes::role;
use crash_harness::report;
use crash_harness::store_under_test::cuts::Model;
use crash_harness::store_under_test::{self, StoreUnderTest};
use std::path::PathBuf;
use std::process::ExitCode;

/// Kills, power cuts, failing syncs and failing calls for several embedded stores.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The kind of test.
    run: Run,
    /// Stores to test, separated by commas: rows (`sqlite-wal-full`) or families (`sqlite`)
    /// [default: all].
    #[arg(long, value_delimiter = ',')]
    store: Vec<String>,
    /// Seed of the random choices [default: a new one].
    #[arg(long)]
    seed: Option<u64>,
    /// Approximate total run time in seconds [default: ten for each store and run].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Number of states of each store and run, instead of a time.
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    states: Option<u64>,
    /// Run only this item, which a violation's replay line names.
    #[arg(long)]
    only: Option<String>,
    /// Bytes that the disk writes atomically; smaller units than a page may be new beside old ones.
    #[arg(long, default_value_t = 512, value_parser = parse_sector)]
    sector: usize,
    /// Make the name of a new file durable only by a sync of its directory, which is all that POSIX
    /// guarantees. Without this option, a sync of the file makes its name durable, too, as the
    /// journals of ext4, XFS and btrfs do.
    #[arg(long)]
    strict_names: bool,
    /// Write the outcome as JSON to this file, one object a line; `-` is the standard output.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write an HTML report to this directory.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn parse_sector(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes @ (512 | 4096)) => Ok(bytes),
        _ => Err("the sector size must be 512 or 4096".into()),
    }
}

/// The kind of test.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Run {
    /// Processes are killed at random instants under load.
    Kill,
    /// The power fails, with any part of the unsynced data on the disk.
    Cuts,
    /// A sync fails and loses its data, and the power fails later.
    Faults,
    /// One call on a file fails: a write, a sync or an open, once or from then on; or it does half
    /// of its work.
    Errors,
    /// All of these.
    All,
}

impl Run {
    fn name(self) -> &'static str {
        match self {
            Run::Kill => "kill",
            Run::Cuts => "cuts",
            Run::Faults => "faults",
            Run::Errors => "errors",
            Run::All => "all",
        }
    }
}

fn main() -> ExitCode {
    // The processes that the harness kills run this program as well.
    if let Some(role) = role::of_this_process() {
        return store_under_test::work::play(&role, stores::ALL);
    }
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("crash-peers: {error}");
            ExitCode::from(3)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, String> {
    let runs = match arguments.run {
        Run::All => vec![Run::Kill, Run::Cuts, Run::Faults, Run::Errors],
        one => vec![one],
    };
    let tested_stores = stores::chosen(&arguments.store)?;
    let seed = arguments.seed.unwrap_or_else(rand::random::<u64>);
    let turns = (runs.len() * tested_stores.len()) as u64;
    let limit = match (arguments.states, arguments.seconds) {
        (Some(states), _) => Limit::States(states),
        (None, seconds) => Limit::Seconds(seconds.map_or(10, |seconds| seconds.div_ceil(turns))),
    };
    let mut rows = Vec::new();
    for tested in tested_stores {
        let mut outcomes = Vec::new();
        for run in &runs {
            outcomes.push(one(*run, tested, seed, limit, arguments)?);
        }
        rows.push(table::Row { about: tested.about(), outcomes });
    }
    table::print(&rows);
    let outcomes: Vec<Outcome> = rows.into_iter().flat_map(|row| row.outcomes).collect();
    report::json::write(&outcomes, arguments.json.as_deref())?;
    if let Some(directory) = &arguments.report {
        report::html::write(&outcomes, directory)?;
    }
    let names = if arguments.strict_names { "only by a sync of the directory" } else { "also by a sync of the file" };
    println!("seed {seed}; sectors of {} bytes; names of new files durable {names}", arguments.sector);
    Ok(outcomes.iter().all(Outcome::is_good))
}

/// Runs one kind of test on one store.
fn one(
    run: Run,
    tested: &dyn StoreUnderTest,
    seed: u64,
    limit: Limit,
    arguments: &Arguments,
) -> Result<Outcome, String> {
    let about = tested.about();
    let context = Context::new(run.name(), seed, limit, arguments.only.clone())?;
    let mut outcome = Outcome::of(&context);
    outcome.suite = format!("{}.{}", about.name, run.name());
    outcome.about = table::describe(&about);
    let model = Model { sector: arguments.sector, strict_names: arguments.strict_names };
    match run {
        Run::Kill => store_under_test::kills::run(&context, tested, &mut outcome),
        Run::Cuts => store_under_test::cuts::run(&context, tested, model, &mut outcome),
        Run::Errors => store_under_test::errors::run(&context, tested, &mut outcome),
        _ => store_under_test::faults::run(&context, tested, model, &mut outcome),
    }
    outcome.seconds = context.elapsed().as_secs_f64();
    context.finish();
    if about.control_of.contains(&run.name()) {
        let is_whole = arguments.only.is_none() && outcome.states > 0;
        as_control(&mut outcome, about.name, is_whole);
    }
    Ok(outcome)
}

/// Evaluates a control: settings that are known to break the promises. Its violations show that the
/// checks work, so they are not reported as violations.
fn as_control(outcome: &mut Outcome, name: &str, is_whole: bool) {
    let caught = !outcome.violations.is_empty();
    outcome.figures.insert("violations found in this control".into(), outcome.violations.len() as f64);
    outcome.violations.clear();
    if is_whole {
        let (suite, states) = (outcome.suite.clone(), outcome.states);
        outcome.variants.push(Variant { name: name.into(), caught, suite, states });
    }
}
