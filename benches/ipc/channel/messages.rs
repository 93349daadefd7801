//! Messages: the kernel copies each byte in and out. A record that is longer than the kernel's
//! buffer takes several calls on each side. Then both sides work at the same time.

use super::{Calls, Channel, End, Received, WORDS_MAX};
use bytemuck::{cast_slice, cast_slice_mut};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::{fs, io::read, io::write, net};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// The longest packet that is sent over a seqpacket socket. The kernel rejects a packet that
/// exceeds the socket's buffer, 208 KiB by default.
const PACKET_BYTES_MAX: usize = 64 << 10;
const PIPES: [&str; 2] = ["pipe-to-second", "pipe-to-first"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    Pipe,
    Stream,
    Seqpacket,
}

/// One end of a pair of pipes, or of a socket.
pub(super) struct Messages {
    means: Means,
    outgoing: OwnedFd,
    /// For a socket, both fields are descriptors of the same socket.
    incoming: OwnedFd,
    buffer: Vec<u64>,
    calls: Calls,
}

/// Makes the names of both directions, which both ends open.
pub(super) fn make_pipes(dir: &Path) -> io::Result<()> {
    for name in PIPES {
        fs::mkfifoat(CWD, dir.join(name), Mode::RUSR | Mode::WUSR)?;
    }
    Ok(())
}

impl Messages {
    pub(super) fn pipe(dir: &Path, end: End) -> io::Result<Messages> {
        let open = |name: &str, flags| fs::open(dir.join(name), flags | OFlags::CLOEXEC, Mode::empty());
        // Opening a pipe blocks until the other side opens it, so both sides open them in the same
        // order.
        let (outgoing, incoming) = match end {
            End::First => {
                let outgoing = open(PIPES[0], OFlags::WRONLY)?;
                (outgoing, open(PIPES[1], OFlags::RDONLY)?)
            }
            End::Second => {
                let incoming = open(PIPES[0], OFlags::RDONLY)?;
                (open(PIPES[1], OFlags::WRONLY)?, incoming)
            }
        };
        Ok(Messages::new(Means::Pipe, outgoing, incoming))
    }

    pub(super) fn stream(dir: &Path, end: End) -> io::Result<Messages> {
        let socket = connected(dir, end, SocketType::STREAM)?;
        Ok(Messages::new(Means::Stream, socket.try_clone()?, socket))
    }

    pub(super) fn seqpacket(dir: &Path, end: End) -> io::Result<Messages> {
        let socket = connected(dir, end, SocketType::SEQPACKET)?;
        Ok(Messages::new(Means::Seqpacket, socket.try_clone()?, socket))
    }

    fn new(means: Means, outgoing: OwnedFd, incoming: OwnedFd) -> Messages {
        // The buffer is filled here, so that the measurement includes no page faults.
        Messages { means, outgoing, incoming, buffer: vec![1; WORDS_MAX], calls: Calls::default() }
    }
}

impl Channel for Messages {
    fn send(&mut self, record: &[u64]) -> io::Result<()> {
        let mut bytes: &[u8] = cast_slice(record);
        while !bytes.is_empty() {
            let sent = match self.means {
                Means::Pipe => write(&self.outgoing, bytes)?,
                Means::Stream => net::send(&self.outgoing, bytes, SendFlags::NOSIGNAL)?,
                Means::Seqpacket => {
                    let packet = &bytes[..bytes.len().min(PACKET_BYTES_MAX)];
                    net::send(&self.outgoing, packet, SendFlags::NOSIGNAL)?
                }
            };
            self.calls.sending += 1;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    fn receive(&mut self, words: usize) -> io::Result<Received> {
        let bytes: &mut [u8] = cast_slice_mut(&mut self.buffer[..words]);
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = &mut bytes[filled..];
            let count = match self.means {
                Means::Pipe => read(&self.incoming, rest)?,
                Means::Stream | Means::Seqpacket => net::recv(&self.incoming, rest, RecvFlags::empty())?.0,
            };
            self.calls.receiving += 1;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
        }
        Ok(Received::of(&self.buffer[..words]))
    }

    fn calls(&self) -> Calls {
        self.calls
    }
}

/// Returns a connection between the two ends. The first end listens; the second retries until the
/// first does.
pub(super) fn connected(dir: &Path, end: End, means: SocketType) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, means, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(dir.join("socket"))?;
    if end == End::First {
        net::bind(&socket, &address)?;
        net::listen(&socket, 1)?;
        return Ok(net::accept_with(&socket, SocketFlags::CLOEXEC)?);
    }
    loop {
        match net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) if dir.exists() => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}
