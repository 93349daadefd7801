//! A cell: a value of fixed size in shared memory, stored in place by any process and never read
//! torn.

use crate::api::cells::{CellLocation, sampling};
use crate::api::store::Store;
use crate::error::reason::{LockHolder, LockKind, NotDurableReason};
use crate::files::dir;
use crate::shared::cells::{CellEntry, StoredCell};
use crate::shared::protocols::cell::WriteStep;
use crate::system::clock;
use crate::{Error, LimitKind, Result, Version};
use bytemuck::Pod;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// Retries on an unchanged version without a valid value before `Corrupt`.
const LOAD_ATTEMPTS_MAX: u32 = 10_000;
/// Attempts to get a latch before the liveness test of its owner: some microseconds.
const LATCH_SPINS: u32 = 400;

/// A cell of a store: made by [`Store::cell`] (bytes) or [`Store::cell_of`] (a plain type), cheap
/// to clone.
///
/// Its value is updated in place: no transaction, no system call, no lock but the cell's own. A
/// reader never waits for a writer, whether that is alive, stopped or dead, and never sees a torn
/// value. It writes nothing that other threads or processes read. Use a cell for values that change
/// too often for transactions: readings, gauges, states.
///
/// A stored value is *visible* at once, and survives the death of all processes. It becomes
/// *durable* by sampling. The logger commits the newest value to [`crate::CELLS_KEYSPACE`] at the
/// interval of [`FlushPolicy::Every`](crate::FlushPolicy::Every), otherwise every 10 ms by default
/// ([`crate::Options::sample_interval`]). After a power loss the cell has the value of its last
/// durable sample, or a newer one.
///
/// Threads may share it. In a child of `fork()` each call returns [`Error::Forked`], and the
/// parent's cell is unharmed, also if the fork happened during a store. A cell that the child opens
/// for itself is the same cell.
#[derive(Debug)]
pub struct Cell<T: ?Sized = [u8]> {
    opened: Arc<Opened>,
    of: PhantomData<fn(&T) -> Box<T>>,
}

impl<T: ?Sized> Clone for Cell<T> {
    fn clone(&self) -> Cell<T> {
        Cell { opened: self.opened.clone(), of: PhantomData }
    }
}

struct Opened {
    store: Store,
    location: CellLocation,
    name: String,
}

impl<T: ?Sized> Cell<T> {
    pub(crate) fn new(store: Store, location: CellLocation, name: &str) -> Cell<T> {
        Cell { opened: Arc::new(Opened { store, location, name: name.into() }), of: PhantomData }
    }

    /// Returns the cell's name.
    pub fn name(&self) -> &str {
        &self.opened.name
    }

    /// Returns the length of the cell's value in bytes.
    pub fn size(&self) -> usize {
        self.opened.location.kind().len()
    }

    /// Returns the version of the newest value.
    ///
    /// # Errors
    /// [`Error::NoCell`] if it was dropped; [`Error::Forked`].
    #[inline]
    pub fn version(&self) -> Result<Version> {
        let entry = self.opened.entry()?;
        let version = entry.newest();
        self.opened.still()?;
        Ok(Version::from_u64(version))
    }
}

impl Cell<[u8]> {
    /// Stores a value of exactly the cell's size, and returns its version. Visible to all processes
    /// on return.
    ///
    /// Usually waits only for another writer of this cell. If that writer runs, the wait is less
    /// than a microsecond. If it is stopped during its store, the wait lasts until it continues; if
    /// it is dead, for one liveness test. The first store after a crash also waits for one flush of
    /// the log.
    ///
    /// # Errors
    /// [`Error::OtherCell`] for another size; [`Error::Limit`] if no version is left;
    /// [`Error::LockTimeout`] if [`crate::Options::lock_timeout`] was set; [`Error::NoCell`] if it
    /// was dropped; [`Error::ReadOnly`]; [`Error::Forked`].
    #[inline]
    pub fn store(&self, value: &[u8]) -> Result<Version> {
        self.opened.store(value)
    }

    /// Stores a value and returns when it is durable: a sample that covers it is then committed and
    /// synced.
    ///
    /// # Errors
    /// Those of [`Cell::store`], after which nothing is stored; [`Error::TransactionOpen`] if this
    /// thread has a transaction open; [`Error::NotDurable`] if the value is stored and visible, but
    /// in doubt.
    pub fn store_durable(&self, value: &[u8]) -> Result<Version> {
        self.opened.store_durable(value)
    }

