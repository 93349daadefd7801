//! The one encoding of errors between processes: in the replies of the server of messages, and in
//! the status that a spawned logger reports to its client.
//!
//! An error is the number of its variant and the variant's fields, in the order of the tables below,
//! as `docs/protocol.md` describes. The tables are matched exhaustively: a new variant does not
//! compile before it has a number. Only append to them, and raise
//! [`wire::VERSION`](untorn_wal::wire::VERSION).
//!
//! Every byte that is decoded is distrusted. No memory is allocated by a claimed length, errors
//! within errors end at [`DEPTH_MAX`], and control characters are removed from texts.

use crate::error::reason::{
    DetachedReason, FileAccess, FileSystemReason, LockHolder, LockKind, LoggerFailure, MismatchKind, NotDurableReason,
    PermissionReason, RecoveryReason, Space, TriedProgram,
};
use crate::{Error, LimitKind, TxnId, Version};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use untorn_wal::printable;
use untorn_wal::wire;
use untorn_wal::wire::{Failure, Reply};

/// The longest text of an error that is encoded, in bytes. A longer one is cut.
const TEXT_BYTES_MAX: usize = 4096;
/// The deepest nesting of errors.
const DEPTH_MAX: u32 = 4;
/// The most programs in one error.
const PROGRAMS_MAX: usize = 16;

/// Encodes an error.
pub fn encode(error: &Error) -> Vec<u8> {
    let mut out = Encoded::default();
    error.put(&mut out);
    out.bytes
}

/// Decodes an error that [`encode`] encoded.
///
/// # Errors
/// A description of the damage in the bytes.
pub fn decode(bytes: &[u8]) -> DecodeResult<Error> {
    let mut input = Input::new(bytes);
    let error = Error::get(&mut input)?;
    match input.bytes.len() {
        0 => Ok(error),
        left => Err(format!("{left} bytes too many after an error")),
    }
}

/// Encodes an error as a reply to a message-passing client.
pub(crate) fn encode_reply(error: &Error) -> Vec<u8> {
    let text = error.to_string();
    let failure = Failure { text: cut(&text), error: &encode(error) };
    wire::encode(&Reply::Failed(failure)).expect("an error is shorter than a message may be")
}

/// A decoded value, or a description of the damage in its bytes.
pub(crate) type DecodeResult<T> = std::result::Result<T, String>;

/// Bytes that have been encoded.
#[derive(Default)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    /// The nesting depth of the present value.
    depth: u32,
}

/// Bytes that are being decoded.
pub(crate) struct Input<'b> {
    pub(crate) bytes: &'b [u8],
    /// The nesting depth of the present value.
    depth: u32,
}

impl<'b> Input<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Input<'b> {
        Input { bytes, depth: 0 }
    }

    fn take(&mut self, count: usize) -> DecodeResult<&'b [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or("an error that is cut short")?;
        self.bytes = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> DecodeResult<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
}

