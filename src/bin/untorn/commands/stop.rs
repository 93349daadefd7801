//! `stop`: requests that the logger write a checkpoint and exit. If none runs, that is no error:
//! none runs afterwards.

use super::stat;
use crate::arguments::Format;
use crate::outcome::Outcome;
use crate::target::{options, refuse_socket};
use std::path::Path;
use std::time::Duration;

pub(crate) fn run(path: &Path, timeout_seconds: u64, format: Format) -> Outcome {
    refuse_socket(path, "stop")?;
    let stopped = options().stop_logger(path, Duration::from_secs(timeout_seconds))?;
    if format.json {
        return stat::print(&serde_json::json!({ "stopped": stopped }), format);
    }
    eprintln!("{}", if stopped { "the logger has stopped" } else { "no logger was running" });
    Ok(())
}
