//! Runs a workload under callgrind and reads the profile that it writes.

use crate::workloads;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

/// Instructions per call of a workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) total: f64,
    /// The most expensive functions, each without its callees.
    pub(crate) functions: BTreeMap<String, f64>,
}

/// Functions below this share of the total are left out of the table.
const SMALLEST_SHARE: f64 = 0.005;

/// Runs the workload once under callgrind.
///
/// # Panics
/// If valgrind is missing or the workload fails.
pub(crate) fn count(name: &str) -> Counts {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("profile");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--compress-pos=no", "--dump-instr=no"])
        .arg(format!("--toggle-collect=*counted_{name}*"))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--workload", name])
        // Under valgrind, /proc/self/exe is valgrind, so the logger's program is set.
        .env("UNTORN_LOGGER", env!("CARGO_BIN_EXE_untorn-logger"))
        // The C library chooses its string functions by the processor's features: pin them.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-ERMS,-FSRM")
        .output()
        .unwrap_or_else(|error| panic!("valgrind can't be run ({error}); install the package valgrind"));
    assert!(
        output.status.success(),
        "the workload {name} failed under valgrind ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let calls = workloads::calls(name) as f64;
    let functions = read(&profile);
    let total: u64 = functions.values().sum();
    assert!(total > 0, "callgrind collected nothing in counted_{name}");
    let functions = functions
        .into_iter()
        .filter(|(_, cost)| *cost as f64 > SMALLEST_SHARE * total as f64)
        .map(|(function, cost)| (function, round(cost as f64 / calls)))
        .collect();
    Counts { total: round(total as f64 / calls), functions }
}

fn round(count: f64) -> f64 {
    (count * 10.0).round() / 10.0
}

/// Sums the profile's own cost of each function, by its name.
///
/// The format is in valgrind's manual, "Callgrind Format Specification". `fn=(id) name` begins a
/// function; later lines with the same id omit the name. A cost line is a line number and a count.
/// The cost line after `calls=` is the cost of the callee and is skipped.
fn read(profile: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(profile).unwrap();
    let mut names: HashMap<&str, String> = HashMap::new();
    let mut costs: BTreeMap<String, u64> = BTreeMap::new();
    let mut function = String::new();
    let mut is_callee = false;
    for line in text.lines() {
        if let Some(text) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            let (id, name) = text.split_once(')').unwrap_or((text, ""));
            if !name.trim().is_empty() {
                names.insert(id, plain_name(name.trim()));
            }
            if line.starts_with("fn=") {
                function = names.get(id).cloned().unwrap_or_default();
            }
        } else if line.starts_with("calls=") {
            is_callee = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-' || c == '*') {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok()).unwrap_or(0);
            if !std::mem::take(&mut is_callee) {
                *costs.entry(function.clone()).or_default() += cost;
            }
        }
    }
    costs
}

/// Returns the name without the parts that differ between builds: the hash, and callgrind's numbers
/// of recursion.
fn plain_name(name: &str) -> String {
    let name = name.split('\'').next().unwrap_or(name);
    match name.rfind("::h") {
        Some(at) if name.len() == at + 19 => name[..at].to_string(),
        _ => name.to_string(),
    }
}
