//! Runs the fuzz target `header`: see `src/fuzzing/mod.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| untorn::fuzzing::header(bytes));
