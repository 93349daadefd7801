//! Monitoring of a store from outside: its figures, without joining it, starting a logger, or
//! changing a byte of it.
//!
//! The shared memory is mapped read-only, for the duration of the call, so nothing here can write
//! to it, not even by mistake.

use crate::error::reason::MismatchKind;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::header::CheckpointHeader;
use crate::files::owner::Ownership;
use crate::participant::engine::has_clients;
use crate::shared::control::{Control, LAYOUT};
use crate::shared::liveness::{LOGGER_OFFSET, Tester};
use crate::shared::stats::Stats;
use crate::{Error, Result};
use std::path::Path;

/// The result of [`observe`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Observation {
    /// Processes have the store open, or its logger serves it. If [`Stats::logger_pid`] is `None`,
    /// there is no logger now; a client that waits for durability starts one.
    Live(Box<Stats>),
    /// A logger runs, but does not serve yet: it recovers the store.
    Starting,
    /// No process has the store open, and it has no logger.
    Unused,
}

/// Reads the figures of the store in the directory `path` from outside, for monitoring. The caller
/// does not become a client; nothing is started, waited for, or changed. Needs the right to read
/// the store's files, not to write them. The store must belong to the caller, unless
/// [`Options::foreign_owner`](crate::Options::foreign_owner) allows otherwise: see
/// [`Options::observe`](crate::Options::observe).
///
/// Unlike [`crate::Store::stats`], it does not count the pages that each snapshot protects from
/// reuse, because that needs a snapshot of its own. All other figures are the same. Takes well
/// below a millisecond; never blocks.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// # let store = untorn::Store::open(&path)?;
/// use untorn::Observation;
///
/// match untorn::observe(&path)? {
///     Observation::Live(stats) => println!("{} commits are visible and not durable", stats.lag_txns),
///     Observation::Starting => println!("it is being recovered"),
///     other => println!("{other:?}"),
/// }
/// # store.close()?;
/// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotFound`] if there is no store; [`Error::Permission`]; [`Error::Corrupt`];
/// [`Error::Mismatch`] if it is in use by another version of this library, or not by this boot of
/// this kernel.
pub fn observe(path: impl AsRef<Path>) -> Result<Observation> {
    observe_as(path.as_ref(), Ownership::Own)
}

/// Does what [`observe`] does, also for another user's store.
pub(crate) fn observe_as(path: &Path, ownership: Ownership) -> Result<Observation> {
    let dir = Dir::open(path, false, true, ownership)?;
    let Some(checkpoint) = dir.open_file(dir::CHECKPOINT, false)? else {
        return Err(Error::NotFound { path: path.into() });
    };
    let tester = dir.with_fd(|fd| Tester::open_to_look(fd))?;
    let has_clients = has_clients(&tester);
    let has_logger = tester.is_held(LOGGER_OFFSET)?;
    if !has_clients && !has_logger {
        return Ok(Observation::Unused);
    }
    let header = CheckpointHeader::read(&checkpoint)?.0;
    let file = dir.open_file(dir::CONTROL, false)?;
    let control = match &file {
        Some(file) => Control::look_into(file, header.store_id, &header.geometry, dir::boot_id()?)?,
        None => None,
    };
    if let Some(control) = control {
        return Ok(Observation::Live(Box::new(Stats::read(&control, &header.geometry, Some(&tester))?)));
    }
    let foreign = match &file {
        Some(file) => Control::foreign_layout(file, header.store_id, dir::boot_id()?)?,
        None => None,
    };
    let refuse = |what| Err(Error::Mismatch { file: dir::CONTROL.into(), what });
    match foreign {
        // Until a logger has recovered the store, `control` is the one of an earlier logger.
        Some(found) => refuse(MismatchKind::OtherLayout { found: found.into(), known: LAYOUT.into() }),
        None if has_clients => refuse(MismatchKind::OtherBoot),
        None => Ok(Observation::Starting),
    }
}
