//! The documents name sources of this repository: each must exist.

use std::path::Path;
use untorn_test_kit::cargo::workspace as repository;

/// The parts of a line between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// A source, by its name or the end of its path: `commit.rs`, `txn/stream.rs`, `src/ids.rs`.
fn is_source(word: &str) -> bool {
    word.ends_with(".rs") && word.chars().all(|letter| letter.is_ascii_alphanumeric() || "/_-.".contains(letter))
}

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.to_str().unwrap().to_string());
        }
    }
}

#[test]
fn every_source_that_a_document_names_exists() {
    let root = repository();
    let mut there = Vec::new();
    for folder in
        ["src", "wal", "crash-harness", "crash-peers", "peer-bench", "test-kit", "tests", "benches", "examples", "fuzz"]
    {
        sources(&root.join(folder), &mut there);
    }
    let mut documents =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "wal/README.md"].map(|name| root.join(name)).to_vec();
    documents.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let (mut missing, mut found) = (Vec::new(), 0);
    for document in documents.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(document).unwrap();
        for (number, line) in text.lines().enumerate() {
            for word in quoted(line).filter(|word| is_source(word)) {
                found += 1;
                let end = format!("/{word}");
                if !there.iter().any(|path| path.ends_with(&end)) {
                    missing.push(format!("{}:{}: {word}", document.display(), number + 1));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no source has this name:\n{}", missing.join("\n"));
    assert!(found > 150, "only {found} names were found");
}

/// The steps of the path of a durable put: depth, function, file.
fn steps(text: &str) -> Vec<(usize, &str, &str)> {
    let begin = text.find("## The path of a durable put").expect("design.md has the path");
    let section = &text[begin + 1..];
    let section = &section[..section.find("\n## ").unwrap_or(section.len())];
    let step = |line| {
        let (indent, rest) = str::split_once(line, "- `")?;
        let (function, rest) = rest.split_once("` (`")?;
        let (file, _) = rest.split_once("`)")?;
        Some((indent.len() / 2, function, file))
    };
    section.lines().filter_map(step).collect()
}

/// Each function is defined in its file, and the step above it calls it there, or through a
/// function of the same file.
#[test]
fn the_path_of_a_put_is_that_of_the_code() {
    let root = repository();
    let text = std::fs::read_to_string(root.join("docs/design.md")).unwrap();
    let source = |file: &str| {
        let path = if file.starts_with("wal/") { root.join(file) } else { root.join("src").join(file) };
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let steps = steps(&text);
    let mut callers: Vec<&str> = Vec::new();
    for (depth, function, file) in &steps {
        let defines =
            source(file).contains(&format!("fn {function}(")) || source(file).contains(&format!("fn {function}<"));
        assert!(defines, "{file} defines no function {function}");
        callers.truncate(*depth);
        if let Some(caller) = callers.last() {
            let calls = source(caller);
            let calls =
                [format!(".{function}("), format!("{function}::<"), format!(" {function}("), format!(":{function}(")]
                    .iter()
                    .any(|call| calls.contains(call.as_str()));
            assert!(calls, "{caller} does not call {function} of {file}");
        }
        callers.push(file);
    }
    assert!((45..=60).contains(&steps.len()), "{} steps", steps.len());
}

/// The check itself.
#[test]
fn a_name_is_recognized() {
    let words: Vec<&str> =
        quoted("see `src/a.rs`, `put`, `b.rs`, `wal/seg-*`").filter(|word| is_source(word)).collect();
    assert_eq!(words, ["src/a.rs", "b.rs"]);
}
