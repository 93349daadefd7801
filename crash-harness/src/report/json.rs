//! Outcomes as JSON, one object a line.

use crate::outcome::Outcome;
use std::io::Write;
use std::path::Path;

/// Writes outcomes to a file; `-` is the standard output.
///
/// # Errors
/// If they can't be written.
pub fn write(outcomes: &[Outcome], to: Option<&Path>) -> Result<(), String> {
    let Some(to) = to else { return Ok(()) };
    let mut text = String::new();
    for outcome in outcomes {
        text += &serde_json::to_string(outcome).map_err(|error| error.to_string())?;
        text.push('\n');
    }
    let written = if to == Path::new("-") {
        std::io::stdout().lock().write_all(text.as_bytes())
    } else {
        std::fs::write(to, text)
    };
    written.map_err(|error| format!("writing {}: {error}", to.display()))
}
