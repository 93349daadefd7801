//! Readable names of a record's events: the kind of file, and the operation on it.

use crate::recorder::{Event, NameChange, Record, STORE};
use std::collections::BTreeMap;

/// Returns the name of each event's operation, such as `log: write`.
pub fn of(record: &Record) -> Vec<String> {
    let paths = record.paths();
    let kinds: BTreeMap<u64, &str> = paths.iter().map(|(number, path)| (*number, kind_of(path))).collect();
    let kind = |number: &u64| kinds.get(number).copied().unwrap_or("other file");
    let name = |event: &Event| match event {
        Event::Write { file, is_write_back: false, .. } => format!("{}: write", kind(file)),
        Event::Write { file, .. } => format!("{}: mapped pages written back", kind(file)),
        Event::Resized { file, .. } => format!("{}: resize", kind(file)),
        Event::Synced { file, .. } => format!("{}: sync", kind(file)),
        Event::SyncFailed { file, .. } => format!("{}: failed sync", kind(file)),
        Event::Name { dir, change: NameChange::Made { .. } } => format!("{}: create", kind(dir)),
        Event::Name { dir, change: NameChange::Moved { .. } } => format!("{}: rename", kind(dir)),
        Event::Name { dir, change: NameChange::Removed { .. } } => format!("{}: unlink", kind(dir)),
        Event::DirSynced { dir, .. } => format!("{}: sync", kind(dir)),
        Event::Mark(_) => "acknowledgement".to_string(),
    };
    record.events.iter().map(name).collect()
}

/// Returns the kind of a file or directory, from its last path.
fn kind_of(path: &str) -> &'static str {
    let within = path.strip_prefix(STORE).map(|rest| rest.trim_start_matches('/'));
    match within {
        None => "directory above",
        Some("") => "directory",
        Some("wal") => "log directory",
        Some(path) if path.starts_with("wal/") => "log",
        Some(path) if path.starts_with("arena") => "arena",
        Some(path) if path.starts_with("checkpoint") => "header",
        Some(path) if path.starts_with("device") => "device",
        Some(_) => "other file",
    }
}
