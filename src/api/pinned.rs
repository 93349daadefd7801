//! Bytes of the arena that a pin protects: the only place where a pin takes the role of a lifetime.
//!
//! Why such a reference is sound, for as long as the pin lives:
//!
//! - **The bytes are contiguous.** A small value lies inside one page. A large value is one extent,
//!   and an extent that crosses two spans of the mapping has a mapping of its own
//!   (`shared/memory/spans.rs`). So a slice needs no copy.
//! - **They stay mapped.** The pin owns the client, which owns the mapping. A span is never moved
//!   or unmapped before.
//! - **They stay the same.** Rule I3 keeps every page that a pinned commit reaches from reuse.
//!   Checksum words alone are written in a published page; they lie outside of every value.
//! - **The pin is not taken away.** Other processes remove a pin only when its owner is dead, which
//!   they learn from the owner's lock. The kernel holds that lock while the process has the store
//!   mapped. A store is recovered only when no client lives. No time limit ends a pin.
//! - **On a stacked file system the lock depends on a descriptor.** Only code that closes a
//!   descriptor which it does not own can end the lock there, and such code breaks Rust's I/O
//!   safety. Each call then returns `Detached`, but bytes that were lent before may change.
//! - **In a child of `fork()`** the mapping is absent and a read of the bytes faults. `fork()` is
//!   an unsafe function: its caller is responsible for references that the child inherits. Calls
//!   return `Forked` and lend nothing.
#![allow(unsafe_code)]

use crate::process::pin::Pin;

/// Bytes of a pinned commit, valid as long as this value lives.
pub(crate) struct PinnedBytes {
    bytes: *const [u8],
    /// Dropped together with the last use of the bytes. It also keeps the mapping.
    _pin: Pin,
}

impl PinnedBytes {
    /// Holds `bytes`, which were read through the pages of `pin`. They are a pointer, so that the
    /// pin through which they were read can be moved.
    #[inline]
    pub(crate) fn new(bytes: *const [u8], pin: Pin) -> PinnedBytes {
        PinnedBytes { bytes, _pin: pin }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes lie in pages that the pinned commit reaches. Rule I3 protects those
        // from reuse while the pin lives. The pin owns the client, which owns the mapping. The
        // bytes are not checksum words, and nothing else is written in a published page.
        unsafe { &*self.bytes }
    }
}

/// Lends bytes that were read through the pages of `pin`, for as long as the pin is borrowed.
#[inline]
pub(crate) fn lend<'p>(bytes: &[u8], _pin: &'p Pin) -> &'p [u8] {
    // SAFETY: as in `PinnedBytes::bytes`. The borrow keeps the pin from being dropped.
    unsafe { &*std::ptr::from_ref(bytes) }
}

// SAFETY: the bytes are immutable while the pin lives, and pins may be dropped on any thread.
unsafe impl Send for PinnedBytes {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for PinnedBytes {}
