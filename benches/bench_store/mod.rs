//! A store in its own temporary directory. Dropping the store removes the directory. Commits are
//! visible by default.

use std::time::Duration;
use untorn::{Durability, FlushPolicy, Store};

pub(crate) struct BenchStore {
    pub(crate) store: Store,
    dir: tempfile::TempDir,
}

impl BenchStore {
    pub(crate) fn new(policy: FlushPolicy) -> BenchStore {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Store::options();
        options.durability(Durability::Visible).flush_policy(policy);
        BenchStore { store: options.open(dir.path().join("store")).unwrap(), dir }
    }
}

impl Drop for BenchStore {
    fn drop(&mut self) {
        let _ = untorn::logger::stop_logger(self.dir.path().join("store"), Duration::from_secs(10));
    }
}
