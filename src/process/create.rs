//! Creates the files of a new store. Each file is complete before it gets its name.
//!
//! The header is created last. A directory without a header contains no store, whatever files a
//! process that was killed here has left.

use crate::error::reason::MismatchKind;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::geometry::Geometry;
use crate::files::header::CheckpointHeader;
use crate::files::slot::SlotImage;
use crate::participant::settings::RETENTION_DEFAULT;
use crate::shared::liveness::InitLock;
use crate::shared::memory::arena::Arena;
use crate::{Error, Result};
use std::os::unix::fs::FileExt;
use untorn_wal::Lsn;

/// Creates the store's files if there is no header yet. The caller holds the initialisation lock,
/// `init`.
pub(crate) fn ensure_store(dir: &Dir, geometry: &Geometry, init: &InitLock) -> Result<()> {
    if dir.open_file(dir::CHECKPOINT, false)?.is_some() {
        return Ok(());
    }
    refuse_headless(dir)?;
    // The process that made the directory may not have synced the directory's name, because it died
    // or is slow.
    dir.sync_parent()?;
    init.step();
    let mut store_id = [0; 16];
    rustix::rand::getrandom(&mut store_id, rustix::rand::GetRandomFlags::empty())
        .map_err(Error::sys("random number for the store's id"))?;
    crash_point!("create.before_arena");
    dir.create_file(dir::ARENA, |file| {
        dir::set_no_cow(file);
        Arena::format(file, store_id, geometry)
    })?;
    crash_point!("create.arena_created");
    init.step();
    dir.ensure_folder(dir::WAL)?;
    crash_point!("create.log_created");
    init.step();
    let header = CheckpointHeader {
        store_id,
        geometry: *geometry,
        serial: 1,
        log_position: Lsn::ZERO,
        clean: true,
        retention: RETENTION_DEFAULT,
        roots_sum: 0,
        image: SlotImage::empty(),
    };
    dir.create_file(dir::CHECKPOINT, |file| {
        // Both slots are valid from the start, and one is older than the other.
        for serial in [0, 1] {
            let bytes = CheckpointHeader { serial, ..header }.encode();
            file.write_all_at(&bytes, serial * bytes.len() as u64).map_err(Error::io("write of checkpoint"))?;
        }
        Ok(())
    })?;
    crash_point!("create.done");
    Ok(())
}

/// Returns an error if the directory has log segments but no header. Such a store has lost its
/// header, and creating a new store over it would destroy data that may still be recovered.
fn refuse_headless(dir: &Dir) -> Result<()> {
    let Some(folder) = dir.open_folder(dir::WAL)? else { return Ok(()) };
    // A log that can't be listed may contain segments, so that is an error.
    for entry in rustix::fs::Dir::new(folder).map_err(Error::sys("listing of wal"))? {
        let entry = entry.map_err(Error::sys("listing of wal"))?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("seg-") {
            return Err(Error::Mismatch { file: dir::CHECKPOINT.into(), what: MismatchKind::MissingHeader });
        }
    }
    Ok(())
}
