//! One record as one line: `key<TAB>value`, or a JSON object with `--json`. `dump` and `scan` write
//! it, `load` reads it.

use crate::arguments::Format;
use crate::outcome::{CommandFailure, Outcome};
use crate::text;
use serde::{Deserialize, Serialize};
use std::io::Write;

/// A record in a JSON line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord {
    /// `load` uses its own argument instead, so that a dump can be loaded into another keyspace.
    #[serde(default)]
    keyspace: String,
    key: String,
    value: String,
}

/// Writes the record and the newline.
pub(crate) fn write(out: &mut impl Write, keyspace: &str, key: &[u8], value: &[u8], format: Format) -> Outcome {
    let mut line = Vec::with_capacity(key.len() + value.len() + 2);
    if format.json {
        let record = JsonRecord {
            keyspace: keyspace.to_owned(),
            key: text::render(key, format)?,
            value: text::render(value, format)?,
        };
        serde_json::to_writer(&mut line, &record).map_err(|error| CommandFailure::System(error.to_string()))?;
    } else {
        text::render_field(key, format, &mut line);
        line.push(b'\t');
        text::render_field(value, format, &mut line);
    }
    line.push(b'\n');
    out.write_all(&line).map_err(CommandFailure::output)
}

/// Returns the key and value of a line without its newline, or the error in it.
pub(crate) fn parse(line: &[u8], format: Format) -> Result<(Vec<u8>, Vec<u8>), String> {
    if format.json {
        let record: JsonRecord = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let bytes = |field: &str| text::parse(field, format).map_err(|failure| failure.to_string());
        return Ok((bytes(&record.key)?, bytes(&record.value)?));
    }
    let mut fields = line.split(|&byte| byte == b'\t');
    match (fields.next(), fields.next(), fields.next()) {
        (Some(key), Some(value), None) => Ok((text::parse_field(key, format)?, text::parse_field(value, format)?)),
        (_, None, _) => Err("there is no tab between key and value".to_owned()),
        _ => Err("there is more than one tab; within a key or value it is written \\t".to_owned()),
    }
}
