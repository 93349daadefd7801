//! Bytes of the arena that a pin holds: the one place where a lifetime is replaced by a pin.
#![allow(unsafe_code)]

use crate::process::pin::Pin;

/// Bytes of a pinned commit, for as long as this lives.
pub(crate) struct Held {
    bytes: *const [u8],
    /// Dropped with the bytes' last user; keeps the mapping, too.
    _pin: Pin,
}

impl Held {
    /// Holds `bytes`, which were read through the pages of `pin`.
    pub(crate) fn new(bytes: &[u8], pin: Pin) -> Held {
        Held { bytes, _pin: pin }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes lie in pages that the pinned commit reaches. Rule I3 keeps everybody from
        // reusing those while the pin lives, and the pin keeps the client, which keeps the mapping.
        // They are not the checksum words, which alone are ever written in a published page.
        unsafe { &*self.bytes }
    }
}

// SAFETY: the bytes are immutable while the pin lives, and pins may be dropped on any thread.
unsafe impl Send for Held {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Held {}
