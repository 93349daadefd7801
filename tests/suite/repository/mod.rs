//! The repository itself: layers and sizes of its files, documents, examples, and the benchmark
//! `ipc`.

mod documents;
mod examples;
mod ipc;
mod layers;
mod operations;
