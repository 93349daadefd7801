//! The lines that a process in a role sends.

use crate::role::said;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Received {
    lines: Vec<String>,
    /// Whether the output has ended: no line follows.
    has_ended: bool,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines of a process, which a thread reads while the process runs.
pub struct Lines {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

/// The reason why a wait for lines failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoLine {
    /// The output has ended without the line.
    Ended,
    /// The line has not arrived in time.
    TimedOut,
}

impl Lines {
    /// Begins to read the lines of a role from its output.
    pub fn of(output: impl Read + Send + 'static) -> Lines {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(line) = said(&line) {
                    theirs.lock().lines.push(line.to_string());
                    theirs.changed.notify_all();
                }
            }
            theirs.lock().has_ended = true;
            theirs.changed.notify_all();
        });
        Lines { shared, reader: Some(reader) }
    }

    /// Returns all lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.shared.lock().lines.clone()
    }

    /// Returns what `read` returns for all lines so far.
    pub fn with<T>(&self, read: impl FnOnce(&[String]) -> T) -> T {
        read(&self.shared.lock().lines)
    }

    /// Waits until `found` returns something for the lines so far.
    ///
    /// # Errors
    /// If the output ends or the time passes before.
    pub fn wait_for<T>(&self, time: Duration, mut found: impl FnMut(&[String]) -> Option<T>) -> Result<T, NoLine> {
        let end = Instant::now() + time;
        let mut received = self.shared.lock();
        loop {
            if let Some(found) = found(&received.lines) {
                return Ok(found);
            }
            if received.has_ended {
                return Err(NoLine::Ended);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoLine::TimedOut);
            }
            let woken = self.shared.changed.wait_timeout(received, left);
            received = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the output has ended. Each process that inherited the output holds it open.
    pub fn wait_until_ended(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
