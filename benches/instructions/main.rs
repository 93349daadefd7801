//! Counts the instructions of the engine's hot paths under callgrind and compares them with a table
//! in the repository. The load of the machine does not affect these counts.
//!
//! ```text
//! cargo bench --profile counted --bench instructions               # compare; exit 1 if a path grew
//! cargo bench --profile counted --bench instructions -- --record   # write the counts to the table
//! ```
//!
//! - `workloads`: the counted work; each workload is one function in which callgrind collects
//! - `callgrind`: runs a workload under valgrind and sums its instructions by function
//! - `table`: the expected counts, by compiler and C library
//!
//! The logger is a separate process and is not counted. The workloads do not wait: commits are
//! visible, and each workload is the only user of its store. Some chance events remain, such as a
//! lock that the logger holds for a moment. They only add instructions, so the run with the fewest
//! of three counts.

pub(crate) mod callgrind;
pub(crate) mod table;
pub(crate) mod workloads;

use callgrind::Counts;
use std::process::ExitCode;
use table::{Table, Toolchain};

/// The runs of each workload; the run with the fewest instructions counts.
const RUNS: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--workload", name] => {
            workloads::run(name);
            ExitCode::SUCCESS
        }
        [] => guard(false),
        ["--record"] => guard(true),
        _ => {
            eprintln!("usage: cargo bench --profile counted --bench instructions [-- --record]");
            ExitCode::from(2)
        }
    }
}

/// Counts every workload and compares the counts with the table, or writes them to it.
fn guard(record: bool) -> ExitCode {
    let toolchain = Toolchain::current();
    let mut table = Table::read();
    let mut counted = table::Row::new();
    for name in workloads::NAMES {
        let counts = (0..RUNS).map(|_| callgrind::count(name)).min_by(Counts::compare).expect("RUNS > 0");
        println!("{name:<14} {:>10.1} instructions a call", counts.total);
        counted.insert(name.to_string(), counts);
    }
    if record {
        table.rows.insert(toolchain.to_string(), counted);
        table.write();
        println!("recorded for {toolchain}");
        return ExitCode::SUCCESS;
    }
    let Some(expected) = table.rows.get(&toolchain.to_string()) else {
        eprintln!("the table has no counts for {toolchain}; record them from a commit that is known to be good:");
        eprintln!("  cargo bench --profile counted --bench instructions -- --record");
        // A toolchain without counts is a failure only in CI, where the table is maintained.
        return ExitCode::from(u8::from(std::env::var_os("CI").is_some()));
    };
    let grown = table::compare(expected, &counted);
    for line in &grown {
        eprintln!("{line}");
    }
    ExitCode::from(u8::from(!grown.is_empty()))
}
