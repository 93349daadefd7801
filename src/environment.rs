//! The environment variables of this library: every `UNTORN_…` variable is read here.
//!
//! A setuid program, or one with file capabilities, has rights that its caller lacks, and its
//! environment comes from the caller. The kernel marks such a process (`AT_SECURE`). It ignores all
//! variables, and starts no program that its caller could choose.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Returns the variable `name`; `None` if it is not set, or if it was set by a caller with fewer
/// rights.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    if is_of_caller() { None } else { std::env::var_os(name) }
}

/// Returns whether the environment was set by a caller with fewer rights than this process.
pub(crate) fn is_of_caller() -> bool {
    // SAFETY: reads a number that the kernel gave this process at its start.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns whether the logger of another user's store keeps the variable `name` of root's
/// environment. It keeps the paths of programs and the marks of a started logger. Builds for tests
/// also keep the variables of crash points.
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

/// Makes `command` run with only this process's effective rights and without the environment, if
/// that was set by a caller with fewer rights. The real uid becomes the effective one, so that the
/// program obeys the variables that are set after this.
pub(crate) fn shed_caller(command: &mut Command) {
    if !is_of_caller() {
        return;
    }
    command.env_clear();
    // SAFETY: the closure only makes system calls, which are allowed between fork and exec.
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
