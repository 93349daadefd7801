//! A record in a file, so that a state that violated a promise can be laid out again exactly.
//!
//! The file contains a line of JSON for the whole record, a line for each event, and then each page
//! once. The events refer to pages by number.

use super::event::{Event, NameChange, OfOneBoot, PAGE, Page, Record};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head<N> {
    of_one_boot: OfOneBoot,
    events: usize,
    pages: usize,
    note: N,
}

/// The line of one event; pages are given by number.
#[derive(Serialize, Deserialize)]
enum Line {
    Write { file: u64, first: u64, pages: Vec<usize>, size: u64, is_write_back: bool },
    Resized { file: u64, size: u64 },
    Synced { file: u64, before: usize },
    SyncFailed { file: u64, before: usize },
    Name { dir: u64, change: NameChange },
    DirSynced { dir: u64, before: usize },
    Mark(String),
}

impl Record {
    /// Writes the record to a file, with a note.
    ///
    /// # Errors
    /// Those of the system.
    pub fn save<'p, N: Serialize>(&'p self, path: &Path, note: &N) -> io::Result<()> {
        let mut pages: Vec<&'p Page> = Vec::new();
        let mut numbers: BTreeMap<&'p [u8; PAGE], usize> = BTreeMap::new();
        let mut lines = Vec::new();
        for event in &self.events {
            let line = match event.clone() {
                Event::Write { file, first, size, is_write_back, .. } => {
                    let Event::Write { pages: written, .. } = event else { continue };
                    let number = |page: &'p Page| {
                        *numbers.entry(&**page).or_insert_with(|| {
                            pages.push(page);
                            pages.len() - 1
                        })
                    };
                    Line::Write { file, first, pages: written.iter().map(number).collect(), size, is_write_back }
                }
                Event::Resized { file, size } => Line::Resized { file, size },
                Event::Synced { file, before } => Line::Synced { file, before },
                Event::SyncFailed { file, before } => Line::SyncFailed { file, before },
                Event::Name { dir, change } => Line::Name { dir, change },
                Event::DirSynced { dir, before } => Line::DirSynced { dir, before },
                Event::Mark(said) => Line::Mark(said),
            };
            lines.push(serde_json::to_string(&line)?);
        }
        let head = Head { of_one_boot: self.of_one_boot.clone(), events: lines.len(), pages: pages.len(), note };
        let mut to = BufWriter::new(File::create(path)?);
        writeln!(to, "{}", serde_json::to_string(&head)?)?;
        for line in lines {
            writeln!(to, "{line}")?;
        }
        for page in pages {
            to.write_all(&**page)?;
        }
        to.flush()
    }

    /// Reads a saved record and its note.
    ///
    /// # Errors
    /// Those of the system, and if the file is not a record.
    pub fn load<N: DeserializeOwned>(path: &Path) -> io::Result<(Record, N)> {
        let mut from = BufReader::new(File::open(path)?);
        let mut line = String::new();
        from.read_line(&mut line)?;
        let head: Head<N> = serde_json::from_str(&line)?;
        let mut lines = Vec::new();
        for _ in 0..head.events {
            line.clear();
            from.read_line(&mut line)?;
            lines.push(serde_json::from_str(&line)?);
        }
        let mut pages: Vec<Page> = Vec::new();
        for _ in 0..head.pages {
            let mut page = [0; PAGE];
            from.read_exact(&mut page)?;
            pages.push(Arc::new(page));
        }
        let event = |line| {
            Ok(match line {
                Line::Write { file, first, pages: written, size, is_write_back } => {
                    let page = |number: usize| pages.get(number).cloned();
                    let written: Option<Vec<Page>> = written.into_iter().map(page).collect();
                    let written = written.ok_or_else(|| io::Error::other("a page that is not there"))?;
                    Event::Write { file, first, pages: written, size, is_write_back }
                }
                Line::Resized { file, size } => Event::Resized { file, size },
                Line::Synced { file, before } => Event::Synced { file, before },
                Line::SyncFailed { file, before } => Event::SyncFailed { file, before },
                Line::Name { dir, change } => Event::Name { dir, change },
                Line::DirSynced { dir, before } => Event::DirSynced { dir, before },
                Line::Mark(said) => Event::Mark(said),
            })
        };
        let events = lines.into_iter().map(event).collect::<io::Result<_>>()?;
        Ok((Record { events, times: Vec::new(), of_one_boot: head.of_one_boot }, head.note))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_loaded_as_it_was_saved() {
        let page: Page = Arc::new([7; PAGE]);
        let pages = vec![page.clone(), Arc::new([0; PAGE]), page];
        let made = NameChange::Made { name: "a b".into(), inode: 3, is_dir: false };
        let events = vec![
            Event::Name { dir: 1, change: made },
            Event::Name { dir: 1, change: NameChange::Moved { from: "a b".into(), to: "c".into() } },
            Event::Write { file: 3, first: 1, pages, size: 9000, is_write_back: true },
            Event::Mark("D w0 1\nand more".into()),
            Event::Synced { file: 3, before: 4 },
            Event::SyncFailed { file: 3, before: 5 },
            Event::Resized { file: 3, size: 5 },
            Event::Name { dir: 1, change: NameChange::Removed { name: "c".into() } },
            Event::DirSynced { dir: 1, before: usize::MAX },
        ];
        let record = Record { events, times: Vec::new(), of_one_boot: OfOneBoot::names(&["control"]) };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        record.save(&path, &("note", 5)).unwrap();
        let (loaded, note) = Record::load::<(String, u64)>(&path).unwrap();
        assert_eq!(format!("{record:?}"), format!("{loaded:?}"));
        assert_eq!(note, ("note".to_string(), 5));
        assert!(std::fs::metadata(&path).unwrap().len() < 3 * PAGE as u64, "equal pages are kept once");
    }
}
