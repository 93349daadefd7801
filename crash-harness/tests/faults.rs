//! Goal: the suite of faults finds nothing in a correct store, and finds a sync whose error is
//! ignored or that is retried.
//!
//! Method: single faults by their names, as in a replay line. Two of them revealed bugs earlier.

mod common;

use serde_json::Value;
use std::path::Path;
use std::process::Command;

const HARNESS: &str = env!("CARGO_BIN_EXE_crash-harness");

/// Plays one fault and returns the outcome. If the variable CI is set, skipped parts are an error.
fn play(program: &Path, only: &str, bug: &str) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("outcome.json");
    let mut command = Command::new(program);
    command.args(["faults", "--seed", "1", "--states", "1", "--only", only, "--json"]).arg(&json);
    let status = common::run(command.env("UNTORN_BUG", bug));
    let outcome: Value = serde_json::from_str(std::fs::read_to_string(&json).unwrap().trim()).unwrap();
    let is_good = outcome["violations"].as_array().unwrap().is_empty();
    assert_eq!(status.code(), Some(i32::from(!is_good)), "{outcome}");
    let skipped = !outcome["skipped"].as_array().unwrap().is_empty();
    assert!(!skipped || std::env::var_os("CI").is_none(), "{}", outcome["skipped"]);
    outcome
}

/// Checks that each of these was played or skipped, and that nothing was found.
fn good(names: &[&str]) {
    for name in names {
        let outcome = play(Path::new(HARNESS), name, "");
        assert!(outcome["violations"].as_array().unwrap().is_empty(), "{name}: {}", outcome["violations"]);
        let skipped = !outcome["skipped"].as_array().unwrap().is_empty();
        assert!(skipped || outcome["states"].as_u64() > Some(0), "{name}: {outcome}");
    }
}

/// Once, a store that needed recovery could not be reopened immediately, and `verify` reported a
/// directory that it could not list as damage.
#[test]
fn calls_that_failed_in_ways_that_were_mistaken() {
    good(&["untorn-logger/untorn-checkpoi:sync:arena:3:ENOSPC:once", "a:open:wal:5:EACCES:lasting"]);
}

/// Once, recovery released a spare segment after each failed sync and made a new one for the next
/// attempt, without end. The process that opened the store waited without end, too.
#[test]
fn recovery_ends_on_a_log_that_stays_full() {
    good(&[
        "untorn-logger/untorn-flush:sync:wal/seg-#:20:ENOSPC:lasting",
        "untorn-logger/untorn-flush:sync:wal/seg-#:26:ENOSPC:lasting",
    ]);
}

#[test]
fn calls_of_each_kind() {
    good(&[
        "untorn-logger/untorn-flush:write:wal/seg-#:3:short:lasting",
        "untorn-logger/untorn-flush:sync:wal/seg-#:4:EIO:once",
        "a:open:control:1:EMFILE:once",
        "untorn-logger:rename:control.new:1:EIO:lasting",
        "a:mmap:arena:1:ENOMEM:once",
        "untorn-logger/untorn-backgrou:write:wal/new-#:2:ENOSPC:everything",
    ]);
}

#[test]
fn scenarios_of_each_kind() {
    good(&[
        "sync:5:once",
        "sync:9:lasting",
        "left:gone:checkpoint",
        "crashed:flip:wal/seg-00000001:40:2",
        "disk-full:tmpfs",
        "descriptors:client:9",
        "descriptors:all:12",
        "file-size-limit:client:300000",
        "hostile:1",
        "control-flip:1",
    ]);
}

#[test]
fn planted_syncs_that_lie() {
    good(&["sync:1:once"]);
    // The build of the harness that has planted bugs in all its processes.
    let program = crash_harness::processes::instrumented::program().unwrap();
    for bug in ["ignore-fsync-error", "retry-fsync"] {
        // The number of the log's sync varies by a few.
        let caught = (8..24).find(|nth| {
            let outcome = play(program, &format!("sync:{nth}:once"), bug);
            let violations = outcome["violations"].as_array().unwrap();
            violations.iter().any(|violation| ["lost_acked", "damaged"].contains(&violation["kind"].as_str().unwrap()))
                || !outcome["skipped"].as_array().unwrap().is_empty()
        });
        assert!(caught.is_some(), "{bug} was not caught");
    }
}
