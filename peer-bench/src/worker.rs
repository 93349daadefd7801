//! A worker process: opens one store, and runs slices of one workload as the coordinator commands
//! by lines on the standard input.

use crate::dataset::Dataset;
use crate::measure::{FIRST_KEY, Slice, Thread, Window, nanos};
use crate::processors;
use crate::store::{Engine, Error, Mode, Result, Session, Store};
use crate::workload::{Operation, Workload};
use crate::{stores, workload};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The task of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) store: String,
    pub(crate) workload: String,
    /// Directory of the store.
    pub(crate) path: PathBuf,
    pub(crate) entries: u64,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    /// Number of this process among those of the store and workload.
    pub(crate) index: usize,
}

/// A command of the coordinator, one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Runs a slice.
    Run { salt: u64, window: Window },
    /// Loads the store that the other workloads use.
    Prepare { salt: u64 },
    /// Opens the store, overwrites random entries of so many bytes without an fsync, and keeps it
    /// open: the coordinator then kills this process.
    Dirty { salt: u64, bytes: u64 },
    /// Makes all commits durable, outside of any slice.
    Sync,
    /// Closes the store and exits.
    Quit,
}

/// The reply to a command. A worker also sends one reply without a command: when it has opened its
/// store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done(Slice),
    Failed(String),
}

/// Times that a slice opens the store.
const OPENS: u64 = 5;

/// Length of the unmeasured run when a worker starts.
const WARM_UP: Duration = Duration::from_millis(300);

/// Runs the worker until the coordinator ends it.
pub(crate) fn run(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job)?;
    if let Err(error) = serve(&job) {
        reply(&Reply::Failed(error.to_string()))?;
        return Err(error);
    }
    Ok(())
}

fn serve(job: &Job) -> Result<()> {
    let workload = workload::find(&job.workload).ok_or("unknown workload")?;
    let engine = stores::find(&job.store).ok_or("unknown store")?;
    let dataset = Dataset { entries: job.entries, key_bytes: job.key_bytes, value_bytes: job.value_bytes };
    match workload.operation {
        Operation::Load | Operation::DiskBytes => serve_loads(engine, &dataset, &job.path),
        Operation::OpenClean => serve_opens(engine, &dataset, &job.path, false),
        Operation::OpenKilled => serve_opens(engine, &dataset, &job.path, true),
        _ => serve_slices(job, workload, engine, dataset),
    }
}

/// Reads the next command. The end of the input, such as after the coordinator's death, means
/// [`Command::Quit`].
fn next_command() -> Result<Command> {
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        return Ok(Command::Quit);
    }
    Ok(serde_json::from_str(&line)?)
}

fn reply(reply: &Reply) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(reply)?)?;
    Ok(output.flush()?)
}

fn done() -> Result<()> {
    reply(&Reply::Done(Slice::default()))
}

/// Runs the slices of a session's operation, in one or several threads.
fn serve_slices(job: &Job, workload: &Workload, engine: &dyn Engine, dataset: Dataset) -> Result<()> {
    // Helpers that the store spawns when it opens must not inherit the processor of this thread.
    let store = engine.open(&job.path, workload.mode, dataset.bytes())?;
    let mut threads = Vec::new();
    for number in 0..workload.threads {
        let number = job.index * workload.threads + number;
        threads.push((number, store.session()?, Thread::new(dataset, number)));
    }
    processors::pin(job.index)?;
    warm(&mut *threads[0].1, workload)?;
    run_threads(&mut threads, workload, job.index as u64, Window::open_soon(WARM_UP, workload.is_shared()))?;
    done()?;
    loop {
        match next_command()? {
            Command::Run { salt, window } => {
                let slice = run_threads(&mut threads, workload, salt, window)?;
                reply(&Reply::Done(slice))?;
            }
            Command::Sync => {
                store.sync()?;
                done()?;
            }
            Command::Quit => return Ok(()),
            other => return Err(format!("{other:?} does not suit {}", workload.name).into()),
        }
    }
}

/// Reads every entry once.
fn warm(session: &mut dyn Session, workload: &Workload) -> Result<()> {
    if matches!(workload.operation, Operation::Increment | Operation::PutLarge { .. }) {
        return Ok(());
    }
    session.snapshot(&mut |reader| {
        reader.seek(FIRST_KEY, u64::MAX)?;
        Ok(())
    })
}

type ThreadState<'s> = (usize, Box<dyn Session + 's>, Thread);

