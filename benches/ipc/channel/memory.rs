//! Memory that the two processes share: words of 64 bits of a file, mapped by both.
//!
//! All access is by atomics, so no word can be torn, and callers need no unsafe code. Access by
//! single words costs no speed: the transfer of cache lines between two cores is the limit.
#![allow(unsafe_code)]

use super::super::digest::Digest;
use rustix::fd::AsFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A mapping of a whole file, unmapped on drop.
pub(crate) struct Memory {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is accessed by atomics only.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps the first `words` words of a file, which has at least that length.
    pub(crate) fn map(file: impl AsFd, words: usize, is_writable: bool) -> io::Result<Memory> {
        let protection = if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address that the kernel chooses. The file is as long as the
        // mapping, and remains so: this benchmark makes it, and never truncates it.
        let start = unsafe { mmap(std::ptr::null_mut(), words * 8, protection, MapFlags::SHARED, file, 0)? };
        Ok(Memory { start: NonNull::new(start.cast()).expect("a mapping is not at 0"), words })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned to a page, and mapped as long as `self` lives; both processes use
        // atomics only. A mapping that is not writable is never stored to by its users.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// Returns the lower half of a word, for a futex.
    pub(crate) fn half(&self, word: usize) -> &AtomicU32 {
        let word: *const AtomicU64 = &self.words()[word];
        // SAFETY: within the word just borrowed, aligned, and used only as an atomic of this width.
        unsafe { &*word.cast::<AtomicU32>() }
    }

    pub(crate) fn copy_in(&self, at: usize, record: &[u64]) {
        for (word, value) in self.words()[at..at + record.len()].iter().zip(record) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    pub(crate) fn copy_out(&self, at: usize, record: &mut [u64]) {
        for (word, value) in self.words()[at..at + record.len()].iter().zip(record) {
            *value = word.load(Ordering::Relaxed);
        }
    }

    /// Computes the digest of words in place.
    pub(crate) fn digest(&self, at: usize, words: usize) -> Digest {
        let mut digest = Digest::default();
        for word in &self.words()[at..at + words] {
            digest.add(word.load(Ordering::Relaxed));
        }
        digest
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, and no borrow of it remains.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}
