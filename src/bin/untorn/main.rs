//! The command line `untorn`: reads the arguments, runs one command, and converts its outcome to an
//! exit code.
//!
//! `commands` has a file for each command; `top` and `tour` have folders. Exit codes: 0 done, 1 not
//! found or check failed, 2 usage, 3 store error.

mod arguments;
mod commands;
mod line;
mod outcome;
mod output;
mod target;
mod text;
mod top;
mod tour;

use arguments::{Arguments, Command};
use clap::Parser;
use outcome::{CommandFailure, Outcome};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed it, which is no error.
        Err(CommandFailure::OutputClosed) => ExitCode::SUCCESS,
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
        Command::Get { at, key } => commands::get::run(&at, &key, format),
        Command::Put { at, key, value } => commands::put::run(&at, &key, &value, format),
        Command::Del { at, what } => commands::del::run(&at, &what, format),
        Command::Scan { at, prefix } => commands::scan::run(&at, prefix.as_deref(), format),
        Command::Load { at } => commands::load::run(&at, format),
        Command::Dump { at } => commands::dump::run(&at, format),
        Command::Watch(options) => commands::watch::run(&options, format),
        Command::Stat { store, prometheus: true } => commands::stat::prometheus::run(&store),
        Command::Stat { store, .. } => commands::stat::run(&store, format),
        Command::Top(options) => top::run(&options),
        Command::Verify { store } => commands::verify::run(&store, format),
        Command::Checkpoint { store } => commands::checkpoint::run(&store, format),
        Command::Deadlines { store, seconds, callers } => commands::deadlines::run(&store, seconds, callers, format),
        Command::Stop { store, timeout_seconds } => commands::stop::run(&store, timeout_seconds, format),
        Command::Tour(options) => tour::run(&options, format),
        Command::TourChild(child) => tour::run_child(&child),
    }
}
