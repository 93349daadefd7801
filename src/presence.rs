//! Presence: what shows other processes that a participant of a store, client or logger, is alive.
//!
//! It is a locked byte of `lock`, at the offset of the participant's id (`shm/liveness.rs`).

use crate::dir::Dir;
use crate::shm::liveness::{Claim, LockFileId};
use crate::{ClientId, Error, Result, dir};
use std::ops::Range;

/// A participant's proof of life, as long as this lives.
#[derive(Debug)]
pub(crate) struct Presence {
    id: ClientId,
    in_lock: Claim,
}

impl Presence {
    /// Takes a new random id in `ids`. The caller holds the initialisation lock, whose file is `lock_file`.
    ///
    /// # Errors
    /// [`Error::Detached`] if `lock` is another file by now.
    pub(crate) fn take(dir: &Dir, ids: Range<u64>, lock_file: LockFileId) -> Result<Presence> {
        let (id, in_lock) = dir.with_fd(|fd| Claim::take_new_id(fd, ids))?;
        if in_lock.file_id() != lock_file {
            return Err(Error::Detached { reason: format!("{} was replaced during the opening", dir::LOCK) });
        }
        Ok(Presence { id, in_lock })
    }

    pub(crate) fn id(&self) -> ClientId {
        self.id
    }

    /// An error if this process has lost its proof of life. Other processes then treat it as dead: they take its locks
    /// over, reuse the pages that it has pinned, and may have a logger of their own. So each entry of a handle asks, and a
    /// commit asks again just before it publishes. Not covered: what a thread does between the question and its end, and bytes
    /// of values that are already lent out.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.in_lock.is_lost() { Err(lost_descriptor()) } else { Ok(()) }
    }
}

#[cold]
pub(crate) fn lost_descriptor() -> Error {
    Error::Detached {
        reason: format!(
            "something in this process has closed a descriptor of {} that it did not open, by close_range() for instance; on this file \
             system the descriptor shows other processes that this one is alive",
            dir::LOCK
        ),
    }
}
