//! The path of the socket, and the files beside it: the access file, which the server reads, and
//! the error file, which it writes.
//!
//! The socket is bound under a temporary name and renamed, so that a client that finds it can
//! connect. In the store's directory, the owner of the logger's byte is the only server. Elsewhere,
//! a path at which another server answers is left to that server.

pub(super) mod watch;

use crate::files::descriptor::{Descriptor, FileId};
use crate::files::dir::Dir;
use crate::server::access;
use crate::server::policy::{Policy, PolicyFault, Principal};
use crate::shared::memory::private::Private;
use crate::shared::socket;
use crate::shared::socket::SocketStream;
use crate::system::clock;
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fs;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net;
use rustix::net::Shutdown;
use rustix::process::geteuid;
use std::io;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use untorn_wal::files;

/// The socket's name in the store's directory.
pub(super) const SOCKET_NAME: &str = "logger.sock";
/// The file that records that there is no socket, and the reason.
pub(super) const ERROR_FILE: &str = "logger.note";
const UNBOUND_SUFFIX: &str = ".new";
/// How long a policy that was read is used before the access file is checked again.
const POLICY_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A socket that clients can connect to.
pub(super) struct BoundSocket {
    listener: Private,
    dir: Descriptor,
    name: String,
    is_elsewhere: bool,
    id: FileId,
}

impl BoundSocket {
    /// Makes the socket at the path of the policy.
    pub(super) fn bind(store: &Dir, policy: &Policy) -> Result<BoundSocket> {
        let (dir, name) = match &policy.socket {
            None => (open_dir(store)?, SOCKET_NAME.to_string()),
            Some(path) => outside_store(path)?,
        };
        let making = format!("{name}{UNBOUND_SUFFIX}");
        remove_socket(&dir, &making)?;
        let listener = socket::bind(dir.as_fd(), &making).map_err(Error::io(format!("bind of {making}")))?;
        let made = (|| {
            // By a descriptor: other users may be able to change names in this directory.
            let made = fs::openat(&dir, &making, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let stat = fs::fstat(&made)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
                return Err(Errno::NOTSOCK);
            }
            // If another user's socket has replaced it, its mode is not changed.
            if stat.st_uid != geteuid().as_raw() || stat.st_nlink != 1 {
                return Err(Errno::PERM);
            }
            let mode = if policy.is_owners_alone() { 0o600 } else { 0o666 };
            fs::chmod(format!("/proc/self/fd/{}", made.as_raw_fd()), Mode::from_bits_truncate(mode))?;
            socket::listen(&listener).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            fs::renameat(&dir, &making, &dir, &name)?;
            Ok((stat.st_dev, stat.st_ino))
        })();
        match made {
            Ok(id) => {
                let dir = Descriptor::new(dir).map_err(Error::io("stat of the socket's directory"))?;
                Ok(BoundSocket { listener, dir, name, is_elsewhere: policy.socket.is_some(), id })
            }
            Err(errno) => {
                let _ = fs::unlinkat(&dir, &making, AtFlags::empty());
                Err(Error::sys(format!("making the socket {name}"))(errno))
            }
        }
    }

    /// Returns the next client, if one connects within that time. Also returns `None` when one of
    /// `others` is readable.
    pub(super) fn next_client(
        &self,
        time: Duration,
        others: [Option<BorrowedFd<'_>>; 2],
    ) -> io::Result<Option<SocketStream>> {
        let listening = self.listener.get()?;
        let fds = [listening, others[0].unwrap_or(listening), others[1].unwrap_or(listening)];
        let mut ready = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
        if !socket::wait_for(&mut ready, clock::now().checked_add(time))? {
            return Ok(None);
        }
        socket::accept(&self.listener)
    }

    /// Returns whether its name is outside the store's directory.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// Ends the wait for a client. No client can connect afterwards.
    pub(super) fn end(&self) {
        let _ = self.listener.get().map(|fd| net::shutdown(fd, Shutdown::Both));
    }

    /// Returns whether no client can find the socket, because its name was removed, or a host has
    /// closed a descriptor that it did not open.
    pub(super) fn is_lost(&self) -> bool {
        let Some(dir) = self.dir.get() else { return true };
        self.listener.get().is_err()
            || fs::statat(dir, &self.name, AtFlags::SYMLINK_NOFOLLOW).err() == Some(Errno::NOENT)
    }

    /// Removes the name, if it still belongs to this socket.
    pub(super) fn remove(&self) {
        let Some(dir) = self.dir.get() else { return };
        let found = fs::statat(dir, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.id) {
            let _ = fs::unlinkat(dir, &self.name, AtFlags::empty());
        }
    }
}

fn open_dir(store: &Dir) -> Result<OwnedFd> {
    store.with_fd(|fd| {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        fs::openat(fd, ".", flags, Mode::empty()).map_err(Error::sys("open of the store's directory"))
    })
}

/// Returns the directory and name of a socket outside the store's directory.
fn outside_store(path: &Path) -> Result<(OwnedFd, String)> {
    let names = path.parent().zip(path.file_name().and_then(|name| name.to_str()));
    let (parent, name) = names.ok_or_else(|| Error::Invalid { what: format!("{} names no file", path.display()) })?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = fs::open(parent, flags, Mode::empty()).map_err(Error::sys(format!("open of {}", parent.display())))?;
    match fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(Error::sys(format!("stat of {}", path.display()))(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(Error::Invalid { what: format!("{} is there, and is no socket", path.display()) });
        }
        Ok(_) => {
            if socket::may_be_served(path) {
                return Err(Error::Invalid { what: format!("another server answers at {}", path.display()) });
            }
        }
    }
    Ok((dir, name.to_string()))
}

/// Removes the socket of a server that died; any other file remains.
fn remove_socket(dir: &OwnedFd, name: &str) -> Result<()> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
            fs::unlinkat(dir, name, AtFlags::empty()).map_err(Error::sys(format!("removal of {name}")))
        }
        _ => Ok(()),
    }
}

