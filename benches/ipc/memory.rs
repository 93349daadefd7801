//! Memory that the two processes share: words of 64 bits of a file, mapped by both.
//!
//! All access is by atomics, so nothing here can be torn, and callers need nothing unsafe. A word
//! at a time is as fast as the lines travel: the processor copies no faster between two cores'
//! caches.
#![allow(unsafe_code)]

use super::digest::Digest;
use rustix::fd::AsFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A mapping of a whole file; ends with the value.
pub(crate) struct Memory {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: nothing but atomics is reached through it.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps the first `words` words of a file, which is that long.
    pub(crate) fn map(file: impl AsFd, words: usize, is_writable: bool) -> io::Result<Memory> {
        let protection = if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at a place of the kernel's choice. The file is as long as the
        // mapping, and stays so: this benchmark makes it, and cuts none off.
        let start = unsafe { mmap(std::ptr::null_mut(), words * 8, protection, MapFlags::SHARED, file, 0)? };
        Ok(Memory { start: NonNull::new(start.cast()).expect("a mapping is not at 0"), words })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned to a page, and mapped as long as `self` lives; both processes use
        // atomics only. A mapping that is not writable is never stored to by its users.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// The lower half of a word, for a futex.
    pub(crate) fn half(&self, word: usize) -> &AtomicU32 {
        let word: *const AtomicU64 = &self.words()[word];
        // SAFETY: within the word just borrowed, aligned, and used as an atomic of this width by
        // everybody.
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

    /// Reads words where they lie.
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
        // SAFETY: mapped by `map`, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}
