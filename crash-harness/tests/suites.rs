//! Goal: a small run of each suite finds nothing in the store, reports its work in the form that
//! programs read, and finds a planted bug.
//!
//! Method: the program on a small part of each suite. Longer runs are not part of the tests.

mod common;

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// The program.
const HARNESS: &str = env!("CARGO_BIN_EXE_crash-harness");

/// Runs the harness and returns its exit code and its outcomes.
fn harness(arguments: &[&str], bug: &str) -> (i32, Vec<Value>) {
    run(Path::new(HARNESS), arguments, bug)
}

/// Runs a build of the harness.
fn run(program: &Path, arguments: &[&str], bug: &str) -> (i32, Vec<Value>) {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("outcome.json");
    if arguments[0] == "kill" {
        // Called here so that the messages of a long build are not part of the output below.
        crash_harness::processes::instrumented::program().unwrap();
    }
    let mut command = Command::new(program);
    command.args(arguments).arg("--json").arg(&json).arg("--report").arg(directory.path().join("report"));
    let status = common::run(command.env("UNTORN_BUG", bug));
    let text = std::fs::read_to_string(&json).unwrap();
    let page = std::fs::read_to_string(directory.path().join("report/index.html")).unwrap();
    assert!(page.contains("</html>") && !page.contains("http"), "the report stands for itself");
    (status.code().unwrap(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Returns whether the outcome was skipped. Steps need a system that permits tracing. If the
/// variable CI is set, skipping is an error.
fn is_skipped(outcome: &Value) -> bool {
    let skipped = !outcome["skipped"].as_array().unwrap().is_empty();
    assert!(!skipped || std::env::var_os("CI").is_none(), "{}", outcome["skipped"]);
    skipped
}

#[test]
fn every_instruction_of_a_cell_store() {
    let (code, outcomes) = harness(&["step", "--seed", "1", "--states", "1", "--only", "cell store:all"], "");
    if is_skipped(&outcomes[0]) {
        return;
    }
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    assert!(outcomes[0]["states"].as_u64().unwrap() > 8, "{}", outcomes[0]);
    assert_eq!(outcomes[0]["coverage"].as_array().unwrap().len(), 1);
}

#[test]
fn every_instruction_of_a_flush_by_the_logger() {
    let only = "logger: flush of a commit:all";
    let (code, outcomes) = harness(&["step", "--seed", "1", "--states", "1", "--only", only], "");
    if is_skipped(&outcomes[0]) {
        return;
    }
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    assert!(outcomes[0]["states"].as_u64().unwrap() > 8, "{}", outcomes[0]);
}

#[test]
fn kills_at_random() {
    let (code, outcomes) = harness(&["kill", "--seed", "1", "--states", "1", "--only", "random:0"], "");
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    let kills = outcomes[0]["kills"].as_u64().unwrap();
    assert!(kills > 20, "{kills} kills");
    for count in ["torn_reads", "lost_acked", "half_applied", "order_violations", "blocked_readers"] {
        assert_eq!(outcomes[0][count], 0, "{count}");
    }
}

#[test]
fn a_death_at_every_point() {
    let (code, outcomes) = harness(&["kill", "--seed", "1", "--states", "1", "--only", "every point"], "");
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    let hits = outcomes[0]["coverage"][0]["hits"].as_array().unwrap();
    assert!(hits.len() > 50, "{hits:?}");
    assert!(hits.iter().all(|hit| hit[1].as_u64() > Some(0)), "never hit: {hits:?}");
}

/// Once, the second logger also left a checkpoint that was reported as damage.
#[test]
fn two_deaths_in_a_row_in_the_middle_of_a_checkpoint() {
    let only = ["kill", "--seed", "1", "--states", "1", "--only", "checkpoint.header_written:twice"];
    let (code, outcomes) = harness(&only, "");
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    assert!(outcomes[0]["kills"].as_u64().unwrap() >= 4);
}

#[test]
fn a_death_at_a_point_and_the_bug_planted_there() {
    let only = ["kill", "--seed", "1", "--states", "1", "--only", "commit.record_written:kill"];
    let (code, outcomes) = harness(&only, "");
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    // The process that dies at this point is always the writer, never the logger with a sample.
    let (code, outcomes) = harness(&only, "swing-before-record");
    assert_eq!(code, 1, "the bug was not caught");
    let violations = outcomes[0]["violations"].as_array().unwrap();
    assert!(violations[0]["replay"].as_str().unwrap().contains("--only 'commit.record_written:kill'"));
}

#[test]
fn histories_under_kills() {
    let (code, outcomes) = harness(&["linearizability", "--seed", "1", "--states", "100"], "");
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    let figure = |name: &str| outcomes[0]["figures"][name].as_f64().unwrap();
    assert!(figure("histories") >= 4.0 && figure("operations") > 100.0, "{}", outcomes[0]["figures"]);
    assert!(outcomes[0]["kills"].as_u64().unwrap() > 5);
}

#[test]
fn a_history_that_a_planted_bug_made_is_judged_again() {
    // The build that has planted bugs in all its processes.
    let program = crash_harness::processes::instrumented::program().unwrap();
    // The bug shows if all processes die between the answer and the sync.
    let tries = (0..20).map(|seed| {
        run(
            program,
            &["linearizability", "--seed", &seed.to_string(), "--states", "200"],
            "message-answered-before-sync",
        )
    });
    let is_history = |outcome: &Value| {
        let violations = outcome["violations"].as_array().unwrap().clone();
        violations.iter().find_map(|violation| {
            let replay = violation["replay"].as_str().unwrap();
            Some(format!("history:{}", replay.split_once("history:")?.1.trim_end_matches('\'')))
        })
    };
    let only = tries.map(|(_, outcomes)| is_history(&outcomes[0])).find_map(|found| found);
    let only = only.expect("the bug was not caught");
    // Judging the saved history needs no bug, only the file.
    let (code, outcomes) = harness(&["linearizability", "--states", "1", "--only", &only], "");
    assert_eq!(code, 1);
    assert_eq!(outcomes[0]["order_violations"], 1);
    std::fs::remove_file(only.strip_prefix("history:").unwrap()).unwrap();
}

/// Runs a part of the suite `power`, which needs a system where file systems can be mounted.
fn power_cuts(only: &str) -> Option<Value> {
    let (code, mut outcomes) = harness(&["power", "--seed", "1", "--states", "1", "--only", only], "");
    if is_skipped(&outcomes[0]) {
        return None;
    }
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    assert!(outcomes[0]["states"].as_u64().unwrap() >= 100, "{}", outcomes[0]);
    Some(outcomes.remove(0))
}

#[test]
fn cuts_of_a_plain_life() {
    let Some(outcome) = power_cuts("plain") else { return };
    // A recorder that receives no mapped page before its sync would test nothing.
    let hits = outcome["coverage"][0]["hits"].as_array().unwrap();
    for operation in ["acknowledgement", "arena: mapped pages written back", "log: write", "log: sync", "header: sync"]
    {
        assert!(hits.iter().any(|hit| hit[0] == operation && hit[1].as_u64().unwrap() > 0), "{operation}: {hits:?}");
    }
    assert!(outcome["figures"]["cuts of which every combination was tried"].as_f64().unwrap() > 0.0);
}

#[test]
fn cuts_while_a_store_is_recovered() {
    power_cuts("recovery");
}

#[test]
fn cuts_beneath_a_real_file_system() {
    power_cuts("ext4");
}

#[test]
fn cuts_after_a_failed_sync() {
    power_cuts("failed syncs arena, logger dies");
}

#[test]
fn wrong_arguments_are_told() {
    for (arguments, code) in [(&["nothing"][..], 2), (&["kill", "--states", "0"], 2), (&["all", "--only", "x"], 3)] {
        let status = Command::new(HARNESS).args(arguments).output().unwrap().status;
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

/// Goal: the comparison has its rows, and schemes that wait lose nothing. Schemes that acknowledge
/// early lose about half an interval: 50 records at 10 syncs and 1,000 records per second, of which
/// a dozen cuts show at least a few.
#[test]
fn what_a_sync_less_costs() {
    let (code, outcomes) = harness(&["tradeoff", "--seed", "1", "--seconds", "10"], "");
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    let rows = outcomes[0]["rows"].as_array().unwrap();
    for scheme in ["mmap-interval", "logger-visible", "logger-durable", "logger-within"] {
        let row = rows.iter().find(|row| row["scheme"] == scheme).unwrap_or_else(|| panic!("no row of {scheme}"));
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} of {row}"));
        // A busy disk may not answer at all within such a short time.
        assert!(number("throughput") >= 0.0 && number("fsyncs") >= 0.0, "{row}");
        assert!(number("ack_ms_mean") > 0.0 && number("ack_ms_p99") >= number("ack_ms_p50"), "{row}");
        let waits = matches!(scheme, "logger-durable" | "logger-within");
        assert_eq!(number("lost_predicted"), if waits { 0.0 } else { 50.0 });
        assert_eq!(number("ack_predicted_ms"), if waits { 50.0 } else { 0.0 });
        if row["lost_mean"].is_null() {
            assert!(is_skipped(&outcomes[0]));
            continue;
        }
        assert!(number("cuts") >= 12.0);
        assert_eq!(number("lost_max") > 0.0, !waits, "{row}");
    }
    assert!(outcomes[0]["advice"].as_array().unwrap().iter().all(|advice| advice["text"].is_string()));
}

/// Goal: a commit that is acknowledged as durable too early is found. Method: a bug that
/// acknowledges before the sync, under a load that nearly always has a sync in progress.
#[test]
fn an_acknowledgement_before_its_sync_is_seen_by_what_a_cut_takes() {
    let program = crash_harness::processes::instrumented::program().unwrap();
    let only = ["tradeoff", "--seed", "1", "--states", "1", "--only", "logger-durable:on-commit:1000"];
    let (code, outcomes) = run(program, &only, "");
    if is_skipped(&outcomes[0]) {
        return;
    }
    assert_eq!(code, 0, "{}", outcomes[0]["violations"]);
    let (code, outcomes) = run(program, &only, "acknowledge-before-fsync");
    assert_eq!((code, &outcomes[0]["lost_acked"]), (1, &Value::from(1)));
}
