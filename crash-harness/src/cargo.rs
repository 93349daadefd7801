//! Cargo, as far as the harness has to ask it for something: builds of this workspace, and what its
//! manifests say.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The cargo that this program was built by, if it says so, in the workspace.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

/// What it writes to its standard output.
///
/// # Errors
/// If it can't be run, or fails: what it says.
pub fn output(arguments: &[&str]) -> Result<Vec<u8>, String> {
    output_of(command().args(arguments))
}

fn output_of(command: &mut Command) -> Result<Vec<u8>, String> {
    let ended = command.output().map_err(|error| format!("running cargo: {error}"))?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    Err(format!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr)))
}

/// Builds programs, in a release build below a target directory; where they are.
///
/// # Errors
/// If it can't be run, or can't build: what it says.
pub fn programs(which: &[&str], target: &Path) -> Result<Vec<PathBuf>, String> {
    programs_of(command().args(["build", "--release"]).args(which), target)
}

/// Builds programs with the dependencies that are in a build directory; the programs go below the
/// target directory. Cargo before 1.91 has one directory for both and builds the dependencies
/// again.
///
/// # Errors
/// If it can't be run, or can't build: what it says.
pub fn programs_beside(which: &[&str], target: &Path, build: &Path) -> Result<Vec<PathBuf>, String> {
    programs_of(command().args(which).env("CARGO_BUILD_BUILD_DIR", build), target)
}

fn programs_of(command: &mut Command, target: &Path) -> Result<Vec<PathBuf>, String> {
    let said = output_of(command.arg("--message-format=json").arg("--target-dir").arg(target))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs = messages.filter(|message| message["target"]["kind"][0] == "bin");
    Ok(programs.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect())
}
