//! The file system, and a disk in memory in its place.

pub mod disk;
pub mod files;
pub mod testing;
