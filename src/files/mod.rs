//! The files of a store, and what they contain.
//!
//! - `dir`: the directory; files are opened by name under its descriptor, and never through a link
//! - `descriptor`: descriptors that survive what a host does with its own
//! - `owner`: which user the store belongs to
//! - `header`: the two header slots of `checkpoint`
//! - `slot`: the image of a commit, as `checkpoint` and `control` hold it
//! - `socket`: the address of the logger's socket

pub(crate) mod descriptor;
pub(crate) mod dir;
pub(crate) mod header;
pub(crate) mod owner;
pub(crate) mod slot;
pub(crate) mod socket;
