//! The messages between a message-passing client and the server in the logger process.
//!
//! A connection begins with a hello from each side ([`hello`]). The hellos determine the version.
//! Then the client sends requests, and the server sends one reply for each, in order. A message is
//! a frame: its length as four bytes, little-endian, followed by the [`Request`] or [`Reply`],
//! encoded by bincode with fixed-size integers.
//!
//! Both sides check every byte. A length beyond [`MESSAGE_BYTES_MAX`] is rejected before anything
//! is read or allocated for it. Strings and byte strings are references into the frame, so a
//! claimed length allocates nothing; a list grows as its items are decoded. Bytes left over after a
//! message are an error.
//!
//! Deliberately absent: compression, checksums (a Unix socket neither loses nor changes bytes), and
//! any interpretation of keys.

pub mod hello;
pub mod list;
pub mod reply;
pub mod request;

pub use hello::{ClientHello, Refusal, ServerHello};
pub use list::List;
pub use reply::{ChangeItem, Failure, FoundValue, Happened, RangeRecord, Reply};
pub use request::{Durability, Edge, Feed, Operation, Request};

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::write::{SizeWriter, Writer};
use bincode::enc::{Encode, EncoderImpl};
use bincode::error::EncodeError;

/// The version of the protocol that this code uses.
pub const VERSION: u16 = 4;
/// The oldest version that this code supports. Version 1 cannot express that a range of keys was
/// removed, so its followers would keep removed keys. Version 2 has other errors, version 3 other
/// figures.
pub const VERSION_MIN: u16 = 4;

/// The longest message in bytes, without the four of its length: 16 MiB, and space for the other
/// fields around a value of that size.
pub const MESSAGE_BYTES_MAX: usize = VALUE_BYTES_MAX + (64 << 10);
/// The longest value that fits into a message, in bytes. A direct client may store longer ones.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// The number of bytes before each message: its length.
pub const FRAME_HEADER_BYTES: usize = 4;
/// The most items of one list: keys of a multi-get, operations of a batch.
pub const LIST_ITEMS_MAX: usize = 65_536;
/// The longest name of a keyspace, cell or counter, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// The most bytes of keys and values in one piece of a scan or a change feed. A single larger
/// record makes a larger piece.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The most records of one piece of a scan or a change feed.
pub const PIECE_RECORDS_MAX: usize = 16_384;
/// The longest time that a request for changes waits in the server, in milliseconds.
pub const CHANGES_WAIT_MS_MAX: u32 = 10_000;

const _: () = {
    assert!(VERSION_MIN <= VERSION);
    assert!(PIECE_BYTES_MAX < VALUE_BYTES_MAX && PIECE_RECORDS_MAX <= LIST_ITEMS_MAX);
    // A piece of the smallest records fits a message: each record has two lengths of eight bytes,
    // and a change a few words more.
    assert!(PIECE_BYTES_MAX + PIECE_RECORDS_MAX * (64 + NAME_BYTES_MAX) < MESSAGE_BYTES_MAX);
    assert!(MESSAGE_BYTES_MAX <= u32::MAX as usize);
};

/// The reason why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The length of a frame is above the limit.
    #[error("a message of {bytes} bytes; the limit is {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// The length in the frame.
        bytes: u64,
    },
    /// The bytes of a frame are not a message of this version.
    #[error("not a message of this protocol: {what}")]
    Malformed {
        /// A description of the error.
        what: String,
    },
    /// The other side does not use this protocol.
    #[error("the other side does not use this protocol: it began with \"{}\"", found.escape_ascii())]
    Magic {
        /// The first bytes that it sent.
        found: [u8; 8],
    },
}

type Config = Configuration<LittleEndian, Fixint, Limit<MESSAGE_BYTES_MAX>>;

const CONFIG: Config =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MESSAGE_BYTES_MAX>();

/// Returns the message as a frame, its length first.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn encode(message: &impl Encode) -> Result<Vec<u8>, WireError> {
    let mut frame = Vec::new();
    encode_into(message, &mut frame)?;
    Ok(frame)
}

/// Encodes as [`encode`], into an existing buffer. The content of the buffer is replaced, and its
/// memory is reused.
/// The buffer grows to the frame's length and no further.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn encode_into(message: &impl Encode, frame: &mut Vec<u8>) -> Result<(), WireError> {
    let bytes = encoded_len(message)?;
    frame.clear();
    frame.reserve_exact(FRAME_HEADER_BYTES + bytes);
    frame.extend_from_slice(&(bytes as u32).to_le_bytes());
    let mut encoder = EncoderImpl::new(Appending(frame), CONFIG);
    message.encode(&mut encoder).map_err(|error| WireError::Malformed { what: error.to_string() })
}

