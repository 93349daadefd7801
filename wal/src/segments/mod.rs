//! The segment files of a log: their bytes, which of them are valid, and their reuse.

pub mod pool;
pub mod segment;
pub mod segment_catalog;
