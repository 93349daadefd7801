//! Goal: the program runs every workload and writes output that other programs can parse. Method:
//! one short round of four stores. The round is too short for meaningful figures, so they are not
//! checked.

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn a_short_run_measures_every_workload() {
    let dir = tempfile::tempdir().unwrap();
    let (json, report) = (dir.path().join("results.json"), dir.path().join("report"));
    let stores = dir.path().join("stores");
    std::fs::create_dir(&stores).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_peer-bench"))
        .args(["--entries", "2000", "--rounds", "1", "--slice-ms", "50", "--stores", "untorn,lmdb,redb,sqlite"])
        .arg("--dir")
        .arg(&stores)
        .arg("--json")
        .arg(&json)
        .arg("--report")
        .arg(&report)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let text = std::fs::read_to_string(&json).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names = |store: &str| -> BTreeSet<&str> {
        let of_store = lines.iter().filter(|line| line["store"] == store);
        of_store.map(|line| line["workload"].as_str().unwrap()).collect()
    };
    assert_eq!(names("untorn").len(), 22, "{:?}", names("untorn"));
    assert_eq!(names("untorn"), names("lmdb"));
    assert_eq!(names("untorn"), names("sqlite"));
    // redb in its default mode has one process.
    assert!(names("redb").contains("put-durable-32") && !names("redb").contains("put-durable-processes-8"));
    for line in &lines {
        // On a busy machine, a short window may pass without a single fsync.
        let is_durable = line["workload"].as_str().unwrap().contains("durable");
        assert!(is_durable || line["median"].as_f64().unwrap() > 0.0, "{line}");
        assert!(is_durable || line["ratio_best"].is_number(), "{line}");
        assert_eq!(line["entries"], 2000);
    }

    let markdown = std::fs::read_to_string(report.join("report.md")).unwrap();
    assert!(markdown.contains("| get | untorn |") && markdown.contains("](get.svg)"));
    for chart in ["get.svg", "overview.svg"] {
        assert!(std::fs::read_to_string(report.join(chart)).unwrap().starts_with("<svg"));
    }
    assert_eq!(std::fs::read_dir(&stores).unwrap().count(), 0, "the run left its stores behind");
}

#[test]
fn a_wrong_name_is_a_usage_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_peer-bench")).args(["--stores", "rocks"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no store is named \"rocks\""));
}
