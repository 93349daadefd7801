//! A process that is traced: it goes on instruction by instruction.
#![allow(unsafe_code)]

use crate::outcome::{Finding, Kind};
use crate::process::Process;
use crate::role;
use std::marker::PhantomData;

/// Where a step has led.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// Before the next instruction.
    Before,
    /// Where the process says that the update is over.
    AtTheEnd,
}

/// A traced process, which stands before an instruction. Only the thread that started it may trace
/// it.
pub(super) struct Traced {
    process: Process,
    pid: libc::pid_t,
    _thread: PhantomData<*const ()>,
}

/// What a process says that can't be traced: some containers forbid it.
pub(super) const UNTRACEABLE: &str = "can't be traced here";

/// By the traced process: stands still, for its tracer. Twice: before the update and after it.
pub(super) fn stand_still(is_first: bool) -> Result<(), Finding> {
    // SAFETY: the request takes no pointers and lets the parent trace this process.
    if is_first && unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } != 0 {
        return Err(Finding::new(Kind::Misbehaved, UNTRACEABLE));
    }
    // SAFETY: stops this process, until its tracer lets it go on.
    unsafe { libc::raise(libc::SIGSTOP) };
    Ok(())
}

impl Traced {
    /// Takes a process that was just started and waits until it stands still.
    pub(super) fn start(process: Process) -> Result<Traced, Finding> {
        let pid = process.pid().as_raw_nonzero().get();
        let mut traced = Traced { process, pid, _thread: PhantomData };
        match traced.wait()? {
            libc::SIGSTOP => Ok(traced),
            signal => Err(ended(format!("stopped by signal {signal} before it began"))),
        }
    }

    fn wait(&mut self) -> Result<i32, Finding> {
        let mut status = 0;
        // SAFETY: waits for a child of ours, with a valid place for its status.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        if waited != self.pid || !libc::WIFSTOPPED(status) {
            // Hears all that it said.
            self.process.kill();
            let lines = self.process.lines();
            if let Some(found) = lines.iter().find_map(|line| role::finding(line)) {
                return Err(found);
            }
            let said = lines.join("; ");
            return Err(ended(format!("ended in the middle, with status {status:#x}: {said}")));
        }
        Ok(libc::WSTOPSIG(status))
    }

    /// One instruction.
    pub(super) fn step(&mut self) -> Result<Stopped, Finding> {
        // SAFETY: the process is ours, traced by this thread, and stopped.
        if unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0) } != 0 {
            return Err(ended("can't be stepped".into()));
        }
        match self.wait()? {
            libc::SIGTRAP => Ok(Stopped::Before),
            libc::SIGSTOP => Ok(Stopped::AtTheEnd),
            signal => Err(ended(format!("met signal {signal}"))),
        }
    }

    /// Lets it go on until it is about to make a system call, or has just made one.
    pub(super) fn run_to_call(&mut self) -> Result<(), Finding> {
        // SAFETY: the process is ours, traced by this thread, and stopped.
        if unsafe { libc::ptrace(libc::PTRACE_SYSCALL, self.pid, 0, 0) } != 0 {
            return Err(ended("can't go on".into()));
        }
        match self.wait()? {
            libc::SIGTRAP => Ok(()),
            signal => Err(ended(format!("met signal {signal}"))),
        }
    }

    /// How many threads it has. Only the first is traced.
    pub(super) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid)).map_or(0, Iterator::count)
    }

    /// Lets it go on to where it stands still the next time.
    pub(super) fn run_on(&mut self) -> Result<(), Finding> {
        // SAFETY: the process is ours, traced by this thread, and stopped.
        if unsafe { libc::ptrace(libc::PTRACE_CONT, self.pid, 0, 0) } != 0 {
            return Err(ended("can't go on".into()));
        }
        match self.wait()? {
            libc::SIGSTOP => Ok(()),
            signal => Err(ended(format!("met signal {signal}"))),
        }
    }

    /// Kills it where it stands.
    pub(super) fn kill(mut self) {
        self.process.kill();
    }

    /// Lets it go on by itself, to its end.
    pub(super) fn go_on(mut self) {
        // SAFETY: the process is ours, traced by this thread, and stopped.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.pid, 0, 0) };
        self.process.wait();
    }
}

pub(super) fn ended(what: String) -> Finding {
    Finding::new(Kind::Misbehaved, format!("the stepped process {what}"))
}
