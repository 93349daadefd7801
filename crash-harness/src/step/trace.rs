//! A traced process that executes one instruction at a time.
#![allow(unsafe_code)]

use crate::outcome::{Finding, Kind};
use crate::processes::process::Process;
use crate::processes::role;
use std::marker::PhantomData;

/// The position after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// Before the next instruction.
    Before,
    /// At the stop with which the process marks the end of the update.
    AtTheEnd,
}

/// A traced process that is stopped before an instruction. Only the thread that started it may
/// trace it.
pub(super) struct Traced {
    process: Process,
    pid: libc::pid_t,
    _thread: PhantomData<*const ()>,
}

/// The finding of a process that can't be traced, which some containers forbid.
pub(super) const UNTRACEABLE: &str = "can't be traced here";

/// Stops the traced process for its tracer, once before the update and once after it.
pub(super) fn stand_still(is_first: bool) -> Result<(), Finding> {
    // SAFETY: the request takes no pointers and lets the parent trace this process.
    if is_first && unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } != 0 {
        return Err(Finding::new(Kind::Misbehaved, UNTRACEABLE));
    }
    // SAFETY: stops this process until its tracer continues it.
    unsafe { libc::raise(libc::SIGSTOP) };
    Ok(())
}

impl Traced {
    /// Attaches to a process that was just started and waits until it has stopped.
    pub(super) fn start(process: Process) -> Result<Traced, Finding> {
        let pid = process.pid().cast_signed();
        let mut traced = Traced { process, pid, _thread: PhantomData };
        match traced.wait()? {
            libc::SIGSTOP => Ok(traced),
            signal => Err(ended(format!("stopped by signal {signal} before it began"))),
        }
    }

    fn wait(&mut self) -> Result<i32, Finding> {
        let mut status = 0;
        // SAFETY: waits for a child of this process; the pointer to the status is valid.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        if waited != self.pid || !libc::WIFSTOPPED(status) {
            // Reads the rest of its output.
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

    /// Executes one instruction.
    pub(super) fn step(&mut self) -> Result<Stopped, Finding> {
        // SAFETY: the process is a child, traced by this thread, and stopped.
        if unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0) } != 0 {
            return Err(ended("can't be stepped".into()));
        }
        match self.wait()? {
            libc::SIGTRAP => Ok(Stopped::Before),
            libc::SIGSTOP => Ok(Stopped::AtTheEnd),
            signal => Err(ended(format!("received signal {signal}"))),
        }
    }

    /// Continues the process to the entry or exit of its next system call.
    pub(super) fn run_to_call(&mut self) -> Result<(), Finding> {
        // SAFETY: the process is a child, traced by this thread, and stopped.
        if unsafe { libc::ptrace(libc::PTRACE_SYSCALL, self.pid, 0, 0) } != 0 {
            return Err(ended("can't be continued".into()));
        }
        match self.wait()? {
            libc::SIGTRAP => Ok(()),
            signal => Err(ended(format!("received signal {signal}"))),
        }
    }

    /// Returns the number of the process's threads. Only the first is traced.
    pub(super) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid)).map_or(0, Iterator::count)
    }

    /// Continues the process to its next stop.
    pub(super) fn run_on(&mut self) -> Result<(), Finding> {
        // SAFETY: the process is a child, traced by this thread, and stopped.
        if unsafe { libc::ptrace(libc::PTRACE_CONT, self.pid, 0, 0) } != 0 {
            return Err(ended("can't be continued".into()));
        }
        match self.wait()? {
            libc::SIGSTOP => Ok(()),
            signal => Err(ended(format!("received signal {signal}"))),
        }
    }

    /// Kills the process at the current instruction.
    pub(super) fn kill(mut self) {
        self.process.kill();
    }

    /// Detaches from the process and waits for its end.
    pub(super) fn resume(mut self) {
        // SAFETY: the process is a child, traced by this thread, and stopped.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.pid, 0, 0) };
        self.process.wait();
    }
}

pub(super) fn ended(what: String) -> Finding {
    Finding::new(Kind::Misbehaved, format!("the stepped process {what}"))
}
