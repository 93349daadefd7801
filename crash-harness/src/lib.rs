//! The crash harness of untorn: it kills, steps, cuts and breaks, and checks what is left.
//!
//! | module | its one job |
//! |---|---|
//! | [`suites`] | which suites there are |
//! | [`limits`] | the one limit that means "it hangs" |
//! | [`context`], [`scratch`], [`outcome`], [`report`] | what a suite works with, what it finds, how that is shown |
//! | [`role`], [`process`], [`instrumented`], [`cargo`] | the processes that are killed, and the build of them that has crash points |
//! | [`workload`], [`messenger`], [`follower`], [`oracle`] | what they do, and what must hold afterwards |
//! | [`kill`], [`end`], [`scenarios`] | deaths at named points and at random instants, everybody's at once, and in arranged scenarios |
//! | [`faults`] | calls that fail, full disks, damaged bytes, strangers |
//! | [`inject`] | faults of single system calls, of any program |
//! | [`controls`] | whether the suites find bugs that are planted |
//! | [`step`] | every instruction of an update |
//! | [`power`] | the power goes, with any part of what was not synced on the disk |
//! | [`recorder`] | a file system that knows every state that a power cut could leave |
//! | [`history`] | what clients were told, judged by a checker of linearizability |
//! | [`tradeoff`] | what a sync less costs in lost records, and one more in latency |
//! | [`store_under_test`] | any other store in the place of this one |

pub mod cargo;
pub mod context;
pub mod controls;
pub mod end;
pub mod faults;
pub mod follower;
pub mod history;
pub mod inject;
pub mod instrumented;
pub mod kill;
pub mod limits;
pub mod messenger;
pub mod oracle;
pub mod outcome;
pub mod power;
pub mod process;
pub mod recorder;
pub mod report;
pub mod role;
pub mod scenarios;
pub mod scratch;
pub mod step;
pub mod store_under_test;
pub mod suites;
pub mod tradeoff;
pub mod workload;
