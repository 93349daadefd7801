//! One connection to the server: it sends a request and receives its reply, and handles the loss of
//! either.
//!
//! The server acts on whole requests only. A request that was not sent as a whole has had no
//! effect, and may be sent again over another connection. If a request was sent and not answered, a
//! read is sent again, and a write is in doubt.

use crate::error::codec;
use crate::shared::socket;
use crate::shared::socket::SocketStream;
use crate::system::clock;
use crate::{Durability, Error, LimitKind, Result};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;
use untorn_wal::wire;
use untorn_wal::wire::hello::{ClientHello, Refusal, SERVER_HELLO_BYTES, ServerHello};
use untorn_wal::wire::{LIST_ITEMS_MAX, MESSAGE_BYTES_MAX, Reply, Request, WireError};

/// A buffer larger than this is not kept for the next reply.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// Time between attempts to connect.
const CONNECT_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How long the client waits for a reply that a server may have sent before it disconnected.
const LAST_REPLY_TIMEOUT: Duration = Duration::from_millis(100);

/// The effect of sending a request twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// None.
    Read,
    /// The write happens twice.
    Write,
    /// The request refers to state that the server keeps for this connection.
    Bound,
}

/// A connection that is made again when it breaks.
pub(super) struct Link {
    path: PathBuf,
    answer_timeout: Duration,
    reconnect_timeout: Duration,
    stream: Option<SocketStream>,
    /// Counts connections, to detect what belongs to a broken one.
    generation: u64,
    notice: Option<String>,
    reply: Vec<u8>,
}

/// The error that a connection broke.
struct Broken {
    /// Whether the whole request was sent.
    is_sent: bool,
    error: io::Error,
}

impl Link {
    pub(super) fn new(path: PathBuf, answer_timeout: Duration, reconnect_timeout: Duration) -> Link {
        Link { path, answer_timeout, reconnect_timeout, stream: None, generation: 0, notice: None, reply: Vec::new() }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    pub(super) fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Returns another connection to the same socket, not made yet.
    pub(super) fn another(&self) -> Link {
        Link::new(self.path.clone(), self.answer_timeout, self.reconnect_timeout)
    }

    /// Makes the connection, in one attempt.
    pub(super) fn connect(&mut self) -> Result<()> {
        let deadline = clock::now() + self.answer_timeout.min(Duration::from_secs(3600));
        let stream = SocketStream::connect(&self.path, deadline).map_err(|error| self.not_connected(error))?;
        // A server that refuses this client may not have waited for its hello.
        let _ = stream.write(&ClientHello::OURS.encode(), Some(deadline));
        let mut bytes = [0; SERVER_HELLO_BYTES];
        let unanswered = |error: io::Error| Error::Disconnected { reason: format!("no hello came back: {error}") };
        stream.read(&mut bytes, Some(deadline)).map_err(unanswered)?;
        let hello = ServerHello::decode(&bytes).map_err(|error| Error::Protocol { what: error.to_string() })?;
        let mut text = Vec::new();
        stream.read_body(hello.text_bytes, &mut text, Some(deadline)).map_err(unanswered)?;
        let text = untorn_wal::printable(&String::from_utf8_lossy(&text));
        match hello.refusal {
            None => {}
            Some(Refusal::Version) => return Err(Error::Protocol { what: format!("no version in common: {text}") }),
            Some(Refusal::NotAllowed) => return Err(Error::NotAllowed { what: text }),
            Some(Refusal::Busy) => return Err(Error::Busy { what: text }),
            Some(_) => return Err(Error::Disconnected { reason: text }),
        }
        self.stream = Some(stream);
        self.generation += 1;
        self.notice = (!text.is_empty()).then_some(text);
        Ok(())
    }

    fn not_connected(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound { path: self.path.clone() },
            io::ErrorKind::PermissionDenied => {
                Error::NotAllowed { what: format!("the socket's mode keeps this user out of {}", self.path.display()) }
            }
            _ if std::fs::metadata(&self.path).is_ok_and(|found| !found.file_type().is_socket()) => {
                Error::Invalid { what: format!("{} is no socket", self.path.display()) }
            }
            io::ErrorKind::ConnectionRefused => {
                Error::Disconnected { reason: format!("no server answers at {}", self.path.display()) }
            }
            _ => Error::Disconnected { reason: format!("{}: {error}", self.path.display()) },
        }
    }

