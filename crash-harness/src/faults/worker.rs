//! A writer that copes with errors. It prints each error, compares it with the state of the store,
//! retries, reopens the store if the error requires it, and gives up after repeated failures.
//!
//! An error must state the outcome of the call. If a commit fails with `NotDurable`, or with
//! `LoggerStalled` that names a visible transaction, it has happened; after any other error it has
//! not happened. The writer checks this each time.

use super::acknowledged;
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::role::{self, Role, say};
use crate::processes::sealed::{sealed, unsealed};
use crate::workload;
use crate::workload::oracle;
use crate::workload::{CELL, Writer};
use std::cell::Cell;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use untorn::reason::MismatchKind;
use untorn::{Durability, Error, Feed, Options, Store, TxnId};

/// Largest and smallest number of tries of a failing call. A fault that happens once has passed
/// after the smallest number of tries, even if each try takes long.
const TRIES: usize = 6;
const TRIES_MIN: usize = 3;
/// After this time and the smallest number of tries, no further try begins. The limit is needed
/// because a lasting fault makes each call wait for the store's timeout.
const RETRY_TIME: Duration = Duration::from_secs(12);
/// Number of commits in a round.
const COMMITS: u64 = 7;
/// Number of records by which the store grows in a round, and the number of rounds in which it
/// grows.
const GROWTH: u64 = 150;
const GROWING: u64 = 8;

/// Returns the options of the store: small files, so that many calls occur, and a short timeout for
/// a blocked logger.
pub(super) fn options() -> Options {
    let mut options = workload::options();
    options.logger_timeout(Duration::from_secs(8)).sample_interval(Duration::from_millis(20));
    options.any_file_system(std::env::var_os(MARK).is_some());
    options
}

/// The environment variable with the path of a file to which the worker also writes its
/// acknowledgements. If the variable is set, the store may be on any file system.
pub(super) const MARK: &str = "UNTORN_FAULTS_MARK";

/// Plays the role: `NAME ROUNDS ENDING TOLD WHAT`. The ending is `leave` (all processes leave in
/// order), `die` (all processes die), or `stay` (the worker runs until it is killed, for any number
/// of rounds). `TOLD` contains the acknowledgements of earlier writers. The store must contain what
/// they acknowledge.
///
/// # Errors
/// The first violation.
pub(crate) fn play(role: &Role) -> Result<(), Finding> {
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    let (name, rounds, ending) = (argument(0), argument(1).parse().unwrap_or(u64::MAX), argument(2));
    let mut worker = Worker {
        path: &role.store,
        name,
        n: 0,
        durable: 0,
        may_have_lost: Rc::default(),
        open: None,
        kept: acknowledged::parse(argument(3)),
        how: argument(4),
        endless: ending == "stay" && argument(1).is_empty(),
    };
    if !worker.work(rounds, ending)? {
        say("gave up");
        return worker.read_on();
    }
    match ending {
        "leave" => {
            drop(worker.open.take());
            if let Err(error) = untorn::logger::stop_logger(&role.store, HANGS) {
                worker.complain("stop_logger", &error)?;
            }
            say("done");
            Ok(())
        }
        _ => {
            say("done");
            worker.kill_logger();
            std::process::exit(0);
        }
    }
}

/// Prints an error and checks that it is clear.
///
/// # Errors
/// If the error contains no information, or if it reports a failed system call as damage, although
/// no byte of the store has changed.
fn complain(what: &str, error: &Error, anything: bool) -> Result<(), Finding> {
    let text = error.to_string().replace('\n', " ");
    say(format_args!("E {what}: {text}"));
    let misbehaved = |why: &str| Err(Finding::new(Kind::Misbehaved, format!("{what}: {why}: {error:?}")));
    match error {
        Error::Corrupt { .. } | Error::Mismatch { .. } | Error::FormatVersion { .. } if anything => Ok(()),
        Error::Corrupt { .. } => misbehaved("a system error was reported as damage"),
        // Only the region may be missing: it vanishes when all its users are gone.
        Error::Mismatch { file, what: MismatchKind::Missing | MismatchKind::MissingHeader } if file != "control" => {
            misbehaved("a system error was reported as a missing file")
        }
        Error::Io { what, source } if what.trim().is_empty() || source.raw_os_error() == Some(0) => {
            misbehaved("an error without the failed operation")
        }
        Error::LoggerUnavailable { reason } if reason.to_string().trim().is_empty() => {
            misbehaved("an error without a reason")
        }
        _ if text.trim().is_empty() => misbehaved("an empty error"),
        _ => Ok(()),
    }
}

/// The open store and its writer.
struct Open {
    store: Store,
    writer: Writer,
}

struct Worker<'r> {
    path: &'r Path,
    name: &'r str,
    /// The last transaction that the store contains.
    n: u64,
    /// The last transaction that is known to be durable.
    durable: u64,
    /// Whether the store was closed after an error. Visible commits after `durable` may then be
    /// lost.
    may_have_lost: Rc<Cell<bool>>,
    open: Option<Open>,
    /// Acknowledgements of earlier writers. The store must contain them when it is opened for the
    /// first time.
    kept: Vec<(String, oracle::Acknowledged)>,
    /// `durable`: the store must contain only the durable part of `kept`. `grow`: the store grows.
    /// `anything`: bytes are damaged during the run, so calls may return any result. `anything,
    /// grow`: both.
    how: &'r str,
    /// Whether the worker retries without a limit.
    endless: bool,
}

