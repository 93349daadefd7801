//! Programs that tests start and `cargo test` does not build: those of the library's package, and
//! this test program with crash points.
//!
//! They are built in the build directory of the test run, which contains their compiled
//! dependencies. The finished programs go to a directory of their own, so that the programs of the
//! test run are not replaced.

use std::path::Path;
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
/// # Panics
/// If it cannot be built.
pub fn instrumented(name: &str) -> &'static Path {
    let program = cargo::instrumented(name, &["test", "--no-run", "--test", name], build_dir());
    program.unwrap_or_else(|error| panic!("{error}"))
}

fn build_dir() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below the build directory")
}

fn build(build: Build, directory: &str, arguments: &[&str]) -> Result<Vec<Program>, String> {
    cargo::programs(build, arguments, &build_dir().join(directory), build_dir())
}
