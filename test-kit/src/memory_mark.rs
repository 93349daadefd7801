//! The mark that a store's files have only while the kernel keeps them in memory. Without it, a
//! store whose processes have all died is recovered from its log, not continued.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

const GET_HINT: libc::c_int = 1024 + 11;
const SET_HINT: libc::c_int = 1024 + 12;

/// The files that are marked.
pub const MARKED: [&str; 2] = ["control", "arena"];

/// Removes the marks of these files of a store, as if the kernel had dropped the files from memory.
/// Missing files are skipped.
///
/// # Panics
/// If a file keeps its mark.
pub fn drop_from_memory(store: &Path, names: &[&str]) {
    for name in names {
        let Ok(file) = File::open(store.join(name)) else { continue };
        let hint = 0_u64;
        // SAFETY: the descriptor is open, and the call reads one number from a live value.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), SET_HINT, &raw const hint) }, 0, "{name}");
    }
}

/// Returns whether a file of a store has its mark.
///
/// # Panics
/// If the file can't be opened, or the file system has no hints.
pub fn is_marked(store: &Path, name: &str) -> bool {
    let file = File::open(store.join(name)).unwrap();
    let mut hint = 0_u64;
    // SAFETY: the descriptor is open, and the call writes one number to a live value.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), GET_HINT, &raw mut hint) }, 0, "{name}");
    hint == 1
}
