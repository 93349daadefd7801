//! Programs that tests start and `cargo test` does not build: those of the library's package, and
//! this test program with crash points.
//!
//! They are built in the build directory of the test run, whose dependencies it contains. The
//! finished programs go to a directory of their own, so that the programs of the test run stay as
//! they are.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use untorn_test_kit::cargo;
use untorn_test_kit::cargo::{Build, Program};

/// Returns the command line `untorn`, which needs the feature `cli`.
///
/// # Panics
/// If it cannot be built.
pub fn untorn() -> &'static Path {
    program("untorn")
}

/// Returns the program `untorn-logger`.
///
/// # Panics
/// If it cannot be built.
pub fn logger() -> &'static Path {
    program("untorn-logger")
}

/// Builds the programs of the library's package at once: they share one build of the library.
fn program(name: &str) -> &'static Path {
    static PROGRAMS: OnceLock<Result<Vec<Program>, String>> = OnceLock::new();
    let arguments = ["build", "--bin", "untorn", "--bin", "untorn-logger", "--features", "untorn/cli"];
    match PROGRAMS.get_or_init(|| build(Build::Ordinary, "cli", &arguments)) {
        Ok(programs) => programs.iter().find(|program| program.name == name).map(|program| program.path.as_path()),
        Err(error) => panic!("building the programs: {error}"),
    }
    .unwrap_or_else(|| panic!("cargo names no executable {name}"))
}

/// Returns the instrumented build of the test program `name`.
///
/// # Errors
/// If it cannot be built: the messages of cargo.
pub fn instrumented(name: &str) -> Result<PathBuf, String> {
    let programs = build(Build::Instrumented, "instrumented", &["test", "--no-run", "--test", name])?;
    let program = programs.into_iter().find(|program| program.name == name);
    program.map(|program| program.path).ok_or_else(|| format!("cargo names no executable {name}"))
}

fn build(build: Build, directory: &str, arguments: &[&str]) -> Result<Vec<Program>, String> {
    let build_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below the build directory");
    cargo::programs(build, arguments, &build_dir.join(directory), build_dir)
}
