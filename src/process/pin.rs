//! The pins of a process. A pin is a reader slot of the shared table with a count of the guards
//! that use it.
//!
//! A thread keeps one slot and reuses it: consecutive reads at the same transaction share the pin.
//! The last guard to be dropped, on any thread, ends the pin. If older guards still hold the
//! thread's slot at another transaction, the read takes a further slot. When the last guard is
//! dropped, a slot that no thread keeps goes into the process's pool, or back to the table if the
//! pool is full.
//!
//! The state of a slot is one word: the number of its guards, and whether a thread keeps the slot.
//! The owner of a slot is the thread that keeps it, or that took it from the pool.
//!
//! | guards | meaning | changed by |
//! |---|---|---|
//! | 0 | no pin | the slot's owner alone: pins, then stores 1 |
//! | n ≥ 1 | pinned by n guards | any guard: n + 1, or n − 1 |
//! | [`ENDING`] | the last guard is unpinning | that guard, to 0 |
//!
//! The bit [`KEPT`] is cleared when the thread ends. If there are no guards then, the thread gives
//! the slot back. Otherwise the last guard finds the bit cleared, and gives it back. Both changes
//! are atomic operations on the one word, so exactly one of the two gives the slot back.
//!
//! If the process dies in any of these states, its death is detected and the slot reaped.
#![allow(unsafe_code)]

use crate::files::slot::{CatalogState, RECENT_TREES, RecentTree, SlotImage};
use crate::process::client::DirectClient;
use crate::shared::memory::arena::Pages;
use crate::shared::memory::fork::ForkGuard;
use crate::system::sync::Mutex;
use crate::{KeyspaceId, PageId, Result, TxnId};
use std::cell::{RefCell, UnsafeCell};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// The bit of a slot's state that is set if a thread keeps the slot after its last guard.
const KEPT: u32 = 1 << 31;
/// The number of guards, in the state of a slot whose last guard is unpinning.
const ENDING: u32 = KEPT - 1;

/// Returns the number of guards in a slot's state.
#[inline(always)]
fn guards(state: u32) -> u32 {
    state & !KEPT
}

/// The maximum number of idle slots that a process holds, in addition to those of its threads. Each
/// slot adds to every writer's pin scan.
const IDLE_SLOTS_MAX: usize = 8;

/// The slots that this process has claimed and that no thread or guard uses.
#[derive(Default)]
pub(crate) struct SlotPool {
    idle: Mutex<Vec<Arc<LocalSlot>>>,
}

/// A reader slot of this process.
struct LocalSlot {
    index: usize,
    /// The number of guards, and [`KEPT`].
    state: AtomicU32,
    /// The pinned transaction, its catalog root and high-water mark. Written by the owner while
    /// there are no guards.
    txn: AtomicU64,
    catalog: AtomicU32,
    recent: [RecentRoot; RECENT_TREES],
    high_water: AtomicU32,
    /// Keeps the mappings alive while the slot is pinned. Written by the owner while there are no
    /// guards, and by the last guard while it is unpinning; read by guards only.
    client: UnsafeCell<Option<Arc<DirectClient>>>,
    /// The client that owns the slot. It releases all its slots when it is dropped.
    home: Weak<DirectClient>,
    /// In a child of fork() the slot belongs to the parent.
    fork: ForkGuard,
}

// SAFETY: `client` is the only field that is not `Sync` by itself. It is written only in the two
// states in which its writer has the slot alone, and read only by guards: see the table above. The
// change of `state` at the end of one state (release) and the load that observes it (acquire) order
// the accesses.
unsafe impl Sync for LocalSlot {}
// A panic leaves a slot in one of the states of the table.
impl std::panic::RefUnwindSafe for LocalSlot {}

thread_local! {
    static THREAD_SLOTS: RefCell<Vec<ThreadSlot>> = const { RefCell::new(Vec::new()) };
}

/// The slot that a thread keeps for one client.
struct ThreadSlot {
    client: u64,
    slot: Arc<LocalSlot>,
}

impl Drop for ThreadSlot {
    fn drop(&mut self) {
        if self.slot.fork.is_child() {
            return;
        }
        let home = self.slot.home.upgrade();
        // Acquire: the accesses of the next owner come after those of the slot's last guard.
        let before = self.slot.state.fetch_and(!KEPT, Ordering::AcqRel);
        if guards(before) == 0
            && let Some(client) = home
        {
            client.give_back(&self.slot);
        }
    }
}

/// A pinned transaction. Cloning is cheap; the pin ends when the last clone is dropped.
pub(crate) struct Pin {
    slot: Arc<LocalSlot>,
}