    /// Copies the newest value to `value`, which has exactly the cell's size, and returns its
    /// version. Never waits.
    ///
    /// # Errors
    /// [`Error::OtherCell`] for another size; [`Error::NoCell`] if it was dropped;
    /// [`Error::Forked`]; [`Error::Corrupt`].
    #[inline]
    pub fn load(&self, value: &mut [u8]) -> Result<Version> {
        self.opened.load(value)
    }

    /// Copies the value of exactly this version to `value`. Four versions are kept: the newest, and
    /// the three before it. During a store the oldest of them is overwritten.
    ///
    /// # Errors
    /// [`Error::Stale`] if the version has been overwritten or does not exist; otherwise those of
    /// [`Cell::load`].
    #[inline]
    pub fn load_version(&self, version: Version, value: &mut [u8]) -> Result<()> {
        self.opened.load_version(version, value)
    }
}

impl<T: Pod> Cell<T> {
    /// Stores a value, and returns its version. See [`Cell::<[u8]>::store`](Cell::store).
    ///
    /// # Errors
    /// Those of [`Cell::<[u8]>::store`](Cell::store).
    #[inline]
    pub fn store(&self, value: &T) -> Result<Version> {
        self.opened.store(bytemuck::bytes_of(value))
    }

    /// Stores a value and returns when it is durable.
    ///
    /// # Errors
    /// Those of [`Cell::<[u8]>::store_durable`](Cell::store_durable).
    pub fn store_durable(&self, value: &T) -> Result<Version> {
        self.opened.store_durable(bytemuck::bytes_of(value))
    }

    /// Returns the newest value and its version. Never waits.
    ///
    /// # Errors
    /// Those of [`Cell::<[u8]>::load`](Cell::load).
    #[inline]
    pub fn load(&self) -> Result<(T, Version)> {
        let mut value = T::zeroed();
        let version = self.opened.load(bytemuck::bytes_of_mut(&mut value))?;
        Ok((value, version))
    }

    /// Returns the value of exactly this version.
    ///
    /// # Errors
    /// Those of [`Cell::<[u8]>::load_version`](Cell::load_version).
    #[inline]
    pub fn load_version(&self, version: Version) -> Result<T> {
        let mut value = T::zeroed();
        self.opened.load_version(version, bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }
}

impl Opened {
    /// Returns the entry; an error in a child of `fork()`, where the cell is not mapped, and if the
    /// cell was dropped.
    #[inline]
    fn entry(&self) -> Result<&CellEntry> {
        self.store.client().check_usable()?;
        self.still()
    }

    #[inline]
    fn still(&self) -> Result<&CellEntry> {
        self.location.entry(&self.store.client().engine.control).ok_or_else(|| self.gone())
    }

    #[cold]
    fn gone(&self) -> Error {
        Error::NoCell { name: self.name.clone() }
    }

    #[inline]
    fn check_len(&self, len: usize) -> Result<()> {
        if len == self.location.kind().len() { Ok(()) } else { Err(self.other_len(len)) }
    }

    #[cold]
    fn other_len(&self, len: usize) -> Error {
        Error::OtherCell { name: self.name.clone(), found: self.location.kind().value_len(), wanted: Some(len as u64) }
    }

    #[inline]
    fn load(&self, value: &mut [u8]) -> Result<Version> {
        self.check_len(value.len())?;
        let entry = self.entry()?;
        let view = self.store.client().engine.control.view_of(&self.location.cell, entry);
        let version = match view.try_load(value) {
            Some(version) => version,
            None => self.load_again(entry, || view.try_load(value))?,
        };
        // This check comes last: if the cell was dropped and its entry reused, the value may be
        // another cell's.
        self.still()?;
        Ok(version)
    }

    /// Retries a load whose copy was overwritten while it was read. Each overwrite changes the
    /// version. If the version stays the same, the cell is corrupt.
    #[cold]
    fn load_again(&self, entry: &CellEntry, mut load: impl FnMut() -> Option<Version>) -> Result<Version> {
        let mut seen = (0, 0);
        while seen.0 < LOAD_ATTEMPTS_MAX {
            if let Some(version) = load() {
                return Ok(version);
            }
            let version = entry.newest();
            seen = if version == seen.1 { (seen.0 + 1, version) } else { (0, version) };
            self.still()?;
            std::hint::spin_loop();
        }
        Err(Error::corrupt(dir::CONTROL, 0, format!("cell {:?} has no value of its newest version", self.name)))
    }

