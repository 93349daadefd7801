//! The commands, a file for each.

pub(crate) mod checkpoint;
pub(crate) mod deadlines;
pub(crate) mod del;
pub(crate) mod dump;
pub(crate) mod get;
pub(crate) mod load;
pub(crate) mod put;
pub(crate) mod scan;
pub(crate) mod stat;
pub(crate) mod stop;
pub(crate) mod verify;
pub(crate) mod watch;
