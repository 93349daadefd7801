//! What the integration tests and the crash harness share: builds of programs that are not built
//! yet, and the processes of a store.

pub mod cargo;
pub mod loggers;
pub mod memory_mark;
pub mod processes;

use std::time::Duration;

/// A wait that lasts this long hangs. Every wait of a test ends by this limit and by no shorter
/// one: a busy machine may take a hundred times as long as an idle one. Benchmarks measure how long
/// something takes; tests do not.
pub const HANGS: Duration = Duration::from_secs(300);