    #[inline]
    fn load_version(&self, version: Version, value: &mut [u8]) -> Result<()> {
        self.check_len(value.len())?;
        let entry = self.entry()?;
        let view = self.store.client().engine.control.view_of(&self.location.cell, entry);
        let found = view.load_version(version, value);
        self.still()?;
        if found { Ok(()) } else { Err(Error::Stale) }
    }

    #[inline]
    fn store(&self, value: &[u8]) -> Result<Version> {
        self.check_len(value.len())?;
        let entry = self.entry()?;
        if self.store.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let engine = &self.store.client().engine;
        let view = engine.control.view_of(&self.location.cell, entry);
        let me = engine.me.0;
        if entry.try_latch(me).is_err() {
            self.wait_for_latch(entry)?;
        }
        // The entry is checked again, because it cannot be reassigned while the latch is held.
        let stored = self.still().and_then(|_| {
            let (next, floor) = (view.next(), entry.floor());
            let version = if next >= floor { next } else { self.first_version(next, floor)? };
            Ok(view.store_as(value, version, &mut pass).expect("no step ends the store early"))
        });
        entry.release_latch(me);
        let version = stored?;
        sampling::mark_dirty(engine);
        Ok(version)
    }

    /// Returns the version of the first value after a recovery that may have lost some. First the
    /// log records that the incarnation is in use, so that no later run of the store assigns this
    /// version again.
    #[cold]
    fn first_version(&self, next: Version, floor: Version) -> Result<Version> {
        self.store.client().engine.state_incarnation()?;
        StoredCell::reach(next, floor).ok_or(Error::Limit {
            what: LimitKind::CellVersions,
            found: u64::MAX,
            limit: u64::MAX,
        })
    }

    #[cold]
    fn wait_for_latch(&self, entry: &CellEntry) -> Result<()> {
        let engine = &self.store.client().engine;
        let me = engine.me.0;
        for _ in 0..LATCH_SPINS {
            if entry.try_latch(me).is_ok() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let start = clock::now();
        let alive = |owner: u64| engine.is_alive(owner);
        // The latch is held for under 1 µs; a longer holder may be dead.
        if let Some(owner) = entry.latch_owner()
            && !planted_bug!("lock-without-takeover")
            && !alive(owner.id())
            && entry.take_over_latch(owner, me)
        {
            return Ok(());
        }
        let deadline = self.store.lock_timeout().and_then(|timeout| start.checked_add(timeout));
        let acquired = engine.acquire_while_clear(deadline, |alive, until| entry.wait_for_latch(me, alive, until))?;
        acquired.map(drop).map_err(|owner| self.latch_timeout(owner.id(), clock::since(start)))
    }

    fn latch_timeout(&self, owner: u64, waited: Duration) -> Error {
        let pid = self.store.client().engine.control.client_pid(owner) as u32;
        let holder = (pid != 0).then_some(LockHolder::Process { pid, held_for: None });
        Error::LockTimeout { lock: LockKind::Cell { name: self.name.to_string() }, waited, holder }
    }

    fn store_durable(&self, value: &[u8]) -> Result<Version> {
        // This check comes first: in a child of `fork()`, even the lock that the next check takes
        // may be held forever.
        self.store.client().check_usable()?;
        self.store.client().admission.refuse_open_transaction()?;
        let version = self.store(value)?;
        self.store.sync_cells().map_err(|error| match error {
            Error::Forked => error,
            other => Error::NotDurable {
                txn: self.store.client().engine.control.committed(),
                reason: NotDurableReason::Cell { name: self.name.to_string(), version, error: Arc::new(other) },
            },
        })?;
        Ok(version)
    }
}

/// Passes the crash point of a step of a store. Returns true, because no step ends the store early.
#[inline]
fn pass(step: WriteStep) -> bool {
    match step {
        WriteStep::Latched => {
            crash_point!("cell.latched");
        }
        WriteStep::Cleared => {
            crash_point!("cell.cleared");
        }
        WriteStep::Filled(1) => {
            crash_point!("cell.half_filled");
        }
        WriteStep::Filled(_) => {}
        WriteStep::Stamped => {
            crash_point!("cell.stamped");
        }
        WriteStep::Moved => {
            crash_point!("cell.moved");
        }
    }
    true
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("name", &self.name).field("kind", &self.location.kind()).finish_non_exhaustive()
    }
}
