//! How a command can end, and the exit code and message of each ending.

use std::{fmt, io};

/// What every command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The key or keyspace is not there. Exit code 1.
    NotFound(String),
    /// A check found damage or a violation. Exit code 1.
    CheckFailed(String),
    /// The arguments or the input make no sense. Exit code 2.
    Usage(String),
    /// The store answered with an error. Exit code 3.
    Store(untorn::Error),
    /// The system refused something outside of the store. Exit code 3.
    System(String),
    /// The reader of our output has closed it. A quiet end, exit code 0.
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

    /// For `map_err` on a write to standard output.
    pub(crate) fn output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::System(format!("writing the output: {error}")),
        }
    }

    /// For `map_err` on any other call of the system: says what was attempted.
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
