//! What options open.

use crate::files::owner::Ownership;
use crate::{Observation, Options, Result, Store};
use std::path::Path;

impl Options {
    /// Opens the store in the directory `path`; see [`Store::open`].
    ///
    /// # Errors
    /// As [`Store::open`]; [`Error::Invalid`](crate::Error::Invalid) when options contradict each
    /// other.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Store> {
        Store::open_with(path.as_ref(), self)
    }

    /// As [`observe`](crate::observe), also of another user's store if
    /// [`foreign_owner`](Options::foreign_owner) allows: for whom its files can be read. The owner
    /// can end the process that looks, by cutting a file short.
    ///
    /// # Errors
    /// As [`observe`](crate::observe).
    pub fn observe(&self, path: impl AsRef<Path>) -> Result<Observation> {
        let ownership = if self.foreign_owner { Ownership::ForeignToRead } else { Ownership::Own };
        crate::api::observe::observe_as(path.as_ref(), ownership)
    }
}
