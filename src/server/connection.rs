//! One connection: the hellos, and then the requests, one by one.
//!
//! A peer may be silent between messages for any time. Within a message, the policy's timeout
//! applies: a peer that takes longer to send or to receive one is disconnected. So is a peer whose
//! frames can't be delimited.

use crate::Error;
use crate::LimitKind;
use crate::error::codec;
use crate::server::answer;
use crate::server::answer::{Answer, Session};
use crate::server::buffers::{GROWTH_STEP_BYTES, SMALL_BYTES, User};
use crate::server::{ServerState, TURN_TIMEOUT, refuse};
use crate::shared::socket::SocketStream;
use crate::system::clock;
use untorn_wal::wire;
use untorn_wal::wire::hello::{CLIENT_HELLO_BYTES, ClientHello, Refusal, ServerHello};
use untorn_wal::wire::{MESSAGE_BYTES_MAX, Request};

/// Serves a connection until either side ends it.
pub(super) fn run(shared: &ServerState, stream: &SocketStream, uid: u32) {
    let policy = shared.policy();
    let mut hello = [0; CLIENT_HELLO_BYTES];
    if stream.read(&mut hello, Some(clock::now() + policy.patience)).is_err() {
        return;
    }
    let hello = match ClientHello::decode(&hello) {
        Ok(hello) => hello,
        Err(error) => return refuse(stream, Refusal::Version, &error.to_string()),
    };
    let Some(version) = hello.common_version() else {
        let text = format!(
            "the client speaks versions {} to {}, the server {} to {}",
            hello.oldest,
            hello.newest,
            wire::VERSION_MIN,
            wire::VERSION
        );
        return refuse(stream, Refusal::Version, &text);
    };
    let lease = match shared.open() {
        Ok(lease) => lease,
        Err(error) => return refuse(stream, Refusal::Unavailable, &error.to_string()),
    };
    // The owner gets a notice of a fault that locks all other users out.
    let notice = policy.fault.as_ref().filter(|_| policy.is_owner(uid));
    let notice = notice.map_or(String::new(), |fault| format!("only the owner is admitted: {fault}"));
    let welcome = ServerHello::encode(version, None, &notice);
    if stream.write(&welcome, Some(clock::now() + policy.patience)).is_err() {
        return;
    }
    let user = User { uid, is_owner: policy.is_owner(uid) };
    drop(policy);
    tracing::info!(uid, "message client connected");
    let mut session = Session::new(shared, lease.store.clone(), user);
    // For short messages; a long one gets a permit and its buffer.
    let mut buffer = Vec::new();
    while serve_one(shared, stream, &mut session, &mut buffer).is_some() {}
}

/// Serves one request; returns `None` if the connection ends.
fn serve_one(
    shared: &ServerState,
    stream: &SocketStream,
    session: &mut Session<'_>,
    buffer: &mut Vec<u8>,
) -> Option<()> {
    // While the peer is silent, snapshots that it has not used are dropped.
    while !stream.wait_readable(session.next_expiry()).ok()? {
        session.expire();
    }
    if shared.is_closing() {
        return None;
    }
    let policy = shared.policy();
    let deadline = clock::now() + policy.patience;
    let header = stream.read_header(Some(deadline)).ok()?;
    let last_words = |error: Error| {
        let _ = stream.write(&codec::encode_reply(&error), Some(clock::now() + policy.patience));
        None
    };
    let Ok(length) = wire::frame_len(header) else {
        return last_words(Error::Limit {
            what: LimitKind::MessageLength,
            found: u64::from(u32::from_le_bytes(header)),
            limit: MESSAGE_BYTES_MAX as u64,
        });
    };
    let uid = session.user.uid;
    let Some(rights) = policy.rights(uid) else {
        return last_words(Error::NotAllowed { what: format!("uid {uid} is no longer admitted") });
    };
    let head = length.min(SMALL_BYTES);
    stream.read_body(head, buffer, Some(deadline)).ok()?;
    let mut permit = shared.buffers.permit(session.user);
    let mut message: &[u8] = buffer;
    if head < length {
        // A request for which the peer lacks the right gets no memory.
        if let Err(error) = answer::check_head(buffer, &rights) {
            stream.discard(length - head, Some(deadline)).ok()?;
            return stream.write(&codec::encode_reply(&error), Some(clock::now() + policy.patience)).ok();
        }
        permit.reuse_buffer(length);
        // The reservation only takes addresses: bytes that are not written to use no memory. So the
        // buffer need not move as it grows.
        permit.buffer.reserve_exact(length);
        permit.buffer.extend_from_slice(buffer);
        while permit.buffer.len() < length {
            let next = GROWTH_STEP_BYTES.min(length - permit.buffer.len());
            if !permit.grow(permit.buffer.len() + next, deadline) {
                return last_words(Error::Busy { what: "too many bytes of messages".into() });
            }
            stream.read_more(next, &mut permit.buffer, Some(deadline)).ok()?;
        }
        message = &permit.buffer;
    }
    let mut turn = None;
    if let Some(turns) = shared.turns_for(message) {
        turn = turns.take(session.user, clock::now() + TURN_TIMEOUT, || shared.is_closing());
        if turn.is_none() {
            let busy = Error::Busy { what: "other long requests are being served".into() };
            return stream.write(&codec::encode_reply(&busy), Some(clock::now() + policy.patience)).ok();
        }
    }
    let mut answer = match wire::decode::<Request<'_>>(message) {
        Ok(request) => session.answer(&request, &rights),
        Err(error) if planted_bug!("malformed-message-unwrapped") => panic!("{error}"),
        Err(error) => Answer::of_error(&Error::Protocol { what: error.to_string() }),
    };
    drop(turn);
    // The data of the commit is in the log. While it waits for its flush, other requests can use
    // its memory.
    drop(permit);
    if let Some(awaited) = answer.awaited.take() {
        match awaited.wait(shared, stream) {
            Ok(true) => {}
            // The commit is visible, and its deadline holds, but the peer has disconnected.
            Ok(false) => return None,
            Err(error) => answer = Answer::of_error(&error),
        }
    }
    stream.write(answer.frame(), Some(clock::now() + policy.patience)).ok()
}
