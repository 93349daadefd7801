//! The threads of a process, traced: some go on instruction by instruction, one at a time, the
//! others stand still.
#![allow(unsafe_code)]

use super::trace::{UNTRACEABLE, ended};
use crate::limits::HANGS;
use crate::outcome::{Finding, Kind};
use crate::process::{Process, mappings};
use std::marker::PhantomData;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long the end of a step is waited for, before the thread counts as one that sleeps in the
/// kernel.
const STEP_WAIT: Duration = Duration::from_micros(150);
/// How long all threads must sleep before nothing more is to be expected of them.
const QUIET: Duration = Duration::from_millis(2);

/// Whether the kernel calls a thread of this name so: it cuts names.
fn is_name_of(known: &str, name: &str) -> bool {
    name.starts_with(known.trim()) && known.trim().len() > "untorn-".len()
}

/// Whether a process has threads of all of these names.
fn has_names(pid: libc::pid_t, names: &[&str]) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let known: Vec<String> =
        threads.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok()).collect();
    names.iter().all(|name| known.iter().any(|known| is_name_of(known, name)))
}

/// Lets a stopped thread, which this thread traces, execute one instruction.
fn single_step(tid: libc::pid_t) -> Result<(), Finding> {
    // SAFETY: the request takes no pointers, and fails if the thread is not traced and stopped.
    if unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, tid, 0, 0) } != 0 {
        return Err(ended("can't be stepped".into()));
    }
    Ok(())
}

/// The address of the instruction before which a stopped thread stands.
fn instruction_of(tid: libc::pid_t) -> u64 {
    let offset = std::mem::offset_of!(libc::user_regs_struct, rip);
    // SAFETY: the thread is traced and stopped. The request takes an offset and returns the word
    // there.
    unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, tid, offset, 0) as u64 }
}

struct Thread {
    tid: libc::pid_t,
    /// Stands before an instruction. Else it is in the kernel: it waits for something, or is on its
    /// way.
    stands: bool,
}

/// A process whose threads are traced. Only the thread that took them may step them.
pub(super) struct Threads {
    process: Process,
    /// All but the first one.
    others: Vec<libc::pid_t>,
    stepped: Vec<Thread>,
    next: usize,
    /// Where the kernel's code for clocks lies in the process.
    vdso: Range<u64>,
    _thread: PhantomData<*const ()>,
}

impl Threads {
    /// Stops all threads of a process. Those with these names are the ones that are stepped.
    pub(super) fn take(process: Process, names: &[&str]) -> Result<Threads, Finding> {
        let pid = process.pid().as_raw_nonzero();
        // A thread names itself, when it comes to it.
        let begun = Instant::now();
        while !has_names(pid.get(), names) && begun.elapsed() < HANGS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let vdso = mappings(pid.get()).into_iter().find(|(_, name)| name == "[vdso]");
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
            // SAFETY: the thread is one of a child of ours; the requests take no pointers.
            let is_seized = unsafe {
                libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) == 0 && libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) == 0
            };
            if !is_seized {
                return Err(Finding::new(Kind::Misbehaved, UNTRACEABLE));
            }
            if tid != pid.get() {
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

    /// Whether a thread has stopped.
    fn stopped(&mut self, tid: libc::pid_t, flags: libc::c_int) -> Result<bool, Finding> {
        let mut status = 0;
        // SAFETY: waits for a thread of a child of ours, with a valid place for its status.
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

    /// The next thread's next instruction. `false` if all of them sleep: they wait for something
    /// that none of them does.
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

    /// One instruction of one thread; whether it is done.
    ///
    /// Reading a clock counts as one instruction. The vDSO begins again if the kernel has updated
    /// the clock meanwhile, and between two updates slow single steps never reach its end.
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

    /// Kills the process where its threads stand.
    pub(super) fn kill(self) {
        drop(self);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.process.signal(rustix::process::Signal::KILL);
        // The end of a process is told when that of each traced thread has been.
        for tid in &self.others {
            let mut status = 0;
            // SAFETY: waits for a thread of a child of ours, with a valid place for its status.
            while unsafe { libc::waitpid(*tid, &raw mut status, libc::__WALL) } == *tid && libc::WIFSTOPPED(status) {}
        }
        self.process.kill();
    }
}
