//! Messages between a message-passing client and the server, and the file `access`, which the
//! server reads.

use crate::error::codec;
use crate::fuzzing::sized;
use crate::server::{check_access, check_request};
use untorn_wal::printable;
use untorn_wal::wire;
use untorn_wal::wire::{ClientHello, Reply, Request, ServerHello};

/// Encodes a decoded message as a frame, in all ways.
macro_rules! frame_of {
    ($message:expr) => {{
        let message = $message;
        let frame = wire::encode(message).expect("a message that was decoded is short enough");
        assert_eq!(wire::encoded_len(message), Ok(frame.len() - wire::FRAME_HEADER_BYTES));
        assert_eq!(wire::frame_len(sized(&frame)), Ok(frame.len() - wire::FRAME_HEADER_BYTES));
        let mut pieces = Vec::new();
        let written = wire::encode_in_pieces(message, |piece| {
            pieces.extend_from_slice(piece);
            Ok::<(), ()>(())
        });
        assert_eq!((written, &pieces), (Ok(()), &frame), "a message in pieces");
        frame
    }};
}

/// The messages of a client: a hello, or a request without the length of its frame.
pub fn request(bytes: &[u8]) {
    if let Ok(hello) = ClientHello::decode(&sized(bytes)) {
        assert_eq!(ClientHello::decode(&hello.encode()), Ok(hello));
        assert!(hello.common_version().is_none_or(|version| (hello.oldest..=hello.newest).contains(&version)));
    }
    let _ = wire::frame_len(sized(bytes));
    check_request(bytes);
    if let Ok(request) = wire::decode::<Request<'_>>(bytes) {
        let frame = frame_of!(&request);
        assert_eq!(&frame[4..], bytes, "a request encodes to other bytes");
        assert_eq!(wire::decode::<Request<'_>>(&frame[4..]).as_ref(), Ok(&request));
    }
}

/// The messages of a server: a hello, or a reply without the length of its frame.
pub fn reply(bytes: &[u8]) {
    if let Ok(hello) = ServerHello::decode(&sized(bytes)) {
        assert!(hello.text_bytes <= wire::hello::TEXT_BYTES_MAX);
        assert!(hello.refusal.is_some() || (wire::VERSION_MIN..=wire::VERSION).contains(&hello.version));
    }
    let Ok(reply) = wire::decode::<Reply<'_>>(bytes) else { return };
    let frame = frame_of!(&reply);
    assert_eq!(&frame[4..], bytes, "a reply encodes to other bytes");
    assert_eq!(wire::decode::<Reply<'_>>(&frame[4..]).as_ref(), Ok(&reply));
    if let Reply::Failed(what) = &reply {
        let Ok(error) = codec::decode(what.error) else { return };
        let text = error.to_string();
        assert_eq!(printable(&text), text, "an error with characters that a terminal obeys");
        // A server may forward it.
        let again = codec::encode_reply(&error);
        assert!(matches!(wire::decode::<Reply<'_>>(&again[4..]), Ok(Reply::Failed(_))));
    }
}

/// The file `access`.
pub fn access(bytes: &[u8]) {
    check_access(bytes);
}
