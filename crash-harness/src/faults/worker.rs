//! A writer that meets errors: it says each of them, holds it against what has happened, tries
//! again, opens the store anew where it is told to, and gives up only when nothing helps.
//!
//! An error must say what became of the call. A commit that answers `NotDurable` has happened,
//! after any other error it has not; the writer looks each time.

use super::acknowledged;
use crate::limits::HANGS;
use crate::outcome::{Finding, Kind};
use crate::role::{self, Role, say};
use crate::workload::{CELL, Writer, sealed};
use crate::{oracle, workload};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::reason::MismatchKind;
use untorn::{Durability, Error, Feed, Options, Store, TxnId};

/// Tries of a call that fails, and the fewest of them: a fault that happens once is over by then,
/// however long a call takes.
const TRIES: usize = 6;
const TRIES_MIN: usize = 3;
/// No further try begins after this, since a fault that lasts makes each call wait for the time-out
/// of the store.
const RETRY_TIME: Duration = Duration::from_secs(12);
/// Commits of a round.
const COMMITS: u64 = 7;
/// Records by which a store grows in a round, and for how many rounds it does.
const GROWTH: u64 = 150;
const GROWING: u64 = 8;

/// Options of the store: small files, so that much happens to them, and no long waits for a logger
/// that can't go on.
pub(super) fn options() -> Options {
    let mut options = workload::options();
    options.logger_timeout(Duration::from_secs(8)).sample_interval(Duration::from_millis(20));
    options.any_file_system(std::env::var_os(MARK).is_some());
    options
}

/// Where the worker leaves marks of what it was told, too, and then does not mind the file system.
pub(super) const MARK: &str = "UNTORN_FAULTS_MARK";

