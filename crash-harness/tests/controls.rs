//! Goal: the controls catch a bug that is present and miss one that is absent. They evaluate the
//! findings of a suite, not the name of the bug.
//!
//! Method: the program with a quick bug, and the same control with a build that has no planted
//! bugs. The program itself runs all bugs.

mod common;

use crash_harness::context::{Context, Limit};
use crash_harness::controls;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const BUG: &str = "feed-skips-what-is-gone";
/// A bug whose check starts no process that can be killed at named points.
const OF_PLAIN_PROCESSES: &str = "no-abort-record";

#[test]
fn a_bug_that_is_there_is_caught() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("outcome.json");
    // Called here so that the messages of a long build are not part of the output below.
    crash_harness::processes::instrumented::program().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_crash-harness"));
    let status = common::run(command.args(["controls", "--seed", "1", "--only", BUG, "--json"]).arg(&json));
    let outcome: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(status.code(), Some(0), "{outcome}");
    let variants = outcome["variants"].as_array().unwrap();
    assert_eq!(variants.len(), 1, "{outcome}");
    let variant = &variants[0];
    assert_eq!((&variant["name"], &variant["caught"], &variant["suite"]), (&BUG.into(), &true.into(), &"kill".into()));
    assert!(variant["states"].as_u64().unwrap() > 0);
}

#[test]
fn a_bug_that_is_not_there_is_missed() {
    let context = Context::new("controls", 1, Limit::Seconds(60), None).unwrap();
    // This build has no planted bugs, whatever its environment contains. The check must not need a
    // process of the build that has them.
    let plain = Path::new(env!("CARGO_BIN_EXE_crash-harness"));
    let control = controls::table::CONTROLS.iter().find(|control| control.bug == OF_PLAIN_PROCESSES).unwrap();
    let tried = controls::catch(&context, plain, control);
    assert!(matches!(tried, controls::Trial::Missed { .. }), "{tried:?}");
    // A program that prints nothing does not count as one that found something.
    let tried = controls::catch(&context, Path::new("true"), control);
    assert!(matches!(tried, controls::Trial::Missed { .. }), "{tried:?}");
}
