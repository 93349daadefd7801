//! A simulated disk in memory that fails and loses power on command. For tests of this crate and of
//! its users.
//!
//! It models what real disks do to a log:
//! * Written bytes are in the cache; a sync makes them durable.
//! * A failed sync leaves the cache's pages *clean*: reads still return the new bytes, a later sync
//!   returns success, and any part of the bytes, or none, is on the disk.
//! * A power cut keeps any subset of the sectors that were written since the last sync, and any
//!   subset of the directory's unsynced changes. File systems with a journal keep them in order;
//!   POSIX does not promise it.
//! * The death of a process changes nothing: continue with a clone of the disk.

use crate::disk::{Disk, DiskFile};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The unit that a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A small generator of random numbers: the same seed gives the same numbers everywhere
/// (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// Returns true once in `n` times on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A kind of call that can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Listing, opening, creating, renaming, removing.
    Name,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Syncing a file.
    Sync,
    /// Syncing the directory.
    SyncDir,
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// EIO. After a failed write nothing was written; after a failed sync any part may be on the
    /// disk.
    Io,
    /// ENOSPC; nothing was written.
    NoSpace,
    /// EIO after the first half of a write, cut at a sector.
    Short,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Io | Fault::Short => io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
            Fault::NoSpace => io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
        }
    }
}

/// A simulated disk. Clones share it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<DiskState>>,
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    state: Arc<Mutex<DiskState>>,
    inode: u64,
}

#[derive(Clone, Debug)]
struct DiskState {
    inodes: BTreeMap<u64, SimInode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// The directory's changes since its last sync.
    changes: Vec<PendingChange>,
    faults: Vec<Planned>,
    rng: Rng,
    next_inode: u64,
    syncs: u64,
}

#[derive(Clone, Debug, Default)]
struct SimInode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// The number of bytes from the beginning that were written. They are written in order.
    ready: usize,
}

#[derive(Clone, Debug)]
enum PendingChange {
    Put(String, u64),
    Remove(String),
}

#[derive(Clone, Debug)]
struct Planned {
    call: Option<Call>,
    after: u64,
    fault: Fault,
}

impl SimInode {
    /// Copies a sector from the cache to the disk.
    fn land(&mut self, sector: usize) {
        let end = ((sector + 1) * SECTOR_BYTES).min(self.cached.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        let at = sector * SECTOR_BYTES..end;
        self.durable[at.clone()].copy_from_slice(&self.cached[at]);
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &PendingChange) {
    match change {
        PendingChange::Put(name, inode) => {
            names.retain(|_, i| i != inode);
            names.insert(name.clone(), *inode);
        }
        PendingChange::Remove(name) => {
            names.remove(name);
        }
    }
}

impl DiskState {
    fn check(&mut self, call: Call) -> Result<(), Fault> {
        for at in 0..self.faults.len() {
            let planned = &mut self.faults[at];
            if planned.call.is_some_and(|c| c != call) {
                continue;
            }
            if planned.after == 0 {
                return Err(self.faults.remove(at).fault);
            }
            planned.after -= 1;
        }
        Ok(())
    }

    fn named(&mut self) -> io::Result<()> {
        self.check(Call::Name).map_err(Fault::error)
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut SimInode> {
        self.inodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: PendingChange) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }
}

fn lock(state: &Mutex<DiskState>) -> MutexGuard<'_, DiskState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// Returns an empty disk. The seed determines which bytes reach it when a sync fails or the
    /// power is cut.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = DiskState {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            faults: Vec::new(),
            rng: Rng(seed),
            next_inode: 1,
            syncs: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Makes one call fail: of the kind `call` (any kind if `None`), after `after` successful ones.
    pub fn fail(&self, call: Option<Call>, after: u64, fault: Fault) {
        lock(&self.state).faults.push(Planned { call, after, fault });
    }

    /// Cancels all failures that have not happened yet.
    pub fn clear_faults(&self) {
        lock(&self.state).faults.clear();
    }

    /// Returns how many syncs of files there were.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        lock(&self.state).syncs
    }

