//! The store's directory: the names of its files, and how they are opened and created.
//!
//! Every access uses a directory descriptor. So the path of a file may be longer than a system call
//! accepts, and a renamed directory stays the same store. A file is created under another name,
//! synced and renamed into place, and the directory is synced. So no process ever sees a partly
//! written file.

use crate::error::reason::{DetachedReason, FileAccess, FileSystemReason, MismatchKind, PermissionReason, Space};
use crate::files::descriptor::Descriptor;
use crate::files::owner;
use crate::files::owner::Ownership;
use crate::{Error, Result};
use rustix::fs;
use rustix::fs::{AtFlags, FsWord, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use untorn_wal::files;

/// Device and inode of `lock`. Liveness tests on any other file are rejected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct LockFileId {
    device: u64,
    inode: u64,
}

impl LockFileId {
    pub(crate) fn of(stat: &rustix::fs::Stat) -> LockFileId {
        LockFileId { device: stat.st_dev, inode: stat.st_ino }
    }

    pub(crate) fn inode(self) -> u64 {
        self.inode
    }
}

/// The empty file whose locked bytes show which participants are alive.
pub(crate) const LOCK: &str = "lock";
/// The two header slots.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// The pages.
pub(crate) const ARENA: &str = "arena";
/// The shared region, valid within one boot.
pub(crate) const CONTROL: &str = "control";
/// The folder of log segments.
pub(crate) const WAL: &str = "wal";

/// The length of the longest path that a system call accepts.
pub(crate) const PATH_BYTES_MAX: usize = libc::PATH_MAX as usize - 1;

/// An open store directory.
///
/// If the host process closes its descriptor, the directory is opened again by its path.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: Descriptor,
    path: PathBuf,
    /// The uid that owns the directory, and so the store.
    owner: u32,
}

/// The directory's descriptor, or a fresh one in its place.
enum Handle<'d> {
    Kept(BorrowedFd<'d>),
    Fresh(OwnedFd),
}

impl AsFd for Handle<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Handle::Kept(fd) => *fd,
            Handle::Fresh(fd) => fd.as_fd(),
        }
    }
}

