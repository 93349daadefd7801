//! The calls of [`Options`] that open or observe a store.

use crate::files::owner::Ownership;
use crate::{Observation, Options, Result, Store};
use std::path::Path;

impl Options {
    /// Opens the store in the directory `path`; see [`Store::open`].
    ///
    /// # Errors
    /// Those of [`Store::open`]; [`Error::Invalid`](crate::Error::Invalid) if options contradict
    /// each other.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Store> {
        Store::open_with(path.as_ref(), self)
    }

    /// Does what [`observe`](crate::observe) does, also for another user's store if
    /// [`foreign_owner`](Options::foreign_owner) allows it and its files are readable. The owner
    /// can kill the observing process by truncating a file.
    ///
    /// # Errors
    /// Those of [`observe`](crate::observe).
    pub fn observe(&self, path: impl AsRef<Path>) -> Result<Observation> {
        let ownership = if self.foreign_owner { Ownership::ForeignToRead } else { Ownership::Own };
        crate::api::monitoring::observe::observe_as(path.as_ref(), ownership)
    }
}
