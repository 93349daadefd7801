//! The janitor process: waits until the tour's parent is gone, by whatever way, then has the logger
//! leave and removes the store.
//!
//! It is in a process group of its own, so that Ctrl-C ends the tour and not the cleaning up.

use crate::outcome::Outcome;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// On standard input: leave the store where it is.
pub(crate) const COMMAND_KEEP: u8 = b'k';

const LOGGER_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn run(path: &Path, remove: bool) -> Outcome {
    let mut commands = Vec::new();
    let _ = io::stdin().lock().read_to_end(&mut commands);
    if !path.exists() {
        return Ok(());
    }
    let stopped = untorn::logger::stop_logger(path, LOGGER_TIMEOUT);
    if remove && !commands.contains(&COMMAND_KEEP) {
        // The logger leaves at the latest when its directory is gone.
        std::fs::remove_dir_all(path)
            .map_err(crate::outcome::Failure::system(format!("removing {}", path.display())))?;
    }
    stopped.map(|_| ()).map_err(Into::into)
}
