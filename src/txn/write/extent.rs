//! Puts of large values: the bytes go to the arena once, and the log gets a reference.
//!
//! **I1** The extent is in pages that were free, or beyond the high-water mark, in the published
//! state. So a writer that dies leaves nothing to repair, as with any other page. **I2** holds for
//! the reference, which is an ordinary operation of the record. **I4** is kept by the flush thread:
//! it syncs the extents of the records before it writes the records (`logger/flush/extents.rs`).

use super::Write;
use crate::files::page::StoredValue;
use crate::txn::ops::Op;
use crate::{KeyspaceId, Result};

/// The bytes of large values that may be published and not durable yet. Without this limit, a
/// process that overwrites large values with visible commits would let the arena grow without
/// end: an extent can be reused only after a checkpoint, and a checkpoint is as fast as the device.
const EXTENT_BYTES_AHEAD_MAX: u64 = 64 << 20;

impl Write<'_> {
    /// Puts a value of at least `LOGGED_VALUE_BYTES_MIN` bytes. The caller has checked the limits
    /// and opened the keyspace.
    pub(super) fn put_extent(&mut self, keyspace: KeyspaceId, key: &[u8], value: &[u8]) -> Result<()> {
        self.refuse_failed()?;
        self.wait_for_extents(value.len() as u64)?;
        self.step(|write| {
            let extent = write.work.write_logged_extent(value)?;
            let pages = extent.pages(write.engine.geometry.page_size);
            write.store(keyspace, key, StoredValue::Extent { page: extent.page, pages, len: value.len() as u64 })?;
            write.log(Op::PutExtent { keyspace, key, extent })
        })
    }

    /// Waits until few enough bytes of earlier transactions in extents are not durable.
    ///
    /// # Errors
    /// Those of a wait for the logger. The transaction stays usable.
    fn wait_for_extents(&self, len: u64) -> Result<()> {
        let words = &self.engine.control.fixed().stream;
        let (bytes, durable) = words.extent_bytes();
        if bytes.saturating_sub(durable).saturating_add(len) <= EXTENT_BYTES_AHEAD_MAX || bytes == durable {
            return Ok(());
        }
        // The word may be of a record that was never published: its writer died.
        let published = self.base.log_tail.max(words.tail());
        self.engine.wait_durable(words.extents_end().min(published), true, None).map(drop)
    }
}
