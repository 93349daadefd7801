//! Goal: each target keeps its guarantees for real bytes, and for mutations of them.
//!
//! Method: a fixed number of mutations of the seeds, repeatable by their number.
//! `UNTORN_FUZZ_CASES` sets another number of cases, and `UNTORN_FUZZ_FIRST` the first one. A
//! failure prints the line that replays it.

use crate::fuzzing::mutation::mutate;
use crate::fuzzing::{TARGETS, seeds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use untorn_wal::testing::Rng;

/// The number of cases of each target: some seconds in all.
const CASES: [(&str, u64); 9] = [
    ("header", 4000),
    ("slot_image", 4000),
    ("page", 6000),
    ("arena", 400),
    ("records", 3000),
    ("segments", 150),
    ("request", 6000),
    ("reply", 6000),
    ("access", 6000),
];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn mutated_files_and_messages() {
    let dir = tempfile::tempdir().unwrap();
    let seeds = seeds(dir.path()).unwrap();
    let first = number("UNTORN_FUZZ_FIRST").unwrap_or(0);
    std::thread::scope(|scope| {
        for (name, target) in TARGETS {
            let seeds = &seeds[name];
            let cases = CASES.into_iter().find_map(|(of, cases)| (of == name).then_some(cases)).unwrap();
            let cases = number("UNTORN_FUZZ_CASES").unwrap_or(cases);
            let run = move || {
                assert!(!seeds.is_empty(), "{name} has no seeds");
                for seed in seeds {
                    target(seed);
                }
                for case in first..first + cases {
                    let bytes = mutate(&mut Rng(case), seeds);
                    if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
                        let file = std::env::temp_dir().join(format!("untorn-{name}-{case}"));
                        let _ = std::fs::write(&file, &bytes);
                        panic!(
                            "{name}: UNTORN_FUZZ_FIRST={case} UNTORN_FUZZ_CASES=1 cargo test --lib fuzzing; the bytes are in {}",
                            file.display()
                        );
                    }
                }
            };
            std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run).unwrap();
        }
    });
}
