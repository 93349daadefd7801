//! Checks that planted bugs are not published. No manifest of this workspace enables them by a
//! default or for a dependency, and no published program contains them.
//!
//! Each use of a bug passes the bug's name to a function that is never inlined, so a program with
//! planted bugs contains all their names as bytes. A build with the bugs confirms this.

use crate::outcome::{Finding, Kind};
use crate::{cargo, instrumented};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Features that no default feature and no dependency may enable.
const FORBIDDEN: &[&str] = &["planted-bugs", "crash-points", "instrumented"];
/// Environment variables that select from what those features compile in.
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
    if let Some(what) = switched_on(&metadata) {
        return found(what);
    }
    let plain = programs(&["--bins", "--features", "untorn/cli"], "", 2)?;
    for program in &plain {
        if let Some(name) = names_in(program)?.into_iter().next() {
            return found(format!("{} contains the bytes of {name:?}", program.display()));
        }
    }
    let with_bugs = programs(&["--bin", "untorn-logger", "--features", "untorn/planted-bugs"], "crash-victims", 1)?;
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
fn programs(which: &[&str], place: &str, count: usize) -> Result<Vec<PathBuf>, String> {
    let found = cargo::programs(&[&["-p", "untorn"], which].concat(), &instrumented::target().join(place))?;
    if found.len() == count { Ok(found) } else { Err(format!("cargo names {found:?} instead of {count} programs")) }
}

/// Returns a description of the first place in the manifests that enables a forbidden feature.
fn switched_on(metadata: &Value) -> Option<String> {
    // `untorn/planted-bugs`, `dep?/planted-bugs` and `planted-bugs` all name it.
    let names = |item: &str| FORBIDDEN.contains(&item.rsplit('/').next().unwrap_or(item));
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_string)).collect()
    };
    let packages = metadata["packages"].as_array()?;
    if packages.is_empty() {
        return Some("the workspace has no manifests to check".into());
    }
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if let Some(feature) = strings(&dependency["features"]).into_iter().find(|feature| names(feature)) {
                return Some(format!("{name} switches {feature} of {} on", dependency["name"]));
            }
        }
        for (feature, items) in package["features"].as_object().into_iter().flatten() {
            if let Some(item) = strings(items).into_iter().find(|item| names(item))
                && !FORBIDDEN.contains(&feature.as_str())
            {
                return Some(format!("the feature {feature} of {name} switches {item} on"));
            }
        }
        let is_published = package["publish"].as_array().is_none_or(|registries| !registries.is_empty());
        if is_published && package["features"].get("instrumented").is_some() {
            return Some(format!("{name} has the feature instrumented, and is published"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(dependencies: &str, features: &str, publish: &str) -> Value {
        let text = format!(
            r#"{{"packages":[{{"name":"p","dependencies":{dependencies},"features":{features},"publish":{publish}}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Goal: correct manifests pass the check, and each way of enabling a bug is detected.
    #[test]
    fn each_way_to_switch_a_bug_on_is_seen() {
        let own = cargo::output(&["metadata", "--no-deps", "--format-version", "1"]).unwrap();
        assert_eq!(switched_on(&serde_json::from_slice(&own).unwrap()), None);
        assert_eq!(switched_on(&package("[]", r#"{"instrumented":["untorn/planted-bugs"]}"#, "[]")), None);
        let bad = [
            package(r#"[{"name":"untorn","features":["planted-bugs"]}]"#, "{}", "[]"),
            package("[]", r#"{"default":["planted-bugs"],"planted-bugs":[]}"#, "null"),
            package("[]", r#"{"fast":["untorn?/crash-points"]}"#, "[]"),
            package("[]", r#"{"instrumented":["untorn/planted-bugs"]}"#, "null"),
            serde_json::from_str(r#"{"packages":[]}"#).unwrap(),
        ];
        for (index, metadata) in bad.iter().enumerate() {
            assert!(switched_on(metadata).is_some(), "{index}");
        }
    }
}
