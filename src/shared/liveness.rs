//! Liveness: bytes of the file `lock`, each locked by one open file that lives as long as its
//! process's memory.
//!
//! A claim is an open-file-description lock on one byte. Two things can keep the open file:
//!
//! - **A mapping.** One page of the file is mapped and the descriptor closed. The host may close any
//!   descriptor, a forked child does not inherit the mapping, and exec, exit and SIGKILL end it after
//!   the last thread has released the memory.
//! - **A descriptor.** On a stacked file system (overlayfs) a mapping refers to the file underneath, and
//!   the lock ends with `close`. There the descriptor stays open, in the table that all threads share:
//!   the kernel closes a table when its last thread ends, and each thread releases the memory before the
//!   table, so the lock outlives the memory here as well. See [`Private`] for children, and
//!   [`Claim::is_lost`] for a host that closes it.
//!
//! **Proof.** Which of the two holds is tried, not looked up by the file system's name: a claim is given
//! out only after a fresh open of the file has found its lock. The query asks for a random *witness*
//! byte, locked through the same open file, since another process may have taken a free byte of the
//! claim meanwhile. All locks of an open file end together. A file system on which neither passes is an
//! error.
//!
//! **Invariant**: a free byte means dead for ever, since client ids are random and never used twice. The byte is the
//! only authority, and whatever is unclear means alive: a lock wrongly waited for costs time, one wrongly taken, data. A
//! waiter does not wait for what stays unclear: it returns the cause (`Engine::acquire_while_clear`).
//!
//! The offsets 0 and 1 are the initialisation lock and the logger. Below 2^32 lies the mark by which the holder of the
//! former shows progress (`progress.rs`), ids between 2^32 and 2^62, witnesses above.
#![allow(unsafe_code)]

use crate::files::descriptor::Descriptor;
use crate::files::dir;
use crate::files::dir::LockFileId;
use crate::ids::ClientId;
use crate::shared::memory::fork;
use crate::shared::memory::fork::ForkGuard;
use crate::shared::memory::mapping;
use crate::shared::memory::private::Private;
use crate::shared::progress::{Patience, Progress};
use crate::{Error, Result};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use untorn_wal::files;

/// The file's name in the store's directory.
pub(crate) const LOCK_FILE: &str = "lock";
/// The initialisation lock's byte.
const INIT_OFFSET: u64 = 0;
/// The logger's byte.
pub(crate) const LOGGER_OFFSET: u64 = 1;
/// Where the clients' bytes are.
pub(crate) const CLIENT_IDS: Range<u64> = 1 << 32..1 << 61;
/// Where the bytes are that loggers have as holders of locks: apart, so that one query finds a living client.
pub(crate) const LOGGER_IDS: Range<u64> = 1 << 61..1 << 62;

/// Where the witnesses are that prove claims: above all ids.
const WITNESSES: Range<u64> = 1 << 62..(1 << 63) - 1;

/// How often a waiter tries for the initialisation lock.
const INIT_LOCK_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The offset of the byte of `arena` that participants of this `lock` share. The device is that of the directory.
pub(crate) fn arena_offset(lock_file: LockFileId) -> u64 {
    lock_file.inode() % WITNESSES.start
}

fn open_lock(directory: impl AsFd, write: bool) -> Result<(OwnedFd, LockFileId)> {
    open_file(directory, LOCK_FILE, write)
}

fn open_file(directory: impl AsFd, name: &str, write: bool) -> Result<(OwnedFd, LockFileId)> {
    let file = files::open_file(directory, name, write).map_err(|error| match Errno::from_io_error(&error) {
        Some(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
            Error::Permission { what: format!("read and write of {name} ({errno})") }
        }
        _ => Error::io(format!("opening {name}"))(error),
    })?;
    let stat = rustix::fs::fstat(&file).map_err(Error::sys(format!("stat of {name}")))?;
    Ok((file, LockFileId::of(&stat)))
}

/// How a byte is locked: by one open file alone, or by several, which need not be open for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ByteLockMode {
    Alone,
    Shared,
}

