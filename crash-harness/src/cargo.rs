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
    let ended = command().args(arguments).output().map_err(|error| format!("running cargo: {error}"))?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    Err(format!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr)))
}

/// Builds programs in release mode below a target directory and returns their paths.
///
/// # Errors
/// If cargo can't be run or the build fails. The error contains cargo's standard error.
pub fn programs(which: &[&str], target: &Path) -> Result<Vec<PathBuf>, String> {
    let target = target.to_str().ok_or("the target directory has no name in UTF-8")?;
    let said = output(&[&["build", "--release", "--message-format=json", "--target-dir", target], which].concat())?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect())
}
