//! The engines, one file each.

mod fjall;
mod lmdb;
mod redb;
mod sqlite;
mod untorn;

use crate::store::Engine;

/// All engines, in the order of the table.
pub(crate) const ALL: &[&dyn Engine] = &[
    &untorn::Untorn,
    &lmdb::DEFAULT,
    &lmdb::WRITE_MAP,
    &redb::EXCLUSIVE,
    &redb::MULTI_WRITER,
    &sqlite::Sqlite,
    &fjall::Fjall,
];

/// Returns the engine with this name.
pub(crate) fn find(name: &str) -> Option<&'static dyn Engine> {
    ALL.iter().copied().find(|engine| engine.name() == name)
}

/// Returns the version of a package from `Cargo.lock`, for libraries that do not report it.
fn locked_version(package: &str) -> String {
    let lock = include_str!("../../../Cargo.lock");
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name).skip(1);
    let version = lines.next().and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.unwrap_or("unknown").into()
}