impl DirectClient {
    /// Pins the newest visible transaction. Takes tens of nanoseconds if the thread has pinned
    /// before.
    #[inline]
    pub(crate) fn pin(self: &Arc<DirectClient>) -> Result<Pin> {
        self.check_usable()?;
        if let Some(pin) = self.pin_kept()? {
            return Ok(pin);
        }
        let slot = self.take_slot()?;
        if let Err(error) = self.pin_in(&slot) {
            self.give_back(&slot);
            return Err(error);
        }
        Ok(Pin { slot })
    }

    /// Pins the newest visible transaction, and returns the pin with the whole image of its commit
    /// slot.
    pub(crate) fn pin_image(self: &Arc<DirectClient>) -> Result<(Pin, SlotImage)> {
        loop {
            let pin = self.pin()?;
            // The commit slot is reused after 62 commits, which may have happened since the pin.
            if let Some(image) = self.engine.control.image(pin.txn())? {
                return Ok((pin, image));
            }
        }
    }

    /// Pins the published durable transaction.
    pub(crate) fn pin_durable(self: &Arc<DirectClient>) -> Result<Pin> {
        self.check_usable()?;
        let slot = self.take_slot()?;
        let found = self.find_durable(&slot);
        match found {
            Ok(image) => {
                slot.publish(self, &image);
                Ok(Pin { slot })
            }
            Err(error) => {
                self.reader(slot.index).unpin();
                self.give_back(&slot);
                Err(error)
            }
        }
    }

    /// Pins the published durable transaction in a slot, and returns its image.
    fn find_durable(&self, slot: &LocalSlot) -> Result<SlotImage> {
        let shared = self.reader(slot.index);
        let mut waited = None;
        loop {
            if let Some(image) = self.engine.control.pin_durable(shared) {
                return Ok(image);
            }
            // The logger has published another durable transaction, or will repair a damaged word.
            self.engine.await_mended(&mut waited)?;
        }
    }

    #[inline]
    fn pin_kept(self: &Arc<DirectClient>) -> Result<Option<Pin>> {
        // A thread that is ending keeps no slot.
        let pinned = THREAD_SLOTS.try_with(|kept| {
            let Ok(mut kept) = kept.try_borrow_mut() else { return Ok(None) };
            let this = self.serial;
            let slot = match kept.iter().find(|kept| kept.client == this) {
                Some(kept) => &kept.slot,
                None => {
                    // Drop the slots of clients that no longer exist.
                    kept.retain(|kept| kept.slot.home.strong_count() > 0);
                    let slot = self.take_slot()?;
                    slot.state.store(KEPT, Ordering::Relaxed);
                    kept.push(ThreadSlot { client: this, slot });
                    &kept.last().expect("just pushed").slot
                }
            };
            let committed = self.engine.control.committed().as_u64();
            match guards(slot.state.load(Ordering::Acquire)) {
                0 => self.pin_in(slot)?,
                ENDING => return Ok(None),
                _ if slot.txn.load(Ordering::Relaxed) != committed => return Ok(None),
                _ => {
                    if !slot.share() {
                        return Ok(None);
                    }
                    // Between the check and `share`, only this thread could have begun a new pin in
                    // the slot, and it has not. So the pin is still at this transaction.
                    return Ok(Some(Pin { slot: slot.clone() }));
                }
            }
            Ok(Some(Pin { slot: slot.clone() }))
        });
        pinned.unwrap_or(Ok(None))
    }

    /// Pins the newest visible transaction in a slot that the caller owns and that has no guards.
    #[inline]
    fn pin_in(self: &Arc<DirectClient>, slot: &LocalSlot) -> Result<()> {
        let shared = self.reader(slot.index);
        let control = &self.engine.control;
        loop {
            let txn = control.pin_committed(shared);
            if slot.txn.load(Ordering::Relaxed) == txn.as_u64() && slot.high_water.load(Ordering::Relaxed) != 0 {
                // The image of that transaction is still cached from the last pin.
                slot.open(self);
                return Ok(());
            }
            crash_point!("reader.pinned");
            let image =
                if planted_bug!("snapshot-beyond-its-pin") { control.newest().map(Some) } else { control.image(txn) };
            match image {
                Ok(Some(image)) => {
                    slot.publish(self, &image);
                    return Ok(());
                }
                // The thread stalled for 62 commits, and the commit slot is being reused: pin a
                // newer commit.
                Ok(None) => shared.unpin(),
                Err(error) => {
                    shared.unpin();
                    return Err(error);
                }
            }
        }
    }

    /// Puts a slot that no thread or guard uses into the pool, or releases it.
    #[cold]
    fn give_back(&self, slot: &Arc<LocalSlot>) {
        let mut idle = self.pool.idle.lock();
        if idle.len() < IDLE_SLOTS_MAX {
            idle.push(slot.clone());
        } else {
            drop(idle);
            self.engine.control.release_reader(slot.index);
        }
    }

