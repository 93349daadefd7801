//! A store that is attacked, and a peer that sends raw bytes.

use super::*;

/// A store under attack, with its logger.
pub(crate) struct ServedStore {
    pub(crate) at: TestStore,
    pub(crate) store: Store,
    pub(crate) logger: u32,
}

impl ServedStore {
    pub(crate) fn new(access: &str) -> ServedStore {
        let at = TestStore::new();
        let store = at.open();
        std::fs::write(at.path.join("access"), access).unwrap();
        let logger = store.stats().unwrap().logger_pid.unwrap();
        // The policy is in force at the logger's next check.
        std::thread::sleep(Duration::from_millis(100));
        store.keyspace("k").unwrap().put(b"a", b"1").unwrap();
        ServedStore { at, store, logger }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.at.path.join("logger.sock")).unwrap()
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.at.path.join("logger.sock"))
    }

    /// The logger is what it was, and serves.
    pub(crate) fn end(self) {
        assert_eq!(self.client().get("k", b"a").unwrap().unwrap(), b"1");
        assert_eq!(self.store.stats().unwrap().logger_pid, Some(self.logger), "the logger died");
        assert!(!self.at.path.join("logger.panic").exists());
        assert_clean(&self.store);
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.logger)).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// A connection without manners.
pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) fn connect(path: &Path) -> Raw {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(HANGS)).unwrap();
        stream.set_write_timeout(Some(HANGS)).unwrap();
        Raw(stream)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The server's hello and its text.
    pub(crate) fn hello(&mut self) -> (ServerHello, String) {
        let mut bytes = [0; SERVER_HELLO_BYTES];
        self.0.read_exact(&mut bytes).unwrap();
        let hello = ServerHello::decode(&bytes).unwrap();
        let mut text = vec![0; hello.text_bytes];
        self.0.read_exact(&mut text).unwrap();
        (hello, String::from_utf8(text).unwrap())
    }

    pub(crate) fn welcome(mut self) -> Raw {
        self.send(&ClientHello::OURS.encode()).unwrap();
        assert_eq!(self.hello().0.refusal, None);
        self
    }

    pub(crate) fn frame(&mut self, body: &[u8]) -> io::Result<()> {
        self.send(&(body.len() as u32).to_le_bytes())?;
        self.send(body)
    }

    pub(crate) fn reply(&mut self) -> io::Result<Vec<u8>> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.0.read_exact(&mut header)?;
        let mut body = vec![0; wire::frame_len(header).unwrap()];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }

    /// Whether the server has hung up, within its patience.
    pub(crate) fn is_cut_off(&mut self) -> bool {
        let mut bytes = [0; 1 << 16];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}
