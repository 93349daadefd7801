//! The catalogue of planted bugs: deliberate mistakes, one at a time, that the checks of
//! `crash-harness` must catch. Using a name that is not in the catalogue is a compile error.
//!
//! The catalogue is in this crate because both the log and the store above it have planted bugs. In
//! ordinary builds only the compiler reads the catalogue: each place tests a constant `false`. With
//! `--cfg untorn_instrumented`, which no feature enables, the variable `UNTORN_BUG` selects the bug
//! of a process.

/// All planted bugs, in alphabetical order, each with a line that describes the mistake.
pub const ALL: &[(&str, &str)] = &[
    ("acknowledge-before-extent", "a flush acknowledges records before the large values that they refer to are synced"),
    ("acknowledge-before-fsync", "a flush publishes what it is about to write as durable"),
    ("acknowledge-sample-early", "a sample of cells counts as committed before it is"),
    ("append-to-sealed-tail", "a queue page that a checkpoint contains is filled further"),
    ("counter-by-load-and-store", "a counter's addition is a load and a store"),
    ("feed-before-fsync", "a durable feed delivers changes that are only visible"),
    ("feed-open-stream", "a feed delivers a streamed transaction that has not committed"),
    ("feed-skips-what-is-gone", "a feed continues behind recycled segments without an error"),
    ("header-before-pages", "a checkpoint's header is written before its pages"),
    ("ignore-fsync-error", "a sync that fails counts as done"),
    ("liveness-by-pid", "liveness is tested by process id"),
    ("lock-without-takeover", "a waiter waits for a lock whose owner is dead"),
    ("malformed-message-unwrapped", "the server panics on a message that can't be decoded"),
    ("mapped-without-blocks", "the arena grows by a length without blocks behind it"),
    ("message-answered-before-sync", "a durable commit by message is answered when it is visible"),
    ("no-abort-record", "the next writer writes no abort record for a stream before it"),
    ("no-descriptor-no-file", "a file that can't be opened for want of a descriptor counts as missing"),
    ("number-without-complement", "a number that leads to memory is not compared with its complement"),
    ("page-without-checksum", "no page is checked against its checksum"),
    ("read-cell-once", "a cell's load does not check the stamp again"),
    ("region-removed-first", "recovery removes the old region before the log contains its records"),
    ("retry-fsync", "a failed sync is repeated, and the second result trusted"),
    ("reuse-one-txn-early", "a page is reused while the transaction that it belongs to is pinned"),
    ("reuse-referenced-extent", "an extent is reused while recovery may replay the record that refers to it"),
    ("reuse-running-checkpoint", "a page of the checkpoint that is being written is reused"),
    ("seqlock-without-fence", "a cell's stamp and version come before its payload, as a missing fence would let them"),
    ("short-write-is-done", "a write that wrote fewer bytes than requested counts as done"),
    ("single-copy-cell", "a cell has one copy, which is overwritten in place"),
    ("skip-directory-fsync", "directories are not synced after a create, rename or unlink"),
    ("skip-reader-reread", "a reader pins a transaction and does not check that it is still the newest"),
    ("snapshot-beyond-its-pin", "a snapshot reads a newer transaction than it has pinned"),
    ("sum-once", "pages that have a checksum are not written again after a failed sync"),
    ("swing-before-record", "the commit is published before its log record is written"),
    ("trust-read-header", "recovery trusts a header that may be only in the page cache"),
    ("trust-recycled-segment", "recovery accepts batches of a segment's earlier use"),
    ("versions-go-on", "a cell's versions continue after a loss as if nothing had been lost"),
    ("wal-without-crc", "recovery does not check the log's checksums"),
    ("within-answered-before-sync", "a commit that has time is answered before the sync that covers it"),
];

/// Returns whether the catalogue has this name. Each place calls it at compile time.
#[must_use]
pub const fn has(name: &str) -> bool {
    let mut index = 0;
    while index < ALL.len() {
        if is_same(ALL[index].0, name) {
            return true;
        }
        index += 1;
    }
    false
}

/// Returns whether two names are equal, in a constant expression.
#[must_use]
pub const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

/// Returns whether this process has the bug `name`.
///
/// # Panics
/// If `UNTORN_BUG` is not in the catalogue: a check that runs with an unknown bug would seem to
/// miss it.
#[cfg(untorn_instrumented)]
#[inline(never)]
#[must_use]
pub fn is_planted(name: &str) -> bool {
    static BUG: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let bug = BUG.get_or_init(|| {
        let bug = std::env::var("UNTORN_BUG").ok().filter(|bug| !bug.is_empty());
        assert!(bug.as_deref().is_none_or(has), "UNTORN_BUG is {bug:?}, which the catalogue does not have");
        bug
    });
    bug.as_deref() == Some(name)
}

/// Whether the planted bug of this name is switched on (`UNTORN_BUG=name`); false in ordinary
/// builds.
#[cfg(not(untorn_instrumented))]
#[doc(hidden)]
#[macro_export]
macro_rules! planted_bug {
    ($name:literal) => {{
        const _: () = assert!($crate::planted_bugs::has($name), "not in the catalogue of planted bugs");
        false
    }};
}

/// Whether the planted bug of this name is switched on (`UNTORN_BUG=name`); false in ordinary
/// builds.
#[cfg(untorn_instrumented)]
#[doc(hidden)]
#[macro_export]
macro_rules! planted_bug {
    ($name:literal) => {{
        const _: () = assert!($crate::planted_bugs::has($name), "not in the catalogue of planted bugs");
        $crate::planted_bugs::is_planted($name)
    }};
}

#[cfg(test)]
mod tests {
    /// Goal: no name occurs twice, and the order is alphabetical.
    #[test]
    fn the_catalogue_is_in_order() {
        assert!(super::ALL.is_sorted_by(|(a, _), (b, _)| a < b));
    }
}
