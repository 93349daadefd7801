//! What clients and the logger have in common.
//!
//! - `engine`: one participant's view of a store: its files, the region, the arena, its identity, its waits
//! - `keeper`: how a client starts the logger
//! - `settings`: what clients tell the logger through `control`

pub(crate) mod engine;
pub(crate) mod keeper;
pub(crate) mod settings;
