//! Benchmarks of untorn and of other embedded key-value stores, side by side.
//!
//! `docs/performance.md` describes the workloads and the settings. The program runs itself again as
//! worker processes: one or several for each store and workload. The coordinator sends commands to
//! the workers, and the workers measure.
//!
//! Exit codes: 0 if all was measured, 1 if a store failed, 2 for a usage error, 3 if the program
//! itself failed.

mod arguments;
mod coordinator;
mod dataset;
mod floor;
mod measure;
mod process;
mod processors;
mod report;
mod store;
mod stores;
mod worker;
mod workload;

use crate::arguments::Arguments;
use crate::report::results::{self, Context, Line};
use crate::store::Result;
use clap::Parser;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [process::ROLE, "worker", job] => worker::run(job).map(|()| ExitCode::SUCCESS),
        [process::ROLE, "floor", ..] => floor::run(&words[2..]).map(|()| ExitCode::SUCCESS),
        [process::ROLE, "futex-peer", ..] => floor::run_futex_peer(&words[2..]).map(|()| ExitCode::SUCCESS),
        _ => coordinate(&Arguments::parse()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("peer-bench: {error}");
        ExitCode::from(3)
    })
}

fn coordinate(arguments: &Arguments) -> Result<ExitCode> {
    if let Err(error) = arguments.engines().and_then(|_| arguments.workloads()) {
        eprintln!("peer-bench: {error}");
        return Ok(ExitCode::from(2));
    }
    // The context is read first, because the sources may change during the run.
    let context = Context {
        entries: arguments.entries,
        key_bytes: arguments.sizes.0,
        value_bytes: arguments.sizes.1,
        commit: commit(),
    };
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("peer-bench-").tempdir_in(parent)?;
    let outcome = coordinator::run(arguments, dir.path())?;
    dir.close()?;
    let lines = results::lines(&outcome.rows, &context);
    write_results(arguments, &context, &lines)?;
    for failure in &outcome.failures {
        eprintln!("failed: {failure}");
    }
    Ok(if outcome.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_results(arguments: &Arguments, context: &Context, lines: &[Line]) -> Result<()> {
    let is_json_to_output = arguments.json.as_deref() == Some(Path::new("-"));
    if !is_json_to_output {
        print!("{}", report::table(lines));
    }
    if let Some(path) = &arguments.json {
        let mut text = String::new();
        for line in lines {
            writeln!(text, "{}", serde_json::to_string(line)?)?;
        }
        if is_json_to_output {
            print!("{text}");
        } else {
            std::fs::write(path, text)?;
        }
    }
    if let Some(dir) = &arguments.report {
        report::write(dir, arguments, context, lines)?;
    }
    Ok(())
}

/// Returns the commit of the sources, with `-dirty` if they were changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            std::process::Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let described = git(&["rev-parse", "--short=12", "HEAD"]).zip(git(&["status", "--porcelain", "-uno"]));
    described.map_or("unknown".into(), |(hash, changes)| if changes.is_empty() { hash } else { hash + "-dirty" })
}