/// Records in the store's directory why there is no socket, or that there is one.
pub(super) fn write_error_file(store: &Dir, problem: Option<&str>) {
    let Some(problem) = problem else {
        let _ = store.remove_file(ERROR_FILE);
        return;
    };
    // If the directory is not writable, nothing is recorded.
    if let Ok(mut file) = store.create_empty_file(ERROR_FILE) {
        let _ = writeln!(file, "There is no socket for message-passing clients: {problem}");
    }
}

/// The policy, the stamp of the file that it was read from, and when that was checked.
pub(super) struct CachedPolicy {
    policy: Arc<Policy>,
    stamp: Option<FileStamp>,
    looked: Instant,
}

impl CachedPolicy {
    pub(super) fn read(store: &Dir) -> Result<CachedPolicy> {
        let stamp = FileStamp::now(store);
        Ok(CachedPolicy { policy: Arc::new(read_policy(store)?), stamp, looked: clock::now() })
    }

    /// Returns the policy of the access file as it was less than [`POLICY_CHECK_INTERVAL`] ago.
    pub(super) fn recent(&mut self, store: &Dir) -> Arc<Policy> {
        if clock::since(self.looked) < POLICY_CHECK_INTERVAL { self.policy.clone() } else { self.now(store) }
    }

    /// Returns the policy of the access file as it is now. If the directory can't be read, the
    /// policy remains.
    pub(super) fn now(&mut self, store: &Dir) -> Arc<Policy> {
        let stamp = FileStamp::now(store);
        if (stamp != self.stamp || stamp.is_some_and(|stamp| !stamp.is_stable()))
            && let Ok(policy) = read_policy(store)
        {
            (self.policy, self.stamp) = (Arc::new(policy), stamp);
        }
        self.looked = clock::now();
        self.policy.clone()
    }
}

/// Distinguishes versions of the access file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    id: FileId,
    size: i64,
    changed: (i64, i64),
}

impl FileStamp {
    /// Returns the stamp of the present file; `None` if there is none, or none that can be read.
    fn now(store: &Dir) -> Option<FileStamp> {
        store
            .with_fd(|fd| Ok(fs::statat(fd, access::NAME, AtFlags::SYMLINK_NOFOLLOW).ok()))
            .ok()
            .flatten()
            .map(FileStamp::of)
    }

    fn of(stat: Stat) -> FileStamp {
        let id = (stat.st_dev, stat.st_ino);
        FileStamp { id, size: stat.st_size, changed: (stat.st_ctime, stat.st_ctime_nsec as i64) }
    }

    /// Returns whether the stamp would show any later change: the timestamps of files are coarse.
    fn is_stable(&self) -> bool {
        let now = i64::try_from(clock::since_1970().as_secs()).unwrap_or(i64::MAX);
        now.saturating_sub(self.changed.0).unsigned_abs() >= 2
    }
}

/// Returns the policy of the access file. The owner is the user of this process, even if the
/// directory changes.
fn read_policy(store: &Dir) -> Result<Policy> {
    let owner = Principal::of_this_process();
    let whole = |what: String| Policy::faulty(owner, PolicyFault { line: 0, what });
    let file = match store.with_fd(|fd| Ok(files::open_file(fd, access::NAME, false)))? {
        Ok(file) => std::fs::File::from(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::of_owner(owner)),
        Err(error) => {
            let what = files::WrongKind::of(&error).map(files::WrongKind::what);
            return Ok(whole(what.unwrap_or_else(|| format!("it can't be opened: {error}"))));
        }
    };
    let stat = fs::fstat(&file).map_err(Error::sys("stat of the access file"))?;
    if stat.st_uid != owner.uid && stat.st_uid != 0 {
        return Ok(whole(format!("it belongs to uid {}, not to the store's owner, uid {}", stat.st_uid, owner.uid)));
    }
    if stat.st_mode & 0o022 != 0 {
        return Ok(whole("others than its owner may write it".into()));
    }
    let mut text = Vec::new();
    match file.take(access::BYTES_MAX + 1).read_to_end(&mut text) {
        Err(error) => Ok(whole(format!("it can't be read: {error}"))),
        Ok(_) if text.len() as u64 > access::BYTES_MAX => {
            Ok(whole(format!("it is longer than {} bytes", access::BYTES_MAX)))
        }
        Ok(_) => Ok(Policy::parse(&text, owner)),
    }
}