    /// Makes the connection again; a new logger may be starting.
    fn reconnect(&mut self) -> Result<()> {
        let start = clock::now();
        loop {
            match self.connect() {
                Err(Error::Disconnected { .. } | Error::NotFound { .. } | Error::Busy { .. })
                    if clock::since(start) < self.reconnect_timeout =>
                {
                    clock::sleep(CONNECT_RETRY_INTERVAL);
                }
                Err(Error::NotFound { path }) => {
                    return Err(Error::Disconnected { reason: format!("{} is gone", path.display()) });
                }
                other => return other,
            }
        }
    }

    /// Sends a request, and receives its reply. `read` extracts the result if the reply is of the
    /// right kind.
    pub(super) fn call<T>(
        &mut self,
        kind: Kind,
        request: &Request<'_>,
        read: impl FnOnce(Reply<'_>) -> Option<T>,
    ) -> Result<T> {
        let read = self.ask(kind, request, read);
        self.keep_little();
        read
    }

    /// Makes a call as [`Link::call`] does, for a read whose reply is `Value`. Returns the value
    /// and its version. A long value is returned in the buffer that received the reply, not copied.
    pub(super) fn call_for_value(&mut self, request: &Request<'_>) -> Result<Option<(Vec<u8>, u64)>> {
        let found = self.ask(Kind::Read, request, |reply| match reply {
            Reply::Value(found) => Some(found.map(|found| (found.value.len(), found.version))),
            _ => None,
        });
        let found = found.map(|found| found.map(|(length, version)| (self.end_of_reply(length), version)));
        self.keep_little();
        found
    }

    /// Returns the last bytes of the reply, which is not needed any more.
    fn end_of_reply(&mut self, length: usize) -> Vec<u8> {
        let before = self.reply.len() - length;
        if self.reply.capacity() <= KEPT_BYTES_MAX {
            return self.reply[before..].to_vec();
        }
        let mut reply = std::mem::take(&mut self.reply);
        reply.drain(..before);
        reply
    }

    fn keep_little(&mut self) {
        if self.reply.capacity() > KEPT_BYTES_MAX {
            self.reply = Vec::new();
        }
    }

    /// Makes a call as [`Link::call`] does; the reply remains in the buffer.
    fn ask<T>(&mut self, kind: Kind, request: &Request<'_>, read: impl FnOnce(Reply<'_>) -> Option<T>) -> Result<T> {
        refuse_long_lists(request)?;
        wire::encoded_len(request).map_err(too_long)?;
        self.exchange_safely(kind, request, time_allowed(request))?;
        let read = match wire::decode::<Reply<'_>>(&self.reply) {
            Ok(Reply::Failed(failure)) => Err(error_of_server(failure.error)),
            Ok(reply) => read(reply).ok_or_else(|| Error::Protocol { what: "a reply of the wrong kind".into() }),
            Err(error) => Err(Error::Protocol { what: error.to_string() }),
        };
        if let Err(Error::Protocol { .. }) = read {
            // Nothing that arrives over this connection can be trusted any more.
            self.stream = None;
        }
        read
    }

    fn exchange_safely(&mut self, kind: Kind, request: &Request<'_>, allowed: Duration) -> Result<()> {
        let mut is_second = false;
        loop {
            if self.stream.is_none() {
                if kind == Kind::Bound {
                    return Err(Error::Disconnected { reason: "what was open went with the connection".into() });
                }
                self.reconnect()?;
            }
            let Err(broken) = self.exchange(request, allowed) else { return Ok(()) };
            let reason = broken.error.to_string();
            match kind {
                Kind::Write if broken.is_sent => return Err(Error::InDoubt { reason }),
                Kind::Read | Kind::Write if !is_second && broken.error.kind() != io::ErrorKind::TimedOut => {
                    is_second = true;
                }
                _ => return Err(Error::Disconnected { reason }),
            }
        }
    }

    /// Sends a request, and receives its reply. Without a reply to a whole request, the connection
    /// ends.
    fn exchange(&mut self, request: &Request<'_>, allowed: Duration) -> Result<(), Broken> {
        // If this call panics, the connection ends. A later call must not read this call's reply.
        let stream = self.stream.take().expect("connected");
        let deadline = clock::now().checked_add(self.answer_timeout.saturating_add(allowed));
        let written = wire::encode_in_pieces(request, |piece| stream.write(piece, deadline));
        let (is_sent, until) = match &written {
            Ok(()) => (true, deadline),
            // The server may have sent the reason before it disconnected.
            Err(_) => (false, Some(clock::now() + LAST_REPLY_TIMEOUT)),
        };
        let reply = &mut self.reply;
        let answered = (|| {
            let length = socket::frame_len(stream.read_header(until)?)?;
            stream.read_body(length, reply, until)
        })();
        match (answered, written) {
            (Ok(()), Ok(())) => {
                self.stream = Some(stream);
                Ok(())
            }
            // A part of a request was sent over the connection, which ends.
            (Ok(()), Err(_)) => Ok(()),
            (Err(_), Err((_, error))) => Err(Broken { is_sent, error }),
            (Err(error), Ok(())) => Err(Broken { is_sent, error }),
        }
    }
}

