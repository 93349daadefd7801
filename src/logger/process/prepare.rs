//! What a logger does before it serves: it checks the files, and attaches to the living clients,
//! adopts the region of dead ones, or recovers the store.

use super::state::Logger;
use crate::error::reason::MismatchKind;
use crate::files::descriptor::Descriptor;
use crate::files::dir;
use crate::files::dir::{Dir, LockFileId};
use crate::files::header::CheckpointHeader;
use crate::files::log::{log_error, open_log};
use crate::files::memory_mark;
use crate::logger::flush::Flusher;
use crate::logger::recover::{RegionFile, RegionKind};
use crate::logger::{adopt, background, check, recover, rehearse};
use crate::participant::checked_pages::CheckedPages;
use crate::participant::engine::{Engine, has_clients};
use crate::participant::rest::Rest;
use crate::process::client::attach;
use crate::process::region;
use crate::shared::control::Control;
use crate::shared::liveness;
use crate::shared::liveness::{Claim, LOGGER_IDS, Tester};
use crate::shared::memory::arena::Arena;
use crate::shared::presence;
use crate::shared::presence::Presence;
use crate::shared::progress::Progress;
use crate::system::sync::{Condvar, Mutex};
use crate::txn::check::{check_arena, refuse_last_segment, refuse_old_header};
use crate::txn::replay::ExtentPlan;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Weak};
use std::time::Duration;
use untorn_wal::{LogShape, RealDisk, SegmentCatalog, SegmentPool, StoreId};

/// Retries of a recovery that found the device full and gave blocks back. A retry makes spares
/// again, which it can give back again, so only this limit ends a recovery whose device stays full.
const GIVE_BACK_RETRIES_MAX: u32 = 2;

/// What an attempt to serve learns for the next one.
#[derive(Default)]
struct Attempt {
    /// The fresh region is made in memory: a file for it lacked blocks.
    in_memory: bool,
    /// Some blocks were freed: those of the log's files, or of the fresh region.
    has_given_back: bool,
    /// The region of dead processes is being adopted.
    is_adopting: bool,
    /// Adopting it has failed, so the store is recovered.
    adopts_nothing: bool,
}

/// Attaches to the `control` of the living clients, or adopts that of dead ones, or recovers the
/// store and creates a fresh one.
pub(super) fn prepare(
    dir: &Dir,
    lock_file: LockFileId,
    byte: &Arc<Claim>,
    progress: &Arc<Progress>,
) -> Result<(Arc<Logger>, Flusher)> {
    let mut attempt = Attempt::default();
    let mut retries = GIVE_BACK_RETRIES_MAX;
    loop {
        (attempt.has_given_back, attempt.is_adopting) = (false, false);
        let byte = Arc::downgrade(byte);
        match try_to_prepare(dir.again()?, lock_file, byte, progress, &mut attempt) {
            Err(error) if attempt.is_adopting => {
                tracing::warn!(%error, "the region of dead processes can't be continued; recovering the store");
                attempt.adopts_nothing = true;
            }
            Err(Error::DiskFull { .. }) if attempt.has_given_back && retries > 0 => retries -= 1,
            prepared => return prepared,
        }
    }
}

