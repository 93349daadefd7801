//! The loop that follows a program and all its descendants from stop to stop.
#![allow(unsafe_code)]

use super::call::{Call, Effect};
use super::fault::Site;
use super::filter::{self, Names, SystemCall, WATCHED};
use super::{Ended, Shared, file_class};
use std::collections::{HashMap, HashSet};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdout, Command, ExitStatus};
use std::sync::mpsc::SyncSender;

type Started = Result<(i32, ChildStdout), String>;

/// Bytes of a sector: direct writes are truncated to a multiple of it.
const SECTOR: u64 = 512;

/// Starts a program and follows it until it and its descendants have ended.
pub(super) fn run(shared: &Shared, process: &str, command: Command, say: &SyncSender<Started>) {
    match start(command) {
        Ok((pid, out)) => {
            shared.lock().alive.insert(pid);
            let _ = say.send(Ok((pid, out)));
            let program = program_of(pid);
            Tracer {
                shared,
                process,
                program,
                known: HashSet::from([pid]),
                threads: HashSet::new(),
                names: HashMap::new(),
            }
            .follow(pid);
        }
        Err(why) => drop(say.send(Err(why))),
    }
}

/// Starts the program, stopped before its first instruction.
fn start(mut command: Command) -> Started {
    let program = filter::program();
    // SAFETY: the code between fork and exec makes only system calls, with memory that was
    // allocated before.
    unsafe { command.pre_exec(move || filter::submit(&program)) };
    let mut child = command.spawn().map_err(|error| format!("starting a traced program: {error}"))?;
    let out = child.stdout.take().ok_or("no standard output")?;
    let pid = child.id() as i32;
    let mut status = 0;
    // SAFETY: waits for a child of this thread; the pointer to the status is valid.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    if waited != pid || !libc::WIFSTOPPED(status) {
        return Err(format!("a traced program did not stop at its beginning: status {status:#x}"));
    }
    let options = libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: the process is traced by this thread, and stopped.
    if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) } != 0 {
        return Err(format!("tracing: {}", std::io::Error::last_os_error()));
    }
    Ok((pid, out))
}

/// Returns whether a task is a thread of another process.
fn is_thread(tid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<i32>().ok());
    process.is_some_and(|process| process != tid)
}

/// Returns the name under which a process was executed.
fn program_of(tid: i32) -> String {
    let arguments = std::fs::read(format!("/proc/{tid}/cmdline")).unwrap_or_default();
    let first = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    first.rsplit('/').next().unwrap_or_default().replace(':', "_")
}

struct Tracer<'s> {
    shared: &'s Shared,
    /// The name of the started program in sites, and the name under which it was executed.
    process: &'s str,
    program: String,
    /// Tasks whose first stop has been seen.
    known: HashSet<i32>,
    /// The known tasks that are threads of another process.
    threads: HashSet<i32>,
    /// The names of tasks in sites.
    names: HashMap<i32, String>,
}

