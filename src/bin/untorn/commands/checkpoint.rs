//! `checkpoint`: takes a checkpoint that covers everything visible now, and prints the transaction
//! that it covers.

use super::stat;
use crate::arguments::Format;
use crate::outcome::Outcome;
use crate::target;
use std::path::Path;

pub(crate) fn run(path: &Path, format: Format) -> Outcome {
    let covered = target::to_change(path)?.checkpoint()?;
    if format.json {
        stat::print(&serde_json::json!({ "checkpointed": covered }), format)
    } else {
        stat::print(&serde_json::json!({ "checkpointed": covered.to_string() }), format)
    }
}
