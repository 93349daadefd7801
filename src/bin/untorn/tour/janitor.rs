//! The janitor process. It waits until the tour's parent has ended in any way, then stops the
//! logger and removes the store.
//!
//! It is in a process group of its own, so that Ctrl-C ends the tour but not the clean-up.

use crate::outcome::Outcome;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// The command on standard input to leave the store in place.
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
        // The logger exits at the latest when its directory is removed.
        std::fs::remove_dir_all(path)
            .map_err(crate::outcome::CommandFailure::system(format!("removing {}", path.display())))?;
    }
    stopped.map(|_| ()).map_err(Into::into)
}
