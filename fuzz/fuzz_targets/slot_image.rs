//! Runs the fuzz target `slot_image`: see `src/fuzzing/mod.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| untorn::fuzzing::slot_image(bytes));