fn byte_lock(mode: ByteLockMode, offset: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: if mode == ByteLockMode::Alone { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset as libc::off_t,
        l_len: len as libc::off_t,
        // Must be 0 for locks that belong to the open file.
        l_pid: 0,
    }
}

/// Tries to lock one byte of the file `name` for the open file. False if another one has it.
fn try_lock_byte(file: &impl AsRawFd, name: &str, mode: ByteLockMode, offset: u64) -> Result<bool> {
    let lock = byte_lock(mode, offset, 1);
    // SAFETY: the descriptor is open and `lock` is a valid structure that the call only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(Error::io(format!("locking byte {offset} of {name}"))(error)),
    }
}

/// Opens `lock` and locks a random byte in `offsets`, for no claim. `None` if another open file has it.
pub(crate) fn lock_some_byte(directory: impl AsFd, offsets: &Range<u64>) -> Result<Option<(Private, u64)>> {
    let at = random_in(offsets)?;
    // A position that every file system allows.
    let mark = random_in(&(1..1 << 30))?;
    let kept = Private::open_marked(mark, || {
        let (file, _) = open_lock(&directory, true)?;
        Ok(try_lock_byte(&file, LOCK_FILE, ByteLockMode::Alone, at)?.then_some(file))
    })?;
    Ok(kept.map(|file| (file, at)))
}

/// Moves the lock of one byte of `lock` to another: at each instant one of them is locked.
pub(crate) fn move_lock(file: BorrowedFd<'_>, from: u64, to: u64) -> Result<()> {
    if !try_lock_byte(&file, LOCK_FILE, ByteLockMode::Alone, to)? {
        return Ok(());
    }
    let unlock = libc::flock { l_type: libc::F_UNLCK as libc::c_short, ..byte_lock(ByteLockMode::Alone, from, 1) };
    // SAFETY: the descriptor is open and `unlock` is a valid structure that the call only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const unlock) } == 0 {
        return Ok(());
    }
    Err(Error::io(format!("unlocking byte {from} of {LOCK_FILE}"))(std::io::Error::last_os_error()))
}

/// The first locked byte in `offsets` of the file `name`, as an open file sees it that holds no locks.
fn first_held(file: impl AsFd, name: &str, offsets: Range<u64>) -> Result<Option<u64>> {
    // Offsets of files end at 2^63 - 1, and a length of 0 would mean all the rest.
    let end = offsets.end.min(i64::MAX as u64);
    if offsets.start >= end {
        return Ok(None);
    }
    let mut lock = byte_lock(ByteLockMode::Alone, offsets.start, end - offsets.start);
    // SAFETY: the descriptor is open and `lock` is a valid structure, which the call may write.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(Error::io(format!("querying locks of {name}"))(std::io::Error::last_os_error()));
    }
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    Ok(Some((lock.l_start as u64).max(offsets.start)))
}

/// A locked byte that this process holds, until the claim is dropped or the process's memory is gone.
#[derive(Debug)]
pub(crate) struct Claim {
    holder: ClaimHolder,
    file_id: LockFileId,
}

/// What keeps the open file whose locks a claim consists of.
#[derive(Debug)]
enum ClaimHolder {
    Mapping {
        /// Dropped with the claim, and used for nothing else.
        _page: MappedPage,
    },
    /// Only where a mapping does not do it.
    Descriptor(Private),
}

/// A page without access rights.
#[derive(Debug)]
struct MappedPage {
    page: *mut c_void,
    page_size: usize,
    fork_guard: ForkGuard,
}

// SAFETY: the page is never accessed, only unmapped, once, by its owner.
unsafe impl Send for MappedPage {}
// SAFETY: as above; shared references only read plain fields.
unsafe impl Sync for MappedPage {}

