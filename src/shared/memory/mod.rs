//! Mapped memory: where `unsafe` code makes mappings, and what a child of `fork()` finds of them.
//!
//! - `mapping`: one mapping of a file
//! - `spans`: a file that grows, mapped in spans on demand
//! - `private`: files that a process proves to hold, whatever the file system
//! - `fork`: words that a child of `fork()` finds wiped
//! - `arena`: the pages of a store

pub(crate) mod arena;
pub(crate) mod fork;
pub(crate) mod mapping;
pub(crate) mod private;
pub(crate) mod spans;
