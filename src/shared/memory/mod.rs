//! Mapped memory: the `unsafe` code that makes mappings, and what a child of `fork()` gets of them.
//!
//! - `mapping`: one mapping of a file
//! - `spans`: a file that grows, mapped in spans on demand
//! - `private`: descriptors that a child of `fork()` must not keep
//! - `fork`: words that a child of `fork()` finds wiped
//! - `arena`: the pages of a store

pub(crate) mod arena;
pub(crate) mod fork;
pub(crate) mod mapping;
pub(crate) mod private;
pub(crate) mod spans;
