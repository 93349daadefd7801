//! `untorn-logger STORE [--idle SECONDS|never] [--create] [--foreign-owner]`: the logger process of
//! one store, in the foreground.
//!
//! Exit codes: see [`USAGE`].
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::Duration;
use untorn::logger::LoggerOptions;

const USAGE: &str = "usage: untorn-logger STORE [--idle SECONDS|never] [--create] [--foreign-owner]

Runs the logger of the store in directory STORE, in the foreground. Direct clients start a logger when they
need one; this is for supervisors, and for stores whose clients all pass messages through the socket.

  --idle SECONDS  exit when the store was unused for this time, whatever the clients request
  --idle never    stay until stopped (untorn stop); wait while another logger serves
  --create        create the store if there is none
  --foreign-owner as root, serve a store that belongs to another user, by becoming that user

Events are written to standard error, from the level in RUST_LOG (error, warn, info, debug, trace, off;
default info), if this program was built with the feature cli.

Exit codes: 0 it was stopped, the store is unused, or another logger serves it already; 2 usage; 3 error.";

fn main() -> ExitCode {
    let (store, options) = match parse(std::env::args_os().skip(1)) {
        Ok(Asked::Serve(store, options)) => (store, options),
        Ok(Asked::Say(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(what) => {
            eprintln!("untorn-logger: {what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if options.is_foreign_owner_allowed() {
        leave_environment_behind();
    }
    #[cfg(feature = "cli")]
    show_events();
    // SAFETY: this program has started no thread, and opened no descriptor that it uses.
    match unsafe { options.run_as_program(&store) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("untorn-logger: {}", untorn_wal::printable(&error.to_string()));
            ExitCode::from(3)
        }
    }
}

/// Executes this program again without the parts of root's environment, and without the open files,
/// that would expose data to the user that it becomes.
fn leave_environment_behind() {
    let is_kept = |name: &OsStr| name == "RUST_LOG" || LoggerOptions::is_for_other_user(name);
    // SAFETY: the program has one thread, which has opened nothing. Descriptors that its starter
    // left open are closed by `execve`. If a kernel or a filter refuses the call, they stay open.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // Execute it only once.
    if std::env::vars_os().all(|(name, _)| is_kept(&name)) {
        return;
    }
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("untorn-logger").args(std::env::args_os().skip(1)).env_clear();
    command.envs(std::env::vars_os().filter(|(name, _)| is_kept(name)));
    let error = command.exec();
    eprintln!("untorn-logger: starting again with a clean environment: {error}");
    std::process::exit(3);
}

/// Writes the library's events to standard error, from the level in `RUST_LOG`: `warn`,
/// `untorn::logger=debug,info`, `off`.
#[cfg(feature = "cli")]
fn show_events() {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::prelude::*;
    let wanted = std::env::var("RUST_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let wanted = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(wanted)).init();
}

enum Asked {
    Serve(OsString, LoggerOptions),
    Say(String),
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Asked, String> {
    let (mut store, mut options) = (None, LoggerOptions::default());
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-h" | "--help") => return Ok(Asked::Say(USAGE.into())),
            Some("-V" | "--version") => return Ok(Asked::Say(format!("untorn-logger {}", env!("CARGO_PKG_VERSION")))),
            Some("--create") => {
                options.create(true);
            }
            Some("--foreign-owner") => {
                options.foreign_owner(true);
            }
            Some("--idle") => {
                let idle = arguments.next().unwrap_or_default();
                options.idle(parse_idle(&idle.to_string_lossy())?);
            }
            // Otherwise a misspelt switch would be taken for the path of a store.
            Some(switch) if switch.starts_with('-') => return Err(format!("unknown option {switch}")),
            _ if store.is_some() => return Err("more than one store".into()),
            _ => store = Some(argument),
        }
    }
    store.map(|store| Asked::Serve(store, options)).ok_or_else(|| "no store is named".into())
}

fn parse_idle(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) if text == "never" => Ok(Duration::MAX),
        Err(_) => Err(format!("--idle {text:?} is neither a number of seconds nor never")),
    }
}
