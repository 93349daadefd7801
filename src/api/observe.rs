//! A look at a store from outside: its figures, without joining it, starting a logger, or changing
//! a byte of it.
//!
//! What is shared is mapped for reading only, for as long as the look takes, so nothing here can
//! write there, not even by mistake.

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

/// What [`observe`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Observation {
    /// Processes have the store open, or its logger serves it. If [`Stats::logger_pid`] is `None`
    /// there is no logger just now: who waits for durability starts one.
    Live(Box<Stats>),
    /// A logger is at work, but does not serve yet: it recovers the store.
    Starting,
    /// Nobody has the store open, and it has no logger.
    Unused,
}

/// Looks at the store in the directory `path` from outside, for monitoring: neither is the caller a
/// client then, nor does anything start, wait, or change. Needs the right to read the store's
/// files, not to write them; the store must be the caller's own, unless
/// [`Options::foreign_owner`](crate::Options::foreign_owner) allows otherwise: see
/// [`Options::observe`](crate::Options::observe).
///
/// Unlike [`crate::Store::stats`] it can't tell how many pages each snapshot holds back, for that
/// takes a snapshot of its own. All else is the same. Takes well below a millisecond; never blocks.
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

/// As [`observe`], also of another user's store.
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
        // Until a logger has recovered the store, it leaves what an earlier one shared.
        Some(found) => refuse(MismatchKind::OtherLayout { found: found.into(), known: LAYOUT.into() }),
        None if has_clients => refuse(MismatchKind::OtherBoot),
        None => Ok(Observation::Starting),
    }
}
