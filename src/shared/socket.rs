//! Unix sockets, as both sides of the message protocol use them: addresses of any length, whole
//! messages, and a deadline for each wait.
//!
//! A socket never blocks by itself: each wait has a deadline from its caller. This file does not
//! interpret messages.

use crate::files::owner;
use crate::shared::memory::private::Private;
use crate::system::clock;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::time::Timespec;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn_wal::wire;
use untorn_wal::wire::FRAME_HEADER_BYTES;

/// How much memory is reserved for a message before any byte of it has arrived.
const BYTES_AHEAD: usize = 64 << 10;
/// The number of descriptors that connections leave free, or a quarter of the process's limit if
/// that is less.
const DESCRIPTORS_SPARED: u64 = 128;
/// The longest address that the kernel accepts.
const ADDRESS_BYTES_MAX: usize = 107;

/// One connection.
#[derive(Debug)]
pub(crate) struct SocketStream {
    fd: Private,
}

impl SocketStream {
    /// Connects to the socket at `path`, which may have any length.
    pub(crate) fn connect(path: &Path, deadline: Instant) -> io::Result<SocketStream> {
        let stream = SocketStream { fd: private(new_socket)? };
        let owner = socket_owner(path)?;
        let bytes = path.as_os_str().len();
        // The socket's file, opened if its path is too long: the path of the descriptor in `/proc`
        // is short.
        let opened;
        let address = if bytes <= ADDRESS_BYTES_MAX {
            SocketAddrUnix::new(path)?
        } else {
            opened = fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            SocketAddrUnix::new(format!("/proc/self/fd/{}", opened.as_raw_fd()))?
        };
        loop {
            match net::connect(stream.fd.get()?, &address) {
                Ok(()) => {
                    stream.refuse_other_server(owner)?;
                    return Ok(stream);
                }
                Err(Errno::INTR) => {}
                // The server's queue of connections is full.
                Err(Errno::AGAIN) if clock::now() < deadline => clock::sleep(Duration::from_millis(1)),
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Returns an error if the server is not the socket's owner. The path may have been changed
    /// meanwhile to lead to another server, which must get nothing from this process. Nothing has
    /// been sent yet.
    fn refuse_other_server(&self, owner: u32) -> io::Result<()> {
        let server = self.peer_uid()?;
        // On some mounts a file's owner is mapped in this user namespace although the server's uid
        // is not.
        if server == owner || Some(server) == owner::unmapped_uid() {
            return Ok(());
        }
        let what = format!("the socket belongs to uid {owner}, the server at it to uid {server}");
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// Returns the user id of the process at the other end, as the kernel reports it.
    ///
    /// This does not use rustix: its type cannot hold the pid 0, which the kernel reports for a
    /// peer in another pid namespace.
    #[allow(unsafe_code)]
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        let fd = self.fd.get()?.as_raw_fd();
        // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes into `peer`,
        // which is plain numbers.
        let got =
            unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len) };
        if got == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns whether this process is close to its limit of open files. The store itself needs
    /// some descriptors, too.
    pub(crate) fn is_among_the_last(&self) -> bool {
        let Some(most) = getrlimit(Resource::Nofile).current else { return false };
        // The kernel assigns the lowest free number first.
        self.fd.get().is_ok_and(|fd| fd.as_raw_fd() as u64 + DESCRIPTORS_SPARED.min(most / 4) >= most)
    }

    /// Waits until there is something to read, or the other side has closed the connection. Returns
    /// false if `deadline` passes first.
    pub(crate) fn wait_readable(&self, deadline: Option<Instant>) -> io::Result<bool> {
        self.wait(PollFlags::IN, deadline)
    }

    /// Returns whether the other side has closed the connection, so that no written byte can reach
    /// it.
    pub(crate) fn has_hung_up(&self) -> bool {
        let Ok(fd) = self.fd.get() else { return true };
        // `poll` reports a hang-up without being asked for it. A peer that has only stopped writing
        // is no hang-up: it may wait for its reply.
        let mut looked_at = [PollFd::new(&fd, PollFlags::empty())];
        let found = poll(&mut looked_at, Some(&Timespec::default()));
        found.is_ok() && looked_at[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn wait(&self, flags: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
        wait_for(&mut [PollFd::new(&self.fd.get()?, flags)], deadline)
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other side has closed the connection, `TimedOut` if `deadline`
    /// passes.
    pub(crate) fn read(&self, bytes: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
        let fd = self.fd.get()?;
        let mut filled = 0;
        while filled < bytes.len() {
            match net::recv(fd, &mut bytes[filled..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, _)) => filled += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::IN, deadline)? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Reads the length of a message.
    pub(crate) fn read_header(&self, deadline: Option<Instant>) -> io::Result<[u8; FRAME_HEADER_BYTES]> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.read(&mut header, deadline)?;
        Ok(header)
    }

    /// Reads a message of `length` bytes into `message`, which grows as the bytes arrive.
    pub(crate) fn read_body(&self, length: usize, message: &mut Vec<u8>, deadline: Option<Instant>) -> io::Result<()> {
        message.clear();
        while message.len() < length {
            let have = message.len();
            // Reserving space for the whole message takes address space only: pages that are not
            // written take no memory. So the buffer need not move as it grows, and each part is
            // zeroed just before its bytes arrive, while it is in the cache.
            message.reserve_exact(length - have);
            message.resize(length.min(have + BYTES_AHEAD), 0);
            self.read(&mut message[have..], deadline)?;
        }
        Ok(())
    }

    /// Reads `count` more bytes and appends them to `message`.
    pub(crate) fn read_more(&self, count: usize, message: &mut Vec<u8>, deadline: Option<Instant>) -> io::Result<()> {
        let have = message.len();
        message.resize(have + count, 0);
        self.read(&mut message[have..], deadline)
    }

    /// Reads `count` bytes and discards them.
    pub(crate) fn discard(&self, mut count: usize, deadline: Option<Instant>) -> io::Result<()> {
        let mut scratch = [0; 4096];
        while count > 0 {
            let next = count.min(scratch.len());
            self.read(&mut scratch[..next], deadline)?;
            count -= next;
        }
        Ok(())
    }

    /// Writes all of `bytes`. On an error, returns how many were written.
    pub(crate) fn write(&self, bytes: &[u8], deadline: Option<Instant>) -> Result<(), (usize, io::Error)> {
        let fd = self.fd.get().map_err(|error| (0, error))?;
        let mut written = 0;
        while written < bytes.len() {
            match net::send(fd, &bytes[written..], SendFlags::NOSIGNAL) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match self.wait(PollFlags::OUT, deadline) {
                    Ok(true) => {}
                    Ok(false) => return Err((written, io::ErrorKind::TimedOut.into())),
                    Err(error) => return Err((written, error)),
                },
                Err(errno) => return Err((written, errno.into())),
            }
        }
        Ok(())
    }

    /// Ends reading: a thread that waits for a message returns at once. Replies can still be
    /// written.
    pub(crate) fn end_reading(&self) {
        let _ = self.fd.get().map(|fd| net::shutdown(fd, Shutdown::Read));
    }

    /// Ends the connection in both directions, also for a thread that waits on it.
    pub(crate) fn end(&self) {
        let _ = self.fd.get().map(|fd| net::shutdown(fd, Shutdown::Both));
    }
}

/// Returns the uid that a socket belongs to. A symbolic link is followed only if this user or root
/// owns it: the link of another user could lead this process, with its rights, to any server.
fn socket_owner(path: &Path) -> io::Result<u32> {
    let found = fs::lstat(path)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        return Ok(found.st_uid);
    }
    if found.st_uid != geteuid().as_raw() && found.st_uid != 0 {
        let what = format!("it is a symbolic link that uid {} has made; name the socket itself", found.st_uid);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(fs::stat(path)?.st_uid)
}

/// Returns whether a server may listen at the socket `path`. Only a refused connection proves that
/// none does.
pub(crate) fn may_be_served(path: &Path) -> bool {
    // This does not wait: a server whose queue is full is alive.
    match SocketStream::connect(path, clock::now()) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::ConnectionRefused && error.kind() != io::ErrorKind::NotFound,
    }
}

/// Waits until one of the descriptors is ready. Returns false if `deadline` passes first.
pub(crate) fn wait_for(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(clock::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, timeout.as_ref()) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Returns a socket with a name in a directory. No client can connect to it before [`listen`].
pub(crate) fn bind(dir: BorrowedFd<'_>, name: &str) -> io::Result<Private> {
    let fd = private(new_socket)?;
    let address = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    if address.len() > ADDRESS_BYTES_MAX {
        let most = ADDRESS_BYTES_MAX - (address.len() - name.len());
        let what = format!("the name has {} bytes, and a socket address can contain at most {most}", name.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    net::bind(fd.get()?, &SocketAddrUnix::new(address)?)?;
    Ok(fd)
}

/// Lets clients connect.
pub(crate) fn listen(socket: &Private) -> io::Result<()> {
    Ok(net::listen(socket.get()?, 128)?)
}

/// Returns the next client that waits to connect, if there is one.
pub(crate) fn accept(socket: &Private) -> io::Result<Option<SocketStream>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listening = socket.get()?;
    match private(|| Ok(net::accept_with(listening, flags)?)) {
        Ok(fd) => Ok(Some(SocketStream { fd })),
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns what `open` opens, as a descriptor that children do not keep.
fn private(open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Private> {
    Private::open(open).map_err(io::Error::other)?
}

/// Returns the length of a frame; a length beyond the limit is an I/O error.
pub(crate) fn frame_len(header: [u8; FRAME_HEADER_BYTES]) -> io::Result<usize> {
    wire::frame_len(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
