//! Making a region: the `control` of a store that no process has open.
//!
//! Recovery makes one, and so does the first client of a store that was shut down in order
//! (`api/left_in_order.rs`). No process opens a region before its file is named `control`.

use crate::Result;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::header::CheckpointHeader;
use crate::files::slot::SlotImage;
use crate::participant::settings;
use crate::shared::control::Control;
use crate::{Error, shared};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// Name of a region that is not in use yet.
pub(crate) const FRESH: &str = "control.new";

/// Renames the file of an obsolete region to that of a fresh one, so that its blocks are used
/// again. From here on there is no `control`: the log contains all data that the store needs from
/// it.
pub(crate) fn release_control(dir: &Dir) -> Result<()> {
    if is_own_file(dir, dir::CONTROL)? {
        dir.rename_loosely(dir::CONTROL, FRESH)?;
    }
    Ok(())
}

/// Opens the file of a fresh region. Makes it if there is none that belongs to this store alone.
pub(crate) fn fresh_file(dir: &Dir) -> Result<File> {
    match dir.open_file(FRESH, true)? {
        Some(file) if is_own_file(dir, FRESH)? => Ok(file),
        _ => {
            let file = dir.create_empty_file(FRESH)?;
            dir::set_no_cow(&file);
            Ok(file)
        }
    }
}

/// Returns whether a file of this name exists and has no other link, by which another store could
/// share it.
fn is_own_file(dir: &Dir, name: &str) -> Result<bool> {
    let Some(file) = dir.open_file(name, false)? else { return Ok(false) };
    let stat = file.metadata().map_err(Error::io(format!("stat of {name}")))?;
    Ok(stat.is_file() && stat.nlink() == 1)
}

/// Sets the newest state of a region that was just formatted to the checkpoint that `header`
/// describes.
pub(crate) fn begin_at(control: &Control, header: &CheckpointHeader) {
    default_settings(control);
    control.begin_at(&first_image(header));
}

/// Returns the image with which a region begins: no log blocks are reserved, and the log continues
/// at the position from which it is replayed.
fn first_image(header: &CheckpointHeader) -> SlotImage {
    SlotImage { blocks_reserved: 0, log_tail: header.log_position, ..header.image }
}

/// Sets the initial settings of a region that no client uses yet.
pub(crate) fn default_settings(control: &Control) {
    let words = &control.fixed().logger.settings;
    control.cells().set_interval(settings::SAMPLE_INTERVAL_DEFAULT);
    words.set_policy(0, 0);
    words.set_idle(settings::IDLE_DEFAULT);
    words.set_checkpoint_bytes(settings::CHECKPOINT_BYTES_DEFAULT);
}

/// Returns an error if a region that no logger has begun differs from the one that was made from
/// `header`. No client changes these words before a logger has begun the region.
///
/// # Errors
/// [`Error::Corrupt`] names `control`.
pub(crate) fn refuse_touched(control: &Control, header: &CheckpointHeader) -> Result<()> {
    let fixed = control.fixed();
    let is_of_header = control.newest()? == first_image(header)
        && fixed.stream.tail() == header.log_position
        && fixed.checkpoint.started_and_finished() == (header.txn(), header.txn())
        && control.durable() == Some((header.txn(), header.log_position))
        && control.cell_bound()? == 0;
    if is_of_header {
        return Ok(());
    }
    let remedy = shared::control::REOPEN_REMEDY;
    let what = format!("the region of a store that was left in order has changed before a logger began it; {remedy}");
    Err(Error::corrupt(dir::CONTROL, 0, what))
}
