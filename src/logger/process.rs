//! The life of a logger: it takes its byte under the initialisation lock, recovers if nobody lives, serves,
//! and leaves when it is no longer needed.
//!
//! Opens take their byte, and the logger decides to leave, under the initialisation lock, so they can't
//! miss each other. There is one logger, since there is one byte.

use crate::files::descriptor::Descriptor;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::dir::LockFileId;
use crate::files::header::Header;
use crate::files::log::{log_error, open_log};
use crate::logger::flush::Flusher;
use crate::logger::{background, check, checkpoint, recover, rehearse, sampler};
use crate::participant::engine::{Engine, has_clients, now_ns};
use crate::participant::keeper::Host;
use crate::participant::panics::Panics;
use crate::participant::rest::{ALONE_LONGEST, DEAD_INTERVAL, Rest};
use crate::participant::settings;
use crate::process::client::{attach, lock_init};
use crate::server::{self, Server};
use crate::shared::control::Control;
use crate::shared::liveness;
use crate::shared::liveness::{Claim, InitLock, LOGGER_IDS, LOGGER_OFFSET, Tester};
use crate::shared::memory::arena::Arena;
use crate::shared::presence;
use crate::shared::presence::Presence;
use crate::shared::progress::{Patience, Progress};
use crate::shared::protocols::atomic::{Native, Woken};
use crate::shared::protocols::lock::CommitClass;
use crate::shared::protocols::waiter;
use crate::{Error, Result, TxnId, limits};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use untorn_wal::{LogShape, Lsn, Pool, RealDisk, StoreId, Survey};

/// How often the logger looks whether it is still needed, unless it rests.
const LOOK: Duration = Duration::from_millis(25);
/// How long a logger that was told to leave waits for the writer lock, to take a last checkpoint. It holds
/// the initialisation lock meanwhile, so nobody can open the store.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a logger waits for the initialisation lock while its holder makes no visible progress.
pub(crate) const INIT_TIMEOUT: Duration = Duration::from_secs(60);

/// What the threads of a logger share.
pub(crate) struct Logger {
    pub(crate) engine: Engine,
    pub(crate) pool: Arc<Pool<RealDisk>>,
    /// The logger's byte, as long as this logger has it.
    byte: Weak<Claim>,
    /// The threads of the logger that take the writer lock do so in turn.
    pub(crate) writing: Mutex<()>,
    /// A finished checkpoint that a block of the log is to state, and the newest one stated.
    stating: Mutex<Stating>,
    stated: Condvar,
    pub(crate) rest: Arc<Rest>,
    /// The device has no room for another log segment, as of the last try.
    pub(crate) is_starved: AtomicBool,
    /// The sampler is to end, then the background and the checkpoint thread, and then the flush thread.
    pub(crate) sampler_ending: AtomicBool,
    pub(crate) background_ending: AtomicBool,
    pub(crate) ending: AtomicBool,
}

#[derive(Default)]
struct Stating {
    wanted: Option<(TxnId, Lsn)>,
    done: Option<TxnId>,
    failed: bool,
    /// The flush thread is to grant again what log there is.
    grants: bool,
}

/// How a logger's life ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// Another logger holds the byte.
    NotNeeded,
    /// It was idle, told to leave, or its directory is gone.
    Left,
}

/// How a logger serves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    /// How long it stays without clients, if not as long as clients say.
    pub(crate) stay: Option<Duration>,
    pub(crate) host: Host,
}

impl Service {
    pub(crate) fn of(host: Host) -> Service {
        Service { stay: None, host }
    }
}

/// Serves as the logger of the store at `dir` until it is no longer needed. Blocks. Calls `on_ready` when
/// clients can join, or when another logger is found to serve.
pub(crate) fn run(dir: Dir, service: Service, on_ready: impl FnOnce()) -> Result<Ended> {
    let progress = Arc::default();
    let init = lock_init(&dir, &mut Patience::new(INIT_TIMEOUT), &progress)?;
    let Some(byte) = dir.with_fd(|fd| Claim::take(fd, LOGGER_OFFSET))?.map(Arc::new) else {
        on_ready();
        return Ok(Ended::NotNeeded);
    };
    crash_point!("logger.byte_taken");
    let began = Instant::now();
    let path = dir.path().display().to_string();
    let (logger, flusher) = prepare(&dir, init.file_id(), &byte, &progress)
        .inspect_err(|error| tracing::error!(%path, %error, "the logger can't serve"))?;
    let committed = logger.engine.control.committed();
    let took_ms = began.elapsed().as_millis() as u64;
    tracing::info!(%path, logger_pid = std::process::id(), %committed, took_ms, "logger started");
    let init = serve(&logger, flusher, service, || {
        drop(init);
        crash_point!("logger.ready");
        on_ready();
    })?;
    // The byte first: whoever joins next finds it free. The other way round, a client could join in between,
    // and go on beneath a header that says that the store was left in order.
    drop(byte);
    crash_point!("logger.byte_dropped");
    drop(init);
    tracing::info!(%path, "logger left");
    Ok(Ended::Left)
}

