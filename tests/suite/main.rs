//! The integration tests of the library, the logger and the command line, a folder for each
//! subject.
//!
//! One program for all of them is linked once, and its tests run beside one another. So a test must
//! not change its process: limits of resources, the working directory, subscribers, panic hooks,
//! `fork()`. A child process does that, in a role (see [`common`]).
//!
//! Tests whose processes need crash points or planted bugs are in `tests/instrumented`, those of
//! the model checker in `src/shared/protocols/loom_tests`.

#[path = "../common/mod.rs"]
mod common;

mod allocator;
mod cells;
mod cli;
mod damage;
mod feed;
mod interface;
mod messages;
mod model;
mod monitoring;
mod opening;
mod processes;
mod recovery;
mod repository;
mod space;
mod transactions;
