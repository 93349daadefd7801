//! SQLite as a store under test: one table of keys and values, in several journal modes.

use crash_harness::store_under_test::{About, Change, Entries, Failure, Promise, Result, Store, StoreUnderTest};
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use std::path::Path;
use std::time::{Duration, Instant};

/// SQLite with these settings.
pub(crate) struct Sqlite {
    name: &'static str,
    journal: &'static str,
    synchronous: &'static str,
    after_cut: Promise,
    control_of: &'static [&'static str],
}

/// Each commit syncs the log.
pub(crate) const WAL_FULL: Sqlite =
    Sqlite { name: "sqlite-wal-full", journal: "WAL", synchronous: "FULL", after_cut: Promise::Batch, control_of: &[] };

/// Only checkpoints sync. According to its documentation, SQLite may then lose the latest commits
/// in a power cut, and nothing else.
pub(crate) const WAL_NORMAL: Sqlite = Sqlite {
    name: "sqlite-wal-normal",
    journal: "WAL",
    synchronous: "NORMAL",
    after_cut: Promise::Sync,
    control_of: &[],
};

/// A rollback journal. The removal of the journal is the commit. According to SQLite's
/// documentation, `EXTRA` syncs that removal and `FULL` does not.
pub(crate) const DELETE_EXTRA: Sqlite = Sqlite {
    name: "sqlite-delete-extra",
    journal: "DELETE",
    synchronous: "EXTRA",
    after_cut: Promise::Batch,
    control_of: &[],
};

/// Nothing is synced. According to its documentation, SQLite may then lose and damage data in a
/// power cut: a control of the checks.
pub(crate) const WAL_OFF: Sqlite = Sqlite {
    name: "sqlite-wal-off",
    journal: "WAL",
    synchronous: "OFF",
    after_cut: Promise::Batch,
    control_of: &["cuts", "faults"],
};

/// Pages of the log after which SQLite takes a checkpoint; the default is 1,000. With a small value
/// even a short run takes many checkpoints.
const CHECKPOINT_PAGES: u32 = 100;

/// Longest wait for other processes.
const BUSY: Duration = Duration::from_secs(25);

impl StoreUnderTest for Sqlite {
    fn about(&self) -> About {
        let checkpoint = format!(", wal_autocheckpoint={CHECKPOINT_PAGES}");
        About {
            name: self.name,
            version: rusqlite::version().into(),
            settings: format!(
                "journal_mode={}, synchronous={}{}",
                self.journal,
                self.synchronous,
                if self.journal == "WAL" { &checkpoint } else { "" }
            ),
            after_kill: Promise::Batch,
            after_cut: self.after_cut,
            many_processes: true,
            control_of: self.control_of,
        }
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Store>> {
        std::fs::create_dir_all(path)?;
        let connection = Connection::open(path.join("data.sqlite"))?;
        connection.busy_timeout(BUSY)?;
        // Changing the mode does not wait for other processes.
        let begun = Instant::now();
        let mode: String = loop {
            match connection.query_row(&format!("PRAGMA journal_mode={}", self.journal), [], |row| row.get(0)) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < BUSY => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                answered => break answered?,
            }
        };
        if !mode.eq_ignore_ascii_case(self.journal) {
            return Err(Failure(format!("the journal mode is {mode}")));
        }
        connection.pragma_update(None, "synchronous", self.synchronous)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS data (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        )?;
        Ok(Box::new(Open { connection, is_log: self.journal == "WAL" }))
    }
}

struct Open {
    connection: Connection,
    is_log: bool,
}

impl Store for Open {
    fn batch(&mut self, changes: &[Change]) -> Result<()> {
        // The transaction begins as a writer. SQLite could refuse a transaction that begins as a
        // reader and writes later.
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for change in changes {
            match &change.value {
                Some(value) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO data VALUES (?1, ?2)")?
                    .execute((&change.key, value))?,
                None => transaction.prepare_cached("DELETE FROM data WHERE key = ?1")?.execute([&change.key])?,
            };
        }
        Ok(transaction.commit()?)
    }

    fn sync(&mut self) -> Result<()> {
        if self.is_log {
            // Only a checkpoint syncs the log afterwards. Its result shows whether another
            // connection blocked it.
            let begun = Instant::now();
            while self.connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| row.get::<_, i64>(0))? != 0 {
                if begun.elapsed() > BUSY {
                    return Err(Failure("a checkpoint was blocked by other connections".into()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut select = self.connection.prepare_cached("SELECT value FROM data WHERE key = ?1")?;
        Ok(select.query_row([key], |row| row.get(0)).optional()?)
    }

    fn snapshot(&self) -> Result<Entries> {
        // One statement reads one state.
        let mut select = self.connection.prepare_cached("SELECT key, value FROM data")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<Entries>>()?)
    }

    fn verify(&mut self) -> Result<()> {
        let said: String = self.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if said == "ok" { Ok(()) } else { Err(Failure(said)) }
    }
}
