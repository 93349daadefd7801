//! Roles: the harness starts itself as a process in a role, which prints the acknowledgements that
//! it receives, line by line.
//!
//! | line | means |
//! |---|---|
//! | `V n` | the n-th transaction of this writer is visible |
//! | `D n` | it is durable |
//! | `C n` | its cell's value n is durable |
//! | `S v` | its cell's newest value has version v |
//! | `F name n` | the durable feed delivered the n-th transaction of that writer |
//! | `ok` | a check passed |
//! | `! kind what` | a check failed; the process then ends with exit code 9 |

use crate::outcome::{Finding, Kind};
use crate::workload;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code of a process whose check failed.
const FOUND: u8 = 9;

/// The role of a process of the harness, from its arguments.
#[derive(Clone, Debug)]
pub struct Role {
    /// The name of the role.
    pub name: String,
    /// The store's directory.
    pub store: PathBuf,
    /// The remaining arguments.
    pub arguments: Vec<String>,
}

impl Role {
    /// Returns the role that this process was started for.
    pub fn of_this_process() -> Option<Role> {
        let mut arguments = std::env::args_os().skip(1);
        if arguments.next()? != "role" {
            return None;
        }
        // No process in a role outlives the harness.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        // The terminal sends Ctrl-C to its foreground process group. Only the harness handles it,
        // and ends in order.
        let _ = rustix::process::setpgid(None, None);
        let name = arguments.next()?.into_string().ok()?;
        let store = arguments.next()?.into();
        Some(Role { name, store, arguments: arguments.filter_map(|argument| argument.into_string().ok()).collect() })
    }

    /// Plays the role to its end.
    pub fn play(&self) -> ExitCode {
        end_of(workload::play(self))
    }
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

/// Prints a line for the harness, in one write.
pub fn say(line: impl std::fmt::Display) {
    let line = format!("{line}\n");
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
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