/// A value that errors contain.
pub(crate) trait Coded: Sized {
    /// Appends the value to `out`.
    fn put(&self, out: &mut Encoded);
    /// Takes a value from the beginning of `input`.
    fn get(input: &mut Input<'_>) -> DecodeResult<Self>;
}

/// Implements [`Coded`] for an enum: a number for each variant, and its fields.
macro_rules! coded {
    ($type:ident { $($number:literal => $variant:ident { $($field:ident),* },)* }) => {
        impl Coded for $type {
            fn put(&self, out: &mut Encoded) {
                match self {
                    $($type::$variant { $($field),* } => {
                        let number: u32 = $number;
                        number.put(out);
                        $($field.put(out);)*
                    })*
                }
            }

            fn get(input: &mut Input<'_>) -> DecodeResult<$type> {
                Ok(match u32::get(input)? {
                    $($number => $type::$variant { $($field: Coded::get(input)?),* },)*
                    number => return Err(format!("{} {number} is unknown", stringify!($type))),
                })
            }
        }

        #[cfg(test)]
        impl Numbered for $type {
            const NUMBERS: &[u32] = &[$($number),*];
        }
    };
}

coded! { Error {
    0 => LockTimeout { lock, waited, holder },
    1 => LoggerStalled { waited, visible },
    2 => LoggerUnavailable { reason },
    3 => NotDurable { txn, reason },
    4 => DiskFull { what },
    5 => Diverged { txn },
    6 => Stale {},
    7 => Lagged { oldest },
    8 => NeedsRecovery { reason },
    9 => Corrupt { file, offset, what },
    10 => Mismatch { file, what },
    11 => ReadOnly {},
    12 => NoKeyspace { name },
    13 => NoCell { name },
    14 => Limit { what, found, limit },
    15 => Invalid { what },
    16 => Io { what, source },
    17 => NotAllowed { what },
    18 => Busy { what },
    19 => Protocol { what },
    20 => Permission { what },
    21 => ReservedName { name },
    22 => OtherCell { name, found, wanted },
    23 => Detached { reason },
    24 => FormatVersion { file, found, known },
    25 => NotFound { path },
    26 => UnsupportedFileSystem { path, file_system, reason },
    27 => LoggerPanicked { thread, message },
    28 => OtherStore { name },
    29 => TransactionOpen {},
    30 => TransactionFailed {},
    31 => Forked {},
    32 => Disconnected { reason },
    33 => InDoubt { reason },
} }

coded! { LockKind {
    0 => Writer {},
    1 => Growth {},
    2 => Cell { name },
} }

coded! { LockHolder {
    0 => Process { pid, held_for },
    1 => Thread { pid },
} }

coded! { Space {
    0 => Log {},
    1 => RetainedLog { segments },
    2 => Arena { bytes },
    3 => Control { bytes },
    4 => Snapshot { txn, pid, open_for, pinned_pages, free_pages, snapshots },
    5 => Checkpoint {},
    6 => CellSample {},
    7 => File { name },
} }

coded! { LoggerFailure {
    0 => Programs { tried },
    1 => NoProgram {},
    2 => Thread { error },
    3 => NotReady {},
    4 => Initializing { stalled_for },
    5 => Panicked {},
    6 => Reported { error },
    7 => Foreign { output },
} }

coded! { NotDurableReason {
    0 => NeedsRecovery { reason },
    1 => NoLogger { reason },
    2 => LoggerExiting {},
    3 => Cell { name, version, error },
    4 => Failed { error },
} }

coded! { RecoveryReason {
    0 => Log { errno },
    1 => Arena { errno },
    2 => CheckpointHeader { errno },
    3 => Unknown { errno },
    4 => LoggerExiting {},
    5 => CheckpointNotRecorded {},
} }

coded! { DetachedReason {
    0 => LockRemoved { directory },
    1 => LockReplaced { directory },
    2 => DirectoryRemoved { directory },
    3 => LockReplacedInOpen {},
    4 => DescriptorClosed {},
} }

coded! { FileSystemReason {
    0 => NotShared {},
    1 => LockNotSeen { file },
} }

coded! { MismatchKind {
    0 => Missing {},
    1 => MissingHeader {},
    2 => WrongKind { found, expected },
    3 => Replaced {},
    4 => LockReplaced {},
    5 => LogReplaced {},
    6 => Locked {},
    7 => OtherStore {},
    8 => OtherBoot {},
    9 => OtherLayout { found, known },
    10 => Segment { what },
} }

coded! { FileAccess {
    0 => Open {},
    1 => Read {},
    2 => Write {},
    3 => ReadWrite {},
    4 => Create {},
    5 => Remove {},
} }

coded! { PermissionReason {
    0 => File { access, file, errno },
    1 => OtherUser { path, owner, own },
    2 => NotRoot { path, owner, own },
    3 => UnmappedOwner { path, shown },
    4 => FileOwner { file, found, expected },
    5 => BecomeOwner { path, uid, gid, why },
} }

macro_rules! coded_integers {
    ($($type:ident),*) => {
        $(impl Coded for $type {
            fn put(&self, out: &mut Encoded) {
                out.bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn get(input: &mut Input<'_>) -> DecodeResult<$type> {
                Ok($type::from_le_bytes(input.take_array()?))
            }
        })*
    };
}

coded_integers!(u8, u32, u64, i32);

impl<T: Coded> Coded for Option<T> {
    fn put(&self, out: &mut Encoded) {
        u8::from(self.is_some()).put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<Option<T>> {
        match u8::get(input)? {
            0 => Ok(None),
            1 => Ok(Some(T::get(input)?)),
            other => Err(format!("an option that begins with {other}")),
        }
    }
}

impl Coded for String {
    fn put(&self, out: &mut Encoded) {
        put_text(self, out);
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<String> {
        let len = usize::try_from(u64::get(input)?).unwrap_or(usize::MAX);
        let text = std::str::from_utf8(input.take(len)?).map_err(|error| error.to_string())?;
        Ok(printable(text))
    }
}

fn put_text(text: &str, out: &mut Encoded) {
    let text = cut(text);
    (text.len() as u64).put(out);
    out.bytes.extend_from_slice(text.as_bytes());
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A path as a text: what is not UTF-8 is replaced, since the path is for display.
impl Coded for PathBuf {
    fn put(&self, out: &mut Encoded) {
        put_text(&self.to_string_lossy(), out);
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<PathBuf> {
        String::get(input).map(PathBuf::from)
    }
}

/// A duration in nanoseconds; more than 584 years become 584 years.
impl Coded for Duration {
    fn put(&self, out: &mut Encoded) {
        u64::try_from(self.as_nanos()).unwrap_or(u64::MAX).put(out);
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<Duration> {
        u64::get(input).map(Duration::from_nanos)
    }
}

impl Coded for TxnId {
    fn put(&self, out: &mut Encoded) {
        self.as_u64().put(out);
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<TxnId> {
        u64::get(input).map(TxnId::from_u64)
    }
}

impl Coded for Version {
    fn put(&self, out: &mut Encoded) {
        self.as_u64().put(out);
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<Version> {
        u64::get(input).map(Version::from_u64)
    }
}

/// An error within an error. The innermost one that fits is encoded as its text.
impl Coded for Arc<Error> {
    fn put(&self, out: &mut Encoded) {
        out.depth += 1;
        match out.depth < DEPTH_MAX {
            true => (**self).put(out),
            false => Error::Protocol { what: self.to_string() }.put(out),
        }
        out.depth -= 1;
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<Arc<Error>> {
        input.depth += 1;
        if input.depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} errors within each other"));
        }
        let error = Error::get(input)?;
        input.depth -= 1;
        Ok(Arc::new(error))
    }
}

impl Coded for Vec<TriedProgram> {
    fn put(&self, out: &mut Encoded) {
        let listed = &self[..self.len().min(PROGRAMS_MAX)];
        (listed.len() as u64).put(out);
        listed.iter().for_each(|tried| {
            put_text(&tried.program, out);
            put_text(&tried.failure, out);
        });
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<Vec<TriedProgram>> {
        let count = u64::get(input)?;
        if count > PROGRAMS_MAX as u64 {
            return Err(format!("a list of {count} programs"));
        }
        (0..count).map(|_| Ok(TriedProgram::new(String::get(input)?, String::get(input)?))).collect()
    }
}

/// A limit kind as its text. A text that this version does not know becomes [`LimitKind::Other`].
impl Coded for LimitKind {
    fn put(&self, out: &mut Encoded) {
        put_text(self.text(), out);
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<LimitKind> {
        String::get(input).map(|text| LimitKind::from_text(&text))
    }
}

/// A system error as its number, or as 0 and a text.
impl Coded for io::Error {
    fn put(&self, out: &mut Encoded) {
        let errno = self.raw_os_error().unwrap_or(0);
        errno.put(out);
        put_text(&if errno == 0 { self.to_string() } else { String::new() }, out);
    }

    fn get(input: &mut Input<'_>) -> DecodeResult<io::Error> {
        let (errno, text) = (i32::get(input)?, String::get(input)?);
        Ok(if errno == 0 { io::Error::other(text) } else { io::Error::from_raw_os_error(errno) })
    }
}

/// The numbers of an enum's variants.
#[cfg(test)]
trait Numbered {
    const NUMBERS: &[u32];
}

#[cfg(test)]
mod tests;
