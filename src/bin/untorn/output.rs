//! Standard output. On a terminal, control characters are written as escapes: keys, values and
//! names come from any process that may write to the store. A pipe or a file gets every byte
//! unchanged, since scripts rely on that.

use crate::arguments::Format;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

/// Standard output, buffered: output is complete after a flush.
pub(crate) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    escapes: Option<Escape>,
}

/// The escape of a control character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Escape {
    /// `\xHH` for each of its bytes, which `load` reads back.
    Bytes,
    /// `\uHHHH`, within the strings of a JSON line.
    Json,
}

impl Output {
    pub(crate) fn new(format: Format) -> Output {
        let out = io::stdout().lock();
        let escape = if format.json { Escape::Json } else { Escape::Bytes };
        Output { escapes: out.is_terminal().then_some(escape), out: BufWriter::with_capacity(1 << 16, out) }
    }
}

/// Each call gets whole characters: fields and lines are written as one.
impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.escapes {
            None => self.out.write(bytes),
            Some(escape) => self.out.write_all(&escaped(bytes, escape)).map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn escaped(bytes: &[u8], escape: Escape) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let mut buffer = [0; 4];
            let encoded = c.encode_utf8(&mut buffer);
            match c {
                '\n' | '\t' => shown.push(c as u8),
                _ if untorn_wal::printable(encoded) == *encoded => shown.extend_from_slice(encoded.as_bytes()),
                _ if escape == Escape::Json => shown.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes()),
                _ => escape_bytes(encoded.as_bytes(), &mut shown),
            }
        }
        escape_bytes(chunk.invalid(), &mut shown);
    }
    shown
}

fn escape_bytes(bytes: &[u8], shown: &mut Vec<u8>) {
    for byte in bytes {
        shown.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    //! Control characters are escaped, and all other characters are not.

    use super::*;

    #[test]
    fn a_terminal_gets_nothing_that_it_obeys() {
        let bytes = "a\u{1b}[2J\r\u{7}\u{9b}\u{202e}größe\tb\n".as_bytes();
        assert_eq!(
            String::from_utf8(escaped(bytes, Escape::Bytes)).unwrap(),
            "a\\x1b[2J\\x0d\\x07\\xc2\\x9b\\xe2\\x80\\xaegröße\tb\n"
        );
        assert_eq!(
            String::from_utf8(escaped(bytes, Escape::Json)).unwrap(),
            "a\\u001b[2J\\u000d\\u0007\\u009b\\u202egröße\tb\n"
        );
        assert_eq!(escaped(b"\xff\x9b", Escape::Bytes), b"\\xff\\x9b");
    }
}