/// Retries of a recovery that found the device full and gave blocks back. A retry makes spares
/// again, which it can give back again, so only this limit ends a recovery whose device stays full.
const GIVE_BACK_RETRIES_MAX: u32 = 2;

/// Attaches to the living clients' `control`, or recovers and makes a fresh one.
fn prepare(
    dir: &Dir,
    lock_file: LockFileId,
    byte: &Arc<Claim>,
    progress: &Arc<Progress>,
) -> Result<(Arc<Logger>, Flusher)> {
    let mut in_memory = false;
    let mut retries = GIVE_BACK_RETRIES_MAX;
    loop {
        let mut has_given_back = false;
        let byte = Arc::downgrade(byte);
        match try_to_prepare(dir.again()?, lock_file, byte, progress, &mut in_memory, &mut has_given_back) {
            Err(Error::DiskFull { .. }) if has_given_back && retries > 0 => retries -= 1,
            prepared => return prepared,
        }
    }
}

/// As [`prepare`]. If the disk is full, `has_given_back` says that some blocks were given back for
/// it: of the log's files, or of the fresh region, which is to be made `in_memory` from then on.
fn try_to_prepare(
    dir: Dir,
    lock_file: LockFileId,
    byte: Weak<Claim>,
    progress: &Arc<Progress>,
    in_memory: &mut bool,
    has_given_back: &mut bool,
) -> Result<(Arc<Logger>, Flusher)> {
    let (mut header, damage) = Header::read(&dir.need_file(dir::CHECKPOINT, true)?)?;
    // The damaged one may have been newer, and have said that the store was in use again.
    header.clean &= damage.is_none();
    header.refuse_exhausted()?;
    let steps = progress.clone();
    let disk = Arc::new(open_log(&dir)?.with_steps(Arc::new(move || steps.step())));
    let shape = LogShape::new(StoreId(header.store_id), header.geometry.segment_size).map_err(log_error)?;
    let survey = Survey::take(&*disk, &shape).map_err(log_error)?;
    check::refuse_old_header(&header, damage, &survey.stated)?;
    check::refuse_last_segment(&survey)?;
    survey.refuse_broken(header.log_position, header.clean).map_err(log_error)?;
    let old = attach(&dir, &header)?;
    let alive = dir.with_fd(|fd| Ok(has_clients(&Tester::open(fd, Some(lock_file))?)))?;
    let is_of_log = |control: &Control| control.is_of_log(survey.segments.last().map(|newest| &newest.header));
    let old = match old {
        Some(control) if is_of_log(&control) => Some(control),
        Some(_) if alive => {
            return Err(Error::Mismatch {
                file: dir::WAL.into(),
                what: "processes have the store open, and the log is not the one that they write: its files were replaced; \
                       close the store in all processes and open it again"
                    .into(),
            });
        }
        _ => None,
    };
    let presence = Presence::take(&dir, LOGGER_IDS, lock_file)?;
    // Its own claim first: of two participants that come at once, one sees the other.
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
        keeper: None,
        has_failed: AtomicBool::new(false),
        pin_scan: Mutex::default(),
        progress: progress.clone(),
        logger_seen_ns: AtomicU64::new(0),
        presence,
    };
    // What stands in a region that carries a mark is not to be trusted.
    let trusted = old.as_ref().filter(|old| old.poison() == 0);
    let (dir, lock_reserve, presence) = match alive {
        true => (dir, lock_reserve, presence),
        false => {
            let check = || {
                check::check_arena(&arena, &header, progress)?;
                let holds_any = check::check_log(&disk, &survey, &header, &arena)?;
                let is_needed = holds_any || trusted.is_some();
                if is_needed { rehearse::scratch(&header, &arena, &arena_file) } else { Ok(None) }
            };
            match check().map_err(check::with_remedy)? {
                None => (dir, lock_reserve, presence),
                Some((control, arena)) => {
                    let rehearsal = engine(control, dir, arena, lock_reserve, presence);
                    rehearse::run(&rehearsal, &header, &disk, &shape, trusted).map_err(check::with_remedy)?;
                    let Engine { dir, lock_reserve, presence, .. } = rehearsal;
                    (dir, lock_reserve, presence)
                }
            }
        }
    };
    arena.make_writable(|| Ok(arena_file))?;
    let logger = |engine: Engine, pool: Arc<Pool<RealDisk>>| {
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
        Some(control) if alive => {
            // No checkpoint is finished that has no header: more than that is a damaged word.
            let finished_lsn = Lsn(control.fixed().checkpoint.finished_lsn.load(Ordering::Acquire));
            let retention = settings::retention(&control);
            let pool =
                Pool::open(disk, &survey, finished_lsn.min(header.log_position), retention).map_err(log_error)?;
            background::ensure_spares(&pool, 2)?;
            control.set_arena(arena.clone())?;
            let logger = logger(engine(control, dir, arena, lock_reserve, presence), pool);
            // Attaching acknowledges what was left, and whoever hears of that may tell this logger to leave.
            logger.enter_control();
            let flusher = Flusher::attach(logger.clone(), &header, &survey.stated)?;
            tracing::info!(
                durable = flusher.durable_txn(),
                "took over from a logger that has gone, beside its clients"
            );
            (logger, flusher)
        }
        None if alive => {
            return Err(Error::Mismatch {
                file: dir::CONTROL.into(),
                what: "clients live, but their shared region is gone or of another boot".into(),
            });
        }
        old => {
            header.retention = old.as_ref().map_or(header.retention, settings::retention);
            // What stands in a region that carries a mark is not to be trusted.
            let old = old.filter(|old| old.poison() == 0);
            let pool = Pool::open(disk.clone(), &survey, header.log_position, header.retention).map_err(log_error)?;
            match background::ensure_spares(&pool, 2) {
                // The replay makes room.
                Err(Error::DiskFull { .. }) => {}
                made => made?,
            }
            let (control, region) = recover::fresh_control(&dir, &header, old.as_ref(), &pool, *in_memory)?;
            // The region's word says so only once recovery has backed that length with blocks.
            control.know_arena(arena_len);
            control.set_arena(arena.clone())?;
            let moves_to_memory = old.is_some() && !region.is_memory;
            settings::store_retention(&control, header.retention);
            if let Some(old) = &old {
                control.continue_region(old);
            }
            let engine = engine(control, dir, arena, lock_reserve, presence);
            let recover = || {
                let recovered = recover::replay(&engine, &header, &pool, &disk, &shape, old.as_ref())?;
                let logger = logger(engine, pool.clone());
                logger.enter_control();
                let flusher = recover::finish(logger.clone(), recovered, region, old.as_ref())?;
                Ok((logger, flusher))
            };
            let served = recover();
            if matches!(served, Err(Error::DiskFull { .. })) {
                // The next attempt finds the free blocks.
                *in_memory |= moves_to_memory;
                *has_given_back |= moves_to_memory;
                while pool.yield_kept(true, || ()).map_err(log_error)? {
                    *has_given_back = true;
                }
                while pool.remove_spare().map_err(log_error)? {
                    *has_given_back = true;
                }
            }
            served?
        }
    };
    logger.count_segments();
    // Whoever waits for something that the dead logger was to do looks again.
    logger.engine.wake_waiters();
    Ok((logger, flusher))
}

