//! Calls to cargo: builds of this workspace, and the metadata of its manifests.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns a command that runs the cargo that built this program, or `cargo` from `PATH`, in the
/// workspace directory.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

/// Runs cargo and returns its standard output.
///
/// # Errors
/// If cargo can't be run or fails. The error contains its standard error.
pub fn output(arguments: &[&str]) -> Result<Vec<u8>, String> {
    output_of(command(), arguments)
}

fn output_of(mut cargo: Command, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let ended = cargo.args(arguments).output().map_err(|error| format!("running cargo: {error}"))?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    Err(format!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr)))
}

/// What is compiled into the programs of a build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Build {
    /// What users get.
    Ordinary,
    /// Crash points and planted bugs as well.
    Instrumented,
}

/// Builds programs by cargo with `arguments`, puts them below `target`, and returns their paths.
/// The dependencies are shared with the build of this program, in `build_dir`. Cargo before 1.91
/// has one directory for both and builds the dependencies again.
///
/// # Errors
/// If cargo cannot be run or cannot build: its messages.
pub fn programs(build: Build, arguments: &[&str], target: &Path, build_dir: &Path) -> Result<Vec<PathBuf>, String> {
    let target = target.to_str().ok_or("the target directory has no name in UTF-8")?;
    let mut cargo = command();
    cargo.env("CARGO_BUILD_BUILD_DIR", build_dir);
    if build == Build::Instrumented {
        cargo.env("RUSTC_WORKSPACE_WRAPPER", concat!(env!("CARGO_MANIFEST_DIR"), "/../rustc-instrumented"));
    }
    let arguments = [arguments, &["--message-format=json", "--target-dir", target]].concat();
    let messages = String::from_utf8_lossy(&output_of(cargo, &arguments)?).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs = messages.filter(|message| message["target"]["kind"][0] == "bin");
    Ok(programs.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect())
}
