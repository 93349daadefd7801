//! Goal: the examples do what their texts promise, end by themselves, and leave nothing behind.
//!
//! Method: cargo builds them beside the tests; each is run once, and its output is checked.

use crate::common::{limit, wait_until};
use std::path::PathBuf;
use std::process::Command;

/// Runs an example in a temporary directory of its own, which it must leave empty; what it printed.
fn run(name: &str) -> String {
    let own = std::env::current_exe().unwrap();
    // target/<profile>/deps/<this test> and target/<profile>/examples/<name>.
    let program: PathBuf = own.parent().unwrap().with_file_name("examples").join(name);
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(&program).env("TMPDIR", dir.path()).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{out}\n{error}", output.status);
    assert_eq!(error, "", "{name} complains");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name} leaves files behind");
    // A logger that has left may be on its way out.
    wait_until(|| processes_of(&program) == 0);
    out.into_owned()
}

/// How many processes run a program.
fn processes_of(program: &PathBuf) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|entry| std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == *program)).count()
}

#[test]
fn quickstart() {
    let _limit = limit();
    let out = run("quickstart");
    let expected = "before: alice has 100\nnow: alice has 70\nnow: bob has 50\n\
                    another process: position 52.5, 13.4\nvisits: 2\ncarol has 7\n";
    assert_eq!(out, expected);
}

/// The naive way loses additions, the others none. (That others lose none, the example itself
/// asserts.)
#[test]
fn scoreboard() {
    let _limit = limit();
    let out = run("scoreboard");
    let lost: Vec<(&str, u64)> = out
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [way, _, _, lost] = words[..] else { return None };
            Some((way, lost.parse().ok()?))
        })
        .collect();
    let [("get-then-put", naive), ("counter", 0), ("compare-and-swap", 0), ("transaction", 0)] = lost[..] else {
        panic!("{out}")
    };
    assert!(naive > 0, "{out}");
}

/// Nothing is mixed up, and each reading is accounted for.
#[test]
fn sensor_fusion() {
    let _limit = limit();
    let out = run("sensor_fusion");
    let numbers: Vec<u64> = out
        .lines()
        .map(|line| line.split_once(' ').and_then(|(number, _)| number.parse().ok()).expect("it begins with a number"))
        .collect();
    let [announced, taken, late, outdated, mixed_up] = numbers[..] else { panic!("{out}") };
    assert_eq!(taken + late + outdated, announced, "{out}");
    assert!(taken > 0 && late > 0, "{out}");
    assert_eq!(mixed_up, 0, "{out}");
}

#[test]
fn config_watch() {
    let _limit = limit();
    let expected = r#"begins with {"log": "info"}
log changed: {"log": "debug"}
host, port changed: {"host": "db1.example", "log": "debug", "port": "5432"}
log changed: {"host": "db1.example", "port": "5432"}
stop changed: {"host": "db1.example", "port": "5432", "stop": "now"}
"#;
    assert_eq!(run("config_watch"), expected);
}

#[test]
fn message_client() {
    let _limit = limit();
    let expected = "alice has 100\n30 moved to bob\nnot a second time\nalice has 70\nbob has 50\ncarol has 0\n\
                    the owner finds: alice 70\nthe owner finds: bob 50\nthe owner finds: carol 0\n";
    assert_eq!(run("message_client"), expected);
}
