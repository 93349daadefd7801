//! The life of a logger: it takes its byte of `lock` under the initialisation lock, recovers the
//! store if no process has it open, serves, and exits when it is no longer needed.
//!
//! A client opens the store, and the logger decides to exit, under the initialisation lock. So a
//! client either finds the logger or finds its byte free. There is one byte, so there is one
//! logger.
//!
//! - `prepare`: what comes before serving: checks, recovery, or attachment to living clients
//! - `state`: what the threads of a logger share

mod prepare;
mod state;

use crate::files::dir::Dir;
use crate::files::memory_mark;
use crate::logger::flush::Flusher;
use crate::logger::{background, checkpoint, sampler};
use crate::participant::engine::Engine;
use crate::participant::panics::Panics;
use crate::participant::rest::{ALONE_LONGEST, DEAD_CLIENT_CHECK_INTERVAL};
use crate::participant::spawner::Host;
use crate::process::client::lock_init;
use crate::server::{self, Server};
use crate::shared::liveness::{Claim, InitLock, LOGGER_OFFSET};
use crate::shared::progress::Patience;
use crate::shared::protocols::atomic::Woken;
use crate::system::clock;
use crate::system::threads;
use crate::{Error, Result};
use prepare::prepare;
pub(crate) use state::Logger;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often the logger checks whether it is still needed, unless it rests.
const LOGGER_CHECK_INTERVAL: Duration = Duration::from_millis(25);
/// How long a logger that was told to exit waits for the writer lock, to take a last checkpoint. It
/// holds the initialisation lock meanwhile, so no process can open the store.
const EXIT_LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a logger waits for the initialisation lock while its holder makes no visible progress.
pub(crate) const INIT_TIMEOUT: Duration = Duration::from_secs(60);

/// How a logger's life ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LoggerExit {
    /// Another logger holds the byte.
    NotNeeded,
    /// It was idle or was told to exit, or its directory is gone.
    Left,
}

/// How a logger serves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    /// How long it stays without clients; `None` for the time that the clients set.
    pub(crate) stay: Option<Duration>,
    pub(crate) host: Host,
}

impl Service {
    pub(crate) fn of(host: Host) -> Service {
        Service { stay: None, host }
    }
}

/// Serves as the logger of the store at `dir` until it is no longer needed. Blocks. Calls
/// `on_ready` when clients can join, or when another logger is found to serve.
pub(crate) fn run(dir: Dir, service: Service, on_ready: impl FnOnce()) -> Result<LoggerExit> {
    let progress = Arc::default();
    let init = lock_init(&dir, &mut Patience::new(INIT_TIMEOUT), &progress)?;
    let Some(byte) = dir.with_fd(|fd| Claim::take(fd, LOGGER_OFFSET))?.map(Arc::new) else {
        on_ready();
        return Ok(LoggerExit::NotNeeded);
    };
    crash_point!("logger.byte_taken");
    let began = clock::now();
    let path = dir.path().display().to_string();
    let (logger, flusher) = prepare(&dir, init.file_id(), &byte, &progress)
        .inspect_err(|error| tracing::error!(%path, %error, "the logger can't serve"))?;
    let committed = logger.engine.control.committed();
    let took_ms = clock::since(began).as_millis() as u64;
    tracing::info!(%path, logger_pid = std::process::id(), %committed, took_ms, "logger started");
    let init = serve(&logger, flusher, service, || {
        drop(init);
        crash_point!("logger.ready");
        on_ready();
    })?;
    // The byte first: the next client finds it free. In the other order, a client could join in
    // between, and continue beneath a header which records that the store was left in order.
    drop(byte);
    crash_point!("logger.byte_dropped");
    drop(init);
    tracing::info!(%path, "logger left");
    Ok(LoggerExit::Left)
}

