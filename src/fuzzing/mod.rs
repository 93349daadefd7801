//! Fuzz targets: everything that decodes bytes of a file or a peer, one function for each decoder.
//! Compiled for the library's own tests and with the feature `fuzzing`; not part of the interface.
//!
//! - `files`: the header in `checkpoint`, and the image of a commit
//! - `pages`: one page, and an arena with its trees and queues
//! - `log`: the stream of records, and the segments that hold it
//! - `messages`: requests, replies and hellos, and the file `access`
//! - `seeds`: real bytes for each target, from a store that is made for them
//! - `mutation`: the mutations of those bytes by the bounded tests, which are in `tests`
//!
//! A target takes any bytes and panics if a decoder breaks one of its guarantees:
//!
//! - what is decoded encodes to the same bytes;
//! - every accepted number is within the limits that creation keeps;
//! - no sum of accepted numbers overflows;
//! - what is accepted can be read, searched and changed without an access out of range.
//!
//! A checksum would hide most of a decoder from mutated bytes. So a target tries the bytes as they
//! are, and again with every checksum corrected.
//!
//! `fuzz/` runs the same functions under libFuzzer.

mod files;
mod log;
mod messages;
#[cfg(test)]
mod mutation;
mod pages;
mod seeds;
#[cfg(test)]
mod tests;

pub use files::{header, slot_image};
pub use log::{records, segments};
pub use messages::{access, reply, request};
pub use pages::{arena, page};
pub use seeds::seeds;
use untorn_wal::le::{set_u32, u32_at, u64_at};

/// A target: its name, and the function that takes the bytes.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// All targets. `fuzz/fuzz_targets/` has a program for each.
pub const TARGETS: [FuzzTarget; 9] = [
    ("header", header),
    ("slot_image", slot_image),
    ("page", page),
    ("arena", arena),
    ("records", records),
    ("segments", segments),
    ("request", request),
    ("reply", reply),
    ("access", access),
];

/// Returns the bytes, cut or filled with zeros to this length.
fn sized<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut sized = [0; N];
    let len = bytes.len().min(N);
    sized[..len].copy_from_slice(&bytes[..len]);
    sized
}

fn crc(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Returns a file in memory that holds these bytes.
fn file_of(bytes: &[u8]) -> std::fs::File {
    use std::os::unix::fs::FileExt;
    let file = rustix::fs::memfd_create("untorn-fuzzing", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let file = std::fs::File::from(file);
    file.write_all_at(bytes, 0).expect("a write to memory");
    file
}
