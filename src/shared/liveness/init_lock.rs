//! The initialisation lock.

use super::{Claim, INIT_OFFSET, Tester};
use crate::Result;
use crate::files::dir::LockFileId;
use crate::shared::progress::{Patience, Progress};
use crate::system::clock;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// How often a waiter tries to take the initialisation lock.
const INIT_LOCK_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The initialisation lock excludes opening, joining and the logger's exit from each other.
/// Released on drop.
///
/// The lock is a claim like any other, so that a child forked meanwhile does not keep it when its
/// parent dies.
#[derive(Debug)]
pub(crate) struct InitLock {
    claim: Claim,
    progress: Arc<Progress>,
}

impl InitLock {
    /// Waits for the lock as long as `patience` lasts. Returns `None` if other processes held it
    /// until then. While it is held, `progress` shows its waiters that the holder makes progress.
    pub(crate) fn acquire(
        directory: impl AsFd,
        patience: &mut Patience,
        progress: &Arc<Progress>,
    ) -> Result<Option<InitLock>> {
        let mut tester = None;
        loop {
            if let Some(claim) = Claim::take(&directory, INIT_OFFSET)? {
                progress.show(&directory);
                return Ok(Some(InitLock { claim, progress: progress.clone() }));
            }
            if tester.is_none() {
                tester = Tester::open(&directory, None).ok();
            }
            if let Some(tester) = &tester {
                patience.look(tester);
            }
            let left = patience.left();
            if left.is_zero() {
                return Ok(None);
            }
            clock::sleep(INIT_LOCK_POLL_INTERVAL.min(left));
        }
    }

    /// Records that a bounded piece of work under the lock is done.
    pub(crate) fn step(&self) {
        self.progress.step();
    }

    /// Returns the identity of the file that the lock is on.
    pub(crate) fn file_id(&self) -> LockFileId {
        self.claim.file_id()
    }
}

impl Drop for InitLock {
    fn drop(&mut self) {
        // Before the claim ends: the next holder shows its own progress.
        self.progress.hide();
    }
}