/// Does what [`prepare`] does, and records in `attempt` what the next attempt needs to know.
fn try_to_prepare(
    dir: Dir,
    lock_file: LockFileId,
    byte: Weak<Claim>,
    progress: &Arc<Progress>,
    attempt: &mut Attempt,
) -> Result<(Arc<Logger>, Flusher)> {
    let (mut header, damage) = CheckpointHeader::read(&dir.need_file(dir::CHECKPOINT, true)?)?;
    // The damaged header may have been newer, and have recorded that the store was in use again.
    header.clean &= damage.is_none();
    header.refuse_exhausted()?;
    let steps = progress.clone();
    let disk = Arc::new(open_log(&dir)?.with_steps(Arc::new(move || steps.step())));
    let shape = LogShape::new(StoreId(header.store_id), header.geometry.segment_size).map_err(log_error)?;
    let segment_catalog = SegmentCatalog::read(&*disk, &shape).map_err(log_error)?;
    refuse_old_header(&header, damage, &segment_catalog.log_state)?;
    refuse_last_segment(&segment_catalog)?;
    segment_catalog.refuse_broken(header.log_position, header.clean).map_err(log_error)?;
    let old = attach(&dir, &header)?;
    let alive = dir.with_fd(|fd| Ok(has_clients(&Tester::open(fd, Some(lock_file))?)))?;
    let is_of_log = |control: &Control| control.is_of_log(segment_catalog.segments.last().map(|newest| &newest.header));
    // No segment has the number of a region that no logger has begun.
    let is_fresh = |control: &Control| alive && control.poison() == 0 && !control.is_begun();
    let old = match old {
        Some(control) if is_fresh(&control) || is_of_log(&control) => Some(control),
        Some(_) if alive => {
            return Err(Error::Mismatch { file: dir::WAL.into(), what: MismatchKind::LogReplaced });
        }
        _ => None,
    };
    let presence = Presence::take(&dir, LOGGER_IDS, lock_file)?;
    // Its own claim first: of two participants that start at once, one sees the other.
    presence::refuse_others(&dir, lock_file)?;
    let me = presence.id();
    let lock_reserve = dir.with_fd(|fd| liveness::open_reserve(fd, lock_file))?;
    let arena_file = dir.need_file(dir::ARENA, true)?;
    let arena = Arc::new(Arena::open(&arena_file, header.store_id, &header.geometry, header.image.high_water)?);
    let arena_len = arena_file.metadata().map_err(Error::io("stat of arena"))?.len();
    if let Some(old) = &old {
        old.know_arena(arena_len);
    }
    let engine = |control: Control, dir: Dir, arena: Arc<Arena>, lock_reserve: Descriptor, presence: Presence| Engine {
        dir,
        store_id: header.store_id,
        geometry: header.geometry,
        control,
        arena,
        me,
        pid: std::process::id(),
        lock_file,
        lock_reserve,
        logger_timeout: Duration::from_secs(3600),
        spawner: None,
        awaits_begin: AtomicBool::new(false),
        has_failed: AtomicBool::new(false),
        pin_scan: Mutex::default(),
        checked_pages: CheckedPages::default(),
        progress: progress.clone(),
        logger_seen_ns: AtomicU64::new(0),
        presence,
    };
    // A poisoned region is not trusted.
    let trusted = old.as_ref().filter(|old| old.poison() == 0);
    let begins = old.as_ref().is_some_and(is_fresh);
    if begins {
        // A logger that died before it had begun the region may have written the header already.
        // No commit has followed that one.
        header.clean = true;
    }
    let unbegun = old.as_ref().filter(|_| begins);
    let mut adopts = false;
    let mut plan = ExtentPlan::default();
    let (dir, lock_reserve, presence) = match alive && !begins {
        true => (dir, lock_reserve, presence),
        false => {
            let mut check = || {
                check_arena(&arena, &header, progress)?;
                let trusted = trusted.filter(|_| unbegun.is_none());
                let log_state = &segment_catalog.log_state;
                let files =
                    adopt::Files { dir: &dir, arena_file: &arena_file, arena: &arena, header: &header, log_state };
                let old = trusted.filter(|_| !attempt.adopts_nothing);
                let mut candidate = old.map(|old| adopt::Candidate::new(old, &files));
                let compared = candidate.as_mut().and_then(|candidate| candidate.as_mut().ok());
                let (holds_any, found) =
                    check::check_log(&disk, &segment_catalog, &header, &arena, trusted, compared, progress)?;
                plan = found;
                if let Some(unbegun) = unbegun {
                    refuse_changes(unbegun, &header, holds_any)?;
                }
                match candidate.map(|candidate| candidate.and_then(adopt::Candidate::verdict)) {
                    Some(Err(why)) => tracing::info!(%why, "recovering the store, whose processes have all died"),
                    // The region contains the transaction whose value is missing.
                    Some(Ok(())) => adopts = !plan.is_cut(),
                    None => {}
                }
                let is_needed = !adopts && (holds_any || trusted.is_some());
                // A process that lacks the memory for it recovers anyway.
                Ok(if is_needed {
                    rehearse::scratch(&header, &arena, &arena_file, &plan).unwrap_or(None)
                } else {
                    None
                })
            };
            match check().map_err(check::with_remedy)? {
                None => (dir, lock_reserve, presence),
                Some((control, arena)) => {
                    let rehearsal = engine(control, dir, arena, lock_reserve, presence);
                    rehearse::run(&rehearsal, &header, &disk, &shape, trusted, &plan).map_err(check::with_remedy)?;
                    let Engine { dir, lock_reserve, presence, .. } = rehearsal;
                    (dir, lock_reserve, presence)
                }
            }
        }
    };
    arena.make_writable(|| arena_file.try_clone().map_err(Error::io("duplicating the descriptor of arena")))?;
    let logger = |engine: Engine, pool: Arc<SegmentPool<RealDisk>>| {
        Arc::new(Logger {
            engine,
            pool,
            byte,
            writing: Mutex::default(),
            stating: Mutex::default(),
            stated: Condvar::new(),
            rest: Arc::new(Rest::new()),
            is_starved: AtomicBool::new(false),
            sampler_ending: AtomicBool::new(false),
            background_ending: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        })
    };
    let (logger, flusher) = match old {
        Some(control) if begins => {
            memory_mark::clear_all(&dir)?;
            header.retention = control.fixed().logger.settings.retention();
            let pool = SegmentPool::open(disk.clone(), &segment_catalog, header.log_position, header.retention)
                .map_err(log_error)?;
            background::ensure_spares(&pool, 2)?;
            control.know_arena(arena_len);
            control.set_arena(arena.clone())?;
            let region = RegionFile { file: dir.need_file(dir::CONTROL, true)?, kind: RegionKind::InPlace };
            control.refuse_other_file(&region.file)?;
            let engine = engine(control, dir, arena, lock_reserve, presence);
            let recovered = recover::replay(&engine, &header, &pool, &disk, &shape, None, &plan)?;
            let logger = logger(engine, pool);
            logger.enter_control();
            let flusher = recover::finish(logger.clone(), recovered, region, None)?;
            (logger, flusher)
        }
        Some(control) if alive || adopts => {
            attempt.is_adopting = adopts;
            // No checkpoint is finished that has no header: more than that is a damaged word.
            let finished_lsn = control.fixed().checkpoint.finished_lsn();
            let retention = control.fixed().logger.settings.retention();
            let pool = SegmentPool::open(disk, &segment_catalog, finished_lsn.min(header.log_position), retention)
                .map_err(log_error)?;
            background::ensure_spares(&pool, 2)?;
            control.set_arena(arena.clone())?;
            if adopts {
                adopt::begin(&control, &arena_file, me)?;
            }
            let logger = logger(engine(control, dir, arena, lock_reserve, presence), pool);
            // Attaching acknowledges what was left. A client that sees the acknowledgement may ask
            // this logger to exit.
            logger.enter_control();
            let flusher = Flusher::attach(logger.clone(), &header, &segment_catalog.log_state, adopts)?;
            match adopts {
                true => adopt::end(&logger)?,
                false => tracing::info!(
                    durable = flusher.durable_txn(),
                    "took over from a logger that ended while clients had the store open"
                ),
            }
            (logger, flusher)
        }
        None if alive => {
            return Err(Error::Mismatch { file: dir::CONTROL.into(), what: MismatchKind::OtherBoot });
        }
        old => {
            // From here on, pages are written that the old region takes for free ones or for its
            // own. If this logger dies, that region must not be adopted.
            memory_mark::clear_all(&dir)?;
            header.retention = old.as_ref().map_or(header.retention, |old| old.fixed().logger.settings.retention());
            // A poisoned region is not trusted.
            let old = old.filter(|old| old.poison() == 0);
            let pool = SegmentPool::open(disk.clone(), &segment_catalog, header.log_position, header.retention)
                .map_err(log_error)?;
            match background::ensure_spares(&pool, 2) {
                // The replay makes space.
                Err(Error::DiskFull { .. }) => {}
                made => made?,
            }
            let (control, region) = recover::fresh_control(&dir, &header, old.as_ref(), &pool, attempt.in_memory)?;
            // The region's word is set only after recovery has backed that length with blocks.
            control.know_arena(arena_len);
            control.set_arena(arena.clone())?;
            let moves_to_memory = old.is_some() && region.kind != RegionKind::Memory;
            control.fixed().logger.settings.set_retention(header.retention);
            if let Some(old) = &old {
                control.continue_region(old);
            }
            let engine = engine(control, dir, arena, lock_reserve, presence);
            let recover = || {
                let recovered = recover::replay(&engine, &header, &pool, &disk, &shape, old.as_ref(), &plan)?;
                let logger = logger(engine, pool.clone());
                logger.enter_control();
                let flusher = recover::finish(logger.clone(), recovered, region, old.as_ref())?;
                Ok((logger, flusher))
            };
            let served = recover();
            if matches!(served, Err(Error::DiskFull { .. })) {
                // The next attempt finds the free blocks.
                attempt.in_memory |= moves_to_memory;
                attempt.has_given_back |= moves_to_memory;
                while pool.yield_kept(true, || ()).map_err(log_error)? {
                    attempt.has_given_back = true;
                }
                while pool.remove_spare().map_err(log_error)? {
                    attempt.has_given_back = true;
                }
            }
            served?
        }
    };
    logger.count_segments();
    // Threads that wait for work of the dead logger check again.
    logger.engine.wake_waiters();
    Ok((logger, flusher))
}

/// Returns an error if `unbegun`, the region that the first client of a store left in order has
/// made, is not as it was made, or if the log holds anything after the checkpoint. No client writes
/// before a logger has begun the region, so other code has changed the files.
fn refuse_changes(unbegun: &Control, header: &CheckpointHeader, holds_any: bool) -> Result<()> {
    if holds_any {
        return Err(Error::Mismatch { file: dir::WAL.into(), what: MismatchKind::LogReplaced });
    }
    region::refuse_touched(unbegun, header)
}
