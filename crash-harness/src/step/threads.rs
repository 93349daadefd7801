//! The traced threads of a process: some are stepped, one instruction of one thread at a time, and
//! the others are stopped.
#![allow(unsafe_code)]

use super::trace::{UNTRACEABLE, ended};
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::process::{Checked, Process, mappings};
use std::marker::PhantomData;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Time to wait for the end of a step. After that the thread counts as sleeping in the kernel.
const STEP_WAIT: Duration = Duration::from_micros(150);
/// If all threads sleep for this long, they make no more progress.
const QUIET: Duration = Duration::from_millis(2);

/// Returns whether the kernel shows a thread of this name as `known`; the kernel truncates names.
fn is_name_of(known: &str, name: &str) -> bool {
    name.starts_with(known.trim()) && known.trim().len() > "untorn-".len()
}

/// Returns whether a process has threads of all of these names.
fn has_names(pid: libc::pid_t, names: &[&str]) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let known: Vec<String> =
        threads.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok()).collect();
    names.iter().all(|name| known.iter().any(|known| is_name_of(known, name)))
}

/// Executes one instruction of a stopped thread, which this thread traces.
fn single_step(tid: libc::pid_t) -> Result<(), Finding> {
    // SAFETY: the request takes no pointers, and fails if the thread is not traced and stopped.
    if unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, tid, 0, 0) } != 0 {
        return Err(ended("can't be stepped".into()));
    }
    Ok(())
}

/// Returns the address of the next instruction of a stopped thread.
#[cfg(target_arch = "x86_64")]
fn instruction_of(tid: libc::pid_t) -> u64 {
    let offset = std::mem::offset_of!(libc::user_regs_struct, rip);
    // SAFETY: the thread is traced and stopped. The request takes an offset and returns the word
    // there.
    unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, tid, offset, 0) as u64 }
}

/// No thread is stepped on other machines: see [`super::supported`].
#[cfg(not(target_arch = "x86_64"))]
fn instruction_of(_: libc::pid_t) -> u64 {
    0
}

struct Thread {
    tid: libc::pid_t,
    /// Whether the thread is stopped before an instruction. Otherwise it is in the kernel, sleeping
    /// or running.
    stands: bool,
}

/// A process whose threads are traced. Only the thread that attached to them may step them.
pub(super) struct Threads {
    process: Process,
    /// All threads except the main one.
    others: Vec<libc::pid_t>,
    stepped: Vec<Thread>,
    next: usize,
    /// The address range of the vDSO, the kernel's code for clocks in the process.
    vdso: Range<u64>,
    _thread: PhantomData<*const ()>,
}

impl Threads {
    /// Stops all threads of a process. Those with these names will be stepped.
    pub(super) fn take(process: Process, names: &[&str]) -> Result<Threads, Finding> {
        let pid = process.pid().cast_signed();
        // A thread sets its name some time after its start.
        let begun = Instant::now();
        while !has_names(pid, names) && begun.elapsed() < HANGS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let vdso = mappings(pid).into_iter().find(|(_, name)| name == "[vdso]");
        let vdso = vdso.map_or(0..0, |(addresses, _)| addresses);
        let (others, stepped) = (Vec::new(), Vec::new());
        let mut threads = Threads { process, others, stepped, next: 0, vdso, _thread: PhantomData };
        let failed = |error: std::io::Error| Finding::new(Kind::Misbehaved, format!("the threads of {pid}: {error}"));
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(tid) = entry.file_name().to_str().and_then(|tid| tid.parse::<libc::pid_t>().ok()) else {
                continue;
            };
            let name = std::fs::read_to_string(entry.path().join("comm")).map_err(failed)?;
            // SAFETY: the thread belongs to a child of this process; the requests take no pointers.
            let is_seized = unsafe {
                libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) == 0 && libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) == 0
            };
            if !is_seized {
                return Err(Finding::new(Kind::Misbehaved, UNTRACEABLE));
            }
            if tid != pid {
                threads.others.push(tid);
            }
            threads.stopped(tid, 0)?;
            if names.iter().any(|wanted| is_name_of(&name, wanted)) {
                threads.stepped.push(Thread { tid, stands: true });
            }
        }
        if threads.stepped.len() == names.len() {
            return Ok(threads);
        }
        Err(ended(format!("has {} of the threads {names:?}", threads.stepped.len())))
    }

    /// Returns whether a thread has stopped.
    fn stopped(&mut self, tid: libc::pid_t, flags: libc::c_int) -> Result<bool, Finding> {
        let mut status = 0;
        // SAFETY: waits for a thread of a child of this process; the pointer to the status is
        // valid.
        let waited = unsafe { libc::waitpid(tid, &raw mut status, flags | libc::__WALL) };
        match waited {
            0 => Ok(false),
            _ if waited == tid && libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP => Ok(true),
            _ => {
                self.process.refuse_finding()?;
                Err(ended(format!("ended in the middle, with status {status:#x}")))
            }
        }
    }

    /// Executes the next instruction of the next thread. Returns `false` if all stepped threads
    /// sleep and none of them will wake another one.
    pub(super) fn step(&mut self) -> Result<bool, Finding> {
        let begun = Instant::now();
        while begun.elapsed() < QUIET {
            for _ in 0..self.stepped.len() {
                self.next = (self.next + 1) % self.stepped.len();
                if self.step_one(self.next)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Executes one instruction of one thread. Returns whether the instruction is done.
    ///
    /// Reading a clock counts as one instruction. The vDSO retries if the kernel has updated the
    /// clock in the meantime, and between two updates slow single steps never reach its end.
    fn step_one(&mut self, at: usize) -> Result<bool, Finding> {
        let tid = self.stepped[at].tid;
        let mut patience = Duration::ZERO;
        if self.stepped[at].stands {
            single_step(tid)?;
            self.stepped[at].stands = false;
            patience = STEP_WAIT;
        }
        let begun = Instant::now();
        while !self.stopped(tid, libc::WNOHANG)? {
            if begun.elapsed() >= patience {
                return Ok(false);
            }
            std::thread::yield_now();
        }
        while self.vdso.contains(&instruction_of(tid)) {
            single_step(tid)?;
            self.stopped(tid, 0)?;
        }
        self.stepped[at].stands = true;
        Ok(true)
    }

    /// Kills the process without executing more instructions.
    pub(super) fn kill(self) {
        drop(self);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.process.signal(rustix::process::Signal::KILL);
        // The end of a process is reported only after those of its traced threads.
        for tid in &self.others {
            let mut status = 0;
            // SAFETY: waits for a thread of a child of this process; the pointer to the status is
            // valid.
            while unsafe { libc::waitpid(*tid, &raw mut status, libc::__WALL) } == *tid && libc::WIFSTOPPED(status) {}
        }
        self.process.kill();
    }
}
