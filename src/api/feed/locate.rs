//! The log position at which a follower resumes that has consumed every transaction up to a given
//! one.
//!
//! The commit slots contain the exact positions of the last few transactions. Headers of segments
//! and batches contain resume points: positions at which a record begins and before which every
//! transaction has ended. The reader skips the transactions after a resume point that the follower
//! has consumed already.

use crate::api::feed::reader::open_segments;
use crate::files::log::log_error;
use crate::participant::engine::Engine;
use crate::process::client::DirectClient;
use crate::txn::catalog;
use crate::{Error, Result, TxnId};
use std::sync::Arc;
use untorn_wal::{LogError, Lsn, oldest_resume_point, resume_point_at_or_before};

/// Returns a position at or before the first record of the transaction after `from`.
///
/// # Errors
/// [`Error::Diverged`] if there is no such transaction, or none any more; [`Error::Lagged`] if the
/// log does not reach back to it.
pub(crate) fn position_after(client: &Arc<DirectClient>, from: TxnId) -> Result<Lsn> {
    let engine = &client.engine;
    let (pin, image) = client.pin_image()?;
    let lost = |(next, last): &(u32, TxnId)| from.incarnation() < *next && from > *last;
    if from > image.txn || catalog::incarnations(&pin.pages(client), &image.catalog)?.iter().any(lost) {
        return Err(Error::Diverged { txn: from });
    }
    drop(pin);
    if from == image.txn {
        return Ok(image.log_tail);
    }
    // In a region that began later, the slot of transaction zero is all zeros.
    if from != TxnId::ZERO
        && let Some(image) = engine.control.image(from)?
    {
        return Ok(image.log_tail);
    }
    let (disk, shape) = open_segments(engine)?;
    let stated = resume_point_at_or_before(&disk, &shape, from.as_u64())
        .map_err(log_error)?
        .map(|resume_point| resume_point.position);
    let durable = engine.control.durable_image().filter(|image| image.txn <= from).map(|image| image.log_tail);
    if let Some(position) = stated.max(durable) {
        return Ok(position);
    }
    let (oldest, position) = oldest(engine)?;
    if oldest <= from { Ok(position) } else { Err(Error::Lagged { oldest }) }
}

/// Returns the oldest transaction after which the log can be followed, and the position there.
pub(super) fn oldest(engine: &Engine) -> Result<(TxnId, Lsn)> {
    let (disk, shape) = open_segments(engine)?;
    // Segments that are recycled during the search leave older ones behind, from which the log has
    // a gap.
    for _ in 0..3 {
        match oldest_resume_point(&disk, &shape) {
            Ok(Some(resume_point)) => return Ok((TxnId::from_u64(resume_point.txn), resume_point.position)),
            Ok(None) | Err(LogError::Gap { .. }) => {}
            // A read error is not `Lagged`: what the follower needs may still be there.
            Err(error) => return Err(log_error(error)),
        }
    }
    let newest = engine.control.newest()?;
    Ok((newest.txn, newest.log_tail))
}
