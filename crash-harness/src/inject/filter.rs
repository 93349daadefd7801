//! The seccomp filter that stops a process at its calls on files, and the numbers of those calls.
#![allow(unsafe_code)]

use super::call::Call;

/// How a call identifies its file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Names {
    /// By a descriptor, in this argument.
    Descriptor(usize),
    /// By a path, in this argument.
    Path(usize),
    /// By a path in the second of these arguments, relative to the descriptor in the first.
    PathAt(usize, usize),
    /// By an address in the memory of the process, in this argument.
    Address(usize),
}

/// One system call.
#[derive(Clone, Copy, Debug)]
pub(super) struct SystemCall {
    pub(super) number: libc::c_long,
    pub(super) call: Call,
    pub(super) names: Names,
    /// The argument that holds the length of the data in bytes, if the call can do only a part of
    /// its work.
    pub(super) length: Option<usize>,
    /// The argument that holds the flags of an open.
    pub(super) flags: Option<usize>,
}

const fn entry(number: libc::c_long, call: Call, names: Names) -> SystemCall {
    SystemCall { number, call, names, length: None, flags: None }
}

const fn with_length(number: libc::c_long, call: Call) -> SystemCall {
    SystemCall { number, call, names: Names::Descriptor(0), length: Some(2), flags: None }
}

/// Returns an error if system calls can't be traced on this machine.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) fn supported() -> Result<(), String> {
    Err("system calls are replaced on x86_64 only".into())
}

/// Returns an error if system calls can't be traced on this machine.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) fn supported() -> Result<(), String> {
    Ok(())
}

/// All traced calls.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) const WATCHED: &[SystemCall] = &[
    SystemCall { flags: Some(1), ..entry(libc::SYS_open, Call::Open, Names::Path(0)) },
    SystemCall { flags: Some(2), ..entry(libc::SYS_openat, Call::Open, Names::PathAt(0, 1)) },
    entry(libc::SYS_openat2, Call::Open, Names::PathAt(0, 1)),
    entry(libc::SYS_creat, Call::Open, Names::Path(0)),
    with_length(libc::SYS_read, Call::Read),
    with_length(libc::SYS_pread64, Call::Read),
    entry(libc::SYS_readv, Call::Read, Names::Descriptor(0)),
    entry(libc::SYS_preadv, Call::Read, Names::Descriptor(0)),
    entry(libc::SYS_preadv2, Call::Read, Names::Descriptor(0)),
    with_length(libc::SYS_write, Call::Write),
    with_length(libc::SYS_pwrite64, Call::Write),
    entry(libc::SYS_writev, Call::Write, Names::Descriptor(0)),
    entry(libc::SYS_pwritev, Call::Write, Names::Descriptor(0)),
    entry(libc::SYS_pwritev2, Call::Write, Names::Descriptor(0)),
    entry(libc::SYS_fsync, Call::Sync, Names::Descriptor(0)),
    entry(libc::SYS_fdatasync, Call::Sync, Names::Descriptor(0)),
    entry(libc::SYS_sync_file_range, Call::Sync, Names::Descriptor(0)),
    entry(libc::SYS_syncfs, Call::Sync, Names::Descriptor(0)),
    entry(libc::SYS_fallocate, Call::Allocate, Names::Descriptor(0)),
    entry(libc::SYS_ftruncate, Call::Truncate, Names::Descriptor(0)),
    entry(libc::SYS_truncate, Call::Truncate, Names::Path(0)),
    entry(libc::SYS_rename, Call::Rename, Names::Path(0)),
    entry(libc::SYS_renameat, Call::Rename, Names::PathAt(0, 1)),
    entry(libc::SYS_renameat2, Call::Rename, Names::PathAt(0, 1)),
    entry(libc::SYS_link, Call::Rename, Names::Path(1)),
    entry(libc::SYS_linkat, Call::Rename, Names::PathAt(2, 3)),
    entry(libc::SYS_unlink, Call::Unlink, Names::Path(0)),
    entry(libc::SYS_unlinkat, Call::Unlink, Names::PathAt(0, 1)),
    entry(libc::SYS_mkdir, Call::MakeDir, Names::Path(0)),
    entry(libc::SYS_mkdirat, Call::MakeDir, Names::PathAt(0, 1)),
    entry(libc::SYS_getdents64, Call::List, Names::Descriptor(0)),
    entry(libc::SYS_mmap, Call::Map, Names::Descriptor(4)),
    entry(libc::SYS_msync, Call::SyncMap, Names::Address(0)),
];

/// All traced calls.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) const WATCHED: &[SystemCall] = &[];

/// Builds the filter: stop at a traced call, allow all others.
pub(super) fn program() -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let equals =
        |k: u32| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: 1, k };
    let answer = |action: u32| statement(libc::BPF_RET | libc::BPF_K, action);
    // The first word of the filter's input is the number of the call. Calls of another word size
    // have other numbers; the traced programs make none.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for watched in WATCHED {
        program.push(equals(watched.number as u32));
        program.push(answer(libc::SECCOMP_RET_TRACE));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

/// Requests tracing and installs the filter. The process calls this between `fork` and `exec`, so
/// it makes only system calls.
pub(super) fn submit(program: &[libc::sock_filter]) -> std::io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_ptr().cast_mut() };
    // SAFETY: plain system calls; the filter is read from memory that lives during the call.
    let done = unsafe {
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0
            // An unprivileged process may install a filter only if it can't gain privileges
            // afterwards.
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
