//! `untorn-logger STORE`: the logger process of one store, in the foreground.
//!
//! Exit codes: 0 it left because it was told to or nobody used the store any more, 2 usage, 3 it could not go on.

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: untorn-logger STORE

Runs the logger of the store in directory STORE, in the foreground. Stores start their logger by
themselves; this is for supervisors and for containers that want to see it.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(store), None) = (arguments.next(), arguments.next()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match store.to_str() {
        Some("-h" | "--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some("-V" | "--version") => {
            println!("untorn-logger {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        // A misspelt switch would otherwise become the name of a store.
        Some(switch) if switch.starts_with('-') => {
            eprintln!("untorn-logger: unknown option {switch}\n{USAGE}");
            return ExitCode::from(2);
        }
        _ => {}
    }
    match untorn::run_logger(Path::new(&store)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("untorn-logger: {error}");
            ExitCode::from(3)
        }
    }
}
