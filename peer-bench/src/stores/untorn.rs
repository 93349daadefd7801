//! untorn, with the defaults of its options.

use crate::store::{Engine, Entry, Error, Mode, Reader, Result, Session, Store, add_first, existing, touch};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Counter, Durability, Keyspace, Observation, Snapshot};

pub(crate) struct Untorn;

/// Longest wait for the logger's end.
const LOGGER_TIMEOUT: Duration = Duration::from_secs(60);

impl Engine for Untorn {
    fn name(&self) -> &'static str {
        "untorn"
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn open(&self, path: &Path, mode: Mode, _data_bytes: u64) -> Result<Box<dyn Store>> {
        let durability = match mode {
            Mode::Durable => Durability::Durable,
            Mode::Visible => Durability::Visible,
        };
        let store = untorn::Store::options().durability(durability).open(path.join("store"))?;
        let data = store.keyspace("data")?;
        Ok(Box::new(Open { store, data }))
    }

    fn after_close(&self, path: &Path) -> Result<()> {
        untorn::logger::stop_logger(path.join("store"), LOGGER_TIMEOUT)?;
        Ok(())
    }

    fn kill_helpers(&self, path: &Path) -> Result<()> {
        let path = path.join("store");
        let begun = Instant::now();
        loop {
            match untorn::observe(&path)? {
                Observation::Unused => return Ok(()),
                Observation::Live(stats) => stats.logger_pid.map_or(Ok(()), |logger| kill_logger(logger, &path))?,
                _ => {}
            }
            if begun.elapsed() > LOGGER_TIMEOUT {
                return Err("the logger survives SIGKILL".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Kills a process if it is the logger of the store at `path`.
fn kill_logger(logger: u32, path: &Path) -> Result<()> {
    let command = std::fs::read(format!("/proc/{logger}/cmdline")).unwrap_or_default();
    let is_logger = command.split(|byte| *byte == 0).any(|word| word == path.as_os_str().as_bytes());
    match Pid::from_raw(logger.cast_signed()).filter(|_| is_logger) {
        Some(logger) => match kill_process(logger, Signal::KILL) {
            Err(Errno::SRCH) => Ok(()),
            killed => Ok(killed?),
        },
        None => Ok(()),
    }
}

struct Open {
    store: untorn::Store,
    data: Keyspace,
}

impl Store for Open {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread { store: &self.store, data: &self.data, counter: None }))
    }

    fn sync(&self) -> Result<()> {
        Ok(self.store.sync()?)
    }

    fn settle(&self) -> Result<()> {
        self.store.sync()?;
        self.store.checkpoint()?;
        Ok(())
    }
}

struct Thread<'s> {
    store: &'s untorn::Store,
    data: &'s Keyspace,
    counter: Option<Counter>,
}

impl Session for Thread<'_> {
    fn snapshot(&mut self, body: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        let snapshot = self.store.snapshot()?;
        body(&mut View { snapshot: &snapshot, data: self.data })
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.data.put(key, value)?;
        Ok(())
    }

    fn batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut txn = self.store.begin()?;
        for (key, value) in entries {
            txn.put(self.data, key, value)?;
        }
        txn.commit()?;
        Ok(())
    }

    fn increment(&mut self) -> Result<()> {
        if self.counter.is_none() {
            self.counter = Some(self.store.counter("counter")?);
        }
        let counter = self.counter.as_ref().ok_or("no counter")?;
        Ok(counter.add(1)?)
    }
}

struct View<'s> {
    snapshot: &'s Snapshot,
    data: &'s Keyspace,
}

impl Reader for View<'_> {
    fn get(&mut self, key: &[u8]) -> Result<u64> {
        existing(key, self.snapshot.get(self.data, key)?.map(touch))
    }

    fn seek(&mut self, key: &[u8], count: u64) -> Result<(u64, u64)> {
        let mut cursor = self.snapshot.cursor(self.data)?;
        let mut first = Some(key);
        let next = || {
            let entry = match first.take() {
                Some(key) => cursor.seek(key),
                None => cursor.next(),
            };
            entry.map(|entry| entry.map(|(_, value)| touch(value))).map_err(Error::from).transpose()
        };
        add_first(count, std::iter::from_fn(next))
    }
}
