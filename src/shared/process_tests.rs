//! Goal: the properties of liveness, forks and the writer lock hold between real processes that
//! die.
//!
//! Method: children made by `fork()` take claims and the lock, and are killed at random instants;
//! the test then checks what they leave. The random test prints its seed.
#![allow(unsafe_code)]

use crate::Error;
use crate::shared::liveness::{CLIENT_IDS, Claim, InitLock, LOCK_FILE, LOGGER_OFFSET, Tester};
use crate::shared::memory::fork::ForkGuard;
use crate::shared::memory::mapping::{MapOptions, Mapping};
use crate::shared::progress::Patience;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::lock;
use crate::shared::protocols::lock::Acquired;
use rand::{Rng, SeedableRng};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Directory {
    path: TempDir,
    handle: File,
}

fn directory() -> Directory {
    let path = tempfile::tempdir().unwrap();
    File::create(path.path().join(LOCK_FILE)).unwrap();
    let handle = File::open(path.path()).unwrap();
    Directory { path, handle }
}

impl Directory {
    fn is_held(&self, offset: u64) -> bool {
        Tester::open(&self.handle, None).unwrap().is_held(offset).unwrap()
    }

    fn claim(&self, offset: u64) -> Option<Claim> {
        Claim::take(&self.handle, offset).unwrap()
    }
}

/// A forked child; killed and reaped when dropped.
struct Child(libc::pid_t);

impl Child {
    fn run(part: impl FnOnce()) -> Child {
        // SAFETY: the child runs `part` and exits, without returning to the test's code. The C
        // library keeps its allocator usable there; the child takes no other lock that another
        // thread may have held.
        match unsafe { libc::fork() } {
            0 => {
                let outcome = std::panic::catch_unwind(AssertUnwindSafe(part));
                // SAFETY: ends this process.
                unsafe { libc::_exit(i32::from(outcome.is_err())) }
            }
            pid => {
                assert!(pid > 0, "fork failed");
                Child(pid)
            }
        }
    }

