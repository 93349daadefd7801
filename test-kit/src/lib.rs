//! What the integration tests and the crash harness share: builds of programs that are not built
//! yet, and the processes of a store.

pub mod cargo;
pub mod loggers;
pub mod memory_mark;
pub mod processes;

use std::time::Duration;

/// A single wait of a test fails after this time, and no sooner: a busy machine may take a hundred
/// times as long as an idle one. `TEST_HANGS` in `tests/common/mod.rs` limits a whole test.
/// Benchmarks measure how long something takes; tests do not.
pub const HANGS: Duration = Duration::from_secs(300);
