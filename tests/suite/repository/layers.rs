//! The folders of `src` are layers: each imports only what is below it. The compiler does not
//! enforce that inside one crate, so this test does. The order is the table in `docs/design.md`.
//! Files and folders stay small.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use untorn_test_kit::cargo::workspace as repository;

/// From the top down.
const LAYERS: [&str; 13] = [
    "access",
    "logger",
    "server",
    "api",
    "txn",
    "btree",
    "pages",
    "process",
    "admission",
    "participant",
    "shared",
    "files",
    "system",
];
/// Files beside the folders, which every layer may import, and which import none.
const COMMON: [&str; 10] =
    ["cas", "change", "crash", "durability", "environment", "error", "ids", "key_range", "limits", "prefix"];
/// Message-passing clients. They have none of the store open, so they may use no more than these.
/// `access` has the traits of both kinds of clients.
const REMOTE_MAY_IMPORT: [&str; 4] = ["remote", "shared", "files", "system"];
const MAY_IMPORT_REMOTE: [&str; 2] = ["access", "remote"];
/// Every layer at once, for fuzzing alone.
const UNLAYERED: [&str; 2] = ["bin", "fuzzing"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The part of a source before its unit tests, without comments.
fn code(text: &str) -> String {
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The first component of each path that begins with `crate::`, also in groups as `crate::{a::b,
/// c}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(first_component(rest));
            continue;
        };
        let (mut depth, mut begins) = (1, true);
        for (at, byte) in group.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b',' if depth == 1 => begins = true,
                byte if begins && byte.is_ascii_alphabetic() => {
                    found.insert(first_component(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn first_component(path: &str) -> String {
    path.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|name| *name == layer)
}

fn may_import(from: &str, to: &str) -> bool {
    if from == to || COMMON.contains(&to) {
        return true;
    }
    if from == "remote" {
        return REMOTE_MAY_IMPORT.contains(&to);
    }
    if to == "remote" {
        return MAY_IMPORT_REMOTE.contains(&from);
    }
    match (rank(from), rank(to)) {
        (Some(from), Some(to)) => from < to,
        // A file beside the folders imports no layer.
        _ => false,
    }
}

/// Where each name comes from that `lib.rs` exports.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (at, _) in lib.match_indices("pub use ") {
        let (path, _) = lib[at + "pub use ".len()..].split_once(';').unwrap();
        let (module, names) = path.rsplit_once("::").unwrap();
        let names = if let Some((before, names)) = path.split_once('{') { (before, names) } else { (module, names) };
        for name in names.1.trim_end_matches('}').split(',') {
            let name = name.trim().rsplit(' ').next().unwrap();
            found.insert(name.to_string(), first_component(names.0));
        }
    }
    found
}

#[test]
fn every_import_points_down() {
    let root = repository().join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let exports = exports(&std::fs::read_to_string(root.join("lib.rs")).unwrap().replace("pub(crate) use", "pub use"));
    let (mut upward, mut folders, mut tried) = (Vec::new(), BTreeSet::new(), 0);
    for path in files {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
        let from = file.split('/').next().unwrap().trim_end_matches(".rs").trim_start_matches("untorn_logger");
        if from == "lib" || from.is_empty() || UNLAYERED.contains(&from) {
            continue;
        }
        folders.insert(from.to_string());
        for to in imports(&code(&std::fs::read_to_string(&path).unwrap())) {
            tried += 1;
            let to = exports.get(&to).unwrap_or(&to).clone();
            if !may_import(from, &to) {
                upward.push(format!("src/{file} imports {to}, which is above it"));
            }
        }
    }
    assert!(upward.is_empty(), "{}", upward.join("\n"));
    // No folder is left out, and no name of the tables is out of date.
    let known: BTreeSet<String> = LAYERS.iter().chain(&COMMON).chain(&["remote"]).map(ToString::to_string).collect();
    assert_eq!(folders, known);
    assert!(tried > 400, "only {tried} imports were found");
}

/// What only `src/system` may name: time, threads and locks of one process. A simulation of the
/// engine replaces that folder.
const OF_SYSTEM: [&str; 8] = [
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "thread::sleep",
    "thread::spawn",
    "thread::Builder",
    "parking_lot",
    "clock_gettime",
];
/// The command line, what pauses a test's process, and fuzzing are no part of the engine.
const NO_PART_OF_THE_ENGINE: [&str; 4] = ["bin", "crash", "fuzzing", "system"];

/// The system interfaces that a source of the engine uses past `src/system`.
fn past_system(code: &str) -> Vec<&'static str> {
    OF_SYSTEM.into_iter().filter(|name| code.contains(name)).collect()
}

#[test]
fn the_engine_asks_the_system_in_one_folder() {
    let root = repository().join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let found = files.iter().filter_map(|path| {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
        let is_test = file.contains("tests");
        let is_other = NO_PART_OF_THE_ENGINE.contains(&file.split('/').next().unwrap());
        let names = past_system(&code(&std::fs::read_to_string(path).unwrap()));
        (!is_test && !is_other && !names.is_empty()).then(|| format!("{file}: {names:?}"))
    });
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "past src/system: {found:#?}");
    // The check can fail.
    assert_eq!(past_system("let start = Instant::now();"), ["Instant::now"]);
    assert!(!past_system(&std::fs::read_to_string(root.join("system/clock.rs")).unwrap()).is_empty());
}

/// The families of atomics. Each function of a protocol names one (`wait::<Native>`), since the
/// compiler cannot infer it from a word. So a layer that names none calls no protocol itself.
const ATOMIC_FAMILIES: [&str; 4] = ["Native", "Model", "Word32", "Word64"];

fn identifiers(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
}

/// The part of a declaration before its body or value: a field with its type, a function with what
/// it takes and returns.
fn declaration(code: &str) -> &str {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate() {
        let is_arrow = byte == b'>' && at > 0 && code.as_bytes()[at - 1] == b'-';
        match byte {
            b',' | b';' | b'{' | b'}' | b')' if depth == 0 => return &code[..at],
            b'(' | b'[' | b'<' => depth += 1,
            b')' | b']' | b'>' if !is_arrow => depth -= 1,
            _ => {}
        }
    }
    code
}

/// The declarations that hand an atomic to any layer: public fields, constants, aliases and
/// functions, and the targets of `Deref`.
fn exposed_atomics(code: &str) -> Vec<String> {
    // In one line, so that no line break hides a declaration.
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let openings = ["pub(crate) ", "pub ", "type Target = "];
    let found =
        openings.iter().flat_map(|opening| code.match_indices(opening).map(|(at, _)| &code[at + opening.len()..]));
    // Fields have a visibility of their own, and an import does not make a word.
    let items = found.filter(|item| !["struct ", "use ", "mod "].iter().any(|kind| item.starts_with(kind)));
    let atomics = items.map(declaration).filter(|item| identifiers(item).any(|name| name.starts_with("Atomic")));
    atomics.map(str::to_string).collect()
}

/// Only `src/shared` loads and stores the words of the region; the layers above call methods, which
/// argue their orderings. The compiler enforces the privacy of fields. This test holds that no
/// word is made public, and that no other layer runs a protocol on a word that it got.
#[test]
fn no_other_layer_uses_a_word_of_the_region() {
    let root = repository().join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut found, mut shared) = (Vec::new(), 0);
    for path in files {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
        let code = code(&std::fs::read_to_string(&path).unwrap());
        if file.starts_with("shared/protocols/") || UNLAYERED.iter().any(|folder| file.starts_with(folder)) {
            // The protocols own no word: their callers pass one.
        } else if file.starts_with("shared/") {
            shared += 1;
            found.extend(exposed_atomics(&code).into_iter().map(|item| format!("src/{file} exposes `{item}`")));
        } else {
            let names = identifiers(&code).filter(|name| ATOMIC_FAMILIES.contains(name));
            found.extend(names.map(|name| format!("src/{file} uses {name}")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(shared > 30, "only {shared} files of src/shared were found");
}

/// The check itself.
#[test]
fn an_exposed_word_is_found() {
    let fields = "pub(crate) struct Words {\n pub(crate)\n stop: CacheLine<\nAtomicU32>,\n pub(super) a: AtomicU64,\n b: AtomicU64 }";
    assert_eq!(exposed_atomics(fields), ["stop: CacheLine< AtomicU32>"]);
    assert_eq!(exposed_atomics("pub(crate) fn word(&self, at: usize) -> Result<&[AtomicU64]> {}").len(), 1);
    assert_eq!(exposed_atomics("impl Deref for Event { type Target = AtomicU32; }").len(), 1);
    assert_eq!(exposed_atomics("pub(crate) struct Event(pub(super) AtomicU32);").len(), 0);
    assert_eq!(exposed_atomics("pub(crate) struct Event(pub(crate) AtomicU32);").len(), 1);
    assert_eq!(exposed_atomics("pub(crate) fn get(&self) -> u64 { self.word(AtomicU64::load) }").len(), 0);
}

/// Lines of a file, at most. A longer file has more than one job.
const LINES_MAX: usize = 500;
/// Files of a folder, at most.
const FILES_MAX: usize = 13;

#[test]
fn no_file_has_more_than_one_job() {
    let root = repository();
    let mut files = Vec::new();
    for folder in [
        "src",
        "wal/src",
        "wal/tests",
        "crash-harness",
        "crash-peers/src",
        "peer-bench/src",
        "test-kit/src",
        "tests",
        "benches",
        "examples",
    ] {
        sources(&root.join(folder), &mut files);
    }
    let (mut long, mut folders) = (BTreeSet::new(), BTreeMap::<String, usize>::new());
    for path in &files {
        let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        let lines = std::fs::read_to_string(path).unwrap().lines().count();
        if lines > LINES_MAX {
            long.insert(format!("{file} has {lines} lines"));
        }
        *folders.entry(file.rsplit_once('/').unwrap().0.to_string()).or_default() += 1;
    }
    assert!(long.is_empty(), "files of more than {LINES_MAX} lines: {long:#?}");
    folders.retain(|_, files| *files > FILES_MAX);
    assert!(folders.is_empty(), "folders of more than {FILES_MAX} files: {folders:#?}");
    assert!(files.len() > 300, "only {} files were found", files.len());
}

/// The check itself: what it must find, and what it must let through.
#[test]
fn an_import_that_points_up_is_found() {
    let found = imports("use crate::{Error, api::store::{Store, deep}, ids};\nlet x = crate::logger::run();\n");
    assert_eq!(found, ["Error", "api", "ids", "logger"].map(str::to_string).into());
    assert!(!may_import("shared", "api"));
    assert!(!may_import("error", "files"));
    assert!(!may_import("remote", "participant"));
    assert!(!may_import("participant", "logger"));
    assert!(may_import("api", "txn"));
    assert_eq!(code("use a;\n// crate::logger\n#[cfg(test)]\nmod tests {}\n"), "use a;\n");
}
