//! Runs the workloads: starts the workers of all stores, rotates slices over the stores, and
//! collects one row for each store and workload.
//!
//! All stores of a workload are open at once, and each round runs one slice of each store, one
//! after another. So a slow minute of the machine affects every store. Ratios are computed within a
//! round.

use crate::arguments::Arguments;
use crate::dataset::Dataset;
use crate::floor::{self, FLOORS};
use crate::measure::{Slice, Window, nanos};
use crate::process::Worker;
use crate::report::results::{Row, Values};
use crate::store::{Engine, Error, Result};
use crate::worker::{Command, Job, merge};
use crate::workload::{Operation, Unit, Workload};
use rustix::fs::{Mode as FileMode, OFlags};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The result of a run.
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    /// Failures, one line each.
    pub(crate) failures: Vec<String>,
}

/// Bytes of keys and values that a store writes before it is killed. untorn takes a checkpoint
/// after 64 MiB of log, and the log of these bytes is shorter.
const DIRTY_BYTES: u64 = 56 << 20;

/// Runs all workloads of all stores in directories below `dir`.
pub(crate) fn run(arguments: &Arguments, dir: &Path) -> Result<Outcome> {
    let engines = arguments.engines()?;
    let workloads = arguments.workloads()?;
    let mut run = Run {
        dataset: arguments.dataset(),
        arguments,
        dir,
        salt: nanos(std::time::SystemTime::UNIX_EPOCH.elapsed()?),
        outcome: Outcome { rows: Vec::new(), failures: Vec::new() },
        floors: FLOORS.iter().map(|floor| Row::new(floor::NAME, floor.name, floor.unit)).collect(),
    };
    if arguments.has_floor() {
        for _ in 0..arguments.rounds {
            run.measure_floors();
        }
    }
    let mut loaded: Vec<&dyn Engine> = Vec::new();
    if workloads.iter().any(|workload| workload.uses_loaded_store()) {
        loaded = run.load(&engines);
    }
    for workload in &workloads {
        eprintln!("{}", workload.name);
        let engines = if workload.uses_loaded_store() { &loaded } else { &engines };
        let suited: Vec<_> = engines.iter().copied().filter(|engine| workload.suits(*engine)).collect();
        match workload.operation {
            Operation::DiskBytes => run.measure_disk(workload, &suited),
            Operation::OpenKilled => run.measure_open_killed(workload, &suited),
            _ => run.measure(workload, &suited),
        }
        if arguments.has_floor() && !suited.is_empty() {
            run.measure_floors();
        }
    }
    let mut outcome = run.outcome;
    outcome.rows.extend(run.floors.into_iter().filter(|row| !row.values.is_empty()));
    Ok(outcome)
}

struct Run<'a> {
    arguments: &'a Arguments,
    dataset: Dataset,
    dir: &'a Path,
    /// The last salt in use. Salts differ between runs, too.
    salt: u64,
    outcome: Outcome,
    floors: Vec<Row>,
}

/// A store in a phase: its workers, and what they measured.
struct Participant {
    engine: &'static dyn Engine,
    workers: Vec<Worker>,
    row: Row,
}

