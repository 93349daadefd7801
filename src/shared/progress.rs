//! Visible progress: a locked byte of `lock` that moves while its holder works under the
//! initialisation lock.
//!
//! Openers wait for that lock, and its holder may replay a large log for minutes. So the holder
//! locks one byte in a range of its own. It moves the lock to another offset after each bounded
//! piece of work: a record replayed, a page checked, blocks read, written or synced. A waiter
//! restarts its limit each time that it finds the byte elsewhere ([`Patience`]). One system call
//! that takes longer than the limit shows no progress.
//!
//! The mark is a lock because a lock ends with its holder, and needs neither a block on a full disk
//! nor the shared region, which recovery has yet to make. The mark is a hint. If a holder has no
//! descriptor left to show progress, it continues without, and waiters give up after their limit. A
//! process that may lock bytes of `lock` can keep others waiting: direct clients are trusted.

use crate::shared::liveness;
use crate::shared::liveness::Tester;
use crate::shared::memory::private::Private;
use crate::system::clock;
use crate::system::sync::Mutex;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The range of the byte: between the logger's byte and those of the clients.
const OFFSETS: Range<u64> = liveness::LOGGER_OFFSET + 1..liveness::CLIENT_IDS.start;
/// The least time between two moves of the byte.
const MARK_MOVE_INTERVAL: Duration = Duration::from_millis(5);

/// The mark of this process's progress while it holds the initialisation lock.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    is_shown: AtomicBool,
    mark: Mutex<Option<ProgressMark>>,
}

#[derive(Debug)]
struct ProgressMark {
    file: Private,
    at: u64,
    moved: Instant,
}

impl Progress {
    /// Shows progress from now on. The caller has just acquired the initialisation lock.
    pub(crate) fn show(&self, directory: impl AsFd) {
        let Ok(Some((file, at))) = liveness::lock_some_byte(directory, &OFFSETS) else { return };
        *self.mark.lock() = Some(ProgressMark { file, at, moved: clock::now() });
        self.is_shown.store(true, Ordering::Relaxed);
    }

    /// Stops showing progress. The caller is about to release the initialisation lock.
    pub(crate) fn hide(&self) {
        self.is_shown.store(false, Ordering::Relaxed);
        self.mark.lock().take();
    }

    /// Records that a bounded piece of work is done. Costs one load if the initialisation lock is
    /// not held.
    #[inline]
    pub(crate) fn step(&self) {
        if self.is_shown.load(Ordering::Relaxed) {
            self.step_shown();
        }
    }

    #[cold]
    fn step_shown(&self) {
        crash_point!("progress.stepped");
        // If another thread holds the mutex, it moves the mark.
        let Some(mut mark) = self.mark.try_lock() else { return };
        let Some(mark) = &mut *mark else { return };
        if clock::since(mark.moved) < MARK_MOVE_INTERVAL {
            return;
        }
        let next = if mark.at + 1 < OFFSETS.end { mark.at + 1 } else { OFFSETS.start };
        // A failure only means that no progress is shown.
        let _ = mark.file.get().map(|file| liveness::move_lock(file, mark.at, next));
        (mark.at, mark.moved) = (next, clock::now());
    }
}

/// A limit on the wait for another participant, which restarts whenever that participant makes
/// visible progress.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    since: Instant,
    seen: Option<u64>,
    goes_by_progress: bool,
}

impl Patience {
    /// Returns a limit that ends when no progress has been visible for `limit`.
    pub(crate) fn new(limit: Duration) -> Patience {
        Patience { limit, since: clock::now(), seen: None, goes_by_progress: true }
    }

    /// Returns a limit that ends after `limit`, with or without progress.
    pub(crate) fn fixed(limit: Duration) -> Patience {
        Patience { goes_by_progress: false, ..Patience::new(limit) }
    }

    /// Reads the position of the byte. A failure to read it counts as no progress.
    pub(crate) fn look(&mut self, tester: &Tester<'_>) {
        if self.goes_by_progress
            && let Ok(at) = tester.any_held(OFFSETS)
            && at != self.seen
        {
            (self.seen, self.since) = (at, clock::now());
        }
    }

    /// Restarts the limit, since progress was seen by other means.
    pub(crate) fn begin_anew(&mut self) {
        self.since = clock::now();
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Returns how long no progress has been visible.
    pub(crate) fn waited(&self) -> Duration {
        clock::since(self.since)
    }

    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn others_see_the_mark_move() {
        let path = tempfile::tempdir().unwrap();
        File::create(path.path().join(liveness::LOCK_FILE)).unwrap();
        let directory = File::open(path.path()).unwrap();
        let progress = Progress::default();
        let tester = Tester::open(&directory, None).unwrap();
        let mut patience = Patience::new(Duration::ZERO);
        let mut sees_news = || {
            let before = patience.seen;
            patience.look(&tester);
            patience.seen != before
        };
        progress.step();
        assert!(!sees_news());
        progress.show(&directory);
        assert!(sees_news() && !sees_news());
        for _ in 0..3 {
            // A step moves the byte once the interval has passed.
            while !sees_news() {
                progress.step();
            }
        }
        progress.hide();
        // A child that another test forks meanwhile holds the mark's file until it closes it.
        while !sees_news() {
            std::thread::yield_now();
        }
        progress.step();
        assert!(!sees_news());
    }

    #[test]
    fn a_fixed_patience_ends_whatever_others_do() {
        let path = tempfile::tempdir().unwrap();
        File::create(path.path().join(liveness::LOCK_FILE)).unwrap();
        let directory = File::open(path.path()).unwrap();
        let progress = Progress::default();
        progress.show(&directory);
        let mut patience = Patience::fixed(Duration::ZERO);
        patience.look(&Tester::open(&directory, None).unwrap());
        assert!(patience.seen.is_none() && patience.is_over());
    }
}
