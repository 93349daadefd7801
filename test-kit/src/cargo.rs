//! Calls to cargo: builds of this workspace, and the metadata of its manifests.

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Interval between two reports of a long build.
const BUILD_REPORT_INTERVAL: Duration = Duration::from_secs(20);

/// Returns the directory of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Returns a command that runs the cargo that runs this program, or `cargo` from `PATH`, in the
/// workspace directory.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `--report-time` of the test harness needs this variable. If cargo inherited it, cargo would
    // build the dependencies again.
    command.current_dir(workspace()).env_remove("RUSTC_BOOTSTRAP");
    command
}

/// Runs cargo and returns its standard output.
///
/// # Errors
/// If cargo can't be run or fails. The error contains its standard error.
pub fn output(arguments: &[&str]) -> Result<Vec<u8>, String> {
    checked(arguments, command().args(arguments).output())
}

fn checked(arguments: &[&str], ended: std::io::Result<Output>) -> Result<Vec<u8>, String> {
    let ended = ended.map_err(|error| format!("running cargo: {error}"))?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    Err(format!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr)))
}

/// The directory of instrumented programs in a target directory, apart from ordinary ones.
pub const INSTRUMENTED_DIRECTORY: &str = "instrumented";

/// The kind of a build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Build {
    /// As published for users.
    Ordinary,
    /// With crash points and planted bugs.
    Instrumented,
}

/// A program that cargo has built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// The name of its target in the manifest.
    pub name: String,
    /// The path of its executable.
    pub path: PathBuf,
}

/// Builds programs by cargo with `arguments`, puts them below `target`, and returns them: binaries,
/// and test programs if `arguments` select any. `build_dir` is the caller's build directory, so
/// compiled dependencies are shared. `arguments` must not contain `-p`: it changes the features of
/// dependencies, which are then built again. Cargo before 1.91 has one directory for both and
/// builds the dependencies again.
///
/// Writes the command to the standard error, and reports while it takes long.
///
/// # Errors
/// If cargo cannot be run or cannot build: its messages.
pub fn programs(build: Build, arguments: &[&str], target: &Path, build_dir: &Path) -> Result<Vec<Program>, String> {
    let mut cargo = command();
    cargo.env("CARGO_BUILD_BUILD_DIR", build_dir).args(arguments);
    cargo.arg("--message-format=json").arg("--target-dir").arg(target);
    if build == Build::Instrumented {
        cargo.env("RUSTC_WORKSPACE_WRAPPER", workspace().join("rustc-instrumented"));
    }
    let instrumented = if build == Build::Instrumented { " (instrumented)" } else { "" };
    let command_line = format!("cargo {}{instrumented}", arguments.join(" "));
    let messages = reporting(&command_line, || checked(arguments, cargo.output()))?;
    let messages = String::from_utf8_lossy(&messages).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let kind = &message["target"]["kind"][0];
        let path = message["executable"].as_str().filter(|_| kind == "bin" || kind == "test")?;
        Some(Program { name: message["target"]["name"].as_str()?.into(), path: path.into() })
    };
    Ok(messages.filter_map(program).collect())
}

/// Builds a program with crash points and planted bugs, and returns its path. The first call builds
/// it; other threads wait for that. `select` contains the arguments that select the program `name`
/// in cargo; see [`programs`]. A process builds only one program.
///
/// `--cfg untorn_instrumented` compiles the crash points in. No manifest can set this flag, and
/// published packages do not contain the crash points.
///
/// # Errors
/// If it can't be built: the messages of cargo.
pub fn instrumented(name: &str, select: &[&str], target: &Path) -> Result<&'static Path, String> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let built = programs(Build::Instrumented, select, &target.join(INSTRUMENTED_DIRECTORY), target);
        let built = built.map_err(|error| format!("building the instrumented {name}: {error}"))?;
        let program = built.into_iter().find(|program| program.name == name);
        program.map(|program| program.path).ok_or_else(|| format!("cargo names no executable {name}"))
    };
    PROGRAM.get_or_init(build).as_deref().map_err(Clone::clone)
}

/// Calls `build`. Writes `what` to the standard error at the beginning, and again at intervals
/// while the build runs.
fn reporting<T>(what: &str, build: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    // A test harness captures the output of `eprintln!`, but not the output of `writeln!`.
    let report = |line: std::fmt::Arguments<'_>| drop(writeln!(std::io::stderr(), "{line}"));
    report(format_args!("running {what}"));
    std::thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        scope.spawn(move || {
            while end.recv_timeout(BUILD_REPORT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                report(format_args!("{what}: not done after {} s", start.elapsed().as_secs()));
            }
        });
        let built = build();
        drop(ended);
        built
    })
}
