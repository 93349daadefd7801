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
    let ended = command().args(arguments).output().map_err(|error| format!("running cargo: {error}"))?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    Err(format!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr)))
}

/// Builds programs, in a release build below a target directory; where they are.
///
/// # Errors
/// If it can't be run, or can't build: what it says.
pub fn programs(which: &[&str], target: &Path) -> Result<Vec<PathBuf>, String> {
    let target = target.to_str().ok_or("the target directory has no name in UTF-8")?;
    let said = output(&[&["build", "--release", "--message-format=json", "--target-dir", target], which].concat())?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect())
}