impl Worker<'_> {
    /// Runs all rounds. Returns false if every try of a call failed.
    fn work(&mut self, rounds: u64, ending: &str) -> Result<bool, Finding> {
        for round in 0..rounds {
            for _ in 0..COMMITS {
                if !self.commit()? {
                    return Ok(false);
                }
            }
            let n = self.n;
            if !self.attempt("a cell", |open, name| store_cell(open, name, n))? {
                return Ok(false);
            }
            tell(format_args!("C {n}"));
            if self.how.ends_with("grow") && !self.attempt("growth", |open, name| grow(open, name, round))? {
                return Ok(false);
            }
            if !self.attempt("a large transaction", |open, _| open.writer.large(n))? {
                return Ok(false);
            }
            if !self.attempt("checkpoint", |open, _| open.store.checkpoint().map(drop))? {
                return Ok(false);
            }
            if !self.may_have_lost.get() {
                self.durable = n;
            }
            if !self.attempt("a feed", |open, _| follow(&open.store))? {
                return Ok(false);
            }
            if !self.look()? {
                return Ok(false);
            }
            // While a client lives, the next logger takes over.
            if round == 0 && ending == "die" {
                self.kill_logger();
            }
        }
        Ok(true)
    }

    fn anything(&self) -> bool {
        self.how.starts_with("anything")
    }

    fn complain(&self, what: &str, error: &Error) -> Result<(), Finding> {
        complain(what, error, self.anything())
    }

    /// Opens the store and the writer unless they are open.
    fn open(&mut self) -> untorn::Result<&Open> {
        if self.open.is_none() {
            let store = options().open(self.path)?;
            let writer = Writer::open(store.clone(), self.name)?;
            self.open = Some(Open { store, writer });
        }
        Ok(self.open.as_ref().expect("opened just now"))
    }

    /// Retries a call until it succeeds. Returns false if it does not.
    fn attempt(
        &mut self,
        what: &str,
        mut call: impl FnMut(&Open, &str) -> untorn::Result<()>,
    ) -> Result<bool, Finding> {
        let start = Instant::now();
        for tries in 1..=if self.endless { usize::MAX } else { TRIES } {
            let was_open = self.open.is_some();
            let name = self.name;
            let error = match self.open() {
                Err(error) => {
                    self.complain("open", &error)?;
                    error
                }
                Ok(open) => {
                    if !was_open {
                        let store = open.store.clone();
                        self.check_kept(&store)?;
                        continue;
                    }
                    match call(open, name) {
                        Ok(()) => return Ok(true),
                        Err(error) => {
                            self.complain(what, &error)?;
                            error
                        }
                    }
                }
            };
            self.after(&error);
            if tries >= TRIES_MIN && start.elapsed() > RETRY_TIME && !self.endless {
                break;
            }
        }
        Ok(false)
    }

    /// Handles an error. After some errors, the store must be closed and opened again.
    fn after(&mut self, error: &Error) {
        if let Error::NeedsRecovery { .. } | Error::NotDurable { .. } | Error::LoggerStalled { .. } = error {
            drop(self.open.take());
            self.may_have_lost.set(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }

    /// Commits the next transaction.
    fn commit(&mut self) -> Result<bool, Finding> {
        let n = self.n + 1;
        let durable = n.is_multiple_of(3);
        let durability = if durable { Durability::Durable } else { Durability::Visible };
        let anything = self.anything();
        let (known_durable, may_have_lost) = (self.durable, self.may_have_lost.clone());
        let mut happened = false;
        // Whether the last try made the commit: yes, no, or `None` if the outcome is unknown.
        let mut expected = Some(false);
        let done = self.attempt("commit", |open, name| {
            // The store may have been reopened since the last try, so its content is read again.
            let mut there = last(open, name)?;
            // If the log can no longer be written, visible commits may be lost when the store is
            // closed. The loop repeats the lost ones.
            if may_have_lost.get() && (known_durable..n - 1).contains(&there) {
                for lost in there + 1..n {
                    open.writer.commit(lost, Durability::Visible)?;
                }
                there = n - 1;
            }
            match (there.checked_sub(n - 1), expected) {
                (Some(0), Some(false) | None) => {}
                (Some(1), Some(true) | None) => {
                    happened = true;
                    return catch_up(open, name, n);
                }
                // A damaged word may have led to the content of another transaction.
                _ if anything => return Ok(()),
                _ => {
                    let what = format!("the commit of {n} answered otherwise ({expected:?}), {there} is there");
                    role::die_of(&Finding::new(Kind::OrderViolation, what));
                }
            }
            let error = match open.writer.commit(n, durability) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let is_there = matches!(error, Error::NotDurable { .. } | Error::LoggerStalled { visible: Some(_), .. });
            // The commit has happened, although it may still be lost.
            if is_there {
                if last(open, name)? != n && !anything {
                    let what = format!("{error}: but {n} is not there");
                    role::die_of(&Finding::new(Kind::OrderViolation, what));
                }
                expected = None;
            } else {
                expected = Some(false);
            }
            Err(error)
        })?;
        if done {
            self.n = n;
            self.may_have_lost.set(false);
            let durable = durable && !happened;
            if durable {
                self.durable = n;
            }
            tell(format_args!("{} {n}", if durable { "D" } else { "V" }));
        }
        Ok(done)
    }

    /// Checks the acknowledgements of earlier writers.
    fn check_kept(&mut self, store: &Store) -> Result<(), Finding> {
        for (name, acknowledged) in std::mem::take(&mut self.kept) {
            lenient(oracle::kept(store, [(name.as_str(), acknowledged)], self.how == "durable"))?;
        }
        Ok(())
    }

    /// Checks the whole content, and the report of `verify`.
    fn look(&mut self) -> Result<bool, Finding> {
        let mut found = Ok(());
        let done = self.attempt("a look", |open, _| {
            let snapshot = open.store.snapshot()?;
            found = oracle::check(&snapshot).map(drop);
            let report = open.store.verify()?;
            if !report.is_clean() {
                found = Err(Finding::new(Kind::Damaged, format!("verify: {:?}", report.problems)));
            }
            Ok(())
        })?;
        match found {
            Err(Finding { kind: Kind::Damaged, what }) if self.anything() => say(format_args!("E a check: {what}")),
            found => lenient(found)?,
        }
        Ok(done)
    }

    /// Checks that a store that accepts no more writes can be read as long as it is open.
    fn read_on(&self) -> Result<(), Finding> {
        let Some(open) = &self.open else { return Ok(()) };
        match open.store.snapshot() {
            Ok(snapshot) => {
                oracle::check(&snapshot)?;
                say("read on");
                Ok(())
            }
            Err(error) => self.complain("a snapshot", &error),
        }
    }

    fn kill_logger(&self) {
        let pid = self.open.as_ref().and_then(|open| open.store.stats().ok()).and_then(|stats| stats.logger_pid);
        if let Some(pid) = pid.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Drops findings that a failed call can explain.
fn lenient(found: Result<(), Finding>) -> Result<(), Finding> {
    match found {
        Err(Finding { kind: Kind::Misbehaved | Kind::BlockedReader, what }) => {
            say(format_args!("E a check: {what}"));
            Ok(())
        }
        found => found,
    }
}

/// Returns the number of the writer's last transaction.
fn last(open: &Open, name: &str) -> untorn::Result<u64> {
    let snapshot = open.store.snapshot()?;
    let Some(marks) = snapshot.find_keyspace("marks")? else { return Ok(0) };
    let value = snapshot.get(&marks, name.as_bytes())?;
    Ok(value.map_or(0, |value| unsealed(value).unwrap_or_else(|torn| role::die_of(&torn.into()))))
}

/// Updates the counter and the cell for transaction `n`. Its commit returned an error but happened.
fn catch_up(open: &Open, name: &str, n: u64) -> untorn::Result<()> {
    let count = open.store.counter(&format!("count of {name}"))?;
    let counted = count.get()?;
    count.add(n.saturating_sub(counted))?;
    open.store.cell(&format!("cell of {name}"), CELL)?.store(&sealed(n, CELL)).map(drop)
}

fn store_cell(open: &Open, name: &str, n: u64) -> untorn::Result<()> {
    open.store.cell(&format!("cell of {name}"), CELL)?.store_durable(&sealed(n, CELL)).map(drop)
}

/// Makes the store larger for some rounds, and overwrites in later rounds.
fn grow(open: &Open, name: &str, round: u64) -> untorn::Result<()> {
    let growth = open.store.keyspace(&format!("growth of {name}"))?;
    let mut txn = open.store.begin_with(Durability::Visible)?;
    for i in 0..GROWTH {
        txn.put(&growth, &(round % GROWING * GROWTH + i).to_be_bytes(), &sealed(round, 3000))?;
    }
    txn.commit().map(drop)
}

/// Prints an acknowledgement, and writes it to the mark file if there is one.
fn tell(line: impl std::fmt::Display) {
    let line = line.to_string();
    if let Some(mark) = std::env::var_os(MARK)
        && let Ok(mut file) = std::fs::File::options().write(true).open(mark)
    {
        let _ = file.write_all(line.as_bytes());
    }
    say(line);
}

/// Reads some of the changes, beginning with the oldest.
fn follow(store: &Store) -> untorn::Result<()> {
    let mut changes = match store.changes(TxnId::ZERO, Feed::Durable) {
        Err(Error::Lagged { oldest }) => store.changes(oldest, Feed::Durable)?,
        changes => changes?,
    };
    for _ in 0..40 {
        match changes.try_next(Duration::ZERO) {
            Ok(Some(_)) => {}
            Ok(None) | Err(Error::Lagged { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
