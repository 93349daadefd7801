//! Bytes as text: UTF-8 or hexadecimal, as single arguments, fields of a JSON object and escaped
//! fields of a line.
//!
//! Everything that is written here can be read back as the same bytes. A field of a line escapes
//! its terminators (tab, newline) and the backslash itself. Bytes that are not UTF-8 become `\xHH`,
//! so the output is always UTF-8.

use crate::arguments::Format;
use crate::outcome::{CommandFailure, Outcome};

/// Parses the bytes of an argument or of a JSON string.
pub(crate) fn parse(text: &str, format: Format) -> Outcome<Vec<u8>> {
    if format.hex { parse_hex(text.as_bytes()).map_err(CommandFailure::Usage) } else { Ok(text.as_bytes().to_vec()) }
}

/// Formats bytes as an argument or a JSON string.
pub(crate) fn render(bytes: &[u8], format: Format) -> Outcome<String> {
    if format.hex {
        return Ok(render_hex(bytes));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(CommandFailure::Usage(format!(
            "the {} bytes {} are not UTF-8; use --hex",
            bytes.len(),
            render_hex_start(bytes)
        ))),
    }
}

/// Parses the bytes of one field of a `key<TAB>value` line.
pub(crate) fn parse_field(field: &[u8], format: Format) -> Result<Vec<u8>, String> {
    if format.hex { parse_hex(field) } else { unescape(field) }
}

/// Appends bytes to `out` as one field of a `key<TAB>value` line.
pub(crate) fn render_field(bytes: &[u8], format: Format, out: &mut Vec<u8>) {
    if format.hex {
        out.extend_from_slice(render_hex(bytes).as_bytes());
    } else {
        escape(bytes, out);
    }
}

fn parse_hex(digits: &[u8]) -> Result<Vec<u8>, String> {
    if !digits.len().is_multiple_of(2) {
        return Err(format!("{} hexadecimal digits make no whole bytes", digits.len()));
    }
    digits.chunks_exact(2).map(hex_byte).collect()
}

fn hex_byte(pair: &[u8]) -> Result<u8, String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    match (digit(pair[0]), digit(pair[1])) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(format!("{:?} is not a pair of hexadecimal digits", String::from_utf8_lossy(pair))),
    }
}

fn render_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns enough of the bytes to recognise them in a message.
fn render_hex_start(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 16;
    match bytes.get(..SHOWN_BYTES_MAX) {
        Some(start) => format!("{}…", render_hex(start)),
        None => render_hex(bytes),
    }
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        for &byte in chunk.valid().as_bytes() {
            match byte {
                b'\t' => out.extend_from_slice(b"\\t"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\\' => out.extend_from_slice(b"\\\\"),
                _ => out.push(byte),
            }
        }
        for byte in chunk.invalid() {
            out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

fn unescape(field: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let Some((&escaped, after)) = rest.split_first() else {
            return Err("a single backslash ends the field; a backslash itself is written \\\\".to_owned());
        };
        rest = after;
        bytes.push(match escaped {
            b't' => b'\t',
            b'n' => b'\n',
            b'r' => b'\r',
            b'\\' => b'\\',
            b'x' if rest.len() >= 2 => {
                let (pair, after) = rest.split_at(2);
                rest = after;
                hex_byte(pair)?
            }
            _ => {
                return Err(format!("unknown escape \\{}; known are \\t \\n \\r \\\\ \\xHH", escaped.escape_ascii()));
            }
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    //! Every string of bytes must be unchanged after it was written and read, in each format.

    use super::*;

    const FORMATS: [Format; 2] = [Format { hex: false, json: false }, Format { hex: true, json: false }];

    #[test]
    fn fields_round_trip() {
        let all: Vec<u8> = (0..=255).collect();
        let awkward: [&[u8]; 9] =
            [b"", b"\\", b"\\t", b"a\tb\nc\r", b"\xff\xfe", "grüße €".as_bytes(), b"\xe2\x82", b"\\x41", &all];
        for bytes in awkward {
            for format in FORMATS {
                let mut field = Vec::new();
                render_field(bytes, format, &mut field);
                assert!(!field.contains(&b'\t') && !field.contains(&b'\n'));
                assert!(std::str::from_utf8(&field).is_ok());
                assert_eq!(parse_field(&field, format).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn bad_fields_are_refused() {
        for field in ["\\", "a\\q", "\\x", "\\x4", "\\xg0"] {
            assert!(parse_field(field.as_bytes(), FORMATS[0]).is_err(), "{field}");
        }
        for field in ["0", "0g", "+1", "0x41"] {
            assert!(parse_field(field.as_bytes(), FORMATS[1]).is_err(), "{field}");
        }
    }
}
