//! A writer process: indexes its share of the files, over and over, until it is killed.
//!
//! Each transaction stores a few files' records and the writer's new totals. Contents are read
//! before it begins, so that the writer lock is held for the stores only. The durabilities
//! alternate. Every commit is reported to the parent before the next one begins. So the store may
//! be ahead of the reports by one commit, and is never behind.

use super::event::{self, Nanoseconds, TourEvent};
use super::open;
use super::record::{FILES, FileRecord, TOTALS, Torn, Totals};
use crate::outcome::{CommandFailure, Outcome};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use untorn::{Durability, Error, Keyspace, Store, Ticket};

/// The parent requests that the next transaction be held half done.
static HOLD: AtomicBool = AtomicBool::new(false);

/// Commands on standard input, after the list of files.
pub(crate) const COMMAND_HOLD: u8 = b'h';
/// Continue after a hold.
pub(crate) const COMMAND_GO: u8 = b'g';

const FILES_PER_COMMIT_MAX: usize = 8;
/// Even a short list is spread over this many commits.
const COMMITS_PER_PASS_MIN: usize = 64;

pub(crate) fn run(path: &Path, directory: &Path, slot: usize) -> Outcome {
    let names = read_list(&mut io::stdin().lock()).map_err(CommandFailure::system("reading the list of files"))?;
    thread::spawn(obey);
    let result = Writer::open(path, directory, slot, names).and_then(|mut writer| {
        loop {
            writer.commit_next()?;
        }
    });
    if let Err(failure) = &result {
        let what = failure.to_string();
        // Only bytes that no writer wrote fail a check here.
        let event =
            if let CommandFailure::CheckFailed(_) = failure { TourEvent::Torn(what) } else { TourEvent::Failed(what) };
        let _ = event.tell();
    }
    result
}

/// Writes a list in the format of `read_list`.
pub(crate) fn write_list<'a>(out: &mut impl Write, names: impl ExactSizeIterator<Item = &'a [u8]>) -> io::Result<()> {
    let mut list = (names.len() as u64).to_le_bytes().to_vec();
    for name in names {
        list.extend_from_slice(&(name.len() as u64).to_le_bytes());
        list.extend_from_slice(name);
    }
    out.write_all(&list)?;
    out.flush()
}

fn read_list(input: &mut impl Read) -> io::Result<Vec<Vec<u8>>> {
    let read_length = |input: &mut dyn Read| {
        let mut length = [0; 8];
        input.read_exact(&mut length).map(|()| u64::from_le_bytes(length))
    };
    let count = read_length(input)?;
    (0..count)
        .map(|_| {
            let length = read_length(input)?;
            let mut name = Vec::new();
            input.by_ref().take(length).read_to_end(&mut name)?;
            Ok(name)
        })
        .collect()
}

fn obey() {
    for command in io::stdin().lock().bytes().map_while(Result::ok) {
        match command {
            COMMAND_HOLD => HOLD.store(true, Ordering::SeqCst),
            COMMAND_GO => HOLD.store(false, Ordering::SeqCst),
            _ => {}
        }
    }
}

struct Writer<'a> {
    store: Store,
    files: Keyspace,
    totals: Keyspace,
    directory: &'a Path,
    slot: usize,
    names: Vec<Vec<u8>>,
    progress: Totals,
    /// A visible commit whose durability is awaited after the next commit.
    pending: Option<(u64, Nanoseconds, Ticket)>,
}