impl Tracer<'_> {
    fn follow(mut self, pid: i32) {
        resume(pid, 0);
        loop {
            let mut status = 0;
            // SAFETY: waits for children of this thread alone; the pointer to the status is valid.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
            if pid < 0 {
                if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
                    continue;
                }
                break;
            }
            if libc::WIFSTOPPED(status) {
                let signal = self.stopped(pid, status);
                resume(pid, signal);
            } else {
                self.ended(pid, status);
            }
        }
    }

    /// Handles a stop and returns the signal to deliver when the task continues.
    fn stopped(&mut self, pid: i32, status: i32) -> i32 {
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            libc::PTRACE_EVENT_SECCOMP => self.call(pid),
            libc::PTRACE_EVENT_EXEC => drop(self.names.remove(&pid)),
            // The tracer causes the first stop of a new task, often before its creator's stop for
            // the event. All other signals are delivered.
            0 if self.known.insert(pid) => {
                self.shared.lock().alive.insert(pid);
                if is_thread(pid) {
                    self.threads.insert(pid);
                }
                return if signal == libc::SIGSTOP { 0 } else { signal };
            }
            0 => return signal,
            _ => {}
        }
        0
    }

    fn ended(&mut self, pid: i32, status: i32) {
        self.known.remove(&pid);
        let process = self.names.remove(&pid);
        let mut state = self.shared.lock();
        state.alive.remove(&pid);
        if !self.threads.remove(&pid) {
            state.ended.push(Ended { pid, process: process.unwrap_or_default(), status: ExitStatus::from_raw(status) });
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Handles a task that is stopped before a call: counts the call and makes it fail if a fault
    /// is due.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn call(&mut self, tid: i32) {
        // SAFETY: a structure of plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        // SAFETY: the task is stopped and traced by this thread; the pointer to the registers is
        // valid.
        if unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut registers) } != 0 {
            return;
        }
        let number = registers.orig_rax as libc::c_long;
        let Some(watched) = WATCHED.iter().find(|watched| watched.number == number) else { return };
        let arguments = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        let Some(effect) = self.due(tid, watched, &arguments) else { return };
        match effect {
            Effect::Error(errno) => {
                // An invalid number makes the kernel skip the call. The caller finds the error in
                // the result register.
                registers.orig_rax = u64::MAX;
                registers.rax = i64::from(-errno) as u64;
            }
            Effect::Short => {
                let half = arguments[2] / 2;
                registers.rdx = if half >= SECTOR { half / SECTOR * SECTOR } else { half };
            }
        }
        // SAFETY: as above; the registers are those of the task, with changes that the kernel
        // checks.
        unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0, &raw const registers) };
    }

    /// Other machines are not supported: see [`filter::supported`].
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    fn call(&mut self, _: i32) {}

    /// Returns the effect that replaces a call, if a fault is due.
    fn due(&mut self, tid: i32, watched: &SystemCall, arguments: &[u64; 6]) -> Option<Effect> {
        let path = match watched.names {
            Names::Descriptor(at) => file_class::of_descriptor(tid, arguments[at]),
            Names::Path(at) => file_class::of_path(tid, libc::AT_FDCWD as u64, arguments[at]),
            Names::PathAt(directory, at) => file_class::of_path(tid, arguments[directory], arguments[at]),
            Names::Address(at) => file_class::of_mapping(tid, arguments[at]),
        };
        let class = file_class::class(&self.shared.root, &path?)?;
        let makes = watched.call == Call::Open
            && watched.flags.is_none_or(|at| arguments[at] & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0);
        let site = Site { process: self.name_of(tid), call: watched.call, class };
        let mut state = self.shared.lock();
        let count = state.counts.entry(site.clone()).or_default();
        *count += 1;
        let n = *count;
        let has_begun = state.fired > 0;
        let fault = state.fault.as_ref().filter(|fault| fault.is_due(&site, n, makes, has_begun))?;
        let effect = fault.effect;
        // The length of a vector or of a single byte can't be halved here.
        let can_be_short = watched.length.is_some_and(|at| arguments[at] > 1);
        if state.is_over || (effect == Effect::Short && !can_be_short) {
            return None;
        }
        state.fired += 1;
        Some(effect)
    }

    /// Returns the name of a task: the name of its program, and the thread's name if that differs.
    fn name_of(&mut self, tid: i32) -> String {
        if let Some(name) = self.names.get(&tid) {
            return name.clone();
        }
        let program = program_of(tid);
        let mut name = if program == self.program { self.process.to_string() } else { program };
        let of_task = |tid: &str| std::fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
        if self.threads.contains(&tid) {
            let thread = of_task(&tid.to_string());
            name = format!("{name}/{}", thread.trim().replace(':', "_"));
        }
        self.names.insert(tid, name.clone());
        name
    }
}

fn resume(pid: i32, signal: i32) {
    // SAFETY: the task is stopped and traced by this thread. If it was killed in the meantime, the
    // call fails, and its end is reported next.
    unsafe { libc::ptrace(libc::PTRACE_CONT, pid, 0, signal) };
}