/// Plays the role: `NAME ROUNDS ENDING TOLD WHAT`, where the ending is `leave` (everybody leaves in
/// order), `die` (nobody does) or `stay` (until killed, however many rounds that takes). What
/// earlier writers were told must be there.
///
/// # Errors
/// What a check found.
pub(crate) fn play(role: &Role) -> Result<(), Finding> {
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    let (name, rounds, ending) = (argument(0), argument(1).parse().unwrap_or(u64::MAX), argument(2));
    let mut worker = Worker {
        path: &role.store,
        name,
        n: 0,
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

/// Says an error, which must be a clear one.
///
/// # Errors
/// If it says nothing, or takes a failed call for damage: no byte of the store has changed by
/// itself.
fn complain(what: &str, error: &Error, anything: bool) -> Result<(), Finding> {
    let text = error.to_string().replace('\n', " ");
    say(format_args!("E {what}: {text}"));
    let misbehaved = |why: &str| Err(Finding::new(Kind::Misbehaved, format!("{what}: {why}: {error:?}")));
    match error {
        Error::Corrupt { .. } | Error::Mismatch { .. } | Error::FormatVersion { .. } if anything => Ok(()),
        Error::Corrupt { .. } => misbehaved("an error of the system was taken for damage"),
        // The region alone may go, with everybody who used it.
        Error::Mismatch { file, what: MismatchKind::Missing | MismatchKind::MissingHeader } if file != "control" => {
            misbehaved("an error of the system was taken for a file that is not there")
        }
        Error::Io { what, source } if what.trim().is_empty() || source.raw_os_error() == Some(0) => {
            misbehaved("an error that does not say what it is about")
        }
        Error::LoggerUnavailable { reason } if reason.to_string().trim().is_empty() => {
            misbehaved("an error without a reason")
        }
        _ if text.trim().is_empty() => misbehaved("an empty error"),
        _ => Ok(()),
    }
}

/// What has been opened.
struct Open {
    store: Store,
    writer: Writer,
}

struct Worker<'r> {
    path: &'r Path,
    name: &'r str,
    /// The last transaction that is there.
    n: u64,
    open: Option<Open>,
    /// What earlier writers were told to be visible: it must be there when the store opens for the
    /// first time.
    kept: Vec<(String, oracle::Acknowledged)>,
    /// `durable`: of that, only what was durable. `grow`: the store grows. `anything`: bytes are
    /// damaged meanwhile, so that calls may answer anything; `anything, grow`: both.
    how: &'r str,
    /// Tries for ever.
    endless: bool,
}

impl Worker<'_> {
    /// All rounds; false if a call failed each time.
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
            if !self.attempt("a feed", |open, _| follow(&open.store))? {
                return Ok(false);
            }
            if !self.look()? {
                return Ok(false);
            }
            // Beside a client that lives, the next logger takes over.
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

    /// Opens the store and all that the writer uses, if it is not open.
    fn open(&mut self) -> untorn::Result<&Open> {
        if self.open.is_none() {
            let store = options().open(self.path)?;
            let writer = Writer::open(store.clone(), self.name)?;
            self.open = Some(Open { store, writer });
        }
        Ok(self.open.as_ref().expect("opened just now"))
    }

    /// Calls until it succeeds; false if it does not.
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

    /// What is to be done about an error: some say that the store must be closed and opened again.
    fn after(&mut self, error: &Error) {
        if let Error::NeedsRecovery { .. } | Error::NotDurable { .. } | Error::LoggerStalled { .. } = error {
            drop(self.open.take());
        }
        std::thread::sleep(Duration::from_millis(5));
    }

    /// The next transaction.
    fn commit(&mut self) -> Result<bool, Finding> {
        let n = self.n + 1;
        let durable = n.is_multiple_of(3);
        let durability = if durable { Durability::Durable } else { Durability::Visible };
        let anything = self.anything();
        let mut happened = false;
        // What the last try said of it: there, not there, or perhaps.
        let mut expected = Some(false);
        let done = self.attempt("commit", |open, name| {
            // Whatever was open before has been closed since: what is there then is what counts.
            let there = last(open, name)?;
            match (there.checked_sub(n - 1), expected) {
                (Some(0), Some(false) | None) => {}
                (Some(1), Some(true) | None) => {
                    happened = true;
                    return catch_up(open, name, n);
                }
                // A word that was damaged may have led to another transaction.
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
            // Whether it survives what is to come is in doubt, but not that it has happened.
            if is_there {
                if last(open, name)? != n && !anything {
                    let what = format!("{error}: and yet {n} is not there");
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
            let durable = durable && !happened;
            tell(format_args!("{} {n}", if durable { "D" } else { "V" }));
        }
        Ok(done)
    }

    /// What earlier writers were told is there; and where this one goes on.
    fn check_kept(&mut self, store: &Store) -> Result<(), Finding> {
        for (name, acknowledged) in std::mem::take(&mut self.kept) {
            lenient(oracle::kept(store, [(name.as_str(), acknowledged)], self.how == "durable"))?;
        }
        Ok(())
    }

    /// All that is there, and what `verify` says of it.
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

    /// A store that takes no more writes can be read as long as it is open.
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

/// Leaves out what a call that failed accounts for.
fn lenient(found: Result<(), Finding>) -> Result<(), Finding> {
    match found {
        Err(Finding { kind: Kind::Misbehaved | Kind::BlockedReader, what }) => {
            say(format_args!("E a check: {what}"));
            Ok(())
        }
        found => found,
    }
}

/// The number of the writer's last transaction.
fn last(open: &Open, name: &str) -> untorn::Result<u64> {
    let snapshot = open.store.snapshot()?;
    let Some(marks) = snapshot.find_keyspace("marks")? else { return Ok(0) };
    let value = snapshot.get(&marks, name.as_bytes())?;
    Ok(value.map_or(0, |value| oracle::unsealed(value).unwrap_or_else(|finding| role::die_of(&finding))))
}

/// What belongs to a transaction beside it: its writer could not say it, since its call failed.
fn catch_up(open: &Open, name: &str, n: u64) -> untorn::Result<()> {
    let count = open.store.counter(&format!("count of {name}"))?;
    let counted = count.get()?;
    count.add(n.saturating_sub(counted))?;
    open.store.cell(&format!("cell of {name}"), CELL)?.store(&sealed(n, CELL)).map(drop)
}

fn store_cell(open: &Open, name: &str, n: u64) -> untorn::Result<()> {
    open.store.cell(&format!("cell of {name}"), CELL)?.store_durable(&sealed(n, CELL)).map(drop)
}

/// Makes the store larger for some rounds, and then overwrites.
fn grow(open: &Open, name: &str, round: u64) -> untorn::Result<()> {
    let growth = open.store.keyspace(&format!("growth of {name}"))?;
    let mut txn = open.store.begin_with(Durability::Visible)?;
    for i in 0..GROWTH {
        txn.put(&growth, &(round % GROWING * GROWTH + i).to_be_bytes(), &sealed(round, 3000))?;
    }
    txn.commit().map(drop)
}

/// Says what was acknowledged, and leaves a mark of it where that is wanted.
fn tell(line: impl std::fmt::Display) {
    let line = line.to_string();
    if let Some(mark) = std::env::var_os(MARK)
        && let Ok(mut file) = std::fs::File::options().write(true).open(mark)
    {
        let _ = file.write_all(line.as_bytes());
    }
    say(line);
}

/// Reads some of the changes from the oldest on.
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
