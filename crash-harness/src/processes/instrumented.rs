//! The build of the harness that has crash points and planted bugs. Cargo builds it beside this
//! program on first use.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use untorn_test_kit::cargo;

/// Returns the program whose processes can be killed at named points.
///
/// # Errors
/// If it can't be built. The error contains cargo's output.
pub fn program() -> Result<&'static Path, String> {
    static OWN: OnceLock<PathBuf> = OnceLock::new();
    if cfg!(untorn_instrumented) {
        return Ok(OWN.get_or_init(own));
    }
    // The dependencies have the features that they have in this build. In `cargo test`, these
    // include the features that tests request.
    let select: &[&str] = match cfg!(debug_assertions) {
        true => &["test", "--no-run", "--test", "controls"],
        false => &["build", "--release", "-p", "crash-harness", "--bin", "crash-harness"],
    };
    cargo::instrumented("crash-harness", select, &target())
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
        profile_and_above.skip(1).skip_while(|ancestor| ancestor.ends_with(cargo::INSTRUMENTED_DIRECTORY));
    target_and_above.next().map_or_else(|| "target".into(), Path::to_path_buf)
}