impl<'a> Writer<'a> {
    fn open(path: &Path, directory: &'a Path, slot: usize, names: Vec<Vec<u8>>) -> Outcome<Writer<'a>> {
        let store = open(path, false)?;
        let (files, totals) = (store.keyspace(FILES)?, store.keyspace(TOTALS)?);
        let progress = Totals { files: names.len() as u64, ..Totals::default() };
        let mut writer = Writer { store, files, totals, directory, slot, names, progress, pending: None };
        // If a dead writer had this share before, its totals contain its position.
        writer.progress = writer.stored_progress()?.unwrap_or(progress);
        Ok(writer)
    }

    fn stored_progress(&self) -> Outcome<Option<Totals>> {
        match self.totals.get(&Totals::key(self.slot)[..])? {
            Some(stored) => Totals::decode(&stored).map(Some).map_err(torn_failure),
            None => Ok(None),
        }
    }

    fn commit_next(&mut self) -> Outcome {
        let mut next = self.progress;
        next.commits += 1;
        let batch = self.read_batch(next.commits);
        next.done += batch.len() as u64;
        if next.done >= next.files {
            next.passes += 1;
            next.done = 0;
        }

        let durability = match next.commits % 4 {
            0 => Durability::Durable,
            _ => Durability::Visible,
        };
        let asked = event::now();
        let mut txn = self.store.begin_with(durability)?;
        let locked = event::now();
        for (name, record) in &batch {
            if let Some(old) = txn.get(&self.files, name)? {
                let decoded = FileRecord::decode(name, old).map_err(torn_failure)?;
                next.subtract(&decoded, old);
            }
            let bytes = record.encode(name);
            next.add(record, &bytes);
            txn.put(&self.files, name, &bytes[..])?;
        }
        if HOLD.load(Ordering::SeqCst) {
            hold(locked)?;
        }
        txn.put(&self.totals, &Totals::key(self.slot)[..], &next.encode()[..])?;
        let result = txn.commit();
        let ticket = match result {
            Ok(ticket) => ticket,
            Err(error @ (Error::NotDurable { .. } | Error::LoggerStalled { .. } | Error::LoggerUnavailable { .. })) => {
                // The store determines whether the commit has become visible.
                if self.stored_progress()? == Some(next) {
                    self.told(&next, asked, locked)?;
                }
                return refused(&error.to_string());
            }
            Err(error) => return Err(error.into()),
        };
        self.told(&next, asked, locked)?;
        if let Some((commit, asked, ticket)) = self.pending.take() {
            wait(commit, asked, &ticket)?;
        }
        match next.commits % 4 {
            0 | 1 => wait(next.commits, asked, &ticket)?,
            2 => self.pending = Some((next.commits, asked, ticket)),
            _ => {}
        }
        Ok(())
    }

    fn told(&mut self, next: &Totals, asked: Nanoseconds, locked: Nanoseconds) -> Outcome {
        self.progress = *next;
        let Totals { commits: commit, passes, done, .. } = *next;
        TourEvent::Committed { commit, passes, done, asked, locked }.tell().map_err(CommandFailure::output)
    }

    /// Returns the next few files, with their present contents.
    fn read_batch(&self, commit: u64) -> Vec<(&[u8], FileRecord)> {
        let count = (self.names.len() / COMMITS_PER_PASS_MIN).clamp(1, FILES_PER_COMMIT_MAX);
        let names = self.names.iter().skip(self.progress.done as usize).take(count);
        names.map(|name| (&name[..], self.examine(name, commit))).collect()
    }

    fn examine(&self, name: &[u8], commit: u64) -> FileRecord {
        let path = self.directory.join(OsStr::from_bytes(name));
        let mut record = FileRecord { slot: self.slot as u32, commit, size: 0, mtime_ns: 0, content_crc: None };
        // A file that was removed or is not readable is indexed as such.
        record.content_crc = File::open(&path)
            .and_then(|mut file| {
                let metadata = file.metadata()?;
                record.mtime_ns = metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec());
                content_crc(&mut file, &mut record.size)
            })
            .ok();
        record
    }
}

fn content_crc(file: &mut File, size: &mut u64) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            length => {
                hasher.update(&buffer[..length]);
                *size += length as u64;
            }
        }
    }
}

fn hold(locked: Nanoseconds) -> Outcome {
    TourEvent::Holding { locked }.tell().map_err(CommandFailure::output)?;
    while HOLD.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn wait(commit: u64, asked: Nanoseconds, ticket: &Ticket) -> Outcome {
    match ticket.wait() {
        Ok(()) => {
            let acknowledged = event::now();
            TourEvent::Durable { commit, asked, acknowledged }.tell().map_err(CommandFailure::output)
        }
        Err(error @ (Error::NotDurable { .. } | Error::LoggerStalled { .. } | Error::LoggerUnavailable { .. })) => {
            refused(&error.to_string())
        }
        Err(error) => Err(error.into()),
    }
}

fn torn_failure(torn: Torn) -> CommandFailure {
    CommandFailure::CheckFailed(torn.to_string())
}

fn refused(what: &str) -> Outcome {
    TourEvent::Refused(what.to_owned()).tell().map_err(CommandFailure::output)
}