fn run_threads(threads: &mut [ThreadState<'_>], workload: &Workload, salt: u64, window: Window) -> Result<Slice> {
    let run = |(_, session, thread): &mut ThreadState<'_>| {
        thread.begin_slice(salt);
        thread.run(workload.operation, &mut **session, window, workload.sample_interval())
    };
    if let [only] = threads {
        return run(only);
    }
    let slices: Vec<Result<Slice>> = std::thread::scope(|scope| {
        let spawn = |state| {
            scope.spawn(|| {
                let state: &mut ThreadState<'_> = state;
                processors::pin(state.0)?;
                run(state)
            })
        };
        let running: Vec<_> = threads.iter_mut().map(spawn).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Slice>>| {
            thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        running.into_iter().map(join).collect()
    });
    merge(slices.into_iter().collect::<Result<Vec<Slice>>>()?).ok_or_else(|| Error::from("no threads"))
}

/// Adds up the slices of threads or processes that ran concurrently, in the same window.
pub(crate) fn merge(slices: Vec<Slice>) -> Option<Slice> {
    let nanos = slices.iter().map(|slice| slice.nanos).max()?;
    let operations = slices.iter().map(|slice| slice.operations).sum();
    let mut samples: Vec<u64> = slices.into_iter().flat_map(|slice| slice.samples).collect();
    samples.sort_unstable();
    Some(Slice { operations, nanos, samples })
}

/// Loads stores.
fn serve_loads(engine: &dyn Engine, dataset: &Dataset, path: &Path) -> Result<()> {
    done()?;
    loop {
        match next_command()? {
            Command::Run { salt, .. } => {
                let path = path.join("load");
                std::fs::create_dir(&path)?;
                let store = engine.open(&path, Mode::Visible, dataset.bytes())?;
                let begun = Instant::now();
                store.load_sorted(dataset, salt)?;
                store.sync()?;
                let taken = nanos(begun.elapsed());
                drop(store);
                engine.after_close(&path)?;
                std::fs::remove_dir_all(&path)?;
                reply(&Reply::Done(Slice { operations: dataset.entries, nanos: taken, samples: Vec::new() }))?;
            }
            Command::Prepare { salt } => {
                let store = engine.open(path, Mode::Visible, dataset.bytes())?;
                store.load_sorted(dataset, salt)?;
                store.settle()?;
                drop(store);
                engine.after_close(path)?;
                done()?;
            }
            Command::Quit => return Ok(()),
            other => return Err(format!("{other:?} does not suit a load").into()),
        }
    }
}

/// Opens stores. Runs on any processor: the logger that untorn spawns inherits the choice.
fn serve_opens(engine: &dyn Engine, dataset: &Dataset, path: &Path, is_killed: bool) -> Result<()> {
    done()?;
    let mut kept: Option<Box<dyn Store>> = None;
    loop {
        match next_command()? {
            Command::Run { salt, .. } => {
                // A store that was killed opens as such only once.
                let opens = if is_killed { 1 } else { OPENS };
                let mut slice = Slice::default();
                for number in 0..opens {
                    let taken = open_and_read(engine, dataset, path, salt.wrapping_add(number))?;
                    slice.operations += 1;
                    slice.nanos += taken;
                    slice.samples.push(taken);
                }
                slice.samples.sort_unstable();
                reply(&Reply::Done(slice))?;
            }
            Command::Dirty { salt, bytes } => {
                let store = kept.insert(engine.open(path, Mode::Visible, dataset.bytes())?);
                let mut session = store.session()?;
                let mut thread = Thread::new(*dataset, 0);
                thread.begin_slice(salt);
                let mut written = 0;
                while written < bytes {
                    let entries = thread.write_batch(&mut *session, false)?;
                    written += entries * (dataset.key_bytes + dataset.value_bytes) as u64;
                }
                drop(session);
                done()?;
            }
            Command::Quit => return Ok(()),
            other => return Err(format!("{other:?} does not suit an open").into()),
        }
    }
}

/// Returns the nanoseconds from the call of open to the first value; then closes the store.
fn open_and_read(engine: &dyn Engine, dataset: &Dataset, path: &Path, salt: u64) -> Result<u64> {
    let mut key = Vec::new();
    dataset.key_into(salt % dataset.entries, &mut key);
    let begun = Instant::now();
    let store = engine.open(path, Mode::Durable, dataset.bytes())?;
    let mut session = store.session()?;
    session.snapshot(&mut |reader| {
        std::hint::black_box(reader.get(&key)?);
        Ok(())
    })?;
    let taken = nanos(begun.elapsed());
    drop(session);
    drop(store);
    engine.after_close(path)?;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_slices_add_up() {
        let slice = |operations, nanos| Slice { operations, nanos, samples: vec![operations] };
        let merged = merge(vec![slice(300, 100), slice(100, 100)]).unwrap();
        assert_eq!((merged.operations, merged.nanos), (400, 100));
        assert_eq!(merged.samples, [100, 300]);
        assert!(merge(Vec::new()).is_none());
    }
}
