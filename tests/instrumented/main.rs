//! Tests of the instrumented build: processes that are killed, stopped or held at named points, or
//! run with a planted bug.
//!
//! These processes run this program, built with `--cfg untorn_instrumented`; the first test that
//! needs one builds it. The tests are apart from `tests/suite`, so that only they are built twice.

#[path = "../common/mod.rs"]
mod common;
mod workload;

mod adoption;
mod cells_deaths;
mod containers;
mod failed_sync;
mod full_disk;
mod hosts;
mod in_order_deaths;
mod interleavings;
mod long_transaction_deaths;
mod progress;
mod reader_slots;
mod size;
