//! Checks that planted bugs are absent from published code. No manifest and no cargo configuration
//! may switch them on. The bytes of the published programs must not contain their names.
//!
//! The search for names is sufficient for this reason: each place that asks for a bug passes the
//! bug's name to a function that is never inlined. A program with planted bugs therefore contains
//! all their names. The same search in an instrumented build confirms this.

use crate::outcome::{Finding, Kind};
use crate::processes::cargo::Build;
use crate::processes::{cargo, instrumented};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The switches that compile planted bugs in. Neither a manifest nor cargo's configuration may name
/// them.
const SWITCHES: &[&str] = &["untorn_instrumented", "rustc-instrumented"];
/// Features that a dependency graph could switch on.
const FORBIDDEN: &[&str] = &["planted-bugs", "crash-points", "instrumented"];
/// The variables that choose a planted bug or a crash point.
const VARIABLES: &[&str] = &["UNTORN_BUG", "UNTORN_CRASH"];

/// Checks the manifests and the programs, and returns the number of programs. The inner error is a
/// finding.
///
/// # Errors
/// If cargo can't be run or can't build.
pub fn look() -> Result<Result<u64, Finding>, String> {
    let found = |what: String| Ok(Err(Finding::new(Kind::Misbehaved, what)));
    let metadata = cargo::output(&["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: Value = serde_json::from_slice(&metadata).map_err(|error| format!("cargo's metadata: {error}"))?;
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cargo/config.toml");
    let config = std::fs::read_to_string(config).unwrap_or_default();
    if let Some(what) = switched_on(&metadata, &config) {
        return found(what);
    }
    let plain = programs(Build::Ordinary, &["--bins", "--features", "untorn/cli"], "", 2)?;
    for program in &plain {
        if let Some(name) = names_in(program)?.into_iter().next() {
            return found(format!("{} contains the bytes of {name:?}", program.display()));
        }
    }
    let with_bugs = programs(Build::Instrumented, &["--bin", "untorn-logger"], "instrumented", 1)?;
    let missing: Vec<&str> = {
        let there = names_in(&with_bugs[0])?;
        names().filter(|name| !there.contains(name)).collect()
    };
    if !missing.is_empty() {
        return found(format!(
            "a program with planted bugs does not contain {missing:?}, so the check of the other programs proves nothing"
        ));
    }
    Ok(Ok(plain.len() as u64))
}

fn names() -> impl Iterator<Item = &'static str> {
    untorn::planted_bugs::ALL.iter().map(|(name, _)| *name).chain(VARIABLES.iter().copied())
}

/// Returns the names that occur in the bytes of a file.
fn names_in(program: &Path) -> Result<BTreeSet<&'static str>, String> {
    let bytes = std::fs::read(program).map_err(|error| format!("reading {}: {error}", program.display()))?;
    let has = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    Ok(names().filter(|name| has(name)).collect())
}

/// Builds programs of the library's package below the target directory and returns their paths.
fn programs(build: Build, which: &[&str], directory: &str, count: usize) -> Result<Vec<PathBuf>, String> {
    let target = instrumented::target();
    let found = cargo::programs(
        build,
        &[&["build", "--release", "-p", "untorn"], which].concat(),
        &target.join(directory),
        &target,
    )?;
    if found.len() == count {
        Ok(found.into_iter().map(|program| program.path).collect())
    } else {
        Err(format!("cargo names {found:?} instead of {count} programs"))
    }
}

/// Returns the setting in the manifests or in cargo's configuration that could switch planted bugs
/// on.
fn switched_on(metadata: &Value, config: &str) -> Option<String> {
    if let Some(switch) = SWITCHES.iter().find(|switch| config.contains(**switch)) {
        return Some(format!(".cargo/config.toml names {switch}"));
    }
    let packages = metadata["packages"].as_array()?;
    if packages.is_empty() {
        return Some("there are no manifests to check".into());
    }
    let array = |value: &'static str, of: &Value| of[value].as_array().cloned().unwrap_or_default();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        for feature in package["features"].as_object().into_iter().flatten().map(|(feature, _)| feature) {
            if FORBIDDEN.contains(&feature.as_str()) {
                return Some(format!("{name} has the feature {feature}"));
            }
        }
        // A build script could pass the switch.
        for target in array("targets", package) {
            if array("kind", &target).iter().any(|kind| kind == "custom-build") {
                return Some(format!("{name} has a build script"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(features: &str, kind: &str) -> Value {
        let text =
            format!(r#"{{"packages":[{{"name":"p","features":{features},"targets":[{{"kind":["{kind}"]}}]}}]}}"#);
        serde_json::from_str(&text).unwrap()
    }

    /// Goal: the manifests of this workspace pass, and each way to switch a bug on is found.
    #[test]
    fn each_way_to_switch_a_bug_on_is_found() {
        let own = cargo::output(&["metadata", "--no-deps", "--format-version", "1"]).unwrap();
        assert_eq!(switched_on(&serde_json::from_slice(&own).unwrap(), ""), None);
        assert_eq!(switched_on(&package("{}", "lib"), "[env]"), None);
        let bad = [
            (package(r#"{"planted-bugs":[]}"#, "lib"), ""),
            (package(r#"{"default":["instrumented"],"instrumented":[]}"#, "bin"), ""),
            (package("{}", "custom-build"), ""),
            (package("{}", "lib"), r#"[build]\nrustflags = ["--cfg", "untorn_instrumented"]"#),
            (package("{}", "lib"), r#"[build]\nrustc-workspace-wrapper = "rustc-instrumented""#),
            (serde_json::from_str(r#"{"packages":[]}"#).unwrap(), ""),
        ];
        for (index, (metadata, config)) in bad.iter().enumerate() {
            assert!(switched_on(metadata, config).is_some(), "{index}");
        }
    }
}