/// Returns the time that a request itself allows for its reply.
fn time_allowed(request: &Request<'_>) -> Duration {
    match request {
        Request::Put { durability, .. }
        | Request::Delete { durability, .. }
        | Request::DeleteRange { durability, .. }
        | Request::Commit { durability, .. } => match durability {
            wire::Durability::Within { micros } => Duration::from_micros(*micros),
            _ => Duration::ZERO,
        },
        _ => Duration::ZERO,
    }
}

/// Returns an error for a request that the server would refuse as a whole.
fn refuse_long_lists(request: &Request<'_>) -> Result<()> {
    let (what, found) = match request {
        Request::MultiGet { keys, .. } => (LimitKind::MessageKeys, keys.0.len()),
        Request::Commit { operations, .. } => (LimitKind::BatchChanges, operations.0.len()),
        _ => return Ok(()),
    };
    if found > LIST_ITEMS_MAX {
        return Err(Error::Limit { what, found: found as u64, limit: LIST_ITEMS_MAX as u64 });
    }
    Ok(())
}

/// Returns the error that a server reports, as an error of the call that it served.
fn error_of_server(bytes: &[u8]) -> Error {
    match codec::decode(bytes) {
        Ok(Error::Io { what, source }) => Error::Io { what: format!("server: {what}"), source },
        Ok(error) => error,
        Err(what) => Error::Protocol { what },
    }
}

fn too_long(error: WireError) -> Error {
    match error {
        WireError::TooLong { bytes } => {
            Error::Limit { what: LimitKind::MessageLength, found: bytes, limit: MESSAGE_BYTES_MAX as u64 }
        }
        other => Error::Protocol { what: other.to_string() },
    }
}

/// Converts a durability to that of the protocol.
pub(super) fn durability(durability: Durability) -> wire::Durability {
    match durability {
        Durability::Visible => wire::Durability::Visible,
        Durability::Durable => wire::Durability::Durable,
        Durability::Within(time) => {
            wire::Durability::Within { micros: u64::try_from(time.as_micros()).unwrap_or(u64::MAX) }
        }
    }
}
