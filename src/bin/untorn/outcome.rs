//! The outcomes of a command, each with its exit code and message.

use std::{fmt, io};

/// The result of every command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// The reason why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
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

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::NotFound(_) | Failure::CheckFailed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Store(_) | Failure::System(_) => 3,
        }
    }

    /// Converts an error of a write to standard output.
    pub(crate) fn output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::System(format!("writing the output: {error}")),
        }
    }

    /// Converts an error of any other system call, with a description of the call.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        let what = what.into();
        move |error| Failure::System(format!("{what}: {error}"))
    }
}

impl From<untorn::Error> for Failure {
    fn from(error: untorn::Error) -> Failure {
        match error {
            untorn::Error::NoKeyspace { name } => Failure::NotFound(format!("there is no keyspace {name:?}")),
            error => Failure::Store(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotFound(what) | Failure::CheckFailed(what) | Failure::Usage(what) | Failure::System(what) => {
                f.write_str(what)
            }
            Failure::Store(error) => error.fmt(f),
            Failure::OutputClosed => f.write_str("the output was closed"),
        }
    }
}