    /// Returns a slot that is not in use.
    #[cold]
    fn take_slot(self: &Arc<DirectClient>) -> Result<Arc<LocalSlot>> {
        if let Some(slot) = self.pool.idle.lock().pop() {
            return Ok(slot);
        }
        Ok(Arc::new(LocalSlot {
            index: self.claim_reader()?,
            state: AtomicU32::new(0),
            txn: AtomicU64::new(0),
            catalog: AtomicU32::new(0),
            recent: Default::default(),
            high_water: AtomicU32::new(0),
            client: UnsafeCell::new(None),
            home: Arc::downgrade(self),
            fork: self.fork,
        }))
    }
}

/// The words of a [`RecentTree`].
#[derive(Default)]
struct RecentRoot {
    keyspace: AtomicU64,
    root: AtomicU32,
    entries: AtomicU64,
}

impl RecentRoot {
    fn store(&self, tree: &RecentTree) {
        self.keyspace.store(tree.keyspace.0, Ordering::Relaxed);
        self.root.store(tree.root.0, Ordering::Relaxed);
        self.entries.store(tree.entries, Ordering::Relaxed);
    }

    #[inline]
    fn load(&self) -> RecentTree {
        RecentTree {
            keyspace: KeyspaceId(self.keyspace.load(Ordering::Relaxed)),
            root: PageId(self.root.load(Ordering::Relaxed)),
            entries: self.entries.load(Ordering::Relaxed),
        }
    }
}

impl LocalSlot {
    fn publish(&self, client: &Arc<DirectClient>, image: &SlotImage) {
        self.txn.store(image.txn.as_u64(), Ordering::Relaxed);
        self.catalog.store(image.catalog.root.0, Ordering::Relaxed);
        self.recent.iter().zip(&image.catalog.recent).for_each(|(words, tree)| words.store(tree));
        self.high_water.store(image.high_water, Ordering::Relaxed);
        self.open(client);
    }

    /// Begins a pin with one guard. Called by the slot's owner while there are no guards.
    fn open(&self, client: &Arc<DirectClient>) {
        // SAFETY: without guards only the owner accesses the field, and the caller is the owner.
        unsafe { *self.client.get() = Some(client.clone()) };
        // Only the owner changes the word in this state. Release: a thread that gets a guard of the
        // pin sees these fields.
        let kept = self.state.load(Ordering::Relaxed) & KEPT;
        self.state.store(kept | 1, Ordering::Release);
    }

    /// Adds a guard to a pin that exists. Returns false if the pin has ended or is ending. It also
    /// returns false at 2^30 guards: so many guards exist only if some were leaked, and more could
    /// overflow the count.
    #[inline]
    fn share(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        while guards(state) != 0 && guards(state) < ENDING / 2 {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }
}

impl Pin {
    pub(crate) fn txn(&self) -> TxnId {
        TxnId::from_u64(self.slot.txn.load(Ordering::Relaxed))
    }

    pub(crate) fn catalog(&self) -> CatalogState {
        CatalogState {
            root: PageId(self.slot.catalog.load(Ordering::Relaxed)),
            recent: std::array::from_fn(|index| self.slot.recent[index].load()),
        }
    }

    /// Returns the client of the pin, which the pin keeps alive.
    #[inline]
    pub(crate) fn client(&self) -> &Arc<DirectClient> {
        // SAFETY: the field is not written while there is a guard, and `self` is one for as long as
        // it is borrowed.
        let client = unsafe { &*self.slot.client.get() };
        client.as_ref().expect("the owner stores the client before the first guard")
    }

    /// Returns the pages of the pinned commit.
    #[inline]
    pub(crate) fn pages<'a>(&'a self, client: &'a DirectClient) -> Pages<'a> {
        client.engine.arena.pages(self.slot.high_water.load(Ordering::Relaxed))
    }
}

impl Clone for Pin {
    #[inline]
    fn clone(&self) -> Pin {
        // The pin lives at least as long as `self`, so `share` fails only if the count is about to
        // overflow. `Arc` aborts in this case, too.
        if !self.slot.share() {
            std::process::abort();
        }
        Pin { slot: self.slot.clone() }
    }
}

impl Drop for Pin {
    #[inline]
    fn drop(&mut self) {
        let mut state = self.slot.state.load(Ordering::Relaxed);
        loop {
            let is_last = guards(state) == 1;
            let next = if is_last { state & KEPT | ENDING } else { state - 1 };
            match self.slot.state.compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if is_last => break,
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
        // In a child of fork() the table is not mapped, and the pin belongs to the parent.
        if self.slot.fork.is_child() {
            return;
        }
        // SAFETY: in this state only the last guard accesses the field, and this is the last guard.
        let Some(client) = (unsafe { (*self.slot.client.get()).take() }) else { return };
        client.reader(self.slot.index).unpin();
        // Release: the next owner's pin comes after the unpin.
        let before = self.slot.state.fetch_sub(ENDING, Ordering::AcqRel);
        if before & KEPT == 0 {
            client.give_back(&self.slot);
        }
        // This may drop the client and its pool.
        drop(client);
    }
}
