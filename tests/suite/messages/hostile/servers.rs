//! Hostile servers.

use super::*;

/// A server that speaks another protocol, or a later version of ours.
#[test]
fn servers_that_a_client_does_not_understand() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut later = Vec::from(MAGIC);
    [0u16, 7, 9, 1].iter().for_each(|number| later.extend_from_slice(&number.to_le_bytes()));
    later.extend_from_slice(&4u32.to_le_bytes());
    later.extend_from_slice(b"newe");
    let mut wrong_welcome = Vec::from(MAGIC);
    [9u16, 7, 9, 0].iter().for_each(|number| wrong_welcome.extend_from_slice(&number.to_le_bytes()));
    wrong_welcome.extend_from_slice(&0u32.to_le_bytes());
    let mut long_text = Vec::from(MAGIC);
    [0u16, 7, 9, 1].iter().for_each(|number| long_text.extend_from_slice(&number.to_le_bytes()));
    long_text.extend_from_slice(&u32::MAX.to_le_bytes());
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let said = [http, later, wrong_welcome, long_text, Vec::new()];
    let ends = said.len();
    let server = std::thread::spawn(move || {
        for bytes in said {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    for index in 0..ends {
        let error = Client::connect(&path).unwrap_err();
        match index {
            4 => assert!(matches!(error, Error::Disconnected { .. }), "{error}"),
            _ => assert!(matches!(error, Error::Protocol { .. }), "{index}: {error}"),
        }
    }
    server.join().unwrap();
}

/// Servers that answer everything without content: a client notices, or its time-out ends the call.
#[test]
fn servers_that_lead_on() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut raw = Raw(stream.unwrap());
                let mut hello = [0; 16];
                raw.0.read_exact(&mut hello).unwrap();
                raw.send(&ServerHello::encode(wire::VERSION, None, "")).unwrap();
                while let Ok(request) = raw.reply() {
                    let reply = match wire::decode::<Request<'_>>(&request).unwrap() {
                        // There is always more, and never anything.
                        Request::Scan { .. } | Request::ScanNext { .. } => {
                            Reply::Piece { scan: 1, txn: 1, records: List(Vec::new()) }
                        }
                        Request::Changes { .. } => Reply::Changes { through: 1, changes: List(Vec::new()) },
                        // It hangs up.
                        _ => return,
                    };
                    raw.send(&wire::encode(&reply).unwrap()).unwrap();
                }
            });
        }
    });
    let client = Client::connect(&path).unwrap();
    let ended = client.scan("k", ..).map(Iterator::count);
    assert!(matches!(ended, Err(Error::Protocol { .. })), "{ended:?}");
    let mut changes = client.changes_from_now(untorn::Feed::Visible).unwrap();
    let ended = changes.try_next(Duration::from_millis(300));
    assert!(matches!(ended, Err(Error::Disconnected { .. })), "{ended:?}");
}

/// Programs print the texts of a server, so these must contain no command for a terminal.
#[test]
fn texts_of_a_server_are_plain() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let evil = "a\u{1b}]0;title\u{7}\u{9b}2J\nuntorn: fine\r\u{202e}b";
    let server = std::thread::spawn(move || {
        let refuse = |raw: &mut Raw| raw.send(&ServerHello::encode(0, Some(Refusal::NotAllowed), evil)).unwrap();
        refuse(&mut Raw(listener.accept().unwrap().0));
        let mut raw = Raw(listener.accept().unwrap().0);
        raw.send(&ServerHello::encode(wire::VERSION, None, evil)).unwrap();
        let mut hello = [0; 16];
        raw.0.read_exact(&mut hello).unwrap();
        let corrupt = Error::Corrupt { file: evil.into(), offset: 1, what: evil.into() };
        for error in [Error::NotAllowed { what: evil.into() }, corrupt] {
            raw.reply().unwrap();
            let failure = Failure { text: evil, error: &untorn::internals::encode_error(&error) };
            raw.send(&wire::encode(&Reply::Failed(failure)).unwrap()).unwrap();
        }
    });
    let check = |text: String| {
        assert!(text.contains("title") && !text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
    };
    check(Client::connect(&path).unwrap_err().to_string());
    let client = Client::connect(&path).unwrap();
    check(client.notice().unwrap());
    for _ in 0..2 {
        check(client.get("k", b"k").unwrap_err().to_string());
    }
    drop(client);
    server.join().unwrap();
}
