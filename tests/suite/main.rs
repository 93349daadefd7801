//! The integration tests of the library, the logger and the command line, a module for each subject.
//!
//! One program for all of them is linked once, and its tests run beside one another. So a test must
//! not change its process: limits of resources, the working directory, subscribers, panic hooks,
//! `fork()`. A child process does that, in a role (see [`common`]).
//!
//! Tests whose processes need crash points or planted bugs are in `tests/victims`, those of the
//! model checker in `src/shared/protocols/loom_tests`.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod address_space;
mod allocator;
mod backups;
mod basic;
mod begin;
mod cells;
mod cells_model;
mod cli;
mod composed;
mod cursor;
mod cursor_allocations;
mod damage;
mod deadlines;
mod delete_range;
mod documents;
mod events;
mod examples;
mod feed;
mod feed_fuzz;
mod feed_lives;
mod feed_model;
mod feed_rolled_back;
mod fork_exec;
mod full_store;
mod golden_store;
mod hook;
mod hostile_fields;
mod hostile_names;
mod idle;
mod ids;
mod interface;
mod ipc;
mod kept_log;
mod key_ranges;
mod latencies;
mod layers;
mod limits;
mod lock_and_logger;
mod messages;
mod messages_access;
mod messages_bounds;
mod messages_feed;
mod messages_hostile;
mod model;
mod monitoring;
mod opening;
mod operations;
mod overlay;
mod ownership;
mod priority;
mod processes;
mod reclaim;
mod recovery;
mod removed;
mod savepoints;
mod versions;
