//! The kinds of system calls on files, and the ways in which each can fail.

use std::fmt;

/// A kind of call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Call {
    /// Opens or creates a file.
    Open,
    /// Reads from a descriptor.
    Read,
    /// Writes to a descriptor.
    Write,
    /// Waits until a file is on the disk.
    Sync,
    /// Allocates blocks ahead.
    Allocate,
    /// Changes a length.
    Truncate,
    /// Renames or links a file.
    Rename,
    /// Removes a name.
    Unlink,
    /// Makes a directory.
    MakeDir,
    /// Lists a directory.
    List,
    /// Maps a file.
    Map,
    /// Waits until mapped pages are on the disk.
    SyncMap,
}

/// What a failing call does instead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    /// The call fails with this error and does nothing.
    Error(i32),
    /// The call reads or writes only the first half of its data.
    Short,
}

/// All kinds with their names.
const NAMES: [(Call, &str); 12] = [
    (Call::Open, "open"),
    (Call::Read, "read"),
    (Call::Write, "write"),
    (Call::Sync, "sync"),
    (Call::Allocate, "fallocate"),
    (Call::Truncate, "truncate"),
    (Call::Rename, "rename"),
    (Call::Unlink, "unlink"),
    (Call::MakeDir, "mkdir"),
    (Call::List, "list"),
    (Call::Map, "mmap"),
    (Call::SyncMap, "msync"),
];

/// All injected errors with their names.
const ERRORS: [(i32, &str); 7] = [
    (libc::EIO, "EIO"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EINTR, "EINTR"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENFILE, "ENFILE"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
];

impl Call {
    /// Returns all kinds.
    pub fn all() -> impl Iterator<Item = Call> {
        NAMES.iter().map(|(call, _)| *call)
    }

    /// Returns the kind with this name.
    pub fn named(name: &str) -> Option<Call> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(call, _)| *call)
    }

    /// Returns the ways in which the call can fail.
    pub fn effects(self) -> &'static [Effect] {
        use Effect::{Error, Short};
        match self {
            Call::Open => &[
                Error(libc::EIO),
                Error(libc::ENOSPC),
                Error(libc::EINTR),
                Error(libc::EMFILE),
                Error(libc::ENFILE),
                Error(libc::EACCES),
            ],
            Call::Read => &[Error(libc::EIO), Error(libc::EINTR), Short],
            Call::Write => &[Error(libc::EIO), Error(libc::ENOSPC), Error(libc::EINTR), Short],
            Call::Sync => &[Error(libc::EIO), Error(libc::ENOSPC), Error(libc::EINTR)],
            Call::Allocate | Call::Truncate => &[Error(libc::EIO), Error(libc::ENOSPC), Error(libc::EINTR)],
            Call::Rename | Call::MakeDir => &[Error(libc::EIO), Error(libc::ENOSPC)],
            Call::Unlink | Call::List | Call::SyncMap => &[Error(libc::EIO)],
            Call::Map => &[Error(libc::ENOMEM), Error(libc::EACCES)],
        }
    }

    /// Returns whether a fault with this effect can spread to all similar calls. ENOSPC can spread
    /// from calls that need space, and EIO from calls that change something.
    pub fn can_spread(self, effect: Effect) -> bool {
        match effect {
            Effect::Error(libc::ENOSPC) => self.allocates(true),
            Effect::Error(libc::EIO) => self.changes(true),
            _ => false,
        }
    }

    /// Returns whether the call changes the disk. An open does if it `makes`: it may create or
    /// truncate a file.
    pub(super) fn changes(self, makes: bool) -> bool {
        match self {
            Call::Open => makes,
            Call::Read | Call::List | Call::Map => false,
            _ => true,
        }
    }

    /// Returns whether the call needs disk space.
    pub(super) fn allocates(self, makes: bool) -> bool {
        matches!(self, Call::Write | Call::Allocate | Call::Truncate | Call::MakeDir | Call::Rename)
            || (self == Call::Open && makes)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = NAMES.iter().find(|(call, _)| call == self);
        f.write_str(named.map_or("?", |(_, name)| name))
    }
}

impl Effect {
    /// Returns the effect with this name.
    pub fn named(name: &str) -> Option<Effect> {
        if name == "short" {
            return Some(Effect::Short);
        }
        ERRORS.iter().find(|(_, known)| *known == name).map(|(errno, _)| Effect::Error(*errno))
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Short => f.write_str("short"),
            Effect::Error(errno) => match ERRORS.iter().find(|(known, _)| known == errno) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "E{errno}"),
            },
        }
    }
}
