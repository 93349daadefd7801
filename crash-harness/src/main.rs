//! The command line of the harness: which suites run, for how long, and where their reports go.
//!
//! Exit code 0: nothing was violated (of `controls`: every planted bug was caught); 1: something
//! was; 2: usage; 3: the harness itself could not go on; 130: Ctrl-C ended it, after it has told
//! what it had found by then.

use clap::Parser;
use clap::builder::{PossibleValue, PossibleValuesParser};
use crash_harness::tradeoff::advice::Limit as AtMost;
use crash_harness::{context, context::Context, context::Limit, instrumented, report, role, suites};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Kills untorn's processes at every instruction, cuts the power, breaks the disk, and checks what
/// is left.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Which suite to run.
    #[arg(value_parser = suite_names())]
    suite: String,
    /// What random choices follow; a new one unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// About how long to run, in seconds; 600 for `all`, 120 for `tradeoff`, 60 for another suite.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// How many states or kill points to check, instead of a time.
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    states: Option<u64>,
    /// Only this one: the point, the call, the variant that a violation's replay line names.
    #[arg(long)]
    only: Option<String>,
    /// Advice of `tradeoff` for so many records that a crash may take.
    #[arg(long, value_name = "N")]
    at_most_records: Option<u64>,
    /// Advice of `tradeoff` for what was acknowledged in the last so many milliseconds before a
    /// crash.
    #[arg(long, value_name = "MS")]
    at_most_ms: Option<f64>,
    /// Ends a suite with its first violation: what `controls` asks for.
    #[arg(long, hide = true)]
    until_first: bool,
    /// Writes the outcome as JSON, one object a line; `-` is the standard output.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes a report for people to this directory.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// The names of the suites, and `all`.
fn suite_names() -> PossibleValuesParser {
    let names = suites::ALL.iter().map(|suite| PossibleValue::new(suite.name).help(suite.about));
    names.chain([PossibleValue::new("all").help("All suites, within the time")]).into()
}

fn main() -> ExitCode {
    // What the harness starts itself as: the processes that it kills.
    if let Some(role) = role::Role::of_this_process() {
        return role.play();
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
        // At one sync a second less says nothing.
        (None, None) => Limit::Seconds(if arguments.suite == "tradeoff" { 120 } else { 60 }),
    };
    if let (true, Some(only)) = (suites.len() > 1, &arguments.only) {
        return Err(format!("--only {only:?} is of one suite: name that in place of `all`"));
    }
    let seed = arguments.seed.unwrap_or_else(rand::random::<u64>);
    // What has to be built first takes nobody's time.
    if suites.iter().any(suites::Suite::needs_victims) {
        let _ = instrumented::program();
    }
    context::end_at_interrupt().map_err(|error| format!("handling Ctrl-C: {error}"))?;
    let mut outcomes = Vec::new();
    for (index, suite) in suites.iter().enumerate() {
        // What one suite leaves of its time, the later ones get.
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
            outcome.uncovered.push("whatever was to come: it was interrupted".into());
        }
        outcomes.push(outcome);
        if context::is_interrupted() {
            break;
        }
    }
    let table = report::table::text(&outcomes);
    // The standard output is for one thing.
    if arguments.json.as_deref() == Some(Path::new("-")) {
        eprint!("{table}");
    } else {
        print!("{table}");
    }
    // After the table: what can't be written somewhere has been seen all the same.
    report::json::write(&outcomes, arguments.json.as_deref())?;
    if let Some(directory) = &arguments.report {
        report::html::write(&outcomes, directory)?;
    }
    let skipped = outcomes.iter().any(|outcome| !outcome.skipped.is_empty());
    if skipped && std::env::var_os("CI").is_some() {
        return Err("something was skipped, and the variable CI says that nothing may be".into());
    }
    // What fails before its first state is complete has been tried.
    let is_idle = |outcome: &&crash_harness::outcome::Outcome| {
        outcome.states == 0 && outcome.skipped.is_empty() && outcome.violations.is_empty()
    };
    let idle = outcomes.iter().find(is_idle).filter(|_| !context::is_interrupted());
    if let Some(idle) = idle {
        let why = arguments.only.as_ref().map_or("the time did not suffice".into(), |only| {
            format!("it has nothing named {only:?}, or that did not come about")
        });
        return Err(format!("{}: nothing was tried: {why}", idle.suite));
    }
    Ok(outcomes.iter().all(|outcome| outcome.is_good()))
}