impl Dir {
    /// Opens the directory. Creates it (mode 0700) if `create` allows.
    ///
    /// # Errors
    /// [`Error::Permission`] if the directory belongs to another user: see [`owner`].
    pub(crate) fn open(path: &Path, create: bool, any_file_system: bool, ownership: Ownership) -> Result<Dir> {
        if path.as_os_str().is_empty() {
            return Err(Error::Invalid { what: "the store's path is empty".into() });
        }
        check_path_len(path)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = match fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) if create => {
                match fs::mkdir(path, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => {
                        check_working_directory(path)?;
                        return Err(refused(errno, &path.display().to_string(), FileAccess::Create));
                    }
                }
                fs::open(path, flags, Mode::empty())
            }
            other => other,
        };
        let fd = fd.map_err(|errno| match errno {
            Errno::NOENT => {
                check_working_directory(path).err().unwrap_or_else(|| Error::NotFound { path: path.into() })
            }
            Errno::NOTDIR => Error::Invalid { what: format!("{} is not a directory", path.display()) },
            _ => refused(errno, &path.display().to_string(), FileAccess::Open),
        })?;
        if is_removed(&fd) {
            return Err(Error::Invalid { what: format!("the directory {} was removed", path.display()) });
        }
        // The logger needs an absolute path, since its working directory differs. A removed working
        // directory has no path, but the directory that `..` leads to has one.
        let path = std::path::absolute(path).ok().or_else(|| path_of(&fd)).unwrap_or_else(|| path.into());
        let fd = Descriptor::new(fd).map_err(Error::io("stat of the store's directory"))?;
        let stat =
            fd.get().map(fs::fstat).unwrap_or(Err(Errno::BADF)).map_err(Error::sys("stat of the store's directory"))?;
        owner::check_directory(&stat, &path, ownership)?;
        let dir = Dir { fd, path, owner: stat.st_uid };
        if !any_file_system {
            dir.refuse_unreliable()?;
        }
        Ok(dir)
    }

    /// Returns the same directory, for another handle to the store.
    pub(crate) fn again(&self) -> Result<Dir> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = fs::openat(self.handle()?, ".", flags, Mode::empty())
            .map_err(Error::sys("open of the store's directory"))?;
        let fd = Descriptor::new(fd).map_err(Error::io("stat of the store's directory"))?;
        Ok(Dir { fd, path: self.path.clone(), owner: self.owner })
    }

    fn handle(&self) -> Result<Handle<'_>> {
        if let Some(fd) = self.fd.get() {
            return Ok(Handle::Kept(fd));
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        match fs::open(&self.path, flags, Mode::empty()) {
            Ok(fd) if self.fd.is_same_file(&fd) => Ok(Handle::Fresh(fd)),
            _ => Err(Error::Invalid {
                what: format!(
                    "the descriptor of {} was closed by other code, and the path does not lead to the directory any more",
                    self.path.display()
                ),
            }),
        }
    }

    /// Calls `with` with a descriptor of the directory.
    pub(crate) fn with_fd<T>(&self, with: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        with(self.handle()?.as_fd())
    }

    /// Returns whether another user than this process's owns the directory.
    pub(crate) fn is_foreign(&self) -> bool {
        self.owner != rustix::process::geteuid().as_raw()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Rejects file systems whose locks or syncs do not reach every user of the store. Each open
    /// also proves that locks work at all (`shared/liveness.rs`).
    fn refuse_unreliable(&self) -> Result<()> {
        match file_system(self.handle()?)? {
            (_, true) => Ok(()),
            (file_system, false) => Err(Error::UnsupportedFileSystem {
                path: self.path.clone(),
                file_system,
                reason: FileSystemReason::NotShared,
            }),
        }
    }

    /// Opens a file of the store; returns `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the name exists and is not a regular file; [`Error::Permission`] if
    /// this process may not open it, or if it belongs to another user than the directory.
    pub(crate) fn open_file(&self, name: &str, write: bool) -> Result<Option<File>> {
        match files::open_file(self.handle()?, name, write) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) && planted_bug!("no-descriptor-no-file") => {
                Ok(None)
            }
            Err(error) => Err(refused_io(error, name, if write { FileAccess::Write } else { FileAccess::Read })),
        }
    }

    /// Opens a file of the store that must exist.
    ///
    /// # Errors
    /// [`Error::Detached`] if the directory was removed; [`Error::Mismatch`] if only the file is
    /// missing; those of [`Dir::open_file`].
    pub(crate) fn need_file(&self, name: &str, write: bool) -> Result<File> {
        if let Some(file) = self.open_file(name, write)? {
            return Ok(file);
        }
        if is_removed(self.handle()?) {
            return Err(Error::Detached { reason: DetachedReason::DirectoryRemoved { directory: self.path.clone() } });
        }
        Err(Error::Mismatch { file: name.to_string(), what: MismatchKind::Missing })
    }

    /// Removes a file of the store, if it exists.
    pub(crate) fn remove_file(&self, name: &str) -> Result<()> {
        match fs::unlinkat(self.handle()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(refused(errno, name, FileAccess::Remove)),
        }
    }

    /// Renames a file of the store, replacing any file of that name, durably.
    pub(crate) fn rename_file(&self, from: &str, to: &str) -> Result<()> {
        self.rename_loosely(from, to)?;
        self.sync()
    }

    /// Renames a file of the store, replacing any file of that name. Not durable before
    /// [`Dir::sync`].
    pub(crate) fn rename_loosely(&self, from: &str, to: &str) -> Result<()> {
        fs::renameat(self.handle()?, from, self.handle()?, to).map_err(Error::sys(format!("rename of {from} to {to}")))
    }

    /// Creates the empty `lock` file if there is none; it is never renamed or removed.
    pub(crate) fn ensure_lock_file(&self) -> Result<()> {
        match files::create_new(self.handle()?, LOCK) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.open_file(LOCK, true)?;
                Ok(())
            }
            made => made.map(drop).map_err(|error| refused_io(error, LOCK, FileAccess::Create)),
        }
    }

    /// Creates an empty file with a new inode, replacing the file that a dead process may have
    /// left.
    pub(crate) fn create_empty_file(&self, name: &str) -> Result<File> {
        self.remove_file(name)?;
        let made = files::create_new(self.handle()?, name);
        made.map(File::from).map_err(|error| refused_io(error, name, FileAccess::Create))
    }

    /// Creates a file under another name, calls `fill` to write it, syncs it and renames it into
    /// place.
    pub(crate) fn create_file(&self, name: &str, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
        let making = format!("{name}.new");
        let file = self.create_empty_file(&making)?;
        let made = fill(&file).and_then(|()| file.sync_all().map_err(Error::io(format!("sync of {making}"))));
        if made.is_err() {
            // On a full disk, the partly written file would take space that other files need.
            let _ = self.remove_file(&making);
        }
        made?;
        self.rename_file(&making, name)
    }

    /// Creates a folder in the store's directory if there is none.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the name exists and is not a directory.
    pub(crate) fn ensure_folder(&self, name: &str) -> Result<()> {
        match files::create_folder(self.handle()?, name) {
            Ok(true) => self.sync(),
            Ok(false) => Ok(()),
            Err(error) => Err(refused_io(error, name, FileAccess::Create)),
        }
    }

    /// Opens a folder in the store's directory; returns `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the name exists and is not a directory.
    pub(crate) fn open_folder(&self, name: &str) -> Result<Option<OwnedFd>> {
        match files::open_folder(self.handle()?, name) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused_io(error, name, FileAccess::Read)),
        }
    }

    /// Makes names created or renamed in the directory durable.
    pub(crate) fn sync(&self) -> Result<()> {
        if planted_bug!("skip-directory-fsync") {
            return Ok(());
        }
        fs::fsync(self.handle()?).map_err(Error::sys("sync of the store's directory"))
    }

    /// Makes the directory's own name durable.
    pub(crate) fn sync_parent(&self) -> Result<()> {
        if planted_bug!("skip-directory-fsync") {
            return Ok(());
        }
        // A parent that this process may not read (mode --x) cannot be synced. That is no error:
        // the directory exists all the same.
        match fs::openat(self.handle()?, "..", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => {
                fs::fsync(fd).map_err(Error::sys(format!("sync of the folder that holds {}", self.path.display())))
            }
            Err(_) => Ok(()),
        }
    }

    /// Returns an error if `lock` is no longer the file that records a participant's presence. Then
    /// no logger can be started for the participant, and a running logger must stop. Returns no
    /// error if the identity of `lock` can't be determined.
    ///
    /// # Errors
    /// [`Error::Detached`], which names the file or directory that was removed or replaced.
    pub(crate) fn check_lock(&self, expected: LockFileId) -> Result<()> {
        let handle = self.handle()?;
        let directory = self.path.clone();
        let reason = match fs::statat(&handle, LOCK, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if LockFileId::of(&stat) == expected => return Ok(()),
            Ok(_) => DetachedReason::LockReplaced { directory },
            Err(Errno::NOENT) if is_removed(&handle) => DetachedReason::DirectoryRemoved { directory },
            Err(Errno::NOENT) => DetachedReason::LockRemoved { directory },
            Err(_) => return Ok(()),
        };
        Err(Error::Detached { reason })
    }

    /// Returns a path by which another program finds the directory, which may have been renamed
    /// since it was opened.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no absolute path that a system call accepts leads to the directory,
    /// with the reason why the known path does not.
    pub(crate) fn path_for_others(&self) -> Result<PathBuf> {
        let handle = self.handle()?;
        let open = |path: &Path| fs::open(path, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        if let Some(now) = path_of(&handle).filter(|path| open(path).is_ok_and(|fd| self.fd.is_same_file(&fd))) {
            return Ok(now);
        }
        let bytes = self.path.as_os_str().len();
        let why = if bytes > PATH_BYTES_MAX {
            format!("it has {bytes} bytes, and system calls take at most {PATH_BYTES_MAX}")
        } else if !self.path.is_absolute() {
            "it is relative, and the working directory has no path".to_string()
        } else {
            match open(&self.path) {
                Ok(fd) if !self.fd.is_same_file(&fd) => "it leads to another directory".to_string(),
                Err(errno @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)) => errno.to_string(),
                // Another program may have rights that this process lacks.
                Ok(_) | Err(_) => return Ok(self.path.clone()),
            }
        };
        let what = format!(
            "no logger can be started for the store, since it would not find it by the path {}: {why}",
            shown(&self.path)
        );
        Err(Error::Invalid { what })
    }
}