/// Starts the threads, calls `on_ready`, and looks now and then whether they are still needed.
///
/// Returns with the initialisation lock, if that could be had: nobody has joined since the last checkpoint then.
///
/// # Errors
/// If the system allows no more threads, or if one of them panics: a logger without it would serve nobody. All of them
/// have ended then, so that a successor never runs beside one.
fn serve(
    logger: &Arc<Logger>,
    flusher: Flusher,
    service: Service,
    on_ready: impl FnOnce(),
) -> Result<Option<InitLock>> {
    let panics = &Arc::new(Panics::default());
    let wake_main = || waiter::ring_always::<Native>(&logger.engine.control.fixed().logger.background);
    let panicked = || {
        logger.engine.has_failed.store(true, Ordering::SeqCst);
        wake_main();
    };
    std::thread::scope(|scope| {
        // The scope waits for its threads, also when this one panics.
        let _end = EndThreads(logger);
        let named = |name: &str| std::thread::Builder::new().name(format!("untorn-{name}"));
        let flush = named("flush").spawn_scoped(scope, move || panics.watch("flush", || flusher.run(), panicked));
        let sampler =
            named("sampler").spawn_scoped(scope, move || panics.watch("sampler", || sampler::run(logger), panicked));
        let background = move || panics.watch("background", || background::run(logger), panicked);
        let checkpoint = move || panics.watch("checkpoint", || checkpoint::run(logger), panicked);
        let others =
            [named("background").spawn_scoped(scope, background), named("checkpoint").spawn_scoped(scope, checkpoint)];
        let threads = || others.iter().chain([&sampler, &flush]);
        let served = match threads().find_map(|thread| thread.as_ref().err()) {
            Some(error) => {
                let error = std::io::Error::from(error.kind());
                Err(Error::io("starting the logger's threads")(error))
            }
            None => {
                // The socket is there when clients are told that the logger is. A store can do without it.
                let server = {
                    let waker = logger.clone();
                    let wake_main =
                        move || waiter::ring_always::<Native>(&waker.engine.control.fixed().logger.background);
                    server::start(&logger.engine.dir, &logger.rest, service.host, panics, wake_main)
                };
                on_ready();
                wait_until_unneeded(logger, service, server.as_ref(), panics)
            }
        };
        logger.end_sampler();
        sampler.into_iter().for_each(|thread| drop(thread.join()));
        // The last sample may need more log than there is, which the others make meanwhile.
        let in_order = served.as_ref().is_ok_and(|init| sample_last(logger, init.as_ref()));
        // These end before the flush thread, which the last checkpoint needs.
        logger.end_background();
        others.into_iter().flatten().for_each(|thread| drop(thread.join()));
        if served.is_ok() {
            leave(logger, in_order);
        }
        logger.end_flush();
        flush.into_iter().for_each(|thread| drop(thread.join()));
        // One may have panicked since.
        served.and_then(|init| panics.error().map_or(Ok(init), Err))
    })
}