/// Starts the threads, calls `on_ready`, and checks periodically whether they are still needed.
///
/// Returns the initialisation lock if it could be taken: then no client has joined since the last
/// checkpoint.
///
/// # Errors
/// If the system allows no more threads, or if one of them panics: the logger can't serve without
/// it. All threads have ended when this returns, so a successor never runs beside one.
fn serve(
    logger: &Arc<Logger>,
    flusher: Flusher,
    service: Service,
    on_ready: impl FnOnce(),
) -> Result<Option<InitLock>> {
    let panics = &Arc::new(Panics::default());
    let wake_main = || logger.engine.control.fixed().logger.background.notify_always();
    let panicked = || {
        logger.engine.has_failed.store(true, Ordering::SeqCst);
        wake_main();
    };
    std::thread::scope(|scope| {
        // The scope waits for its threads, also when this one panics.
        let _end = EndThreads(logger);
        let flush =
            threads::spawn_scoped(scope, "untorn-flush", move || panics.watch("flush", || flusher.run(), panicked));
        let sampler = threads::spawn_scoped(scope, "untorn-sampler", move || {
            panics.watch("sampler", || sampler::run(logger), panicked)
        });
        let background = move || panics.watch("background", || background::run(logger), panicked);
        let checkpoint = move || panics.watch("checkpoint", || checkpoint::run(logger), panicked);
        let others = [
            threads::spawn_scoped(scope, "untorn-background", background),
            threads::spawn_scoped(scope, "untorn-checkpoint", checkpoint),
        ];
        let threads = || others.iter().chain([&sampler, &flush]);
        let served = match threads().find_map(|thread| thread.as_ref().err()) {
            Some(error) => {
                let error = std::io::Error::from(error.kind());
                Err(Error::io("starting the logger's threads")(error))
            }
            None => {
                // The socket exists before the logger reports that it is ready. A store works
                // without it.
                let server = {
                    let waker = logger.clone();
                    let wake_main = move || waker.engine.control.fixed().logger.background.notify_always();
                    server::start(&logger.engine.dir, &logger.rest, service.host, panics, wake_main)
                };
                on_ready();
                wait_until_unneeded(logger, service, server.as_ref(), panics)
            }
        };
        logger.end_sampler();
        sampler.into_iter().for_each(|thread| drop(thread.join()));
        // Without clients and with the initialisation lock, no process can join or commit. Checked
        // before the sample: a client that leaves during it may have stored a value after it.
        let is_alone = served.as_ref().is_ok_and(|init| init.is_some() && !logger.engine.has_clients());
        // The last sample may need more log space than there is. The other threads make it
        // meanwhile.
        let in_order = served.is_ok() && sample_last(logger) && is_alone;
        // These end before the flush thread, which the last checkpoint needs.
        logger.end_background();
        others.into_iter().flatten().for_each(|thread| drop(thread.join()));
        let left = served.is_ok() && leave(logger, in_order);
        logger.end_flush();
        flush.into_iter().for_each(|thread| drop(thread.join()));
        if !left && (is_alone || served.is_err()) {
            // The region is of no use to this logger, for example because it is damaged. The next
            // one makes another from the other files, which is the remedy that errors name.
            let _ = memory_mark::clear_all(&logger.engine.dir);
        }
        if left {
            // What can't be given back now stays a spare.
            let _ = logger.pool.trim(background::SPARES_READY_MIN);
        }
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

/// Waits until the store was unused for the idle time, or the logger was told to exit, or the
/// directory is gone. Returns the initialisation lock if it could be taken.
///
/// A message-passing client counts as a client. The server opens its store handle under the
/// initialisation lock; see [`server`](crate::server) for why the two never wait for each other.
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
    let mut idle_since = clock::now();
    let mut was_in_use = true;
    loop {
        let wait_key = words.background.prepare_wait();
        // A thread that panics wakes this one. It may have done so before.
        if let Some(error) = panics.error() {
            return Err(error);
        }
        let is_resting = logger.rest.is_resting();
        let nap = match is_resting {
            false => LOGGER_CHECK_INTERVAL,
            true if was_in_use => DEAD_CLIENT_CHECK_INTERVAL,
            true => idle_time(engine, service)
                .saturating_sub(clock::since(idle_since))
                .clamp(LOGGER_CHECK_INTERVAL, ALONE_LONGEST),
        };
        if words.background.wait(wait_key, nap) == Woken::Perhaps {
            logger.rest.stir(engine);
        }
        if is_resting && background::look_for_the_dead(engine) {
            logger.rest.stir(engine);
        }
        if engine.dir.check_lock(engine.lock_file).is_err() || logger.check_present().is_err() {
            return Ok(None);
        }
        let told = words.is_stop_requested();
        // A store that refuses writes is recovered by the next logger, so this one exits at once.
        // Message-passing clients connect again.
        let is_marked = engine.control.poison() != 0;
        if is_marked && let Some(server) = server.filter(|server| server.is_sole_client(engine)) {
            server.close();
        }
        let in_use = engine.has_clients();
        logger.rest.set_alone(!in_use);
        if in_use != was_in_use {
            // A client that has died may have left work that only the busy threads detect.
            logger.rest.stir(engine);
            server.inspect(|server| server.note_use_changed());
        }
        was_in_use = in_use;
        if in_use {
            idle_since = clock::now();
        }
        let idle = if is_marked { Duration::ZERO } else { idle_time(engine, service) };
        if !told && (in_use || clock::since(idle_since) < idle) {
            continue;
        }
        crash_point!("logger.unneeded");
        if told && let Some(server) = server {
            server.close();
        }
        let Ok(init) = lock_init(&engine.dir, &mut Patience::fixed(LOGGER_CHECK_INTERVAL), &engine.progress) else {
            logger.rest.stir(engine);
            continue;
        };
        if told || (!engine.has_clients() && server.is_none_or(Server::close_if_idle)) {
            return Ok(Some(init));
        }
    }
}

/// Returns how long the logger stays without clients.
fn idle_time(engine: &Engine, service: Service) -> Duration {
    service.stay.unwrap_or_else(|| engine.control.fixed().logger.settings.idle())
}

/// Samples the cells for the last time. Returns whether all values are in samples now, unless a
/// client stores others.
fn sample_last(logger: &Logger) -> bool {
    let engine = &logger.engine;
    if engine.dir.check_lock(engine.lock_file).is_err() || logger.check_present().is_err() {
        return false;
    }
    // Values in no sample are in `control` only, which is not used after a store was left in order.
    sampler::round(logger, &mut sampler::SampledNames::default(), EXIT_LOCK_TIMEOUT).is_ok()
}

/// Flushes and checkpoints everything. With `in_order`, no process can commit any more. Returns
/// whether the store is left in order.
fn leave(logger: &Logger, in_order: bool) -> bool {
    let engine = &logger.engine;
    if engine.dir.check_lock(engine.lock_file).is_err() || logger.check_present().is_err() {
        return false;
    }
    crash_point!("logger.leave_begun");
    let done = if engine.control.fixed().checkpoint.is_running() {
        checkpoint::take(logger, false, EXIT_LOCK_TIMEOUT)
    } else {
        Ok(())
    };
    // A failed checkpoint poisons `control` or has no effect: recovery replays what the checkpoint
    // lacks. A store with no commit since a loss is not in order. The next logger must not continue
    // with the ids and versions that follow, because they may have been given before the loss.
    let is_begun = engine.control.incarnation().is_ok_and(|next| next == engine.control.committed().incarnation());
    let done = done.and_then(|()| checkpoint::take(logger, in_order && is_begun, EXIT_LOCK_TIMEOUT));
    engine.control.fixed().logger.leave();
    // The other files hold everything that is needed now. If a backup replaces them before the next
    // open, that open must not trust this region, which is of a later time.
    let left_in_order = in_order && done.is_ok();
    if left_in_order {
        engine.control.invalidate();
    }
    left_in_order
}
