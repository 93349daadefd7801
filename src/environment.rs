//! The variables by which the environment steers this library: every `UNTORN_…` variable is read
//! here.
//!
//! A setuid program, or one with file capabilities, has rights that its caller lacks, and the
//! environment is the caller's. The kernel marks such a process (`AT_SECURE`). It obeys no
//! variable, and starts no program that its caller could choose.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The variable `name`; `None` if it is not set, or set by a caller with fewer rights.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    if is_of_caller() { None } else { std::env::var_os(name) }
}

/// Whether the environment was given by a caller with fewer rights than this process.
pub(crate) fn is_of_caller() -> bool {
    // SAFETY: reads a number that the kernel gave this process at its start.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether a logger that root starts, and that becomes another user, keeps the variable `name` of
/// root's environment: where programs are, and the marks of a started logger. Builds for tests keep
/// what tells them where to die.
pub(crate) fn is_for_other_user(name: &OsStr) -> bool {
    const KEPT: [&str; 4] = ["PATH", "UNTORN_BECOME_LOGGER", "UNTORN_DAEMON", "UNTORN_FOREIGN_OWNER"];
    const OF_TESTS: [&str; 6] = [
        "UNTORN_CRASH",
        "UNTORN_CRASH_CLIENT",
        "UNTORN_CRASH_ONCE",
        "UNTORN_CRASH_TIMES",
        "UNTORN_BUG",
        "UNTORN_BOOT_ID",
    ];
    KEPT.iter().any(|kept| name == *kept) || (cfg!(untorn_instrumented) && OF_TESTS.iter().any(|of| name == *of))
}

/// Has `command` run with this process's effective rights alone and with none of the caller's
/// environment, if the environment is the caller's. Its real uid is the effective one, so that it
/// obeys the variables that are set after this.
pub(crate) fn shed_caller(command: &mut Command) {
    if !is_of_caller() {
        return;
    }
    command.env_clear();
    // SAFETY: the closure makes system calls alone, which are allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let (uid, gid) = (libc::geteuid(), libc::getegid());
            if libc::setresgid(gid, gid, gid) != 0 || libc::setresuid(uid, uid, uid) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
