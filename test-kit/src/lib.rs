//! Code that the integration tests and the crash harness share.
//!
//! | module | its one job |
//! |---|---|
//! | [`cargo`] | builds of programs that are not built yet, with crash points or without |
//! | [`role`] | what a process was started for, and the lines between it and its parent |
//! | [`process`] | a process in a role: start, lines, stop, kill, end; points at which it is held |
//! | [`lines`] | the lines that a process sends |
//! | [`processes`], [`loggers`] | the states of any processes, and the loggers of a store |
//! | [`memory_mark`] | the mark of files that the kernel keeps in memory |
//! | [`sealed`] | values that verify themselves, random numbers, seeds |

pub mod cargo;
pub mod lines;
pub mod loggers;
pub mod memory_mark;
pub mod process;
pub mod processes;
pub mod role;
pub mod sealed;

use std::time::Duration;

/// Longest wait for an event that must happen: an answer, progress, the end of a process. A single
/// wait fails only after this time, because a busy machine may take a hundred times as long as an
/// idle one. `TEST_HANGS` in `tests/common/mod.rs` limits a whole test.
/// Benchmarks measure how long something takes; tests do not.
pub const HANGS: Duration = Duration::from_secs(120);