impl MappedPage {
    /// Maps the first page of `file`, called `name` in errors. Inside of `without_forks`.
    fn new(file: &OwnedFd, name: &str, fork_guard: ForkGuard) -> Result<MappedPage> {
        let page_size = rustix::param::page_size();
        // SAFETY: a new mapping at an address of the kernel's choice. It has no access rights, so that the file's
        // being empty doesn't matter.
        let page =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), page_size, ProtFlags::empty(), MapFlags::SHARED, file, 0) }
                .map_err(|errno| mapping::refused(name, 0, page_size as u64, errno))?;
        let mapped = MappedPage { page, page_size, fork_guard };
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: the page was mapped just now and nothing refers to it.
            unsafe { rustix::mm::madvise(page, page_size, advice) }
                .map_err(Error::sys(format!("keeping {name} from children")))?;
        }
        Ok(mapped)
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // A child has no such mapping, and may have something else at its address.
        if !self.fork_guard.is_child() {
            // SAFETY: this process mapped the page, refers to it nowhere else, and unmaps it once.
            let unmapped = unsafe { rustix::mm::munmap(self.page, self.page_size) };
            debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
        }
    }
}

impl Claim {
    /// Claims the byte at `offset` of `lock`. None if another open file holds it.
    ///
    /// # Errors
    /// [`Error::UnsupportedFileSystem`] if the file system keeps no locks.
    pub(crate) fn take(directory: impl AsFd, offset: u64) -> Result<Option<Claim>> {
        Claim::take_in(directory, LOCK_FILE, ByteLockMode::Alone, offset)
    }

    /// Claims the byte at `offset` of the file `name` together with others who share it. Needs no right to write the file.
    ///
    /// # Errors
    /// As [`Claim::take`].
    pub(crate) fn share(directory: impl AsFd, name: &str, offset: u64) -> Result<Claim> {
        match Claim::take_in(directory, name, ByteLockMode::Shared, offset)? {
            Some(claim) => Ok(claim),
            None => Err(Error::Mismatch {
                file: name.into(),
                what: "a process that does not belong to the store has locked it".into(),
            }),
        }
    }

    fn take_in(directory: impl AsFd, name: &str, mode: ByteLockMode, offset: u64) -> Result<Option<Claim>> {
        let directory = directory.as_fd();
        let fork_guard = ForkGuard::new()?;
        let witness = random_in(&WITNESSES)?;
        let open_locked = || {
            let (file, file_id) = open_file(directory, name, mode == ByteLockMode::Alone)?;
            let is_locked = try_lock_byte(&file, name, mode, offset)? && try_lock_byte(&file, name, mode, witness)?;
            Ok::<_, Error>(is_locked.then_some((file, file_id)))
        };
        let is_proven = || {
            let (file, _) = open_file(directory, name, false)?;
            Ok::<_, Error>(first_held(&file, name, witness..witness + 1)?.is_some())
        };
        // A child forked in here would keep the open file, by its copy of the descriptor or of the mapping.
        let mapped = fork::without_forks(|| match open_locked()? {
            None => Ok(None),
            Some((file, file_id)) => Ok(Some((MappedPage::new(&file, name, fork_guard)?, file_id))),
        })?;
        let Some((page, file_id)) = mapped? else { return Ok(None) };
        if is_proven()? {
            return Ok(Some(Claim { holder: ClaimHolder::Mapping { _page: page }, file_id }));
        }
        drop(page);
        // The witness's low bits tell this open file from others of the same file; they are a position that
        // every file system allows.
        let mark = 1 + (witness & 0x3fff_ffff);
        let mut file_id = None;
        let kept = Private::open_marked(mark, || {
            Ok(open_locked()?.map(|(file, id)| {
                file_id = Some(id);
                file
            }))
        })?;
        let (Some(kept), Some(file_id)) = (kept, file_id) else { return Ok(None) };
        if is_proven()? {
            return Ok(Some(Claim { holder: ClaimHolder::Descriptor(kept), file_id }));
        }
        Err(Error::UnsupportedFileSystem {
            path: dir::path_of(directory).unwrap_or_default(),
            file_system: dir::file_system(directory)?.0,
            reason: format!(
                "a lock of {name} is not seen through another open of it, so no process could tell who is alive"
            ),
        })
    }

