//! The files of a store and their content.
//!
//! - `dir`: the directory; files are opened by name under its descriptor, and never through a link
//! - `descriptor`: descriptors that detect that the host has closed them
//! - `owner`: the user that owns the store
//! - `header`: the two header slots of `checkpoint`
//! - `slot`: the image of a commit, as `checkpoint` and `control` hold it
//! - `geometry`: the sizes that are fixed when a store is created
//! - `extent`: the extents of large values to which the log refers
//! - `page`: the header of a page, extents, and the traits through which the tree uses pages
//! - `log`: the directory of log segments
//! - `memory_mark`: a mark that proves that a file has been in memory ever since it was set

pub(crate) mod descriptor;
pub(crate) mod dir;
pub(crate) mod extent;
pub(crate) mod geometry;
pub(crate) mod header;
pub(crate) mod log;
pub(crate) mod memory_mark;
pub(crate) mod owner;
pub(crate) mod page;
pub(crate) mod slot;