/// Returns whether an open directory has been removed. On a stacked file system its link count is 1
/// even then.
fn is_removed(fd: impl AsFd) -> bool {
    let Ok(stat) = fs::fstat(&fd) else { return false };
    if stat.st_nlink == 0 {
        return true;
    }
    // The suffix " (deleted)" may also be a part of the name.
    let is_there = |path: &PathBuf| fs::stat(path).is_ok_and(|found| LockFileId::of(&found) == LockFileId::of(&stat));
    path_of(fd).is_some_and(|path| path.as_os_str().as_bytes().ends_with(b" (deleted)") && !is_there(&path))
}

/// Returns an error if a path is longer than any that a system call accepts.
fn check_path_len(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().len();
    if bytes <= PATH_BYTES_MAX {
        return Ok(());
    }
    let path = shown(path);
    let what = format!(
        "the path {path} has {bytes} bytes, and system calls take at most {PATH_BYTES_MAX}; a path relative to the \
         working directory may be shorter"
    );
    Err(Error::Invalid { what })
}

/// Returns an error if a path begins at this process's working directory and that was removed.
fn check_working_directory(path: &Path) -> Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    if path.is_absolute() || !fs::open(".", flags, Mode::empty()).is_ok_and(is_removed) {
        return Ok(());
    }
    let what = format!("{} is a relative path, and this process's working directory was removed", path.display());
    Err(Error::Invalid { what })
}

