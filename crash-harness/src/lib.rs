//! The crash harness of untorn. It kills processes, single-steps them, cuts the power, injects I/O
//! faults, and checks the remaining store.
//!
//! | module | its one job |
//! |---|---|
//! | [`suites`] | the list of suites |
//! | [`context`], [`scratch`], [`outcome`], [`report`] | the context of a suite, its results, and their presentation |
//! | [`processes`] | the processes that are killed, and the build of them that has crash points |
//! | [`workload`] | what the processes do, and what must hold afterwards |
//! | [`kill`] | deaths at named points and at random instants, of all processes at once, and in arranged scenarios |
//! | [`faults`] | failing calls, full disks, damaged bytes, hostile peers |
//! | [`inject`] | faults of single system calls, of any program |
//! | [`controls`] | checks that the suites find planted bugs |
//! | [`step`] | kills at every instruction of an update |
//! | [`power`] | power cuts, with any part of the unsynced data on the disk |
//! | [`recorder`] | a file system that records every state that a power cut could leave |
//! | [`history`] | the answers that clients receive, checked for linearizability |
//! | [`tradeoff`] | the cost of fewer syncs in lost records, and of more syncs in latency |
//! | [`store_under_test`] | the same tests for any other store |

pub mod context;
pub mod controls;
pub mod faults;
pub mod history;
pub mod inject;
pub mod kill;
pub mod outcome;
pub mod power;
pub mod processes;
pub mod recorder;
pub mod report;
pub mod scratch;
pub mod step;
pub mod store_under_test;
pub mod suites;
pub mod tradeoff;
pub mod workload;