    /// Claims the byte of a new random id in `range`.
    pub(crate) fn take_new_id(directory: impl AsFd, range: Range<u64>) -> Result<(ClientId, Claim)> {
        loop {
            let id = random_id(&range)?;
            if let Some(claim) = Claim::take(&directory, id.0)? {
                return Ok((id, claim));
            }
        }
    }

    /// The file that the byte belongs to.
    pub(crate) fn file_id(&self) -> LockFileId {
        self.file_id
    }

    /// Whether a descriptor keeps the byte, which the host can close, and not a mapping.
    #[inline]
    pub(crate) fn is_kept_by_descriptor(&self) -> bool {
        matches!(self.holder, ClaimHolder::Descriptor(_))
    }

    /// Whether this process has lost the byte: the host has closed the descriptor that kept it. Other
    /// processes then take this one for dead. Never where a mapping keeps the byte; costs no system call there.
    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        match &self.holder {
            ClaimHolder::Mapping { .. } => false,
            ClaimHolder::Descriptor(kept) => kept.get().is_err(),
        }
    }
}

fn random_id(range: &Range<u64>) -> Result<ClientId> {
    random_in(range).map(ClientId)
}

/// A random number in `range`, whose end is a power of two, or one less.
fn random_in(range: &Range<u64>) -> Result<u64> {
    loop {
        let mut bytes = [0; 8];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        match filled {
            Ok(8) | Err(Errno::INTR) => {}
            Ok(_) => continue,
            Err(errno) => return Err(Error::sys("getting random bytes")(errno)),
        }
        let number = u64::from_le_bytes(bytes) % range.end;
        // Rejects zero, the fixed offsets, and what an interrupted call left unfilled.
        if range.contains(&number) {
            return Ok(number);
        }
    }
}

/// Which file `lock` is, opened for writing: on a stacked file system that is when a file of a lower layer is copied,
/// and its inode may become another.
pub(crate) fn lock_file_id(directory: impl AsFd) -> Result<LockFileId> {
    Ok(open_lock(directory, true)?.1)
}

/// Whether a byte of the file `name` is held other than the one at `offset`, witnesses aside.
pub(crate) fn is_held_beside(directory: impl AsFd, name: &str, offset: u64) -> Result<bool> {
    let (file, _) = open_file(directory, name, false)?;
    for offsets in [0..offset, offset + 1..WITNESSES.start] {
        if first_held(&file, name, offsets)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tests bytes through an open file of its own, so that it finds the claims of this process too.
#[derive(Debug)]
pub(crate) struct Tester<'f> {
    file: TestFile<'f>,
}

#[derive(Debug)]
enum TestFile<'f> {
    Own(OwnedFd),
    /// Kept open by somebody else, whose host may close it at any time.
    Kept(&'f Descriptor, BorrowedFd<'f>),
}

/// Opens `lock` for [`Tester::with`], so that bytes can be tested when the process has no descriptor left to open it anew.
pub(crate) fn open_reserve(directory: impl AsFd, expected: LockFileId) -> Result<Descriptor> {
    // A position that every file system allows.
    let mark = random_in(&(1..1 << 30))?;
    match Tester::open(directory, Some(expected))?.file {
        TestFile::Own(file) => Descriptor::marked(file, mark).map_err(Error::io(format!("stat of {LOCK_FILE}"))),
        TestFile::Kept(..) => unreachable!("it was opened just now"),
    }
}

impl<'f> Tester<'f> {
    /// Tests through a descriptor that is kept; `None` if it has come to name another file, or none.
    pub(crate) fn with(kept: &'f Descriptor) -> Option<Tester<'f>> {
        Some(Tester { file: TestFile::Kept(kept, kept.get()?) })
    }

    /// Opens `lock` afresh. Fails if it isn't the file `expected`: then nothing can be said about anybody.
    pub(crate) fn open(directory: impl AsFd, expected: Option<LockFileId>) -> Result<Tester<'f>> {
        let (file, found) = open_lock(directory, true)?;
        match expected {
            Some(expected) if expected != found => Err(Error::Mismatch {
                file: LOCK_FILE.to_string(),
                what: format!("it is another file (expected {expected:?}, found {found:?})"),
            }),
            _ => Ok(Tester { file: TestFile::Own(file) }),
        }
    }

