//! The interface to the file system: one directory of files, written in whole blocks. The real disk
//! is here, a simulated one in [`crate::testing`].
//!
//! The real disk opens files relative to a directory descriptor, so the length of the path does not
//! matter. It uses direct I/O where the file system allows it, for two reasons. Large folios in the
//! page cache make small writes slow. And after a failed sync no stale page in the cache can
//! mislead a later reader. `sync` is a plain fdatasync. The alternative is a write with a per-write
//! sync flag. Its time was equal within noise (117 to 136 µs for a block, 364 to 410 µs for 1 MiB),
//! and not every file system honours the flag with direct I/O.

use crate::{files, limits::BLOCK_BYTES, planted_bug};
use rustix::{
    fs::{self, AtFlags, Dir, IFlags, OFlags, SeekFrom},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
};

/// A directory of the log's files.
pub trait Disk: Send + Sync {
    /// An open file.
    type File: DiskFile;
    /// Returns the names of all files, in no particular order.
    ///
    /// # Errors
    /// As the system reports them; this applies to every call of both traits.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Creates a file that must not exist.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Renames a file. Durable only after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable only after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// Gives a file that root creates to the owner of its directory. Otherwise the owner could not use
/// the file. Other users may not change a file's owner, so for them this function does nothing.
pub fn give_to_owner(dir: impl AsFd, made: impl AsFd) {
    /// The uid that the kernel reports for an owner that is not mapped in the user namespace.
    const UNKNOWN: u32 = 65534;
    let (Ok(dir), Ok(stat)) = (fs::fstat(dir), fs::fstat(&made)) else { return };
    if stat.st_uid != dir.st_uid && dir.st_uid != UNKNOWN {
        let _ = fs::fchown(made, Some(fs::Uid::from_raw(dir.st_uid)), Some(fs::Gid::from_raw(dir.st_gid)));
    }
}

/// An open file. Offsets, lengths and the addresses of buffers are multiples of [`BLOCK_BYTES`];
/// see [`AlignedBuf`].
pub trait DiskFile: Send {
    /// Returns the file's length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Sets the length of an empty file without allocating blocks, if the file system has sparse
    /// files.
    fn set_size(&self, bytes: u64) -> io::Result<()>;
    /// Gives the blocks from `offset` to `end` back to the device, if the file system can. The
    /// bytes read as zeros then. Both are multiples of a block.
    fn release(&self, _offset: u64, _end: u64) -> io::Result<()> {
        Ok(())
    }
    /// Returns how many bytes from the beginning have blocks: the offset of the first hole. If the
    /// file system can't tell, this is the file's length.
    fn ready_bytes(&self) -> io::Result<u64>;
    /// Fills the buffer. If the file is too short, the error is of the kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all bytes. After an error any part of them may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns success only if everything written is durable. After an error, nothing written since
    /// the last success can be relied on, whatever a later call returns.
    fn sync(&self) -> io::Result<()>;
}

/// A buffer that begins at a multiple of [`BLOCK_BYTES`] in memory, as direct I/O requires.
#[derive(Debug)]
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// Returns a zeroed buffer of `len` bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK_BYTES];
        // The vector is never resized, so its bytes do not move.
        let start = bytes.as_ptr().addr().next_multiple_of(BLOCK_BYTES) - bytes.as_ptr().addr();
        Self { bytes, start, len }
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// Returns the bytes, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The function that a [`RealDisk`] calls after each operation that may take long: reads, writes
/// and syncs.
#[derive(Clone, Default)]
struct OnStep(Option<Arc<dyn Fn() + Send + Sync>>);

impl OnStep {
    fn call(&self) {
        if let Some(call) = &self.0 {
            call();
        }
    }
}

impl std::fmt::Debug for OnStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OnStep").field(&self.0.is_some()).finish()
    }
}

/// A directory of a real file system.
#[derive(Debug)]
pub struct RealDisk {
    dir: OwnedFd,
    read_only: bool,
    on_step: OnStep,
}

impl RealDisk {
    /// Opens the directory `name` in the directory `parent`.
    ///
    /// # Errors
    /// As the system reports them, usually `NotFound`.
    pub fn open_under(parent: impl AsFd, name: &str) -> io::Result<Self> {
        Ok(Self { dir: files::open_folder(parent, name)?, read_only: false, on_step: OnStep::default() })
    }

    /// Sets `on_step` to be called after each read, write and sync, on the thread that made it.
    #[must_use]
    pub fn with_steps(self, on_step: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { on_step: OnStep(Some(on_step)), ..self }
    }

