//! The files after a cut, to be laid out in a directory or loaded into another recorder.

use super::event::{PAGE, Page, STORE};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All files and directories, by their paths from the recorder's root.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The directories, parents first.
    pub dirs: Vec<PathBuf>,
    /// The files.
    pub files: Vec<FileImage>,
}

/// One file.
#[derive(Clone, Debug)]
pub struct FileImage {
    /// Its path from the recorder's root.
    pub path: PathBuf,
    /// Its length.
    pub size: u64,
    /// All pages that are not all zeros. The map may also contain pages of zeros.
    pub pages: BTreeMap<u64, Page>,
}

impl Image {
    /// Returns a hash that identifies the image. Equal contents that different events wrote count
    /// as different.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.dirs.hash(&mut hasher);
        for file in &self.files {
            (&file.path, file.size).hash(&mut hasher);
            for (number, page) in &file.pages {
                (number, Arc::as_ptr(page).addr()).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Returns a file of the store, by its path in the store.
    pub fn file(&self, path: &str) -> Option<&FileImage> {
        let path = Path::new(STORE).join(path);
        self.files.iter().find(|file| file.path == path)
    }

    /// Writes the content of the store's directory into a new directory.
    ///
    /// # Errors
    /// Those of the system.
    pub fn lay_out(&self, store: &Path) -> io::Result<()> {
        std::fs::create_dir_all(store)?;
        for dir in &self.dirs {
            if let Ok(path) = dir.strip_prefix(STORE) {
                std::fs::create_dir_all(store.join(path))?;
            }
        }
        for file in &self.files {
            if let Ok(path) = file.path.strip_prefix(STORE) {
                file.lay_out(&store.join(path))?;
            }
        }
        Ok(())
    }
}

impl FileImage {
    /// Writes the file, which must not exist yet, with holes for pages of zeros.
    ///
    /// # Errors
    /// Those of the system.
    pub fn lay_out(&self, path: &Path) -> io::Result<()> {
        let made = std::fs::File::create_new(path)?;
        made.set_len(self.size)?;
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (number, page) in self.pages.iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0)) {
            if run.0 + (run.1.len() / PAGE) as u64 != *number {
                made.write_all_at(&run.1, run.0 * PAGE as u64)?;
                run = (*number, Vec::new());
            }
            run.1.extend_from_slice(&**page);
        }
        made.write_all_at(&run.1, run.0 * PAGE as u64)?;
        // The last page may extend beyond the end of the file.
        made.set_len(self.size)
    }
}
