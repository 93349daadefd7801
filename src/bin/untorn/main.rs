//! The command line `untorn`: reads the arguments, runs one command, and converts its outcome to an
//! exit code.
//!
//! Each command has a file of its own. Exit codes: 0 done, 1 not found or check failed, 2 usage, 3
//! store error.

mod arguments;
mod checkpoint;
mod deadlines;
mod del;
mod dump;
mod get;
mod line;
mod load;
mod outcome;
mod output;
mod prometheus;
mod put;
mod scan;
mod stat;
mod stop;
mod target;
mod text;
mod top;
mod tour;
mod verify;
mod watch;

use arguments::{Arguments, Command};
use clap::Parser;
use outcome::{Failure, Outcome};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed it, which is no error.
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            // Its lines may contain names and paths, with control characters for a terminal.
            let text = failure.to_string();
            eprintln!("untorn: {}", text.lines().map(untorn_wal::printable).collect::<Vec<_>>().join("\n"));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Outcome {
    let format = arguments.format;
    target::set_foreign_owner(arguments.foreign_owner);
    match arguments.command {
        Command::Get { at, key } => get::run(&at, &key, format),
        Command::Put { at, key, value } => put::run(&at, &key, &value, format),
        Command::Del { at, what } => del::run(&at, &what, format),
        Command::Scan { at, prefix } => scan::run(&at, prefix.as_deref(), format),
        Command::Load { at } => load::run(&at, format),
        Command::Dump { at } => dump::run(&at, format),
        Command::Watch(options) => watch::run(&options, format),
        Command::Stat { store, prometheus: true } => prometheus::run(&store),
        Command::Stat { store, .. } => stat::run(&store, format),
        Command::Top(options) => top::run(&options),
        Command::Verify { store } => verify::run(&store, format),
        Command::Checkpoint { store } => checkpoint::run(&store, format),
        Command::Deadlines { store, seconds, callers } => deadlines::run(&store, seconds, callers, format),
        Command::Stop { store, timeout_seconds } => stop::run(&store, timeout_seconds, format),
        Command::Tour(options) => tour::run(&options, format),
        Command::TourChild(child) => tour::run_child(&child),
    }
}
