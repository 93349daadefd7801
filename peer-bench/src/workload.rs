//! The workloads: their names, units, and the processes and threads that run them.

use crate::store::{Engine, Mode};

/// The operation that a slice of a workload repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// Looks up random keys in one snapshot.
    Get,
    /// Looks up random keys, each in a snapshot of its own.
    GetSnapshot,
    /// Seeks random keys and reads ten entries from each, in one snapshot.
    Seek10,
    /// Reads all entries, in one snapshot.
    Scan,
    /// Overwrites random keys, each in a transaction of its own.
    Put,
    /// Writes transactions of [`BATCH`] entries: new ascending keys, or random keys that exist.
    Batch { is_ascending: bool },
    /// Adds one to a counter that all processes share.
    Increment,
    /// Overwrites eight large values in turn, each in a transaction of its own.
    PutLarge { mebibytes: usize },
    /// Loads an empty store with all entries in ascending order.
    Load,
    /// Counts the bytes of the store's files.
    DiskBytes,
    /// Opens a store that was closed in order, and reads one key.
    OpenClean,
    /// Opens a store all of whose processes were killed while they wrote, and reads one key.
    OpenKilled,
}

/// Entries in a transaction of [`Operation::Batch`].
pub(crate) const BATCH: u64 = 1000;

/// What a result states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    Nanoseconds,
    Milliseconds,
    OperationsPerSecond,
    EntriesPerSecond,
    MegabytesPerSecond,
    GigabytesPerSecond,
    Bytes,
}

impl Unit {
    /// Returns the name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Unit::Nanoseconds => "ns",
            Unit::Milliseconds => "ms",
            Unit::OperationsPerSecond => "ops/s",
            Unit::EntriesPerSecond => "entries/s",
            Unit::MegabytesPerSecond => "MB/s",
            Unit::GigabytesPerSecond => "GB/s",
            Unit::Bytes => "bytes",
        }
    }

    /// Returns whether a smaller number is the better result.
    pub(crate) fn is_smaller_better(self) -> bool {
        matches!(self, Unit::Nanoseconds | Unit::Milliseconds | Unit::Bytes)
    }
}

/// A workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) operation: Operation,
    pub(crate) mode: Mode,
    pub(crate) processes: usize,
    pub(crate) threads: usize,
    pub(crate) unit: Unit,
}

const fn new(name: &'static str, operation: Operation, mode: Mode, unit: Unit) -> Workload {
    Workload { name, operation, mode, processes: 1, threads: 1, unit }
}

const fn durable_put(name: &'static str, processes: usize, threads: usize) -> Workload {
    Workload { processes, threads, ..new(name, Operation::Put, Mode::Durable, Unit::OperationsPerSecond) }
}

const fn batches(name: &'static str, is_ascending: bool) -> Workload {
    new(name, Operation::Batch { is_ascending }, Mode::Durable, Unit::EntriesPerSecond)
}

const fn large(name: &'static str, mebibytes: usize, mode: Mode) -> Workload {
    new(name, Operation::PutLarge { mebibytes }, mode, Unit::MegabytesPerSecond)
}

use Mode::{Durable, Visible};
use Unit::{Bytes, EntriesPerSecond, Milliseconds, Nanoseconds, OperationsPerSecond};

/// All workloads, in the order in which they run. Workloads that read come before workloads that
/// change the loaded store. Ascending batches enlarge the store, so they come after the workloads
/// that update it.
pub(crate) const ALL: &[Workload] = &[
    new("load-sorted", Operation::Load, Visible, EntriesPerSecond),
    new("disk-bytes", Operation::DiskBytes, Visible, Bytes),
    new("open-clean", Operation::OpenClean, Durable, Milliseconds),
    new("get", Operation::Get, Durable, Nanoseconds),
    new("get-snapshot", Operation::GetSnapshot, Durable, Nanoseconds),
    new("seek10", Operation::Seek10, Durable, Nanoseconds),
    new("scan", Operation::Scan, Durable, EntriesPerSecond),
    durable_put("put-durable-1", 1, 1),
    durable_put("put-durable-8", 1, 8),
    durable_put("put-durable-32", 1, 32),
    durable_put("put-durable-processes-8", 8, 1),
    durable_put("put-durable-processes-32", 32, 1),
    new("put-visible-1", Operation::Put, Visible, OperationsPerSecond),
    Workload { processes: 2, ..new("put-visible-processes-2", Operation::Put, Visible, OperationsPerSecond) },
    Workload { processes: 2, ..new("counter-processes-2", Operation::Increment, Visible, OperationsPerSecond) },
    batches("batch-durable-random", false),
    batches("batch-durable-ascending", true),
    new("open-killed", Operation::OpenKilled, Visible, Milliseconds),
    large("large-visible-1mib", 1, Visible),
    large("large-visible-16mib", 16, Visible),
    large("large-durable-1mib", 1, Durable),
    large("large-durable-16mib", 16, Durable),
];

impl Workload {
    /// Returns whether the engine can run the workload as intended.
    pub(crate) fn suits(&self, engine: &dyn Engine) -> bool {
        let is_write = matches!(
            self.operation,
            Operation::Put | Operation::Batch { .. } | Operation::Increment | Operation::PutLarge { .. }
        );
        (self.processes == 1 || engine.has_many_writers())
            && (self.mode == Mode::Durable || !is_write || engine.has_visible_commits())
    }

    /// Returns whether several threads or processes run side by side.
    pub(crate) fn is_shared(&self) -> bool {
        self.processes * self.threads > 1
    }

    /// Returns whether slices leave commits that no fsync has covered.
    pub(crate) fn is_visible_write(&self) -> bool {
        let is_write = matches!(self.operation, Operation::Put | Operation::Increment | Operation::PutLarge { .. });
        self.mode == Mode::Visible && is_write
    }

    /// Returns whether the workload uses the store that is loaded once for the run.
    pub(crate) fn uses_loaded_store(&self) -> bool {
        self.operation != Operation::Load
    }

    /// Returns the interval, in operations, at which a single operation is timed. An operation
    /// without an fsync may take less time than reading the clock.
    pub(crate) fn sample_interval(&self) -> u32 {
        match self.operation {
            Operation::Get | Operation::GetSnapshot | Operation::Seek10 | Operation::Increment => 64,
            Operation::Put if self.mode == Mode::Visible => 16,
            _ => 1,
        }
    }
}

/// Returns the workload with this name.
pub(crate) fn find(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = ALL.iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn every_workload_suits_untorn_and_the_others_where_they_can() {
        let untorn = crate::stores::find("untorn").unwrap();
        assert!(ALL.iter().all(|workload| workload.suits(untorn)));
        let suits = |store, workload| find(workload).unwrap().suits(crate::stores::find(store).unwrap());
        assert!(!suits("fjall", "put-durable-processes-8"));
        assert!(suits("redb-multi-writer", "put-durable-processes-8"));
        assert!(!suits("redb-multi-writer", "put-visible-1"));
        assert!(suits("redb-multi-writer", "load-sorted"));
    }
}
