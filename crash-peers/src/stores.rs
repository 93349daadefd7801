//! The rows: the stores under test, each with one choice of settings.

use crate::{fjall::Fjall, lmdb, plain_files::PlainFiles, redb, sqlite};
use crash_harness::store_under_test::{StoreUnderTest, untorn::Untorn};

/// All stores, in the order of the table.
pub(crate) const ALL: &[&dyn StoreUnderTest] = &[
    &Untorn { durable: true },
    &Untorn { durable: false },
    &sqlite::WAL_FULL,
    &sqlite::WAL_NORMAL,
    &sqlite::DELETE_EXTRA,
    &sqlite::WAL_OFF,
    &lmdb::DEFAULT,
    &lmdb::WRITE_MAP,
    &lmdb::NO_SYNC,
    &redb::EXCLUSIVE,
    &redb::MULTI_WRITER,
    &redb::NONE,
    &Fjall,
    &PlainFiles,
];

/// Returns the stores with these names. A name is that of a row or of a family of rows; without
/// names, all are returned.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<&'static dyn StoreUnderTest>, String> {
    let is_of = |row: &str, name: &str| row == name || row.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    let rows = || ALL.iter().map(|tested| tested.about().name);
    if let Some(name) = names.iter().find(|name| !rows().any(|row| is_of(row, name))) {
        let rows: Vec<&str> = rows().collect();
        return Err(format!("no store is named {name:?}; there are {}", rows.join(", ")));
    }
    let wanted = |row: &str| names.is_empty() || names.iter().any(|name| name == row || is_of(row, name));
    Ok(ALL.iter().copied().filter(|tested| wanted(tested.about().name)).collect())
}

/// Returns the version of a package from `Cargo.lock`, for libraries that do not report it.
pub(crate) fn locked_version(package: &str) -> String {
    let lock = include_str!("../../Cargo.lock");
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name).skip(1);
    let version = lines.next().and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.unwrap_or("unknown").into()
}