/// Returns the length of a message, without the four bytes of the frame's length.
///
/// # Errors
/// [`WireError::TooLong`] if the message is above the limit.
pub fn encoded_len(message: &impl Encode) -> Result<usize, WireError> {
    let mut encoder = EncoderImpl::new(SizeWriter::default(), CONFIG);
    message.encode(&mut encoder).map_err(|error| WireError::Malformed { what: error.to_string() })?;
    match encoder.into_writer().bytes_written {
        bytes if bytes > MESSAGE_BYTES_MAX => Err(WireError::TooLong { bytes: bytes as u64 }),
        bytes => Ok(bytes),
    }
}

/// Passes the frame of a message to `write_piece` in pieces, in order. Byte strings of 64 KiB and
/// more are passed without a copy; the bytes between them are collected. Frames that are shorter
/// than that are one piece.
///
/// # Errors
/// The error of `write_piece`, which is not called again after that.
///
/// # Panics
/// If [`encoded_len`] would fail for the message.
pub fn encode_in_pieces<E>(message: &impl Encode, write_piece: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let bytes = encoded_len(message).expect("a message that was measured");
    let mut collected = Vec::with_capacity((FRAME_HEADER_BYTES + bytes).min(PIECE_BYTES));
    collected.extend_from_slice(&(bytes as u32).to_le_bytes());
    let mut encoder = EncoderImpl::new(Pieces { collected, write_piece, failure: None }, CONFIG);
    let encoded = message.encode(&mut encoder);
    let mut pieces = encoder.into_writer();
    match pieces.failure.take() {
        Some(failure) => Err(failure),
        None => {
            encoded.expect("a message that was measured");
            (pieces.write_piece)(&pieces.collected)
        }
    }
}

/// The length from which on byte strings are passed without a copy.
const PIECE_BYTES: usize = 64 << 10;

/// A writer that appends the encoded bytes to a buffer.
struct Appending<'v>(&'v mut Vec<u8>);

impl Writer for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

struct Pieces<F, E> {
    collected: Vec<u8>,
    write_piece: F,
    /// The error of `write_piece`, which the encoder's error type can't contain.
    failure: Option<E>,
}

impl<E, F: FnMut(&[u8]) -> Result<(), E>> Writer for Pieces<F, E> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        if self.collected.len() + bytes.len() <= PIECE_BYTES {
            self.collected.extend_from_slice(bytes);
            return Ok(());
        }
        let mut written = (self.write_piece)(&self.collected);
        self.collected.clear();
        if bytes.len() < PIECE_BYTES {
            self.collected.extend_from_slice(bytes);
        } else if written.is_ok() {
            written = (self.write_piece)(bytes);
        }
        written.map_err(|failure| {
            self.failure = Some(failure);
            EncodeError::Other("the piece could not be written")
        })
    }
}

/// Returns a value within a message, encoded by bincode through serde, in the same configuration as
/// messages.
///
/// # Errors
/// [`WireError::Malformed`] if the value can't be serialized, or is longer than a message may be.
pub fn encode_value(value: &impl serde::Serialize) -> Result<Vec<u8>, WireError> {
    bincode::serde::encode_to_vec(value, CONFIG).map_err(|error| WireError::Malformed { what: error.to_string() })
}

/// Returns the value that [`encode_value`] encoded.
///
/// # Errors
/// [`WireError::Malformed`] for anything else than exactly one value.
pub fn decode_value<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bincode::serde::decode_from_slice(bytes, CONFIG) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(WireError::Malformed { what: format!("{} bytes too many", bytes.len() - used) }),
        Err(error) => Err(WireError::Malformed { what: error.to_string() }),
    }
}

/// Returns how many bytes follow a frame's header.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn frame_len(header: [u8; FRAME_HEADER_BYTES]) -> Result<usize, WireError> {
    let bytes = u32::from_le_bytes(header);
    if bytes as usize > MESSAGE_BYTES_MAX {
        return Err(WireError::TooLong { bytes: u64::from(bytes) });
    }
    Ok(bytes as usize)
}

/// Returns the message in `bytes`, a frame without its header. Strings and bytes in it are
/// references into `bytes`.
///
/// # Errors
/// [`WireError::Malformed`] for anything else than exactly one message.
pub fn decode<'b, M: bincode::de::BorrowDecode<'b, ()>>(bytes: &'b [u8]) -> Result<M, WireError> {
    match bincode::borrow_decode_from_slice::<M, Config>(bytes, CONFIG) {
        Ok((message, used)) if used == bytes.len() => Ok(message),
        Ok((_, used)) => Err(WireError::Malformed { what: format!("{} bytes too many", bytes.len() - used) }),
        Err(error) => Err(WireError::Malformed { what: error.to_string() }),
    }
}
