//! The build of the harness that has crash points and planted bugs: made by cargo, beside this one, when it is first needed.
//!
//! No other crate switches that feature on, and what is published never has it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program whose processes can be killed at named points.
///
/// # Errors
/// If it can't be built: what cargo says.
pub fn program() -> Result<&'static Path, String> {
    static VICTIM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    VICTIM.get_or_init(build).as_deref().map_err(Clone::clone)
}

/// This program, without crash points.
pub fn own() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "crash-harness".into())
}

/// The target directory of this build, in which others get directories of their own.
pub fn target() -> PathBuf {
    let target = own().ancestors().nth(2).map_or_else(|| "target".into(), Path::to_path_buf);
    // Of the victims' own build, it is the one around it.
    if target.ends_with("crash-victims") { target.parent().map_or(target.clone(), Path::to_path_buf) } else { target }
}

fn build() -> Result<PathBuf, String> {
    if cfg!(feature = "victim") {
        return Ok(own());
    }
    eprintln!("building the victims, with crash points");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    // Beside this build, so that neither makes the other anew.
    let target = target().join("crash-victims");
    let built = Command::new(cargo)
        .args(["build", "--release", "--bin", "crash-harness", "--features", "victim", "--message-format=json"])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .output()
        .map_err(|error| format!("running cargo: {error}"))?;
    if !built.status.success() {
        return Err(format!("building the victims: {}", String::from_utf8_lossy(&built.stderr)));
    }
    let said = String::from_utf8_lossy(&built.stdout).into_owned();
    let executable = said.lines().filter(|line| line.contains("\"name\":\"crash-harness\"")).find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        rest.split_once('"').map(|(path, _)| PathBuf::from(path))
    });
    executable.ok_or_else(|| "cargo does not name the victims' executable".into())
}