    /// Opens a directory as [`RealDisk::open_under`], but its files for reading only.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn open_read_only(parent: impl AsFd, name: &str) -> io::Result<Self> {
        Ok(Self { read_only: true, ..Self::open_under(parent, name)? })
    }

    /// Opens a directory as [`RealDisk::open_under`], but creates it (mode 0700, durably) if it is
    /// missing.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn create_under(parent: impl AsFd, name: &str) -> io::Result<Self> {
        files::create_folder(&parent, name)?;
        fs::fsync(&parent)?;
        Self::open_under(parent, name)
    }

    /// Enables direct I/O for the file, where the file system allows it. The flag is set only on
    /// the open file, since some file systems create a file before they refuse to open it for
    /// direct I/O. The caller could then not know which process had created it.
    fn prefer_direct(&self, fd: OwnedFd) -> RealFile {
        let direct = fs::fcntl_getfl(&fd).and_then(|flags| fs::fcntl_setfl(&fd, flags | OFlags::DIRECT)).is_ok();
        RealFile { fd, direct: AtomicBool::new(direct), on_step: self.on_step.clone() }
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            // Files of all kinds are listed: a segment that is not a regular file must be an error,
            // not a gap in the log.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        Ok(self.prefer_direct(files::open_file(&self.dir, name, !self.read_only)?))
    }

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let file = self.prefer_direct(files::create_new(&self.dir, name)?);
        // On btrfs even a rewrite of allocated blocks needs free space, unless the file is not
        // copy-on-write. Other file systems do not know the flag, and do not need it.
        if let Ok(flags) = fs::ioctl_getflags(&file.fd) {
            let _ = fs::ioctl_setflags(&file.fd, flags | IFlags::NOCOW);
        }
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        if planted_bug!("skip-directory-fsync") {
            return Ok(());
        }
        fs::fsync(&self.dir)?;
        self.on_step.call();
        Ok(())
    }
}

/// An open file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    fd: OwnedFd,
    direct: AtomicBool,
    on_step: OnStep,
}

impl RealFile {
    /// Returns how many bytes of blocks the file has.
    fn allocated(&self) -> io::Result<u64> {
        Ok(fs::fstat(&self.fd)?.st_blocks as u64 * STAT_BLOCK_BYTES)
    }

    /// Disables direct I/O if the error may be caused by it (for example by a device with sectors
    /// larger than a block). Succeeds if the call is worth repeating.
    fn give_up_direct(&self, error: Errno) -> io::Result<()> {
        if error != Errno::INVAL || !self.direct.swap(false, Ordering::Relaxed) {
            return Err(error.into());
        }
        let flags = fs::fcntl_getfl(&self.fd)?;
        Ok(fs::fcntl_setfl(&self.fd, flags - OFlags::DIRECT)?)
    }
}

/// The unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(fs::fstat(&self.fd)?.st_size as u64)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        Ok(fs::ftruncate(&self.fd, bytes)?)
    }

    fn release(&self, offset: u64, end: u64) -> io::Result<()> {
        // The system refuses an empty range.
        if end <= offset {
            return Ok(());
        }
        let flags = fs::FallocateFlags::PUNCH_HOLE | fs::FallocateFlags::KEEP_SIZE;
        match fs::fallocate(&self.fd, flags, offset, end - offset) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            released => Ok(released?),
        }
    }

    fn ready_bytes(&self) -> io::Result<u64> {
        match fs::seek(&self.fd, SeekFrom::Hole(0)) {
            // A file system that does not record holes returns the length.
            Ok(bytes) => Ok(bytes.min(self.allocated()?)),
            // The file is empty.
            Err(Errno::NXIO) => Ok(0),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.size()?.min(self.allocated()?)),
            Err(error) => Err(error.into()),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&self.fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => self.give_up_direct(e)?,
            }
        }
        self.on_step.call();
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&self.fd, &bytes[done..], offset + done as u64) {
                Ok(_) if planted_bug!("short-write-is-done") => return Ok(()),
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => self.give_up_direct(e)?,
            }
        }
        self.on_step.call();
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // An interrupted sync is not repeated, since it may have lost an error.
        let synced = fs::fdatasync(&self.fd);
        self.on_step.call();
        match synced {
            Err(_) if planted_bug!("ignore-fsync-error") => Ok(()),
            Err(_) if planted_bug!("retry-fsync") => Ok(fs::fdatasync(&self.fd)?),
            synced => Ok(synced?),
        }
    }
}