    /// Returns an independent disk with the same content, including the cache.
    #[must_use]
    pub fn duplicate(&self) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(lock(&self.state).clone())) }
    }

    /// Returns the disk after a power failure now. The unsynced sectors for which `survives`
    /// returns true, by file name and sector, survive. Each unsynced change of the directory
    /// survives with probability one half.
    #[must_use]
    pub fn power_cut_keeping(&self, mut survives: impl FnMut(&str, usize) -> bool) -> SimDisk {
        let mut state = lock(&self.state).clone();
        for change in std::mem::take(&mut state.changes) {
            if state.rng.one_in(2) {
                apply(&mut state.durable_names, &change);
            }
        }
        state.names = state.durable_names.clone();
        state.faults.clear();
        state.inodes.retain(|inode, _| state.names.values().any(|i| i == inode));
        for (name, inode) in &state.names {
            let Some(file) = state.inodes.get_mut(inode) else {
                continue;
            };
            for sector in std::mem::take(&mut file.dirty) {
                if survives(name, sector) {
                    file.land(sector);
                }
            }
            file.cached = file.durable.clone();
        }
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// Returns [`SimDisk::power_cut_keeping`] with a random choice of sectors: none, all, or each
    /// with probability one half.
    #[must_use]
    pub fn power_cut(&self, rng: &mut Rng) -> SimDisk {
        let mode = rng.below(4);
        let mut coin = Rng(rng.number());
        lock(&self.state).rng = Rng(rng.number());
        self.power_cut_keeping(|_, _| match mode {
            0 => false,
            1 => true,
            _ => coin.one_in(2),
        })
    }

    /// Returns the bytes of a file.
    ///
    /// # Panics
    /// If there is no file with this name.
    #[must_use]
    pub fn contents(&self, name: &str) -> Vec<u8> {
        let mut state = lock(&self.state);
        let inode = state.names[name];
        state.inode(inode).expect("named files exist").cached.clone()
    }

    /// Replaces the bytes of a file, durably, or creates the file.
    pub fn set_contents(&self, name: &str, bytes: &[u8]) {
        let mut state = lock(&self.state);
        let inode = state.names.get(name).copied().unwrap_or(state.next_inode);
        state.next_inode = state.next_inode.max(inode + 1);
        state.names.insert(name.to_owned(), inode);
        state.durable_names.insert(name.to_owned(), inode);
        let file =
            SimInode { cached: bytes.to_vec(), durable: bytes.to_vec(), dirty: BTreeSet::new(), ready: bytes.len() };
        state.inodes.insert(inode, file);
    }

    /// Changes one byte of a file, durably.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut state = lock(&self.state);
        let inode = state.names[name];
        let file = state.inode(inode).expect("named files exist");
        file.cached[offset] ^= mask;
        file.durable[offset] ^= mask;
    }

    fn file(&self, inode: u64) -> SimFile {
        SimFile { state: Arc::clone(&self.state), inode }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = lock(&self.state);
        state.named()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let mut state = lock(&self.state);
        state.named()?;
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(inode))
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = lock(&self.state);
        state.named()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, SimInode::default());
        state.change(PendingChange::Put(name.to_owned(), inode));
        Ok(self.file(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.named()?;
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(PendingChange::Put(to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.named()?;
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(PendingChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check(Call::SyncDir).map_err(Fault::error)?;
        state.durable_names = state.names.clone();
        state.changes.clear();
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.state).inode(self.inode)?.cached.len() as u64)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = state.inode(self.inode)?;
        file.cached.resize(bytes as usize, 0);
        file.durable.resize(bytes as usize, 0);
        Ok(())
    }

    fn ready_bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.state).inode(self.inode)?.ready as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check(Call::Read).map_err(Fault::error)?;
        let offset = offset as usize;
        let bytes = state.inode(self.inode)?.cached.get(offset..offset + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(
            offset.is_multiple_of(SECTOR_BYTES as u64) && bytes.len().is_multiple_of(SECTOR_BYTES),
            "an unaligned write"
        );
        let mut state = lock(&self.state);
        let fault = state.check(Call::Write).err();
        let written = match fault {
            None => bytes,
            Some(Fault::Short) => &bytes[..bytes.len() / 2 / SECTOR_BYTES * SECTOR_BYTES],
            Some(fault) => return Err(fault.error()),
        };
        let file = state.inode(self.inode)?;
        let offset = offset as usize;
        let end = offset + written.len();
        if file.cached.len() < end {
            file.cached.resize(end, 0);
        }
        file.ready = file.ready.max(end);
        file.cached[offset..end].copy_from_slice(written);
        file.dirty.extend(offset / SECTOR_BYTES..end / SECTOR_BYTES);
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.syncs += 1;
        let fault = state.check(Call::Sync).err();
        let luck = state.rng.below(3);
        let mut coin = Rng(state.rng.number());
        let file = state.inode(self.inode)?;
        for sector in std::mem::take(&mut file.dirty) {
            if fault.is_none() || luck == 1 || (luck == 2 && coin.one_in(2)) {
                file.land(sector);
            }
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }
}
