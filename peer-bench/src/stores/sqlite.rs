//! SQLite: one table of keys and values, with a write-ahead log.

use crate::store::{COUNTER_KEY, Engine, Entry, Error, Mode, Reader, Result, Session, Store, existing, touch};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub(crate) struct Sqlite;

/// Longest wait for other connections.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of the file that SQLite maps; it accepts no more.
const MMAP_BYTES: i64 = 0x7fff_0000;

/// Size of a connection's own cache in KiB, negative as the pragma wants it.
const CACHE_KIB: i64 = -65_536;

const PUT: &str = "INSERT OR REPLACE INTO data VALUES (?1, ?2)";

impl Engine for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn version(&self) -> String {
        rusqlite::version().into()
    }

    fn open(&self, path: &Path, mode: Mode, _data_bytes: u64) -> Result<Box<dyn Store>> {
        let path = path.join("data.sqlite");
        let connection = connect(&path, mode)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS data (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        )?;
        Ok(Box::new(Open { connection: Mutex::new(connection), path, mode }))
    }
}

fn connect(path: &Path, mode: Mode) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // The change of the mode does not wait for other connections.
    let begun = Instant::now();
    let journal: String = loop {
        match connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)) {
            Err(error) if is_busy(&error) && begun.elapsed() < BUSY_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            answered => break answered?,
        }
    };
    if !journal.eq_ignore_ascii_case("wal") {
        return Err(format!("the journal mode is {journal}").into());
    }
    connection.pragma_update(None, "synchronous", if mode == Mode::Durable { "FULL" } else { "OFF" })?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update_and_check(None, "mmap_size", MMAP_BYTES, |_| Ok(()))?;
    Ok(connection)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

struct Open {
    connection: Mutex<Connection>,
    path: PathBuf,
    mode: Mode,
}

impl Store for Open {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread { connection: connect(&self.path, self.mode)? }))
    }

    fn sync(&self) -> Result<()> {
        let connection = self.connection.lock().map_err(|_| Error::from("a thread panicked"))?;
        // Without syncs, checkpoints sync neither the log nor the database.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

struct Thread {
    connection: Connection,
}

impl Session for Thread {
    fn snapshot(&mut self, body: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        // The statements are cached, because preparing a statement takes longer than a read.
        self.connection.prepare_cached("BEGIN")?.execute([])?;
        let outcome = body(&mut View { connection: &self.connection });
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        outcome
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.connection.prepare_cached(PUT)?.execute((key, value))?;
        Ok(())
    }

    fn batch(&mut self, entries: &[Entry]) -> Result<()> {
        // The transaction begins as a writer. SQLite could refuse a transaction that begins as a
        // reader and writes later.
        let txn = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut insert = txn.prepare_cached(PUT)?;
            for (key, value) in entries {
                insert.execute((key, value))?;
            }
        }
        Ok(txn.commit()?)
    }

    fn increment(&mut self) -> Result<()> {
        // One statement reads and writes: the value is a number here.
        let mut update = self
            .connection
            .prepare_cached("INSERT INTO data VALUES (?1, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1")?;
        update.execute([COUNTER_KEY])?;
        Ok(())
    }
}

struct View<'s> {
    connection: &'s Connection,
}

impl Reader for View<'_> {
    fn get(&mut self, key: &[u8]) -> Result<u64> {
        let mut select = self.connection.prepare_cached("SELECT value FROM data WHERE key = ?1")?;
        let mut rows = select.query([key])?;
        let found = rows.next()?.map(|row| row.get_ref(0)?.as_blob().map_err(Error::from)).transpose()?;
        existing(key, found.map(touch))
    }

    fn seek(&mut self, key: &[u8], count: u64) -> Result<(u64, u64)> {
        let mut select =
            self.connection.prepare_cached("SELECT value FROM data WHERE key >= ?1 ORDER BY key LIMIT ?2")?;
        let mut rows = select.query((key, i64::try_from(count).unwrap_or(i64::MAX)))?;
        let (mut read, mut sum) = (0, 0);
        while let Some(row) = rows.next()? {
            // The value of the counter is a number, not a blob.
            sum += row.get_ref(0)?.as_bytes().map_or(0, touch);
            read += 1;
        }
        Ok((read, sum))
    }
}