impl Run<'_> {
    fn next_salt(&mut self) -> u64 {
        self.salt += 1;
        self.salt
    }

    fn path(&self, engine: &dyn Engine) -> PathBuf {
        self.dir.join(engine.name())
    }

    fn job(&self, engine: &dyn Engine, workload: &str, index: usize) -> Job {
        Job {
            store: engine.name().into(),
            workload: workload.into(),
            path: self.path(engine),
            entries: self.dataset.entries,
            key_bytes: self.dataset.key_bytes,
            value_bytes: self.dataset.value_bytes,
            index,
        }
    }

    fn fail(&mut self, store: &str, workload: &str, error: &Error) {
        let failure = format!("{store}: {workload}: {error}");
        eprintln!("{failure}");
        self.outcome.failures.push(failure);
    }

    /// Loads each store. Returns those that succeeded.
    fn load(&mut self, engines: &[&'static dyn Engine]) -> Vec<&'static dyn Engine> {
        let mut loaded = Vec::new();
        for engine in engines {
            eprintln!("loading {} {}", engine.name(), engine.version());
            match self.load_one(*engine) {
                Ok(()) => loaded.push(*engine),
                Err(error) => self.fail(engine.name(), "load", &error),
            }
        }
        loaded
    }

    fn load_one(&mut self, engine: &dyn Engine) -> Result<()> {
        std::fs::create_dir_all(self.path(engine))?;
        let mut worker = start(&self.job(engine, "load-sorted", 0))?;
        let salt = self.next_salt();
        worker.call(&Command::Prepare { salt })?;
        worker.quit()
    }

    /// Runs the slices of a workload, a round at a time.
    fn measure(&mut self, workload: &Workload, engines: &[&'static dyn Engine]) {
        let mut participants = Vec::new();
        for engine in engines {
            match self.start_workers(*engine, workload) {
                Ok(workers) => {
                    let row = Row::new(engine.name(), workload.name, workload.unit);
                    participants.push(Participant { engine: *engine, workers, row });
                }
                Err(error) => self.fail(engine.name(), workload.name, &error),
            }
        }
        for round in 0..self.arguments.rounds as usize {
            let count = participants.len();
            // The first store changes from round to round, because a slice that follows another may
            // find cold caches.
            for position in 0..count {
                let participant = &mut participants[(round + position) % count];
                if participant.workers.is_empty() {
                    continue;
                }
                let salt = self.next_salt();
                match self.run_slice(participant, workload, salt) {
                    Ok(values) => participant.row.values.push(Some(values)),
                    Err(error) => {
                        participant.row.values.push(None);
                        participant.workers.clear();
                        self.fail(participant.engine.name(), workload.name, &error);
                    }
                }
            }
        }
        for participant in participants {
            let engine = participant.engine;
            let quit = participant.workers.into_iter().try_for_each(Worker::quit);
            let path = self.path(engine);
            if let Err(error) = quit.and_then(|()| engine.after_close(&path)) {
                self.fail(engine.name(), workload.name, &error);
            }
            self.outcome.rows.push(participant.row);
        }
    }

    fn start_workers(&self, engine: &dyn Engine, workload: &Workload) -> Result<Vec<Worker>> {
        std::fs::create_dir_all(self.path(engine))?;
        // All workers open the store and warm up concurrently.
        let workers = (0..workload.processes).map(|index| Worker::start(&self.job(engine, workload.name, index)));
        let workers: Vec<Worker> = workers.collect::<Result<_>>()?;
        for worker in &workers {
            worker.wait()?;
        }
        Ok(workers)
    }

    fn run_slice(&self, participant: &mut Participant, workload: &Workload, salt: u64) -> Result<Values> {
        let window = Window::open_soon(self.arguments.slice(), workload.is_shared());
        let command = Command::Run { salt, window };
        for worker in &mut participant.workers {
            worker.send(&command)?;
        }
        let slices: Vec<Slice> = participant.workers.iter().map(Worker::wait).collect::<Result<_>>()?;
        if workload.is_visible_write() {
            // Without this sync, the store's pages would be written back during the slice of
            // another store.
            participant.workers[0].call(&Command::Sync)?;
        }
        let slice = merge(slices).ok_or("no worker")?;
        Ok(Values::of_slice(&slice, workload.unit))
    }

    fn measure_disk(&mut self, workload: &Workload, engines: &[&'static dyn Engine]) {
        for engine in engines {
            let mut row = Row::new(engine.name(), workload.name, workload.unit);
            match disk_bytes(&self.path(*engine)) {
                Ok(bytes) => row.values.push(Some(Values::single(bytes as f64))),
                Err(error) => self.fail(engine.name(), workload.name, &error),
            }
            self.outcome.rows.push(row);
        }
    }

    fn measure_open_killed(&mut self, workload: &Workload, engines: &[&'static dyn Engine]) {
        let mut rows: Vec<_> =
            engines.iter().map(|engine| Row::new(engine.name(), workload.name, workload.unit)).collect();
        for _ in 0..self.arguments.rounds {
            for (engine, row) in engines.iter().zip(&mut rows) {
                let measured = self.open_killed(*engine, workload);
                row.values.push(measured.as_ref().ok().copied());
                if let Err(error) = measured {
                    self.fail(engine.name(), workload.name, &error);
                }
            }
        }
        self.outcome.rows.extend(rows);
    }

    fn open_killed(&mut self, engine: &dyn Engine, workload: &Workload) -> Result<Values> {
        let job = self.job(engine, workload.name, 0);
        let mut writer = start(&job)?;
        let salt = self.next_salt();
        let bytes = DIRTY_BYTES.min(self.dataset.bytes());
        writer.call(&Command::Dirty { salt, bytes })?;
        writer.kill()?;
        engine.kill_helpers(&self.path(engine))?;
        let mut opener = start(&job)?;
        let slice = opener.call(&Command::Run { salt, window: Window::open_soon(self.arguments.slice(), false) })?;
        opener.quit()?;
        Ok(Values::of_slice(&slice, workload.unit))
    }

    fn measure_floors(&mut self) {
        for (index, floor) in FLOORS.iter().enumerate().filter(|(_, floor)| floor.is_possible()) {
            match floor::measure_in_process(floor, self.dir, self.arguments.slice() / 4) {
                Ok(value) => self.floors[index].values.push(Some(Values::single(value))),
                Err(error) => self.fail(floor::NAME, floor.name, &error),
            }
        }
    }
}

/// Starts a worker and waits until it is ready.
fn start(job: &Job) -> Result<Worker> {
    let worker = Worker::start(job)?;
    worker.wait()?;
    Ok(worker)
}

/// Returns the bytes of the blocks of all files below `path`.
fn disk_bytes(path: &Path) -> Result<u64> {
    // Blocks of dirty pages may not be allocated yet.
    let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())?;
    rustix::fs::syncfs(&dir)?;
    blocks_of(path)
}

fn blocks_of(path: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { blocks_of(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

impl Values {
    /// Converts a slice to the workload's unit.
    pub(crate) fn of_slice(slice: &Slice, unit: Unit) -> Values {
        let (operations, nanos) = (slice.operations.max(1) as f64, slice.nanos.max(1) as f64);
        let value = match unit {
            Unit::Nanoseconds => nanos / operations,
            Unit::Milliseconds => nanos / operations / 1e6,
            Unit::OperationsPerSecond | Unit::EntriesPerSecond => operations / nanos * 1e9,
            Unit::MegabytesPerSecond => operations / nanos * 1e3,
            Unit::GigabytesPerSecond => operations / nanos,
            Unit::Bytes => operations,
        };
        let micros: Vec<f64> = slice.samples.iter().map(|nanos| *nanos as f64 / 1e3).collect();
        Values::new(value, &micros)
    }
}
