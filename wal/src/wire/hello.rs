//! The hellos that begin a connection. Their layout is for ever, whatever becomes of the messages.
//!
//! Integers are little-endian.
//!
//! | client's hello | bytes |
//! |---|---|
//! | magic `"untorn\r\n"` | 8 |
//! | oldest, newest version that it speaks | 2 + 2 |
//! | reserved, zero | 4 |
//!
//! | server's hello | bytes |
//! |---|---|
//! | magic `"untorn\r\n"` | 8 |
//! | the version chosen: the newest that both speak; 0 if refused | 2 |
//! | oldest, newest version that it speaks | 2 + 2 |
//! | 0: welcome; else why not ([`Refusal`]) | 2 |
//! | length of a text for people | 4 |
//! | the text, UTF-8 | at most 4,096 |
//!
//! A server that has no room, or does not know the caller's uid, says so without waiting for the
//! client's hello.

use super::{VERSION, VERSION_MIN, WireError};

/// What both hellos begin with. The line break shows a peer that sends text.
pub const MAGIC: [u8; 8] = *b"untorn\r\n";
/// Length of the client's hello.
pub const CLIENT_HELLO_BYTES: usize = 16;
/// Length of the server's hello before its text.
pub const SERVER_HELLO_BYTES: usize = 20;
/// The longest text of a server's hello.
pub const TEXT_BYTES_MAX: usize = 4096;

/// The first bytes that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The oldest version that it speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

impl ClientHello {
    /// That of a client of this code.
    pub const OURS: ClientHello = ClientHello { oldest: VERSION_MIN, newest: VERSION };

    /// As it is sent.
    pub fn encode(&self) -> [u8; CLIENT_HELLO_BYTES] {
        let mut bytes = [0; CLIENT_HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.oldest.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.newest.to_le_bytes());
        bytes
    }

    /// What a client sent. Reserved bytes are a later version's affair: it must get along with us,
    /// not we with it.
    ///
    /// # Errors
    /// [`WireError::Magic`]; [`WireError::Malformed`] if the versions are in the wrong order.
    pub fn decode(bytes: &[u8; CLIENT_HELLO_BYTES]) -> Result<ClientHello, WireError> {
        check_magic(bytes)?;
        let (oldest, newest) = (number(bytes, 8), number(bytes, 10));
        if oldest > newest || oldest == 0 {
            return Err(WireError::Malformed { what: format!("versions from {oldest} to {newest}") });
        }
        Ok(ClientHello { oldest, newest })
    }

    /// The newest version that both sides speak, if there is one.
    pub fn common_version(&self) -> Option<u16> {
        let newest = self.newest.min(VERSION);
        (newest >= self.oldest.max(VERSION_MIN)).then_some(newest)
    }
}

/// Why a server sends a client away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no version that both speak, or the client's hello was none.
    Version,
    /// The access file lets this uid in nowhere, or is malformed.
    NotAllowed,
    /// There are as many connections as there may be, of this uid or in all.
    Busy,
    /// The logger is leaving.
    Leaving,
    /// The store can't be used; the text says why.
    Unavailable,
    /// A reason of a later version; the text says which.
    Other(u16),
}

impl Refusal {
    fn code(self) -> u16 {
        match self {
            Refusal::Version => 1,
            Refusal::NotAllowed => 2,
            Refusal::Busy => 3,
            Refusal::Leaving => 4,
            Refusal::Unavailable => 5,
            Refusal::Other(code) => code,
        }
    }

    fn of_code(code: u16) -> Option<Refusal> {
        Some(match code {
            0 => return None,
            1 => Refusal::Version,
            2 => Refusal::NotAllowed,
            3 => Refusal::Busy,
            4 => Refusal::Leaving,
            5 => Refusal::Unavailable,
            code => Refusal::Other(code),
        })
    }
}

/// The first bytes that a server sends, but for the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The version to be spoken; 0 if refused.
    pub version: u16,
    /// The oldest version that it speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
    /// Why the client is sent away, if it is.
    pub refusal: Option<Refusal>,
    /// The length of the text that follows.
    pub text_bytes: usize,
}

impl ServerHello {
    /// A hello and its text as they are sent. A text that is too long is cut.
    pub fn encode(version: u16, refusal: Option<Refusal>, text: &str) -> Vec<u8> {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = Vec::with_capacity(SERVER_HELLO_BYTES + end);
        bytes.extend_from_slice(&MAGIC);
        for number in [version, VERSION_MIN, VERSION, refusal.map_or(0, Refusal::code)] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&(end as u32).to_le_bytes());
        bytes.extend_from_slice(&text.as_bytes()[..end]);
        bytes
    }

    /// What a server sent.
    ///
    /// # Errors
    /// [`WireError::Magic`]; [`WireError::Malformed`] for a text that is too long, or a welcome in
    /// a version that we don't speak.
    pub fn decode(bytes: &[u8; SERVER_HELLO_BYTES]) -> Result<ServerHello, WireError> {
        check_magic(bytes)?;
        let text_bytes = u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]) as usize;
        if text_bytes > TEXT_BYTES_MAX {
            return Err(WireError::Malformed { what: format!("a hello with a text of {text_bytes} bytes") });
        }
        let hello = ServerHello {
            version: number(bytes, 8),
            oldest: number(bytes, 10),
            newest: number(bytes, 12),
            refusal: Refusal::of_code(number(bytes, 14)),
            text_bytes,
        };
        if hello.refusal.is_none() && !(VERSION_MIN..=VERSION).contains(&hello.version) {
            return Err(WireError::Malformed { what: format!("a welcome in version {}", hello.version) });
        }
        Ok(hello)
    }
}

fn check_magic(bytes: &[u8]) -> Result<(), WireError> {
    let mut found = [0; 8];
    found.copy_from_slice(&bytes[..8]);
    if found == MAGIC { Ok(()) } else { Err(WireError::Magic { found }) }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
