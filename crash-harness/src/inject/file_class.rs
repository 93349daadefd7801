//! Finds the file of another process's system call, from its descriptors and its memory.

use crate::processes::process::mappings;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Returns the file of a descriptor of the task `tid`, or `None` for sockets and pipes. A deleted
/// file has its former path.
pub(super) fn of_descriptor(tid: i32, descriptor: u64) -> Option<PathBuf> {
    let descriptor = descriptor as i32;
    let link =
        if descriptor == libc::AT_FDCWD { format!("/proc/{tid}/cwd") } else { format!("/proc/{tid}/fd/{descriptor}") };
    let path = std::fs::read_link(link).ok()?;
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    bytes.starts_with(b"/").then(|| PathBuf::from(OsStr::from_bytes(bytes)))
}

/// Returns the file that a path in the task's memory names, relative to a descriptor.
pub(super) fn of_path(tid: i32, directory: u64, address: u64) -> Option<PathBuf> {
    let named = string(tid, address)?;
    let named = match named.strip_prefix("/proc/self") {
        // The path names the task's descriptors, not those of this process.
        Ok(rest) => Path::new(&format!("/proc/{tid}")).join(rest),
        Err(_) => named,
    };
    let path = if named.is_absolute() { named } else { of_descriptor(tid, directory)?.join(named) };
    // Resolves everything before the last name: `.` and `..`, links, descriptors by their number.
    let parent = path.parent()?.canonicalize().ok()?;
    match path.file_name() {
        Some(name) if name != "." => Some(parent.join(name)),
        _ => Some(parent),
    }
}

/// Returns the file that is mapped at an address.
pub(super) fn of_mapping(tid: i32, address: u64) -> Option<PathBuf> {
    let mapped = mappings(tid).into_iter().find(|(addresses, _)| addresses.contains(&address));
    mapped.map(|(_, name)| PathBuf::from(name)).filter(|path| path.is_absolute())
}

/// Returns the class of a file in `root`: its relative path, with `#` for each number. The
/// directory itself is `.`.
pub(super) fn class(root: &Path, path: &Path) -> Option<String> {
    let inside = path.strip_prefix(root).ok()?.to_string_lossy().into_owned();
    if inside.is_empty() {
        return Some(".".into());
    }
    let mut class = String::new();
    for letter in inside.chars() {
        let letter = if letter.is_ascii_digit() { '#' } else { letter };
        // The colon separates the parts of a fault's name.
        let letter = if letter == ':' { '_' } else { letter };
        if letter != '#' || !class.ends_with('#') {
            class.push(letter);
        }
    }
    Some(class)
}

/// Reads a string from the memory of another process.
fn string(tid: i32, address: u64) -> Option<PathBuf> {
    let memory = std::fs::File::open(format!("/proc/{tid}/mem")).ok()?;
    let mut bytes = Vec::new();
    while bytes.len() < libc::PATH_MAX as usize {
        // Reads no further than the end of the page, because the next page may be unmapped.
        let at = address + bytes.len() as u64;
        let mut piece = vec![0; 256.min(4096 - (at % 4096) as usize)];
        let read = memory.read_at(&mut piece, at).ok()?;
        if let Some(end) = piece[..read].iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&piece[..end]);
            return Some(PathBuf::from(OsStr::from_bytes(&bytes)));
        }
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&piece[..read]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_leave_the_numbers_out() {
        let class = |path: &str| class(Path::new("/a/store"), Path::new(path));
        assert_eq!(class("/a/store/wal/seg-00000012").as_deref(), Some("wal/seg-#"));
        assert_eq!(class("/a/store").as_deref(), Some("."));
        assert_eq!(class("/a/store2/arena"), None);
    }
}
