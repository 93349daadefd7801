//! Presence: the proof to other processes that a participant of a store, client or logger, is
//! alive.
//!
//! The proof consists of two locks. One is on a byte of `lock`, at the offset of the participant's
//! id (`shared/liveness.rs`). The other is a shared lock on one byte of `arena`, whose offset is
//! derived from the inode of `lock`.
//!
//! **Why the second lock.** `lock` is an empty file, which invites deletion. A process that then
//! opens the store makes another `lock` and finds no claim in it. Without the second lock, it would
//! recover the store while participants live. `arena` holds the data and is not removed by mistake.
//! Each participant takes its claims first, and then checks for claims on `arena` that belong to
//! another `lock`. If there are any, it neither recovers nor joins. Of two participants that start
//! at once, at least one sees the other. As long as a participant holds `lock` open, by its mapping
//! or its descriptor, no other file has that inode.

use crate::error::reason::{DetachedReason, MismatchKind};
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::dir::LockFileId;
use crate::shared::liveness;
use crate::shared::liveness::Claim;
use crate::system::clock;
use crate::{ClientId, Error, Result};
use std::ops::Range;
use std::time::Duration;

/// How long an opener waits for participants of another `lock` to end. A logger that rests beside
/// clients notices within 3 s that `lock` is gone (`DEAD_CLIENT_CHECK_INTERVAL`), and then leaves.
const OTHER_CLAIMS_TIMEOUT: Duration = Duration::from_secs(6);
const OTHER_CLAIMS_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A participant's proof of life, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Presence {
    id: ClientId,
    _in_arena: Claim,
    in_lock: Claim,
}

/// Returns an error if participants live whose claims are in another `lock` file than this one.
///
/// # Errors
/// [`Error::Mismatch`] names `lock`.
pub(crate) fn refuse_others(dir: &Dir, lock_file: LockFileId) -> Result<()> {
    let start = clock::now();
    let mine = liveness::arena_offset(lock_file);
    dir.need_file(dir::ARENA, false)?;
    while dir.with_fd(|fd| liveness::is_held_beside(fd, dir::ARENA, mine))? {
        if clock::since(start) > OTHER_CLAIMS_TIMEOUT {
            return Err(Error::Mismatch { file: dir::LOCK.into(), what: MismatchKind::LockReplaced });
        }
        clock::sleep(OTHER_CLAIMS_POLL_INTERVAL);
    }
    Ok(())
}

impl Presence {
    /// Takes a new random id in `ids`. The caller holds the initialisation lock, whose file is
    /// `lock_file`.
    ///
    /// # Errors
    /// [`Error::Detached`] if `lock` has been replaced by another file.
    pub(crate) fn take(dir: &Dir, ids: Range<u64>, lock_file: LockFileId) -> Result<Presence> {
        let (id, in_lock) = dir.with_fd(|fd| Claim::take_new_id(fd, ids))?;
        if in_lock.file_id() != lock_file {
            return Err(Error::Detached { reason: DetachedReason::LockReplacedInOpen });
        }
        dir.need_file(dir::ARENA, false)?;
        let in_arena = dir.with_fd(|fd| Claim::share(fd, dir::ARENA, liveness::arena_offset(lock_file)))?;
        Ok(Presence { id, _in_arena: in_arena, in_lock })
    }

    pub(crate) fn id(&self) -> ClientId {
        self.id
    }

    /// Returns whether the host can end the proof of life, by closing a descriptor. If not,
    /// [`Presence::check`] never fails.
    #[inline]
    pub(crate) fn can_be_lost(&self) -> bool {
        self.in_lock.is_kept_by_descriptor()
    }

    /// Returns an error if this process has lost its proof of life. Other processes then treat it
    /// as dead: they take its locks over, reuse the pages that it has pinned, and may have a logger
    /// of their own. So each entry point of a handle calls this, and a commit calls it again just
    /// before it publishes. Two things are not covered: what a thread does between the check and
    /// the end of its call, and bytes of values that are already lent out.
    pub(crate) fn check(&self) -> Result<()> {
        if self.in_lock.is_lost() { Err(lost_descriptor()) } else { Ok(()) }
    }
}

#[cold]
pub(crate) fn lost_descriptor() -> Error {
    Error::Detached { reason: DetachedReason::DescriptorClosed }
}
