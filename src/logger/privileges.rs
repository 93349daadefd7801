//! A logger that root starts for another user's store becomes that user, before it reads or makes
//! anything there.
//!
//! The owner controls everything in such a directory: links, the file `access`, the paths in it,
//! the shared memory. A process with the owner's rights can't be led to do more than the owner
//! could do.
#![allow(unsafe_code)]

use crate::error::reason::PermissionReason;
use crate::files::dir::Dir;
use crate::files::owner;
use crate::{Error, Result};
use rustix::process::geteuid;
use std::io;

/// The capability sets of a thread, as `capget` and `capset` take them.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, of 64 capabilities in two words each.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// More capabilities than any kernel has.
const CAPABILITIES_MAX: libc::c_ulong = 64;

/// Gives this process the rights of the owner of `dir`, if the process is root's and the directory
/// is not. It takes the owner's uid and gid, drops all other groups and all capabilities, and
/// cannot go back. This changes all threads of the process.
///
/// # Errors
/// [`Error::Permission`] if that fails. The caller must then touch nothing of the store.
pub(super) fn become_owner(dir: &Dir) -> Result<()> {
    let stat = dir.with_fd(|fd| rustix::fs::fstat(fd).map_err(Error::sys("stat of the store's directory")))?;
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    if geteuid().as_raw() == uid {
        return Ok(());
    }
    let refused = |why: String| Error::Permission {
        what: PermissionReason::BecomeOwner { path: dir.path().into(), uid, gid, why },
    };
    if owner::unmapped_uid() == Some(uid) || owner::unmapped_gid() == Some(gid) {
        return Err(refused("this user namespace has no number for them".into()));
    }
    drop_rights(uid, gid).map_err(|(call, error)| refused(format!("{call}: {error}")))?;
    refuse_rights_left(uid, gid).map_err(refused)
}

fn drop_rights(uid: u32, gid: u32) -> std::result::Result<(), (&'static str, io::Error)> {
    let check = |call, result: libc::c_long| if result == 0 { Ok(()) } else { Err((call, io::Error::last_os_error())) };
    // SAFETY: the calls take numbers, and pointers to values on this stack that outlive them and
    // have the layout that the kernel reads.
    unsafe {
        // The bounding set first, which needs a capability. The call fails past the last capability
        // of the kernel, and without the right to drop one. Both are ignored: the process executes
        // no program that could regain a capability.
        for capability in 0..CAPABILITIES_MAX {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        check("prctl", libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0).into())?;
        check("setgroups", libc::setgroups(0, std::ptr::null()).into())?;
        check("setresgid", libc::setresgid(gid, gid, gid).into())?;
        check("setresuid", libc::setresuid(uid, uid, uid).into())?;
        check("prctl", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        // With the bit SECBIT_NO_SETUID_FIXUP the capabilities are still there.
        let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
        let none = [Capabilities::default(); 2];
        check("capset", libc::syscall(libc::SYS_capset, &raw const header, &raw const none))?;
    }
    Ok(())
}

/// Checks that no right of root is left.
fn refuse_rights_left(uid: u32, gid: u32) -> std::result::Result<(), String> {
    let (mut uids, mut gids) = ([0; 3], [0; 3]);
    let [real_uid, effective_uid, saved_uid] = &mut uids;
    let [real_gid, effective_gid, saved_gid] = &mut gids;
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut left = [Capabilities::default(); 2];
    // SAFETY: as above; the kernel writes into values on this stack, of the sizes that it writes.
    // The last calls are expected to fail.
    let (groups, known, returned) = unsafe {
        libc::getresuid(real_uid, effective_uid, saved_uid);
        libc::getresgid(real_gid, effective_gid, saved_gid);
        let groups = libc::getgroups(0, std::ptr::null_mut());
        let known = libc::syscall(libc::SYS_capget, &raw const header, &raw mut left);
        (
            groups,
            known,
            libc::setresuid(u32::MAX, 0, u32::MAX) == 0 || (gid != 0 && libc::setresgid(u32::MAX, 0, u32::MAX) == 0),
        )
    };
    let has_capabilities = left.iter().any(|set| set.effective | set.permitted | set.inheritable != 0);
    match () {
        () if uids != [uid; 3] || gids != [gid; 3] => Err(format!("its uids are {uids:?}, its gids {gids:?}")),
        () if groups != 0 => Err(format!("it has {groups} other groups")),
        () if known != 0 || has_capabilities => Err("it has capabilities".into()),
        () if returned => Err("it could become root again".into()),
        () => Ok(()),
    }
}
