//! The build of the harness that has crash points and planted bugs. Cargo builds it beside this
//! program on first use.
//!
//! `--cfg untorn_instrumented` compiles them in. No manifest can switch that on, and what is
//! published does not contain them.

use crate::processes::cargo;
use crate::processes::cargo::Build;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Returns the program whose processes can be killed at named points.
///
/// # Errors
/// If it can't be built. The error contains cargo's output.
pub fn program() -> Result<&'static Path, String> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PROGRAM.get_or_init(build).as_deref().map_err(Clone::clone)
}

/// Returns the path of this program.
pub fn own() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "crash-harness".into())
}

/// Returns the target directory of this build. Other builds get directories in it.
pub fn target() -> PathBuf {
    let own = own();
    // A program is in the directory of its profile, a test is one level deeper. The instrumented
    // build has its own directory above the profile.
    let profile_and_above = own.ancestors().skip(1).skip_while(|ancestor| ancestor.ends_with("deps"));
    let mut target_and_above =
        profile_and_above.skip(1).skip_while(|ancestor| ancestor.ends_with("crash-instrumented"));
    target_and_above.next().map_or_else(|| "target".into(), Path::to_path_buf)
}

fn build() -> Result<PathBuf, String> {
    if cfg!(untorn_instrumented) {
        return Ok(own());
    }
    // The dependencies are those of this build: in `cargo test` with the features that tests
    // request. The program goes to a directory of its own, so that this one stays as it is.
    let arguments: &[&str] = match cfg!(debug_assertions) {
        true => &["test", "--no-run", "--test", "controls"],
        false => &["build", "--release", "-p", "crash-harness", "--bin", "crash-harness"],
    };
    let built = cargo::programs(Build::Instrumented, arguments, &target().join("crash-instrumented"), &target());
    let built = built.map_err(|error| format!("building the instrumented harness: {error}"))?;
    let program = built.into_iter().find(|program| program.name == "crash-harness").map(|program| program.path);
    program.ok_or_else(|| "cargo names no executable of the instrumented harness".into())
}