/// Ends the logger's threads when it is dropped, and their waits if this thread panics.
struct EndThreads<'l>(&'l Logger);

impl Drop for EndThreads<'_> {
    fn drop(&mut self) {
        let logger = self.0;
        if std::thread::panicking() {
            logger.engine.has_failed.store(true, Ordering::SeqCst);
        }
        logger.end_sampler();
        logger.end_background();
        logger.end_flush();
    }
}

/// Waits until nobody has used the store for the idle time, or the logger was told to leave, or the
/// directory is gone. With the initialisation lock if that could be had.
///
/// Whoever is connected by message counts as a client. Opening the store for them takes the initialisation lock: see
/// [`serve`](crate::server) for why nobody waits for the other here.
///
/// # Errors
/// If a thread of the logger has panicked.
fn wait_until_unneeded(
    logger: &Logger,
    service: Service,
    server: Option<&Server>,
    panics: &Panics,
) -> Result<Option<InitLock>> {
    let engine = &logger.engine;
    let words = &engine.control.fixed().logger;
    let mut idle_since = Instant::now();
    let mut was_in_use = true;
    loop {
        let ticket = waiter::listen::<Native>(&words.background);
        // A thread that panics wakes this one. It may have done so before.
        if let Some(error) = panics.error() {
            return Err(error);
        }
        let is_resting = logger.rest.is_resting();
        let nap = match is_resting {
            false => LOOK,
            true if was_in_use => DEAD_INTERVAL,
            true => idle_time(engine, service).saturating_sub(idle_since.elapsed()).clamp(LOOK, ALONE_LONGEST),
        };
        if waiter::sleep::<Native>(&words.background, ticket, nap) == Woken::Perhaps {
            logger.rest.stir(engine);
        }
        if is_resting && background::look_for_the_dead(engine) {
            logger.rest.stir(engine);
        }
        if engine.refuse_cut_off().is_err() || logger.check_present().is_err() {
            return Ok(None);
        }
        let told = words.stop.load(Ordering::Acquire) != 0;
        // A store that refuses writes is recovered by the next logger, so this one makes room at once. Those who pass
        // messages are none the wiser: they connect again.
        let is_marked = engine.control.poison() != 0;
        if is_marked && let Some(server) = server.filter(|server| server.is_sole_client(engine)) {
            server.close();
        }
        let in_use = engine.has_clients();
        was_in_use = in_use;
        if logger.rest.set_alone(!in_use) {
            logger.rest.stir(engine);
        }
        if in_use {
            idle_since = Instant::now();
        }
        let idle = if is_marked { Duration::ZERO } else { idle_time(engine, service) };
        if !told && (in_use || idle_since.elapsed() < idle) {
            continue;
        }
        crash_point!("logger.unneeded");
        if told && let Some(server) = server {
            server.close();
        }
        let Ok(init) = lock_init(&engine.dir, &mut Patience::fixed(LOOK), &engine.progress) else {
            logger.rest.stir(engine);
            continue;
        };
        if told || (!engine.has_clients() && server.is_none_or(Server::close_if_idle)) {
            return Ok(Some(init));
        }
    }
}

