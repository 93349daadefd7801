//! Roles: the harness starts itself as a process in a role. The process prints the acknowledgements
//! that it receives, one a line. It prints these lines in addition to those of
//! [`untorn_test_kit::role`]:
//!
//! | line | means |
//! |---|---|
//! | `S v` | its cell's newest value has version v |
//! | `F name n` | the durable feed delivered the n-th transaction of that writer |
//! | `ok` | a check passed |
//! | `! kind what` | a check failed; the process then ends with exit code 9 |

use crate::outcome::{Finding, Kind};
use crate::workload;
use std::process::ExitCode;

pub use untorn_test_kit::role::{Role, say};

/// Exit code of a process whose check failed.
const FOUND: u8 = 9;

/// Returns the role that this process was started for.
pub fn of_this_process() -> Option<Role> {
    let role = Role::of_this_process()?;
    // The terminal sends Ctrl-C to its foreground process group. The role leaves that group, so
    // that only the harness handles Ctrl-C and can end in order.
    let _ = rustix::process::setpgid(None, None);
    Some(role)
}

/// Plays a role to its end.
pub fn play(role: &Role) -> ExitCode {
    end_of(workload::play(role))
}

/// Returns the exit code after a role, and prints the finding if there is one.
pub fn end_of(played: Result<(), Finding>) -> ExitCode {
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(finding) => {
            say_finding(&finding);
            ExitCode::from(FOUND)
        }
    }
}

/// Prints a finding and ends the process.
pub fn die_of(finding: &Finding) -> ! {
    say_finding(finding);
    std::process::exit(i32::from(FOUND))
}

/// Prints that a check failed, in the form that [`finding`] parses.
pub fn say_finding(finding: &Finding) {
    say(format_args!("! {:?} {}", finding.kind, finding.what.replace('\n', " ")));
}

/// Parses a line that begins with `!`.
pub fn finding(line: &str) -> Option<Finding> {
    let (kind, what) = line.strip_prefix("! ")?.split_once(' ')?;
    let kind = match kind {
        "TornRead" => Kind::TornRead,
        "LostAcked" => Kind::LostAcked,
        "HalfApplied" => Kind::HalfApplied,
        "OrderViolation" => Kind::OrderViolation,
        "BlockedReader" => Kind::BlockedReader,
        "Damaged" => Kind::Damaged,
        _ => Kind::Misbehaved,
    };
    Some(Finding::new(kind, what))
}
