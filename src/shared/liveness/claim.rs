//! Claims: locked bytes that this process holds, and the objects that keep their open files open.
#![allow(unsafe_code)]

use super::byte_lock::{ByteLockMode, first_held, open_file, random_in, try_lock_byte};
use super::{LOCK_FILE, WITNESSES};
use crate::error::reason::{FileSystemReason, MismatchKind};
use crate::files::dir;
use crate::files::dir::LockFileId;
use crate::ids::ClientId;
use crate::shared::memory::fork;
use crate::shared::memory::fork::ForkGuard;
use crate::shared::memory::mapping;
use crate::shared::memory::private::Private;
use crate::{Error, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// A locked byte that this process holds, until the claim is dropped or the process's memory is
/// gone.
#[derive(Debug)]
pub(crate) struct Claim {
    holder: ClaimHolder,
    file_id: LockFileId,
}

/// The object that keeps a claim's open file open.
#[derive(Debug)]
enum ClaimHolder {
    Mapping {
        /// Only held, and dropped with the claim.
        _page: MappedPage,
    },
    /// Used only if a mapping does not keep the lock.
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
    /// Maps the first page of `file`, called `name` in errors. Called within `without_forks`.
    fn new(file: &OwnedFd, name: &str, fork_guard: ForkGuard) -> Result<MappedPage> {
        let page_size = rustix::param::page_size();
        // SAFETY: a new mapping at an address of the kernel's choice. It has no access rights, so
        // it does not matter that the file is empty.
        let page =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), page_size, ProtFlags::empty(), MapFlags::SHARED, file, 0) }
                .map_err(|errno| mapping::refused(name, 0, page_size as u64, errno))?;
        let mapped = MappedPage { page, page_size, fork_guard };
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: the page was just mapped and nothing refers to it.
            unsafe { rustix::mm::madvise(page, page_size, advice) }
                .map_err(Error::sys(format!("keeping {name} from children")))?;
        }
        Ok(mapped)
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // A forked child does not have this mapping, and may have another one at its address.
        if !self.fork_guard.is_child() {
            // SAFETY: this process mapped the page, refers to it nowhere else, and unmaps it once.
            let unmapped = unsafe { rustix::mm::munmap(self.page, self.page_size) };
            debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
        }
    }
}

impl Claim {
    /// Claims the byte at `offset` of `lock`. Returns `None` if another open file holds it.
    ///
    /// # Errors
    /// [`Error::UnsupportedFileSystem`] if the file system keeps no locks.
    pub(crate) fn take(directory: impl AsFd, offset: u64) -> Result<Option<Claim>> {
        Claim::take_in(directory, LOCK_FILE, ByteLockMode::Alone, offset)
    }

    /// Claims a share of the byte at `offset` of the file `name`, which other open files may share.
    /// Needs no right to write the file.
    ///
    /// # Errors
    /// As [`Claim::take`].
    pub(crate) fn share(directory: impl AsFd, name: &str, offset: u64) -> Result<Claim> {
        match Claim::take_in(directory, name, ByteLockMode::Shared, offset)? {
            Some(claim) => Ok(claim),
            None => Err(Error::Mismatch { file: name.into(), what: MismatchKind::Locked }),
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
        // A child forked in here would keep the open file, by its copy of the descriptor or of the
        // mapping.
        let mapped = fork::without_forks(|| match open_locked()? {
            None => Ok(None),
            Some((file, file_id)) => Ok(Some((MappedPage::new(&file, name, fork_guard)?, file_id))),
        })?;
        let Some((page, file_id)) = mapped? else { return Ok(None) };
        if is_proven()? {
            return Ok(Some(Claim { holder: ClaimHolder::Mapping { _page: page }, file_id }));
        }
        drop(page);
        // The witness's low bits distinguish this open file from others of the same file; they are
        // a position that every file system allows.
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
            reason: FileSystemReason::LockNotSeen { file: name.into() },
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

    /// Returns the identity of the file that the byte belongs to.
    pub(crate) fn file_id(&self) -> LockFileId {
        self.file_id
    }

    /// Returns whether the byte depends on a descriptor, which the host can close, and not on a
    /// mapping.
    #[inline]
    pub(crate) fn is_kept_by_descriptor(&self) -> bool {
        matches!(self.holder, ClaimHolder::Descriptor(_))
    }

    /// Returns whether this process has lost the byte, because the host has closed the descriptor
    /// that kept it. Other processes then treat this one as dead. If a mapping keeps the byte, this
    /// returns false without a system call.
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