    fn kill(&self) {
        // SAFETY: a signal to this process's own child, which is not reaped yet.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }

    /// Returns the child's exit code; `None` if a signal ended it.
    fn wait(self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: waits for our own child, once.
        unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        std::mem::forget(self);
        libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // SAFETY: waits for our own child, once.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// A wait that lasts this long hangs: a busy machine may take a hundred times as long as an idle
/// one.
const HANGS: Duration = Duration::from_secs(300);

#[track_caller]
fn soon(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < HANGS, "not within {HANGS:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Tests liveness as the store does: by a fresh open of the file, and an unclear result means
/// alive.
fn is_alive(directory: impl std::os::fd::AsFd, expected: crate::files::dir::LockFileId, id: u64) -> bool {
    Tester::open(directory, Some(expected)).map_or(true, |tester| tester.is_alive(id).unwrap_or(true))
}

fn word64(mapping: &Mapping, offset: u64) -> &AtomicU64 {
    // SAFETY: callers pass offsets of aligned words inside the mapped file, which every process
    // uses only as atomics.
    unsafe { &*mapping.as_ptr().add(offset as usize).cast() }
}

fn word32(mapping: &Mapping, offset: u64) -> &AtomicU32 {
    // SAFETY: as in `word64`.
    unsafe { &*mapping.as_ptr().add(offset as usize).cast() }
}

#[test]
fn a_claim_survives_closed_descriptors_and_ends_when_dropped() {
    let directory = directory();
    let (id, claim) = Claim::take_new_id(&directory.handle, CLIENT_IDS).unwrap();
    assert!(CLIENT_IDS.contains(&id.0));
    // Closing any descriptor of the file drops a classic POSIX lock; and the store's lock must not
    // depend on a descriptor at all.
    drop(File::open(directory.path.path().join(LOCK_FILE)).unwrap());
    let lock_path = directory.path.path().join(LOCK_FILE);
    let is_ours = |link: &std::fs::DirEntry| std::fs::read_link(link.path()).is_ok_and(|target| target == lock_path);
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    assert_eq!(descriptors.filter_map(Result::ok).filter(is_ours).count(), 0);
    assert!(directory.is_held(id.0));
    assert!(directory.claim(id.0).is_none());
    assert!(!directory.is_held(id.0 + 1) && !directory.is_held(id.0 - 1));
    let tester = Tester::open(&directory.handle, Some(claim.file_id())).unwrap();
    assert_eq!(tester.any_held(CLIENT_IDS).unwrap(), Some(id.0));
    drop(claim);
    assert_eq!(tester.any_held(CLIENT_IDS).unwrap(), None);
    assert!(!tester.is_held(id.0).unwrap_or(true));
    assert!(directory.claim(LOGGER_OFFSET).is_some());
    // Words of damaged memory: no client ever had such an id.
    assert!(
        !tester.is_alive(u64::MAX).unwrap_or(true)
            && !tester.is_alive(0).unwrap_or(true)
            && !tester.is_alive(LOGGER_OFFSET).unwrap_or(true)
    );
}

#[test]
fn a_killed_clients_byte_is_free_though_its_child_lives() {
    let directory = directory();
    let id = CLIENT_IDS.start + 5;
    let ready = File::create(directory.path.path().join("grandchild")).unwrap();
    let child = Child::run(|| {
        let _claim = directory.claim(id).unwrap();
        let grandchild = Child::run(|| sleep_for_ever());
        ready.set_len(grandchild.0 as u64).unwrap();
        sleep_for_ever();
    });
    soon(|| ready.metadata().unwrap().len() > 0);
    assert!(directory.is_held(id));
    child.kill();
    soon(|| !directory.is_held(id));
    let grandchild = ready.metadata().unwrap().len() as libc::pid_t;
    // SAFETY: tests whether the grandchild, which only this test ends, exists; then ends it.
    unsafe {
        assert_eq!(libc::kill(grandchild, 0), 0, "the grandchild should have outlived its parent");
        libc::kill(grandchild, libc::SIGKILL);
    }
}

#[test]
fn exec_frees_the_byte() {
    let directory = directory();
    let id = CLIENT_IDS.start + 6;
    let go = File::create(directory.path.path().join("go")).unwrap();
    let _child = Child::run(|| {
        let _claim = directory.claim(id).unwrap();
        soon(|| go.metadata().unwrap().len() > 0);
        panic!("{}", std::process::Command::new("sleep").arg("60").exec());
    });
    soon(|| directory.is_held(id));
    go.set_len(1).unwrap();
    soon(|| !directory.is_held(id));
}

/// A child drops its copies of the parent's objects, and takes a claim of its own.
#[test]
fn a_child_can_neither_use_nor_release_what_is_its_parents() {
    let directory = directory();
    let guard = ForkGuard::new().unwrap();
    let claim = directory.claim(CLIENT_IDS.start).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let options = MapOptions { reserve: 1 << 30, writable: true, in_core_dumps: true };
    let mapping = Mapping::new(&file, "control", options).unwrap();
    assert!(!guard.is_child());
    let child = Child::run(|| {
        assert!(guard.is_child());
        // Takes the parent's addresses, which dropping the copies must not unmap.
        let own_claim = directory.claim(CLIENT_IDS.start + 1).unwrap();
        let own_mapping = Mapping::new(&file, "control", options).unwrap();
        // SAFETY: each is a bitwise copy that represents the one the child inherited; the originals
        // are not dropped, as the child exits without unwinding to them.
        unsafe {
            drop(std::ptr::read(&raw const claim));
            drop(std::ptr::read(&raw const mapping));
        }
        assert!(directory.is_held(CLIENT_IDS.start + 1));
        word64(&own_mapping, 0).store(1, Ordering::Relaxed);
        let own_guard = ForkGuard::new().unwrap();
        assert!(!own_guard.is_child());
        assert_eq!(Child::run(|| assert!(own_guard.is_child() && guard.is_child())).wait(), Some(0));
        drop(own_claim);
    });
    assert_eq!(child.wait(), Some(0));
    assert!(!guard.is_child());
    assert!(directory.is_held(CLIENT_IDS.start));
    assert_eq!(word64(&mapping, 0).load(Ordering::Relaxed), 1);
}

/// One thread takes and drops claims while another forks children that live on: If one of them were
/// forked between the parent's opening and its marking of the mapping, the byte would stay locked.
#[test]
fn a_fork_in_the_middle_of_taking_a_claim_inherits_nothing() {
    let directory = directory();
    let stop_at = Instant::now() + Duration::from_millis(400);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut children = std::collections::VecDeque::new();
            while Instant::now() < stop_at {
                children.push_back(Child::run(|| sleep_for_ever()));
                if children.len() > 20 {
                    children.pop_front();
                }
            }
        });
        let tester = Tester::open(&directory.handle, None).unwrap();
        let mut taken = 0;
        while Instant::now() < stop_at {
            let (id, claim) = Claim::take_new_id(&directory.handle, CLIENT_IDS).unwrap();
            assert!(tester.is_alive(id.0).unwrap_or(true));
            drop(claim);
            assert!(!tester.is_alive(id.0).unwrap_or(true), "a child holds the parent's byte, after {taken} claims");
            taken += 1;
        }
    });
}

