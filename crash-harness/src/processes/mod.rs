//! The processes that are killed: their roles, their start and their end, and the builds that they
//! run.

pub mod instrumented;
pub mod process;
pub mod role;

pub use untorn_test_kit::{HANGS, cargo, loggers, memory_mark, sealed};
