//! The build of the harness that has crash points and planted bugs: made by cargo, beside this one,
//! when it is first needed.
//!
//! No other crate switches that feature on, and what is published never has it.

use crate::cargo;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The program whose processes can be killed at named points.
///
/// # Errors
/// If it can't be built: what cargo says.
pub fn program() -> Result<&'static Path, String> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PROGRAM.get_or_init(build).as_deref().map_err(Clone::clone)
}

/// This program, without crash points.
pub fn own() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "crash-harness".into())
}

/// The target directory of this build, in which others get directories of their own.
pub fn target() -> PathBuf {
    let own = own();
    // A program lies in its profile's directory, a test one deeper; and the victims' profile in a
    // directory of its own.
    let profile_and_above = own.ancestors().skip(1).skip_while(|place| place.ends_with("deps"));
    let mut target_and_above = profile_and_above.skip(1).skip_while(|place| place.ends_with("crash-instrumented"));
    target_and_above.next().map_or_else(|| "target".into(), Path::to_path_buf)
}

fn build() -> Result<PathBuf, String> {
    if cfg!(feature = "instrumented") {
        return Ok(own());
    }
    eprintln!("building the instrumented harness, with crash points");
    // Beside this build, so that neither makes the other anew, and with its dependencies: those of
    // `cargo test` have the features that tests ask for as well.
    let which: &[&str] = if cfg!(debug_assertions) {
        &["test", "--no-run", "--test", "controls", "--features", "crash-harness/instrumented"]
    } else {
        &["build", "--release", "-p", "crash-harness", "--bin", "crash-harness", "--features", "instrumented"]
    };
    let built = cargo::programs_beside(which, &target().join("crash-instrumented"), &target());
    let built = built.map_err(|error| format!("building the instrumented harness: {error}"))?;
    built
        .into_iter()
        .find(|program| program.ends_with("crash-harness"))
        .ok_or_else(|| "cargo does not name the victims' executable".into())
}
