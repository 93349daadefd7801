//! The messages between a message-passing client and the server in the logger process.
//!
//! A connection begins with a hello of each side ([`hello`]), by which they agree on a version. From then on the client
//! sends requests and the server answers each with one reply, in order. A message is a frame: its length as four bytes,
//! little-endian, and that many bytes, the [`Request`] or [`Reply`] as bincode encodes it with fixed integers.
//!
//! Every byte is distrusted, on both sides. A length beyond [`MESSAGE_BYTES_MAX`] is refused before anything is read or
//! allocated for it. Strings and byte strings are references into the frame, so that a claimed length costs nothing; a
//! list grows as its items are found to be there. What is left over after a message is an error.
//!
//! Deliberately absent: compression, checksums (a Unix socket neither loses nor changes bytes), anything that knows
//! what a key means.

pub mod hello;
pub mod list;
pub mod reply;
pub mod request;

pub use hello::{ClientHello, Refusal, ServerHello};
pub use list::List;
pub use reply::{ChangeItem, Failure, Figure, Found, Happened, Record, Reply};
pub use request::{Durability, Edge, Feed, Operation, Request};

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::Encode;

/// The version of the protocol that this code speaks, and the oldest that it understands.
pub const VERSION: u16 = 1;
/// The oldest version that this code understands.
pub const VERSION_MIN: u16 = 1;

/// The longest message in bytes, without the four of its length: 16 MiB and room for what stands around a value of that size.
pub const MESSAGE_BYTES_MAX: usize = VALUE_BYTES_MAX + (64 << 10);
/// The longest value that fits into a message, in bytes. A direct client may store longer ones.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// The bytes that stand before each message: its length.
pub const FRAME_HEADER_BYTES: usize = 4;
/// The most items of one list: keys of a multi-get, operations of a batch.
pub const LIST_ITEMS_MAX: usize = 65_536;
/// The longest name of a keyspace, cell or counter, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// The most bytes of keys and values in one piece of a scan or a change feed, but for a single larger record.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The most records of one piece of a scan or a change feed.
pub const PIECE_RECORDS_MAX: usize = 16_384;
/// The longest that the server keeps a request for changes waiting, in milliseconds.
pub const CHANGES_WAIT_MS_MAX: u32 = 10_000;

const _: () = {
    assert!(VERSION_MIN <= VERSION);
    assert!(PIECE_BYTES_MAX < VALUE_BYTES_MAX && PIECE_RECORDS_MAX <= LIST_ITEMS_MAX);
    // A piece of the smallest records fits a message: each has two lengths of eight bytes, a change a few words more.
    assert!(PIECE_BYTES_MAX + PIECE_RECORDS_MAX * (64 + NAME_BYTES_MAX) < MESSAGE_BYTES_MAX);
    assert!(MESSAGE_BYTES_MAX <= u32::MAX as usize);
};

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A frame says that it is longer than a message may be.
    #[error("a message of {bytes} bytes; the limit is {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// What it says.
        bytes: u64,
    },
    /// The bytes of a frame are no message of this version.
    #[error("not a message of this protocol: {what}")]
    Malformed {
        /// What is wrong with them.
        what: String,
    },
    /// The other side does not speak this protocol at all.
    #[error("the other side does not speak this protocol: it began with \"{}\"", found.escape_ascii())]
    Magic {
        /// What it began with.
        found: [u8; 8],
    },
}

type Config = Configuration<LittleEndian, Fixint, Limit<MESSAGE_BYTES_MAX>>;

const CONFIG: Config =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MESSAGE_BYTES_MAX>();

/// The message as a frame, its length first.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn encode(message: &impl Encode) -> Result<Vec<u8>, WireError> {
    let mut frame = bincode::encode_to_vec(([0u8; FRAME_HEADER_BYTES], message), CONFIG)
        .map_err(|error| WireError::Malformed { what: error.to_string() })?;
    let bytes = frame.len() - FRAME_HEADER_BYTES;
    if bytes > MESSAGE_BYTES_MAX {
        return Err(WireError::TooLong { bytes: bytes as u64 });
    }
    frame[..FRAME_HEADER_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
    Ok(frame)
}

/// How many bytes follow a frame's header.
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

/// The message that a frame holds, without its header. Strings and bytes in it are references into `bytes`.
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