    /// As [`Tester::open`], for somebody who may only read the file, which is enough to ask.
    pub(crate) fn open_to_look(directory: impl AsFd) -> Result<Tester<'f>> {
        Ok(Tester { file: TestFile::Own(open_lock(directory, false)?.0) })
    }

    /// Whether the byte at `offset` is held. A byte that no file has was never held.
    ///
    /// # Errors
    /// If the kernel cannot tell. The caller then treats the byte as held, or returns the error.
    pub(crate) fn is_held(&self, offset: u64) -> Result<bool> {
        match offset.checked_add(1) {
            Some(end) => Ok(self.first_held(offset..end)?.is_some()),
            None => Ok(false),
        }
    }

    /// Whether the owner of something, named by this id, is alive. Nobody ever had an id outside of the two ranges,
    /// which then comes from damaged memory.
    ///
    /// # Errors
    /// As [`Tester::is_held`].
    pub(crate) fn is_alive(&self, id: u64) -> Result<bool> {
        Ok((CLIENT_IDS.start..LOGGER_IDS.end).contains(&id) && self.is_held(id)?)
    }

    /// Some byte in `offsets` that is held: one query for "is anyone alive".
    ///
    /// # Errors
    /// If the kernel can't say; then assume the worst.
    pub(crate) fn any_held(&self, offsets: Range<u64>) -> Result<Option<u64>> {
        self.first_held(offsets)
    }

    fn first_held(&self, offsets: Range<u64>) -> Result<Option<u64>> {
        let file = match &self.file {
            TestFile::Own(file) => file.as_fd(),
            TestFile::Kept(_, file) => *file,
        };
        let held = first_held(file, LOCK_FILE, offsets)?;
        // Else another file may have answered, in which nothing is held.
        if let TestFile::Kept(kept, _) = &self.file
            && kept.get().is_none()
        {
            let source = std::io::Error::from_raw_os_error(libc::EBADF);
            return Err(Error::Io { what: format!("querying locks of {LOCK_FILE}"), source });
        }
        Ok(held)
    }
}

/// The initialisation lock: opening, joining, and the logger's leaving exclude each other. Released on drop.
///
/// It is a claim like any other, so that a child forked meanwhile doesn't keep it when its parent dies.
#[derive(Debug)]
pub(crate) struct InitLock {
    claim: Claim,
    progress: Arc<Progress>,
}

impl InitLock {
    /// Waits for the lock as long as `patience` lasts; `None` if other processes had it until then. While it is held, `progress`
    /// is shown to those who wait for it.
    pub(crate) fn acquire(
        directory: impl AsFd,
        patience: &mut Patience,
        progress: &Arc<Progress>,
    ) -> Result<Option<InitLock>> {
        let mut tester = None;
        loop {
            if let Some(claim) = Claim::take(&directory, INIT_OFFSET)? {
                progress.show(&directory);
                return Ok(Some(InitLock { claim, progress: progress.clone() }));
            }
            if tester.is_none() {
                tester = Tester::open(&directory, None).ok();
            }
            if let Some(tester) = &tester {
                patience.look(tester);
            }
            let left = patience.left();
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(INIT_LOCK_POLL_INTERVAL.min(left));
        }
    }

    /// A bounded piece of the work is done for which the lock is held.
    pub(crate) fn step(&self) {
        self.progress.step();
    }

    /// The file that the lock is on.
    pub(crate) fn file_id(&self) -> LockFileId {
        self.claim.file_id()
    }
}

impl Drop for InitLock {
    fn drop(&mut self) {
        // Before the claim: a successor shows its own.
        self.progress.hide();
    }
}
