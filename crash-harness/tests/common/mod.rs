//! Runs of the harness whose output is shown only if the test fails.

use std::process::{Command, ExitStatus};

/// Runs a program. Its output counts as the test's own: the test harness prints it if the test
/// fails. A run with a planted bug reports violations, which look like a failure otherwise.
pub(crate) fn run(command: &mut Command) -> ExitStatus {
    let output = command.output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output.status
}
