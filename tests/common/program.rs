//! Programs that tests start and `cargo test` does not build, since they need other features.
//!
//! They are built in the build directory of the test run, whose dependencies it contains; cargo
//! names what it builds by its features. The finished programs go to a directory of their own, so
//! that the programs of the test run stay as they are. Cargo before 1.91 has one directory for
//! both; it builds the dependencies again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often a build that takes long is reported.
const BUILD_REPORT_INTERVAL: Duration = Duration::from_secs(20);

/// Returns the command line `untorn`, which needs the feature `cli`.
///
/// # Panics
/// If it cannot be built.
pub fn untorn() -> &'static Path {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(find_untorn) {
        Ok(path) => path,
        Err(error) => panic!("building the command line: {error}"),
    }
}

#[cfg(feature = "cli")]
fn find_untorn() -> Result<PathBuf, String> {
    Ok(PathBuf::from(env!("CARGO_BIN_EXE_untorn")))
}

#[cfg(not(feature = "cli"))]
fn find_untorn() -> Result<PathBuf, String> {
    build("cli", "src/bin/untorn/main.rs", &["build", "--bin", "untorn", "--features", "untorn/cli"])
}

/// Builds a program by `cargo` with `arguments`, and returns where it is. `source` is its main file.
/// The finished program goes to the directory `name` below the target directory.
///
/// # Errors
/// If it cannot be built: the messages of cargo.
pub fn build(name: &str, source: &str, arguments: &[&str]) -> Result<PathBuf, String> {
    build_with(Command::new(env!("CARGO")), name, source, arguments)
}

/// As [`build`], with crash points and planted bugs.
///
/// # Errors
/// As [`build`].
pub fn build_instrumented(name: &str, source: &str, arguments: &[&str]) -> Result<PathBuf, String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.env("RUSTC_WORKSPACE_WRAPPER", concat!(env!("CARGO_MANIFEST_DIR"), "/rustc-instrumented"));
    build_with(cargo, name, source, arguments)
}

fn build_with(mut cargo: Command, name: &str, source: &str, arguments: &[&str]) -> Result<PathBuf, String> {
    let build_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below the build directory");
    // No argument is `-p`: the features of the dependencies are those of the test run.
    cargo.args(arguments).arg("--message-format=json").arg("--target-dir").arg(build_dir.join(name));
    cargo.env("CARGO_BUILD_BUILD_DIR", build_dir).current_dir(env!("CARGO_MANIFEST_DIR"));
    // `--report-time` of the test harness needs this variable; dependencies would be built again.
    cargo.env_remove("RUSTC_BOOTSTRAP");
    cargo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The test harness captures what `eprintln!` prints, but not this.
    let report = |what: std::fmt::Arguments<'_>| {
        let _ = writeln!(std::io::stderr(), "{name}: {what}");
    };
    report(format_args!("running cargo {}", arguments.join(" ")));
    let start = Instant::now();
    let cargo = cargo.spawn().map_err(|error| format!("starting cargo: {error}"))?;
    let (ended, end) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let output = cargo.wait_with_output();
        let _ = ended.send(());
        output
    });
    while end.recv_timeout(BUILD_REPORT_INTERVAL).is_err() {
        report(format_args!("still building after {} s", start.elapsed().as_secs()));
    }
    let output =
        waiter.join().expect("the waiter does not panic").map_err(|error| format!("running cargo: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    report(format_args!("built within {} s", start.elapsed().as_secs()));
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let source = format!("\"src_path\":\"{}/{source}\"", env!("CARGO_MANIFEST_DIR"));
    let executable = messages.lines().filter(|line| line.contains(&source)).find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        rest.split_once('"').map(|(path, _)| PathBuf::from(path))
    });
    executable.ok_or_else(|| "cargo names no executable".into())
}
