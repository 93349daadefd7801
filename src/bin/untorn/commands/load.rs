//! `load`: reads records, one a line, from standard input into a keyspace.
//!
//! It streams: at most one batch is in memory. A batch is one transaction, and is read as a whole
//! before the writer lock is taken, so a slow input never delays other writers. The batches become
//! visible one by one, and durable together, by one sync at the end. A bad line ends the load: the
//! lines before it are loaded, its number is printed, and nothing after it is read.

use crate::arguments::{Format, Location};
use crate::line;
use crate::outcome::{CommandFailure, Outcome};
use crate::target;
use std::io::{self, BufRead, Read, Write};
use untorn::{Batch, Durability, Error, LimitKind, StoreWrite, limits};

const BATCH_RECORDS_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Each byte may be written as `\xHH`.
const LINE_BYTES_MAX: u64 = 4 * (limits::VALUE_LEN_MAX + limits::PAGE_SIZE_MAX as u64);

pub(crate) fn run(at: &Location, format: Format) -> Outcome {
    let store = target::to_fill(&at.store, &at.keyspace)?;
    let mut loader = Loader { store: &*store, keyspace: &at.keyspace, batch: Vec::new(), batch_bytes: 0, loaded: 0 };
    let read = read_all(&mut io::stdin().lock(), &mut loader, format);
    // Also after a bad line: the lines before it are kept, and are durable before the message is
    // printed.
    let committed = loader.commit_batch();
    let synced = store.sync().map_err(CommandFailure::Store);
    if let Err(failure) = committed.and(read).and(synced) {
        if matches!(failure, CommandFailure::Store(_)) {
            eprintln!("untorn: {} records were loaded before the error", loader.loaded);
        }
        return Err(failure);
    }
    if format.json {
        writeln!(io::stdout(), "{{\"loaded\":{}}}", loader.loaded).map_err(CommandFailure::output)?;
    } else {
        eprintln!("{} records loaded", loader.loaded);
    }
    Ok(())
}

fn read_all(input: &mut impl BufRead, loader: &mut Loader<'_>, format: Format) -> Outcome {
    let mut text = Vec::new();
    for number in 1u64.. {
        text.clear();
        let length = input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut text)
            .map_err(CommandFailure::system(format!("reading line {number}")))?;
        if length == 0 {
            break;
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if length as u64 == LINE_BYTES_MAX {
            return Err(bad_line(number, &format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        let (key, value) = line::parse(&text, format).map_err(|what| bad_line(number, &what))?;
        loader.add(InputRecord { line: number, key, value })?;
    }
    Ok(())
}

fn bad_line(number: u64, what: &str) -> CommandFailure {
    CommandFailure::Usage(at_line(number, what))
}

fn at_line(number: u64, what: &str) -> String {
    format!("line {number}: {what}; exactly the lines before it are loaded")
}

struct InputRecord {
    line: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Collects records and commits them batch by batch.
struct Loader<'a> {
    store: &'a dyn StoreWrite,
    keyspace: &'a str,
    batch: Vec<InputRecord>,
    batch_bytes: usize,
    loaded: u64,
}

impl Loader<'_> {
    fn add(&mut self, record: InputRecord) -> Outcome {
        self.batch_bytes += record.key.len() + record.value.len();
        self.batch.push(record);
        if self.batch.len() >= BATCH_RECORDS_MAX || self.batch_bytes >= BATCH_BYTES_MAX {
            self.commit_batch()?;
        }
        Ok(())
    }

    fn commit_batch(&mut self) -> Outcome {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let Err(error) = self.commit_records(&batch) else { return Ok(()) };
        // One record was refused, and with it its batch. The records before it are committed.
        let Some(index) = refused(&batch, &error) else { return Err(error.into()) };
        self.commit_records(&batch[..index])?;
        Err(CommandFailure::System(at_line(batch[index].line, &error.to_string())))
    }

    /// Commits one transaction, visible on return.
    fn commit_records(&mut self, records: &[InputRecord]) -> untorn::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for record in records {
            batch.put(self.keyspace, &record.key, &record.value);
        }
        // A batch without conditions has no mismatch.
        let _ = self.store.commit(&batch, Durability::Visible)?;
        self.loaded += records.len() as u64;
        Ok(())
    }
}

/// Returns the first record for which a batch was refused.
fn refused(records: &[InputRecord], error: &Error) -> Option<usize> {
    let Error::Limit { what, found, .. } = error else { return None };
    match what {
        LimitKind::KeyLength => records.iter().position(|record| record.key.len() as u64 == *found),
        LimitKind::ValueLength => records.iter().position(|record| record.value.len() as u64 == *found),
        // A batch ends with the record that makes it large.
        LimitKind::MessageLength => records.len().checked_sub(1),
        _ => None,
    }
}