/// Returns the absolute form of a path that is used again later, when the working directory may
/// differ.
///
/// # Errors
/// [`Error::Invalid`] if system calls do not accept it, or the working directory has no path.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    check_path_len(path)?;
    let absolute = std::path::absolute(path).map_err(|source| {
        let what = format!("path of the working directory, to which {} is relative", path.display());
        check_working_directory(path).err().unwrap_or(Error::Io { what, source })
    })?;
    check_path_len(&absolute)?;
    Ok(absolute)
}

/// Returns a path for an error message: its two ends, if it is long.
fn shown(path: &Path) -> String {
    const END: usize = 100;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= 4 * END {
        return path.display().to_string();
    }
    let (first, last) = (&bytes[..END], &bytes[bytes.len() - END..]);
    format!("{} … {}", String::from_utf8_lossy(first), String::from_utf8_lossy(last))
}

/// Returns the name of a file's file system, or its number if it is unknown; and whether its locks
/// and syncs reach every user.
pub(crate) fn file_system(fd: impl AsFd) -> Result<(String, bool)> {
    const NAMES: [(FsWord, &str, bool); 13] = [
        (0x6969, "NFS", false),
        (0x517b, "SMB", false),
        (0xff53_4d42, "CIFS", false),
        (0xfe53_4d42, "SMB2", false),
        (0x00c3_6400, "Ceph", false),
        (0x0102_1997, "9P", false),
        (0x5346_414f, "AFS", false),
        (0x7375_7245, "Coda", false),
        (0x0bd0_0bd0, "Lustre", false),
        (0x4750_4653, "GPFS", false),
        (0x0116_1970, "GFS2", false),
        (0x6573_5546, "FUSE", false),
        (0x794c_7630, "overlayfs", true),
    ];
    let stat = fs::fstatfs(fd).map_err(Error::sys("statfs of the store's directory"))?;
    Ok(match NAMES.iter().find(|(magic, ..)| *magic == stat.f_type) {
        Some((_, name, is_reliable)) => ((*name).to_string(), *is_reliable),
        None => (format!("file system {:#x}", stat.f_type), true),
    })
}

/// Returns the present path of an open directory, from the kernel.
pub(crate) fn path_of(fd: impl AsFd) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(link).ok()
}

/// Disables copy-on-write for a file. On btrfs, rewriting allocated blocks in place must not need
/// new blocks. Other file systems do not support the flag, and do not need it.
pub(crate) fn set_no_cow(file: &File) {
    use fs::{IFlags, ioctl_getflags, ioctl_setflags};
    if let Ok(flags) = ioctl_getflags(file) {
        let _ = ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

/// Converts an error as [`refused`] does. An error without an errno may report a file of another
/// type.
fn refused_io(error: io::Error, name: &str, access: FileAccess) -> Error {
    match Errno::from_io_error(&error) {
        Some(errno) => refused(errno, name, access),
        None => Error::io(format!("{access} of {name}"))(error),
    }
}

fn refused(errno: Errno, name: &str, access: FileAccess) -> Error {
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            let (file, errno) = (name.to_string(), errno.raw_os_error());
            Error::Permission { what: PermissionReason::File { access, file, errno } }
        }
        Errno::NOSPC | Errno::DQUOT => Error::DiskFull { what: Space::File { name: name.to_string() } },
        _ => Error::Io { what: format!("{access} of {name}"), source: errno.into() },
    }
}

/// Returns the id of this boot of the kernel, which distinguishes a `control` of an earlier boot.
pub(crate) fn boot_id() -> Result<[u64; 2]> {
    #[cfg(untorn_instrumented)]
    if let Some(injected) = crate::environment::variable("UNTORN_BOOT_ID").and_then(|id| id.into_string().ok()) {
        return Ok([u64::from_str_radix(&injected, 16).unwrap_or(0), !0]);
    }
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(Error::io(format!("read of {path}")))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16)
        .map_err(|_| Error::Invalid { what: format!("{path} holds no number: {text:?}") })?;
    Ok([(number >> 64) as u64, number as u64])
}
