//! `stat`: prints the store's counters as they are now.

pub(crate) mod prometheus;

use crate::arguments::Format;
use crate::outcome::{CommandFailure, Outcome};
use crate::output::Output;
use crate::target;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use untorn::TxnId;

pub(crate) fn run(path: &Path, format: Format) -> Outcome {
    let stats = target::to_read(path)?.stats()?;
    if format.json {
        return print(&stats, format);
    }
    // For people, the reason is a sentence.
    let mut report = to_value(&stats)?;
    if let Some(reason) = &stats.needs_recovery {
        report["needs_recovery"] = reason.to_string().into();
    }
    print(&report, format)
}

fn to_value(report: &impl Serialize) -> Result<Value, CommandFailure> {
    serde_json::to_value(report).map_err(|error| CommandFailure::System(error.to_string()))
}

/// Prints a report: one JSON object on a line, or a line for each of its fields.
pub(crate) fn print(report: &impl Serialize, format: Format) -> Outcome {
    let report = to_value(report)?;
    let mut out = Output::new(format);
    if format.json {
        writeln!(out, "{report}").map_err(CommandFailure::output)?;
    } else {
        let mut lines = Vec::new();
        flatten("", &report, &mut lines);
        let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in lines {
            writeln!(out, "{name:width$}  {value}").map_err(CommandFailure::output)?;
        }
    }
    out.flush().map_err(CommandFailure::output)
}

/// The fields that contain transaction ids. They are written as `watch` and `checkpoint` write
/// them, incarnation first.
const TXN_FIELDS: [&str; 4] = ["checkpointed", "committed", "durable", "txn"];

fn flatten(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Number(number) if TXN_FIELDS.contains(&name.rsplit('.').next().unwrap_or(name)) => {
            let text = number.as_u64().map(|bits| TxnId::from_u64(bits).to_string());
            lines.push((name.to_owned(), text.unwrap_or_else(|| number.to_string())));
        }
        Value::Object(fields) => {
            // The buckets of a histogram are for programs; its summary is printed as well.
            for (field, value) in fields.iter().filter(|(field, _)| *field != "buckets") {
                let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                flatten(&name, value, lines);
            }
        }
        Value::Array(items) if items.is_empty() => lines.push((name.to_owned(), "none".to_owned())),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{name}[{index}]"), item, lines);
            }
        }
        Value::Null => lines.push((name.to_owned(), "none".to_owned())),
        Value::String(text) => lines.push((name.to_owned(), text.clone())),
        other => lines.push((name.to_owned(), other.to_string())),
    }
}