#[test]
fn another_file_of_that_name_tells_nothing() {
    let directory = directory();
    let claim = directory.claim(CLIENT_IDS.start).unwrap();
    let path = directory.path.path().join(LOCK_FILE);
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    // No file; then another one.
    assert!(Tester::open(&directory.handle, Some(claim.file_id())).is_err());
    File::create(&path).unwrap();
    let tester = Tester::open(&directory.handle, Some(claim.file_id()));
    assert!(matches!(tester, Err(Error::Mismatch { .. })));
}

#[test]
fn the_initialisation_lock_excludes_and_outlives_no_owner() {
    let directory = directory();
    let acquire = |ms| {
        let mut patience = Patience::new(Duration::from_millis(ms));
        InitLock::acquire(&directory.handle, &mut patience, &Arc::default()).unwrap()
    };
    let held = acquire(0).unwrap();
    assert!(acquire(20).is_none());
    drop(held);
    let child = Child::run(|| {
        let _held = acquire(HANGS.as_millis() as u64).unwrap();
        sleep_for_ever();
    });
    soon(|| directory.is_held(0));
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| acquire(HANGS.as_millis() as u64).is_some());
        std::thread::sleep(Duration::from_millis(5));
        child.kill();
        waiting.join().unwrap()
    });
    assert!(waiting);
}

/// The words that the clients of the hammer share.
mod at {
    pub(crate) const LOCK: u64 = 0;
    pub(crate) const EVENT: u64 = 8;
    /// Two counters, moved one after the other under the lock: different only if an owner died in
    /// between.
    pub(crate) const FIRST: u64 = 64;
    pub(crate) const SECOND: u64 = 128;
    pub(crate) const INSIDE: u64 = 192;
    pub(crate) const VIOLATIONS: u64 = 256;
    pub(crate) const TAKE_OVERS: u64 = 264;
    pub(crate) const WAIT_MAX_NANOS: u64 = 272;
}