/// How long the logger stays without clients.
fn idle_time(engine: &Engine, service: Service) -> Duration {
    service.stay.unwrap_or_else(|| settings::idle(engine))
}

/// Samples the cells for the last time. Says whether the store is left in order by that: nobody changes anything after it.
fn sample_last(logger: &Logger, init: Option<&InitLock>) -> bool {
    let engine = &logger.engine;
    if engine.refuse_cut_off().is_err() || logger.check_present().is_err() {
        return false;
    }
    // Before the sample: a client that leaves while it is taken may have stored something after it. With the
    // initialisation lock and no clients, nobody can.
    let alone = init.is_some() && !engine.has_clients();
    // What no sample holds is in `control` alone, which a store that was left in order does without.
    let sampled = sampler::round(logger, &mut sampler::Names::default(), PATIENCE);
    alone && sampled.is_ok()
}

/// Leaves everything flushed and checkpointed; `in_order` says that nobody can commit any more.
fn leave(logger: &Logger, in_order: bool) {
    let engine = &logger.engine;
    if engine.refuse_cut_off().is_err() || logger.check_present().is_err() {
        return;
    }
    crash_point!("logger.leaving");
    let done = if engine.runs_checkpoint() { checkpoint::take(logger, false, PATIENCE) } else { Ok(()) };
    // A failure leaves a mark in `control` or in nothing: recovery replays what the checkpoint lacks.
    // A store to which nothing was committed since a loss is not in order: the next life must not go on with the ids and
    // versions that follow, which may have been given before the loss.
    let is_begun = engine.control.incarnation().is_ok_and(|next| next == engine.control.committed().incarnation());
    let done = done.and_then(|()| checkpoint::take(logger, in_order && is_begun, PATIENCE));
    engine.control.fixed().logger.pid.store(0, Ordering::Relaxed);
    // All that is needed is in the other files now. If a backup replaces them before the next open, that open must not
    // believe this region, which is of a later time.
    if in_order && done.is_ok() {
        engine.control.invalidate();
    }
}

impl Logger {
    /// Says in `control` who the logger is. What the one before was told is not for this one.
    fn enter_control(&self) {
        let fixed = self.engine.control.fixed();
        fixed.logger.pid.store(std::process::id(), Ordering::Relaxed);
        fixed.logger.started_ns.store(now_ns(), Ordering::Relaxed);
        fixed.logger.stop.store(0, Ordering::Relaxed);
        fixed.counters.logger_starts.fetch_add(1, Ordering::Relaxed);
    }

    /// An error if other processes take this logger for dead, and so may have another one: then it must write nothing
    /// more.
    pub(crate) fn check_present(&self) -> Result<()> {
        match self.byte.upgrade() {
            Some(byte) if !byte.is_lost() => self.engine.presence.check(),
            _ => Err(presence::lost_descriptor()),
        }
    }

