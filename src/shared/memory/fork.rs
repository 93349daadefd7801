//! Noticing that this process is a forked child, and keeping forks out of short sections.
//!
//! One anonymous page of the process is marked to be wiped on fork. It holds the process's
//! generation; whatever belongs to one process remembers the generation it was made in and, one
//! load later, knows whether it is used by a child.
//!
//! A fork between making a mapping and marking it "not for children" would give the child what it
//! must never have: the parent's liveness byte, which would then outlive the parent.
//! [`without_forks`] excludes the `fork()` of the C library, by a handler that it calls. A raw
//! `clone` system call that copies memory isn't seen; a `vfork` or `posix_spawn` copies none.
#![allow(unsafe_code)]

use crate::system::clock;
use crate::{Error, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Generations handed out so far; a child counts on from its parent's number.
static LAST_GENERATION: AtomicU64 = AtomicU64::new(0);

/// The page; it stays mapped for ever, in children too.
static WIPED_ON_FORK: OnceLock<&'static AtomicU64> = OnceLock::new();

/// Remembers which process made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForkGuard {
    word: &'static AtomicU64,
    generation: u64,
}

impl ForkGuard {
    /// A guard of the process that calls this.
    pub(crate) fn new() -> Result<ForkGuard> {
        let word = match WIPED_ON_FORK.get() {
            Some(word) => *word,
            None => {
                let word = map_page()?;
                // Of two threads that come here at once, one leaks its page.
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

    /// Tells this process from its parents and children.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether this runs in a child, forked since the guard was made.
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
    // SAFETY: the page was mapped just now, and only zeros are in it to be wiped.
    unsafe { rustix::mm::madvise(page, size, Advice::LinuxWipeOnFork) }
        .map_err(Error::sys("marking a page to be wiped on fork"))?;
    // SAFETY: the page is aligned, zeroed, never unmapped, and used by nothing but this reference.
    // That the kernel zeroes the child's copy happens before the child's first instruction.
    Ok(unsafe { &*page.cast::<AtomicU64>() })
}

/// Held by a section that forks must not cut in two, and by each fork while it happens.
static FORK_GATE: AtomicBool = AtomicBool::new(false);

fn close_gate() {
    // A sleeping lock would do its bookkeeping in memory that the fork copies half-way; this one is
    // a single word.
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

/// The child's copy of the gate is closed, too.
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

/// Has forks go through the gate; the error number, or 0. Called before `main`, where it can be: a
/// fork that has begun by then would not be seen.
pub(crate) fn register_handlers() -> libc::c_int {
    static HANDLERS: OnceLock<libc::c_int> = OnceLock::new();
    *HANDLERS.get_or_init(|| {
        // SAFETY: the handlers are functions of this library, call nothing that allocates or locks,
        // and can't unwind.
        unsafe { pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) }
    })
}

/// Runs `section` while no other thread can `fork()`. The section is short, and doesn't fork
/// itself.
pub(crate) fn without_forks<T>(section: impl FnOnce() -> T) -> Result<T> {
    let code = register_handlers();
    if code != 0 {
        return Err(Error::io("registering a fork handler")(std::io::Error::from_raw_os_error(code)));
    }
    /// Opens the gate when the section is left, by a panic too.
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
