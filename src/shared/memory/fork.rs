//! Detection of forked children, and sections during which no fork happens.
//!
//! One anonymous page of the process is marked to be wiped on fork. It holds the process's
//! generation. An object that belongs to one process records the generation in which it was made.
//! By one load it then detects that a child uses it.
//!
//! A fork between making a mapping and marking it `MADV_DONTFORK` would give the child the parent's
//! liveness byte, which would then outlive the parent. [`without_forks`] excludes the `fork()` of
//! the C library, by a handler that it calls. A raw `clone` system call that copies memory is not
//! detected; `vfork` and `posix_spawn` copy none.
#![allow(unsafe_code)]

use crate::system::clock;
use crate::{Error, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The number of generations so far; a child continues from its parent's number.
static LAST_GENERATION: AtomicU64 = AtomicU64::new(0);

/// The page. It stays mapped for ever, in children too.
static WIPED_ON_FORK: OnceLock<&'static AtomicU64> = OnceLock::new();

/// Detects that this process is a forked child of the one that made the guard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForkGuard {
    word: &'static AtomicU64,
    generation: u64,
}

impl ForkGuard {
    /// Returns a guard of the calling process.
    pub(crate) fn new() -> Result<ForkGuard> {
        let word = match WIPED_ON_FORK.get() {
            Some(word) => *word,
            None => {
                let word = map_page()?;
                // If two threads get here at once, one leaks its page.
                WIPED_ON_FORK.get_or_init(|| word)
            }
        };
        let mut generation = word.load(Ordering::Acquire);
        if generation == 0 {
            let fresh = LAST_GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
            generation = match word.compare_exchange(0, fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => fresh,
                Err(other_thread) => other_thread,
            };
        }
        Ok(ForkGuard { word, generation })
    }

    /// Returns a number that differs from those of the process's parents and children.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns whether this runs in a child, forked since the guard was made.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        self.word.load(Ordering::Relaxed) != self.generation
    }
}

fn map_page() -> Result<&'static AtomicU64> {
    let size = rustix::param::page_size();
    // SAFETY: a new private mapping at an address of the kernel's choice disturbs nothing that
    // exists.
    let page = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }
    .map_err(Error::sys("mapping a page that is wiped on fork"))?;
    // SAFETY: the page was mapped just now, and contains only zeros.
    unsafe { rustix::mm::madvise(page, size, Advice::LinuxWipeOnFork) }
        .map_err(Error::sys("marking a page to be wiped on fork"))?;
    // SAFETY: the page is aligned, zeroed, never unmapped, and used through this reference only.
    // The kernel zeroes the child's copy before the child's first instruction.
    Ok(unsafe { &*page.cast::<AtomicU64>() })
}

/// A lock that is held by a section during which no fork may happen, and by each fork while it
/// happens.
static FORK_GATE: AtomicBool = AtomicBool::new(false);

fn close_gate() {
    // A sleeping lock keeps more state, which the fork could copy half-changed; this one is a
    // single word.
    while FORK_GATE.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        clock::sleep(Duration::from_micros(20));
    }
}

fn open_gate() {
    FORK_GATE.store(false, Ordering::Release);
}

extern "C" fn before_fork() {
    close_gate();
}

extern "C" fn after_fork_in_parent() {
    open_gate();
}

/// Releases the child's copy of the lock, which is held, too.
extern "C" fn after_fork_in_child() {
    open_gate();
    crate::shared::memory::private::close_in_child();
}

type ForkHandler = extern "C" fn();

unsafe extern "C" {
    // The `libc` crate doesn't declare it for every target.
    fn pthread_atfork(
        prepare: Option<ForkHandler>,
        parent: Option<ForkHandler>,
        child: Option<ForkHandler>,
    ) -> libc::c_int;
}

/// Makes each fork take the lock; returns the error number, or 0. Called before `main` where
/// possible: a fork that has begun before would be missed.
pub(crate) fn register_handlers() -> libc::c_int {
    static HANDLERS: OnceLock<libc::c_int> = OnceLock::new();
    *HANDLERS.get_or_init(|| {
        // SAFETY: the handlers are functions of this library, call nothing that allocates or locks,
        // and can't unwind.
        unsafe { pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) }
    })
}

/// Runs `section` while no other thread can `fork()`. The section is short, and does not fork
/// itself.
pub(crate) fn without_forks<T>(section: impl FnOnce() -> T) -> Result<T> {
    let code = register_handlers();
    if code != 0 {
        return Err(Error::io("registering a fork handler")(std::io::Error::from_raw_os_error(code)));
    }
    /// Releases the lock when the section ends, also by a panic.
    struct ReopenedForks;
    impl Drop for ReopenedForks {
        fn drop(&mut self) {
            open_gate();
        }
    }
    close_gate();
    let _open = ReopenedForks;
    Ok(section())
}
