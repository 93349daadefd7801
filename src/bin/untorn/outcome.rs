//! The outcomes of a command, each with its exit code and message.

use std::{fmt, io};

/// The result of every command.
pub(crate) type Outcome<T = ()> = Result<T, CommandFailure>;

/// The reason why a command failed.
#[derive(Debug)]
pub(crate) enum CommandFailure {
    /// The key or keyspace does not exist. Exit code 1.
    NotFound(String),
    /// A check found damage or a violation. Exit code 1.
    CheckFailed(String),
    /// The arguments or the input are not valid. Exit code 2.
    Usage(String),
    /// The store returned an error. Exit code 3.
    Store(untorn::Error),
    /// The system refused a call that does not concern the store. Exit code 3.
    System(String),
    /// The reader of the output has closed it. Ends without a message, exit code 0.
    OutputClosed,
}

impl CommandFailure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CommandFailure::OutputClosed => 0,
            CommandFailure::NotFound(_) | CommandFailure::CheckFailed(_) => 1,
            CommandFailure::Usage(_) => 2,
            CommandFailure::Store(_) | CommandFailure::System(_) => 3,
        }
    }

    /// Converts an error of a write to standard output.
    pub(crate) fn output(error: io::Error) -> CommandFailure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => CommandFailure::OutputClosed,
            _ => CommandFailure::System(format!("writing the output: {error}")),
        }
    }

    /// Converts an error of any other system call, with a description of the call.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> CommandFailure {
        let what = what.into();
        move |error| CommandFailure::System(format!("{what}: {error}"))
    }
}

impl From<untorn::Error> for CommandFailure {
    fn from(error: untorn::Error) -> CommandFailure {
        match error {
            untorn::Error::NoKeyspace { name } => CommandFailure::NotFound(format!("there is no keyspace {name:?}")),
            error => CommandFailure::Store(error),
        }
    }
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandFailure::NotFound(what)
            | CommandFailure::CheckFailed(what)
            | CommandFailure::Usage(what)
            | CommandFailure::System(what) => f.write_str(what),
            CommandFailure::Store(error) => error.fmt(f),
            CommandFailure::OutputClosed => f.write_str("the output was closed"),
        }
    }
}
