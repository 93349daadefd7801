//! Cells and counters by message.

use crate::remote::connection::Kind;
use crate::remote::{Client, done};
use crate::{Result, Version};
use untorn_wal::wire::{Reply, Request};

impl Client {
    /// Returns the newest value of a cell and its version.
    ///
    /// # Errors
    /// [`NoCell`](crate::Error::NoCell); [`NotAllowed`](crate::Error::NotAllowed);
    /// [`Disconnected`](crate::Error::Disconnected).
    pub fn cell_load(&self, name: &str) -> Result<(Vec<u8>, Version)> {
        self.call(Kind::Read, &Request::CellLoad { name }, |reply| match reply {
            Reply::Cell { version, value } => Some((value.to_vec(), Version::from_u64(version))),
            _ => None,
        })
    }

    /// Returns the value of exactly this version of a cell.
    ///
    /// # Errors
    /// [`Stale`](crate::Error::Stale) if it has been overwritten; those of [`Client::cell_load`].
    pub fn cell_load_version(&self, name: &str, version: Version) -> Result<Vec<u8>> {
        let request = Request::CellLoadVersion { name, version: version.as_u64() };
        self.call(Kind::Read, &request, |reply| match reply {
            Reply::Cell { value, .. } => Some(value.to_vec()),
            _ => None,
        })
    }

    /// Stores a cell's value and returns its version. The value is visible on return. Creates the
    /// cell, of this size (1 to 4,096 bytes), if there is none.
    ///
    /// # Errors
    /// [`InDoubt`](crate::Error::InDoubt) if the reply was lost; [`Invalid`](crate::Error::Invalid)
    /// if the cell has another size; [`Limit`](crate::Error::Limit) if no cell can have this size;
    /// otherwise those of [`Client::put`].
    pub fn cell_store(&self, name: &str, value: &[u8]) -> Result<Version> {
        self.store_cell(name, value, false)
    }

    /// Stores a value as [`Client::cell_store`] does; on return the value, or a later one, is
    /// durable.
    ///
    /// # Errors
    /// Those of [`Client::cell_store`].
    pub fn cell_store_durable(&self, name: &str, value: &[u8]) -> Result<Version> {
        self.store_cell(name, value, true)
    }

    fn store_cell(&self, name: &str, value: &[u8], is_durable: bool) -> Result<Version> {
        self.call(Kind::Write, &Request::CellStore { name, value, is_durable }, |reply| match reply {
            Reply::Cell { version, .. } => Some(Version::from_u64(version)),
            _ => None,
        })
    }

    /// Adds to a counter, wrapping around at 2⁶⁴. The sum is visible on return. Creates the counter
    /// if there is none.
    ///
    /// # Errors
    /// Those of [`Client::cell_store`].
    pub fn counter_add(&self, name: &str, number: u64) -> Result<()> {
        self.call(Kind::Write, &Request::CounterAdd { name, amount: number }, done)
    }

    /// Returns the value of a counter; 0 if there is none.
    ///
    /// # Errors
    /// [`NoCell`](crate::Error::NoCell) if `name` is a cell, not a counter;
    /// [`NotAllowed`](crate::Error::NotAllowed); [`Disconnected`](crate::Error::Disconnected).
    pub fn counter_get(&self, name: &str) -> Result<u64> {
        self.call(Kind::Read, &Request::CounterGet { name }, |reply| match reply {
            Reply::Count(value) => Some(value),
            _ => None,
        })
    }
}
