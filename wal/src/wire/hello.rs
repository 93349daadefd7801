//! The hellos that begin a connection. Their layout never changes, even if the messages do.
//!
//! Integers are little-endian.
//!
//! | client's hello | bytes |
//! |---|---|
//! | magic `"untorn\r\n"` | 8 |
//! | oldest, newest version that it supports | 2 + 2 |
//! | reserved, zero | 4 |
//!
//! | server's hello | bytes |
//! |---|---|
//! | magic `"untorn\r\n"` | 8 |
//! | the version chosen: the newest that both support; 0 if refused | 2 |
//! | oldest, newest version that it supports | 2 + 2 |
//! | 0: accepted; otherwise the reason ([`Refusal`]) | 2 |
//! | length of a human-readable text | 4 |
//! | the text, UTF-8 | at most 4,096 |
//!
//! If a server has no free connection, or can't determine the caller's uid, it refuses without
//! waiting for the client's hello.

use super::{VERSION, VERSION_MIN, WireError};

/// The first bytes of both hellos. The line break detects a peer that sends text.
pub const MAGIC: [u8; 8] = *b"untorn\r\n";
/// The length of the client's hello.
pub const CLIENT_HELLO_BYTES: usize = 16;
/// The length of the server's hello before its text.
pub const SERVER_HELLO_BYTES: usize = 20;
/// The longest text of a server's hello.
pub const TEXT_BYTES_MAX: usize = 4096;

/// The first bytes that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The oldest version that it supports.
    pub oldest: u16,
    /// The newest version that it supports.
    pub newest: u16,
}

impl ClientHello {
    /// The hello of a client of this code.
    pub const OURS: ClientHello = ClientHello { oldest: VERSION_MIN, newest: VERSION };

    /// Returns the hello's bytes.
    pub fn encode(&self) -> [u8; CLIENT_HELLO_BYTES] {
        let mut bytes = [0; CLIENT_HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.oldest.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.newest.to_le_bytes());
        bytes
    }

    /// Decodes a client's hello. Reserved bytes are ignored: a later version that uses them must be
    /// compatible with this code.
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

    /// Returns the newest version that both sides support, if there is one.
    pub fn common_version(&self) -> Option<u16> {
        let newest = self.newest.min(VERSION);
        (newest >= self.oldest.max(VERSION_MIN)).then_some(newest)
    }
}

/// The reason why a server refuses a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// No version is supported by both, or the client's hello was invalid.
    Version,
    /// The access file allows this uid nothing, or is malformed.
    NotAllowed,
    /// The limit of connections is reached, for this uid or in total.
    Busy,
    /// The logger is exiting.
    Exiting,
    /// The store can't be used; the text contains the reason.
    Unavailable,
    /// A reason of a later version; the text contains it.
    Other(u16),
}

impl Refusal {
    fn code(self) -> u16 {
        match self {
            Refusal::Version => 1,
            Refusal::NotAllowed => 2,
            Refusal::Busy => 3,
            Refusal::Exiting => 4,
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
            4 => Refusal::Exiting,
            5 => Refusal::Unavailable,
            code => Refusal::Other(code),
        })
    }
}

/// The first bytes that a server sends, without the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The version that the connection uses; 0 if refused.
    pub version: u16,
    /// The oldest version that it supports.
    pub oldest: u16,
    /// The newest version that it supports.
    pub newest: u16,
    /// The reason why the server refuses the client; `None` if it accepts the client.
    pub refusal: Option<Refusal>,
    /// The length of the text that follows.
    pub text_bytes: usize,
}

impl ServerHello {
    /// Returns the bytes of a hello and its text. A text that is too long is truncated.
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

    /// Decodes a server's hello.
    ///
    /// # Errors
    /// [`WireError::Magic`]; [`WireError::Malformed`] for a text that is too long, or an acceptance
    /// in a version that this code does not support.
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
            return Err(WireError::Malformed { what: format!("an acceptance in version {}", hello.version) });
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
