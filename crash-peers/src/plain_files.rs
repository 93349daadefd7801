//! Plain files instead of a store: a file for each key, overwritten in place. They are a control:
//! every run must find a violation.

use crash_harness::store_under_test::{About, Change, Entries, Promise, Result, Store, StoreUnderTest};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Files behind the interface of a store.
pub(crate) struct PlainFiles;

impl StoreUnderTest for PlainFiles {
    fn about(&self) -> About {
        About {
            name: "plain-files",
            version: "none".into(),
            settings: "a file for each key, written in place and synced".into(),
            after_kill: Promise::Batch,
            after_cut: Promise::Batch,
            many_processes: false,
            control_of: &["kill", "cuts", "faults", "errors"],
        }
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Store>> {
        fs::create_dir_all(path)?;
        Ok(Box::new(Open { dir: path.into() }))
    }
}

struct Open {
    dir: PathBuf,
}

impl Open {
    /// Returns the file of a key, which may contain any bytes.
    fn file(&self, key: &[u8]) -> PathBuf {
        self.dir.join(key.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

impl Store for Open {
    fn batch(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let path = self.file(&change.key);
            match &change.value {
                Some(value) => {
                    let mut file = File::create(path)?;
                    file.write_all(value)?;
                    file.sync_all()?;
                }
                None => match fs::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                },
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(File::open(&self.dir)?.sync_all()?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match fs::read(self.file(key)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => Ok(Some(read?)),
        }
    }

    fn snapshot(&self) -> Result<Entries> {
        let mut entries = Entries::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|name| format!("a file named {name:?}"))?;
            let byte = |at: usize| name.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
            let key: Option<Vec<u8>> = (0..name.len() / 2).map(byte).collect();
            entries.insert(key.ok_or("a file that belongs to no key")?, fs::read(entry.path())?);
        }
        Ok(entries)
    }
}