fn hammer(directory: &Path, control: &Path) {
    let handle = File::open(directory).unwrap();
    let (id, claim) = Claim::take_new_id(&handle, CLIENT_IDS).unwrap();
    let file = File::options().read(true).write(true).open(control).unwrap();
    let options = MapOptions { reserve: 1 << 21, writable: true, in_core_dumps: true };
    let mapping = Mapping::new(&file, "control", options).unwrap();
    let word = |offset| word64(&mapping, offset);
    let (lock_word, event) = (word(at::LOCK), word32(&mapping, at::EVENT));
    let is_alive = |owner| is_alive(&handle, claim.file_id(), owner);
    loop {
        let start = Instant::now();
        let acquired = lock::acquire::<Native>(lock_word, event, id.0, &is_alive, None).unwrap();
        word(at::WAIT_MAX_NANOS).fetch_max(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        word(at::INSIDE).store(id.0, Ordering::Relaxed);
        let first = word(at::FIRST).load(Ordering::Relaxed);
        let second = word(at::SECOND).load(Ordering::Relaxed);
        match acquired {
            Acquired::Released if first != second => {
                word(at::VIOLATIONS).fetch_add(1, Ordering::Relaxed);
            }
            Acquired::Released => {}
            Acquired::TakenOver(_) => {
                word(at::TAKE_OVERS).fetch_add(1, Ordering::Relaxed);
            }
        }
        word(at::FIRST).store(first + 1, Ordering::Relaxed);
        for _ in 0..200 {
            std::hint::spin_loop();
        }
        word(at::SECOND).store(first + 1, Ordering::Relaxed);
        if word(at::INSIDE).load(Ordering::Relaxed) != id.0 {
            word(at::VIOLATIONS).fetch_add(1, Ordering::Relaxed);
        }
        lock::release_and_wake::<Native>(lock_word, event, id.0);
    }
}

#[test]
fn eight_processes_exclude_each_other_while_being_killed() {
    const CLIENTS: usize = 8;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    eprintln!("replay with SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let directory = directory();
    let control = directory.path.path().join("control");
    let file = File::options().create_new(true).read(true).write(true).open(&control).unwrap();
    file.set_len(4096).unwrap();
    let options = MapOptions { reserve: 1 << 21, writable: true, in_core_dumps: true };
    let mapping = Mapping::new(&file, "control", options).unwrap();
    let load = |offset| word64(&mapping, offset).load(Ordering::Relaxed);
    let spawn = || Child::run(|| hammer(directory.path.path(), &control));
    let mut clients: Vec<Child> = (0..CLIENTS).map(|_| spawn()).collect();
    let mut kills = 0;
    // A busy machine starts few processes in this time, so it may take longer to hit an owner.
    let start = Instant::now();
    let is_over = || start.elapsed() > Duration::from_millis(1500) && load(at::TAKE_OVERS) > 0;
    while !is_over() && start.elapsed() < HANGS {
        std::thread::sleep(Duration::from_micros(random.random_range(0..4000)));
        let killed = random.random_range(0..CLIENTS);
        clients[killed] = spawn();
        kills += 1;
        let before = load(at::FIRST);
        soon(|| load(at::FIRST) > before);
    }
    let (sections, take_overs) = (load(at::FIRST), load(at::TAKE_OVERS));
    let wait_max = Duration::from_nanos(load(at::WAIT_MAX_NANOS));
    eprintln!("{sections} sections, {kills} kills, {take_overs} take-overs, longest wait {wait_max:?}");
    assert_eq!(load(at::VIOLATIONS), 0);
    assert!(take_overs > 0, "no owner was hit: the test tested nothing");
    clients.clear();
    // All clients are dead: the next one gets the lock, whichever owned it.
    let (id, claim) = Claim::take_new_id(&directory.handle, CLIENT_IDS).unwrap();
    let is_alive = |owner| is_alive(&directory.handle, claim.file_id(), owner);
    let deadline = Some(Instant::now() + HANGS);
    let (lock_word, event) = (word64(&mapping, at::LOCK), word32(&mapping, at::EVENT));
    lock::acquire::<Native>(lock_word, event, id.0, &is_alive, deadline).unwrap();
    // A living owner keeps the lock.
    let other = id.0 - 1;
    let start = Instant::now();
    let refused = lock::acquire::<Native>(lock_word, event, other, &is_alive, Some(start + Duration::from_millis(30)));
    assert_eq!(refused.unwrap_err().id(), id.0);
    assert!(start.elapsed() >= Duration::from_millis(30));
}
