//! What clients and the logger have in common.
//!
//! - `engine`: one participant's view of a store: its files, the region, the arena, its identity,
//!   its waits
//! - `spawner`: starts the logger for a client
//! - `status`: what a spawned logger reports to that client
//! - `options`: how a store is opened
//! - `checked_pages`: which pages this process has checked already
//! - `pin_scan`: what a scan of the reader slots has found
//! - `panics`, `rest`: the threads of a logger: how a panic ends them, when they sleep
//! - `settings`: the flush policy and other settings that clients store in `control`

pub(crate) mod checked_pages;
pub(crate) mod engine;
pub(crate) mod options;
pub(crate) mod panics;
pub(crate) mod pin_scan;
pub(crate) mod rest;
pub(crate) mod settings;
pub(crate) mod spawner;
pub(crate) mod status;
