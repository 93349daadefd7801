//! The files that a tour indexes: the regular files of a directory tree, in order of their names,
//! up to a limit.
//!
//! Symbolic links are not followed. Names longer than a key are left out and counted.

use crate::outcome::{CommandFailure, Outcome};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};
use untorn::limits;

const FILES_DEFAULT: usize = 20_000;
const BYTES_DEFAULT: u64 = 512 << 20;

/// The files of a tour.
pub(crate) struct Source {
    /// The directory that the names are relative to.
    pub(crate) directory: PathBuf,
    /// Relative names, as bytes: the keys of the index.
    pub(crate) names: Vec<Vec<u8>>,
    /// Bytes of content, by the metadata of the files.
    pub(crate) bytes: u64,
    /// Whether there were more files than the limits allow.
    pub(crate) is_cut: bool,
    /// Files left out because their names are too long for a key.
    pub(crate) too_long: u64,
}

/// Finds the files of the directory, or of the default one.
pub(crate) fn find(directory: Option<&Path>, limit: Option<u32>) -> Outcome<Source> {
    let directory = match directory {
        Some(directory) => directory.to_owned(),
        None => default_directory()?,
    };
    let directory = directory
        .canonicalize()
        .map_err(|error| CommandFailure::Usage(format!("cannot index {}: {error}", directory.display())))?;
    let (files_max, bytes_max) = match limit {
        Some(limit) => (limit as usize, u64::MAX),
        None => (FILES_DEFAULT, BYTES_DEFAULT),
    };
    let mut source = Source { directory, names: Vec::new(), bytes: 0, is_cut: false, too_long: 0 };
    source.walk(files_max, bytes_max);
    if source.names.is_empty() {
        return Err(CommandFailure::Usage(format!("there are no files in {}", source.directory.display())));
    }
    Ok(source)
}

impl Source {
    /// Walks depth first. A directory that can't be listed is not indexed, as with `find`.
    fn walk(&mut self, files_max: usize, bytes_max: u64) {
        let mut pending = vec![self.directory.clone()];
        while let Some(path) = pending.pop() {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                let Ok(entries) = fs::read_dir(&path) else { continue };
                let mut children: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
                children.sort_unstable_by(|a, b| b.cmp(a));
                pending.append(&mut children);
            } else if metadata.is_file() {
                if self.names.len() == files_max || self.bytes + metadata.len() > bytes_max {
                    self.is_cut = true;
                    return;
                }
                self.add(&path, metadata.len());
            }
        }
    }

    fn add(&mut self, path: &Path, length: u64) {
        let Ok(name) = path.strip_prefix(&self.directory) else { return };
        let name = name.as_os_str().as_bytes();
        // The directory itself may be a file.
        if name.is_empty() {
            return;
        }
        if name.len() > limits::key_len_max(limits::PAGE_SIZE_DEFAULT) {
            self.too_long += 1;
            return;
        }
        self.names.push(name.to_owned());
        self.bytes += length;
    }
}

fn default_directory() -> Outcome<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let sources = cargo_home.map(|home| home.join("registry/src"));
    let has_entries = |path: &PathBuf| path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if let Some(sources) = sources.filter(has_entries) {
        return Ok(sources);
    }
    let printed = Command::new("rustc").args(["--print", "sysroot"]).stderr(Stdio::null()).output();
    match printed {
        Ok(output) if output.status.success() => Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end())),
        _ => Err(CommandFailure::Usage(
            "there is neither a cargo registry nor a Rust toolchain here; name a directory to index".to_owned(),
        )),
    }
}
