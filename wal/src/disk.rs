//! The seam to the file system: one directory of files, written in whole blocks. The real one is
//! here, an injected one in [`crate::testing`].
//!
//! The real disk names files relative to a directory descriptor, so the length of the path does not
//! matter. It writes past the page cache where the file system allows it: large folios in the cache
//! make small writes slow, and what a failed sync leaves in the cache can't mislead a later reader.
//! `sync` is a plain fdatasync: one write with a per-write sync flag measured the same within noise
//! (117 to 136 µs for a block, 364 to 410 µs for 1 MiB), and not every file system honours the flag
//! with direct I/O.

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
    /// The names of all files, in no particular order.
    ///
    /// # Errors
    /// As the system reports them; this holds for every call of both traits.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Creates a file that must not exist.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file another name. Durable only after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable only after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// Gives what root makes in somebody's directory to the directory's owner, who could not use it
/// otherwise. Others may not give anything away, and leave it as it is.
pub fn give_to_owner(dir: impl AsFd, made: impl AsFd) {
    /// What the kernel says of an owner whom a user namespace does not know.
    const UNKNOWN: u32 = 65534;
    let (Ok(dir), Ok(stat)) = (fs::fstat(dir), fs::fstat(&made)) else { return };
    if stat.st_uid != dir.st_uid && dir.st_uid != UNKNOWN {
        let _ = fs::fchown(made, Some(fs::Uid::from_raw(dir.st_uid)), Some(fs::Gid::from_raw(dir.st_gid)));
    }
}

/// An open file. Offsets, lengths and the addresses of buffers are multiples of [`BLOCK_BYTES`];
/// see [`AlignedBuf`].
pub trait DiskFile: Send {
    /// The file's length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Sets the length of an empty file without giving it blocks, where the file system has sparse
    /// files.
    fn set_size(&self, bytes: u64) -> io::Result<()>;
    /// Bytes from the beginning that have blocks: where the first hole begins. A file system that
    /// can't tell answers with the file's length.
    fn ready_bytes(&self) -> io::Result<u64>;
    /// Fills the buffer; a file that ends before is an error of the kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all bytes. After an error any part of them may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns success only if everything written is durable. After an error nothing written since
    /// the last success can be relied on, whatever a later call says.
    fn sync(&self) -> io::Result<()>;
}

/// A buffer that begins at a multiple of [`BLOCK_BYTES`] in memory, as direct I/O demands.
#[derive(Debug)]
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A zeroed buffer of `len` bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK_BYTES];
        // The vector is never resized, so its bytes stay where they are.
        let start = bytes.as_ptr().addr().next_multiple_of(BLOCK_BYTES) - bytes.as_ptr().addr();
        Self { bytes, start, len }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// What a [`RealDisk`] calls after each call that may take long: reads, writes and syncs.
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
    /// The directory `name` in the directory `parent`.
    ///
    /// # Errors
    /// As the system reports them, `NotFound` above all.
    pub fn open_under(parent: impl AsFd, name: &str) -> io::Result<Self> {
        Ok(Self { dir: files::open_folder(parent, name)?, read_only: false, on_step: OnStep::default() })
    }

    /// Calls `on_step` after each read, write and sync, on the thread that made it.
    #[must_use]
    pub fn with_steps(self, on_step: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { on_step: OnStep(Some(on_step)), ..self }
    }

    /// As [`RealDisk::open_under`], but its files are opened for reading only.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn open_read_only(parent: impl AsFd, name: &str) -> io::Result<Self> {
        Ok(Self { read_only: true, ..Self::open_under(parent, name)? })
    }

    /// As [`RealDisk::open_under`], but makes the directory (mode 0700, durably) if it is missing.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn create_under(parent: impl AsFd, name: &str) -> io::Result<Self> {
        files::create_folder(&parent, name)?;
        fs::fsync(&parent)?;
        Self::open_under(parent, name)
    }

    /// Has the file written past the page cache, where the file system allows it. Set only on the
    /// open file: some file systems create a file before they refuse to open it for direct I/O, and
    /// it would not be known whose it is.
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
            // Whatever its kind: a segment that is no regular file must be an error, not a gap in
            // the log.
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
        // copy-on-write. Elsewhere the flag is unknown, and that is as good.
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
    /// Bytes of the blocks that the file has.
    fn allocated(&self) -> io::Result<u64> {
        Ok(fs::fstat(&self.fd)?.st_blocks as u64 * STAT_BLOCK_BYTES)
    }

    /// Goes back to the page cache if direct I/O is what the system objects to (a device with
    /// sectors larger than a block, for one). Returns whether the call is worth repeating.
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

    fn ready_bytes(&self) -> io::Result<u64> {
        match fs::seek(&self.fd, SeekFrom::Hole(0)) {
            // A file system that does not know its holes answers with the length.
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
        // An interrupted sync is not repeated: whether it lost an error on the way is unknown.
        let synced = fs::fdatasync(&self.fd);
        self.on_step.call();
        match synced {
            Err(_) if planted_bug!("ignore-fsync-error") => Ok(()),
            Err(_) if planted_bug!("retry-fsync") => Ok(fs::fdatasync(&self.fd)?),
            synced => Ok(synced?),
        }
    }
}
