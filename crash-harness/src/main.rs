//! The command line of the harness: which suites run, for how long, and where their reports go.
//!
//! Exit codes: 0 if nothing was violated (for `controls`: every planted bug was caught), 1 if
//! something was, 2 for a usage error, 3 if the harness itself failed, 130 if Ctrl-C ended it.
//! After Ctrl-C it reports its findings so far.

use clap::Parser;
use clap::builder::{PossibleValue, PossibleValuesParser};
use crash_harness::processes::{instrumented, role};
use crash_harness::tradeoff::advice::Limit as AtMost;
use crash_harness::{context, context::Context, context::Limit, report, suites};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Kills untorn's processes at every instruction, cuts the power, injects I/O faults, and checks
/// the remaining store.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The suite to run.
    #[arg(value_parser = suite_names())]
    suite: String,
    /// Seed of the random choices [default: a new one].
    #[arg(long)]
    seed: Option<u64>,
    /// Approximate run time in seconds [default: 600 for `all`, 120 for `tradeoff`, 60 for another
    /// suite].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Number of states or kill points to check, instead of a time.
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    states: Option<u64>,
    /// Run only this item: the point, call or variant that a violation's replay line names.
    #[arg(long)]
    only: Option<String>,
    /// Make `tradeoff` advise for a crash that may lose at most N records.
    #[arg(long, value_name = "N")]
    at_most_records: Option<u64>,
    /// Make `tradeoff` advise for a crash that may lose what was acknowledged in the last MS
    /// milliseconds.
    #[arg(long, value_name = "MS")]
    at_most_ms: Option<f64>,
    /// End a suite at its first violation, as `controls` does.
    #[arg(long, hide = true)]
    until_first: bool,
    /// Write the outcome as JSON to this file, one object a line; `-` is the standard output.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write an HTML report to this directory.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Returns the names of the suites, and `all`.
fn suite_names() -> PossibleValuesParser {
    let names = suites::ALL.iter().map(|suite| PossibleValue::new(suite.name).help(suite.about));
    names.chain([PossibleValue::new("all").help("All suites, within the time")]).into()
}

fn main() -> ExitCode {
    // The harness starts itself as the processes that it kills.
    if let Some(role) = role::of_this_process() {
        return role::play(&role);
    }
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(_) if context::is_interrupted() => ExitCode::from(context::INTERRUPTED_CODE),
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("crash-harness: {error}");
            ExitCode::from(3)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, String> {
    let wanted = |suite: &&suites::Suite| arguments.suite == "all" || arguments.suite == suite.name;
    let suites: Vec<suites::Suite> = suites::ALL.iter().filter(wanted).copied().collect();
    let limit = match (arguments.states, arguments.seconds) {
        (Some(states), _) => Limit::States(states),
        (None, Some(seconds)) => Limit::Seconds(seconds),
        (None, None) if suites.len() > 1 => Limit::Seconds(600),
        // `tradeoff` also tries one sync a second, for which a shorter run is not meaningful.
        (None, None) => Limit::Seconds(if arguments.suite == "tradeoff" { 120 } else { 60 }),
    };
    if let (true, Some(only)) = (suites.len() > 1, &arguments.only) {
        return Err(format!("--only {only:?} needs the name of a suite instead of `all`"));
    }
    let seed = arguments.seed.unwrap_or_else(rand::random::<u64>);
    // Builds the instrumented program before the time starts.
    if suites.iter().any(suites::Suite::needs_instrumented_build) {
        let _ = instrumented::program();
    }
    context::end_at_interrupt().map_err(|error| format!("handling Ctrl-C: {error}"))?;
    let mut outcomes = Vec::new();
    for (index, suite) in suites.iter().enumerate() {
        // Later suites get the time that a suite leaves unused.
        let share =
            limit.share(outcomes.iter().map(|o: &crash_harness::outcome::Outcome| o.seconds).sum(), &suites[index..]);
        let mut context = Context::new(suite.name, seed, share, arguments.only.clone())?;
        context.is_one_of_several = suites.len() > 1;
        context.until_first = arguments.until_first;
        context.limits.extend(arguments.at_most_records.map(AtMost::Records));
        context.limits.extend(arguments.at_most_ms.map(AtMost::Ms));
        let mut outcome = (suite.run)(&context);
        context.finish();
        if context::is_interrupted() {
            outcome.uncovered.push("the rest: interrupted".into());
        }
        outcomes.push(outcome);
        if context::is_interrupted() {
            break;
        }
    }
    let table = report::table::text(&outcomes);
    // The standard output contains either JSON or the table.
    if arguments.json.as_deref() == Some(Path::new("-")) {
        eprint!("{table}");
    } else {
        print!("{table}");
    }
    // After the table, so that an error in writing does not hide the results.
    report::json::write(&outcomes, arguments.json.as_deref())?;
    if let Some(directory) = &arguments.report {
        report::html::write(&outcomes, directory)?;
    }
    let skipped = outcomes.iter().any(|outcome| !outcome.skipped.is_empty());
    if skipped && std::env::var_os("CI").is_some() {
        return Err("something was skipped, which the variable CI forbids".into());
    }
    // A failure before the first complete state counts as a try.
    let is_idle = |outcome: &&crash_harness::outcome::Outcome| {
        outcome.states == 0 && outcome.skipped.is_empty() && outcome.violations.is_empty()
    };
    let idle = outcomes.iter().find(is_idle).filter(|_| !context::is_interrupted());
    if let Some(idle) = idle {
        let why = arguments.only.as_ref().map_or("the time did not suffice".into(), |only| {
            format!("no item is named {only:?}, or it did not occur")
        });
        return Err(format!("{}: nothing was tried: {why}", idle.suite));
    }
    Ok(outcomes.iter().all(|outcome| outcome.is_good()))
}