    /// Does something under the writer lock, which this logger waits for no longer than `patience`. The lock knows
    /// processes, not threads: those of the logger take turns.
    pub(crate) fn with_writer_lock<T>(&self, patience: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let asked_ns = now_ns();
        let Some(_turn) = self.writing.try_lock_for(patience) else {
            return Err(Error::LockTimeout { waited: patience, holder: "another thread of the logger".into() });
        };
        // It may have less patience than bulk commits have, and must not give up each time before it gets its turn.
        let patient_ns = limits::BULK_PATIENCE.min(patience / 2).as_nanos();
        let class = || match u128::from(now_ns().saturating_sub(asked_ns)) < patient_ns {
            true => CommitClass::Bulk,
            false => CommitClass::Urgent,
        };
        self.check_present()?;
        self.engine.acquire_writer(&class, Some(patience))?;
        self.engine.note_lock_wait(CommitClass::Bulk, asked_ns);
        /// Lets go of the lock, also when the work panics: this process lives on, so nobody would take it over.
        struct Release<'e>(&'e Engine);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.note_lock_hold(CommitClass::Bulk);
                self.0.release(&self.0.control.fixed().writer);
            }
        }
        let _release = Release(&self.engine);
        work()
    }

    /// Has a block of the log state a checkpoint, and returns when that is durable.
    pub(crate) fn state_checkpoint(&self, txn: TxnId, lsn: Lsn) -> Result<()> {
        let mut stating = self.stating.lock();
        stating.wanted = Some((txn, lsn));
        stating.done = None;
        stating.failed = false;
        waiter::ring_always::<Native>(&self.engine.control.fixed().logger.bell);
        while stating.done != Some(txn) {
            if stating.failed || self.ending.load(Ordering::SeqCst) || self.engine.has_failed.load(Ordering::SeqCst) {
                self.engine.refuse_poisoned()?;
                return Err(Error::NeedsRecovery { reason: "the log could not state the checkpoint".into() });
            }
            self.stated.wait_for(&mut stating, Duration::from_millis(20));
        }
        Ok(())
    }

    /// The checkpoint that the next block is to state.
    pub(crate) fn checkpoint_to_state(&self) -> Option<(TxnId, Lsn)> {
        self.stating.lock().wanted
    }

    /// The checkpoint was stated, durably, or can't be.
    pub(crate) fn checkpoint_stated(&self, txn: TxnId, durable: bool) {
        let mut stating = self.stating.lock();
        stating.wanted = None;
        stating.done = durable.then_some(txn);
        stating.failed = !durable;
        drop(stating);
        self.stated.notify_all();
    }

    /// Has the flush thread grant what log there is now, and returns when it has.
    pub(crate) fn grant_again(&self) {
        let mut stating = self.stating.lock();
        stating.grants = true;
        waiter::ring_always::<Native>(&self.engine.control.fixed().logger.bell);
        while stating.grants && !self.ending.load(Ordering::SeqCst) {
            self.stated.wait_for(&mut stating, Duration::from_millis(20));
        }
    }

    /// Whether the flush thread is to grant again what there is. It then calls [`Logger::granted_again`].
    pub(crate) fn wants_grant(&self) -> bool {
        self.stating.lock().grants
    }

    /// All log that there is was granted.
    pub(crate) fn granted_again(&self) {
        self.stating.lock().grants = false;
        self.stated.notify_all();
    }

    /// Notes the number of log files, for `stats`.
    pub(crate) fn count_segments(&self) {
        let stats = self.pool.stats();
        let counters = &self.engine.control.fixed().counters;
        counters.wal_segments.store(stats.segments as u64, Ordering::Relaxed);
        counters.wal_spares.store(stats.spares as u64, Ordering::Relaxed);
        counters.wal_kept.store(stats.kept as u64, Ordering::SeqCst);
        counters.wal_oldest.store(stats.oldest.map_or(u64::MAX, |oldest| oldest.0), Ordering::Release);
    }

    fn end_sampler(&self) {
        self.sampler_ending.store(true, Ordering::SeqCst);
        waiter::ring_always::<Native>(&self.engine.control.cells().bell);
    }

    fn end_flush(&self) {
        self.ending.store(true, Ordering::SeqCst);
        waiter::ring_always::<Native>(&self.engine.control.fixed().logger.bell);
    }

    fn end_background(&self) {
        self.background_ending.store(true, Ordering::SeqCst);
        waiter::ring_always::<Native>(&self.engine.control.fixed().logger.background);
    }
}

/// What a fresh region starts with.
pub(crate) fn default_settings(control: &Control) {
    let words = &control.fixed().logger;
    control.cells().interval_ns.store(sampler::INTERVAL_DEFAULT.as_nanos() as u64, Ordering::Relaxed);
    words.idle_ms.store(settings::IDLE_DEFAULT.as_millis() as u64, Ordering::Relaxed);
    words.checkpoint_bytes.store(settings::CHECKPOINT_BYTES_DEFAULT, Ordering::Relaxed);
}
