//! A counter: a number in shared memory that any process adds to with one atomic instruction.

use crate::api::cells::CellLocation;
use crate::api::store::Store;
use crate::shared::cells::CellEntry;
use crate::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// A counter of a store; made by [`Store::counter`], cheap to clone.
///
/// It holds a `u64` that wraps around at 2⁶⁴, so with [`Counter::sub`] it is a gauge. An addition
/// that has returned survives the death of all processes. It becomes durable by sampling, as cells
/// do: after a power loss the counter has the value of its last durable sample or a newer one.
/// [`Store::sync`] waits for a sample.
///
/// Threads may share it. In a child of `fork()` each call returns [`Error::Forked`]; the child
/// counts with a counter that it opens for itself.
#[derive(Clone)]
pub struct Counter {
    store: Store,
    location: CellLocation,
    name: Arc<str>,
}

impl Counter {
    pub(crate) fn new(store: Store, location: CellLocation, name: &str) -> Counter {
        Counter { store, location, name: name.into() }
    }

    /// Returns the counter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    fn entry(&self) -> Result<&CellEntry> {
        self.store.client().check_usable()?;
        self.still()
    }

    #[inline]
    fn still(&self) -> Result<&CellEntry> {
        let entry = self.location.entry(&self.store.client().engine.control);
        entry.ok_or_else(|| Error::NoCell { name: self.name().into() })
    }

    /// Adds `number`, wrapping around at 2⁶⁴. One atomic instruction; never waits.
    ///
    /// # Errors
    /// [`Error::NoCell`] if it was dropped; [`Error::ReadOnly`]; [`Error::Forked`].
    #[inline]
    pub fn add(&self, number: u64) -> Result<()> {
        let entry = self.entry()?;
        if self.store.is_read_only() {
            return Err(Error::ReadOnly);
        }
        entry.add(number);
        crate::api::cells::sampling::mark_dirty(&self.store.client().engine);
        Ok(())
    }

    /// Subtracts `number`, wrapping around below 0.
    ///
    /// # Errors
    /// Those of [`Counter::add`].
    #[inline]
    pub fn sub(&self, number: u64) -> Result<()> {
        self.add(number.wrapping_neg())
    }

    /// Returns the value now. Never waits, and writes nothing.
    ///
    /// # Errors
    /// [`Error::NoCell`] if it was dropped; [`Error::Forked`].
    #[inline]
    pub fn get(&self) -> Result<u64> {
        let entry = self.entry()?;
        let value = entry.newest();
        // The counter may have been dropped meanwhile, and its entry reused.
        self.still()?;
        Ok(value)
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("name", &self.name()).finish_non_exhaustive()
    }
}
