//! Who owns a store: the uid of its directory, and no other.
//!
//! A direct client maps the store's memory and believes what stands there, and its logger obeys the
//! file `access`. So the owner of the directory has everything that the process puts into the
//! store, and a process of another uid that joins makes files that lock the owner out. Therefore:
//!
//! - A store is opened only if the owner of its directory is the process's effective uid. Root may
//!   open another's store, if it says so ([`Ownership::Foreign`]); its logger becomes the owner
//!   first (`logger::privileges`).
//! - A file in the directory that belongs to another uid is refused by the function that opens it
//!   (`untorn_wal::files`).
//! - Bits of the mode for the group or others are not looked at. Their right to write is the
//!   owner's to give, and some systems set it on each start (a volume with `fsGroup`). What another
//!   uid makes by such a right is refused by its owner.
//!
//! **The overflow uid.** In a user namespace the kernel reports every uid that has no number there
//! as one and the same, 65534 unless set otherwise. Two of these are two users, or one. So this uid
//! equals no other, itself included, unless the namespace has a number for every uid, as the first
//! one has: then 65534 is an ordinary user.

use crate::error::reason::PermissionReason;
use crate::{Error, Result};
use rustix::fs::Stat;
use rustix::process::geteuid;
use std::path::Path;

/// What the kernel uses where `/proc` does not say.
const OVERFLOW_DEFAULT: u32 = 65534;
/// All uids but the last number, which stands for "none" in system calls.
const UIDS: u64 = u32::MAX as u64;

/// Whose stores a process opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ownership {
    /// Its own.
    Own,
    /// Root opens another uid's.
    Foreign,
    /// A process of any uid reads another's, without joining it.
    ForeignToRead,
}

/// The uid that stands for all that this process's user namespace has no number for; `None` if it
/// has one for each.
pub(crate) fn unmapped_uid() -> Option<u32> {
    unmapped("uid")
}

/// As [`unmapped_uid`], of groups.
pub(crate) fn unmapped_gid() -> Option<u32> {
    unmapped("gid")
}

fn unmapped(kind: &str) -> Option<u32> {
    let map = std::fs::read_to_string(format!("/proc/self/{kind}_map"));
    // A kernel without user namespaces has no such file in `/proc`.
    let maps_all = match &map {
        Ok(map) => covers_all(map),
        Err(_) => Path::new("/proc/self/stat").exists(),
    };
    if maps_all {
        return None;
    }
    let stated = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}"));
    Some(stated.ok().and_then(|stated| stated.trim().parse().ok()).unwrap_or(OVERFLOW_DEFAULT))
}

/// Whether a map of ids, whose lines are `inside outside count`, has a number for each. Its ranges
/// do not overlap. A namespace can map only what its parent does, so this holds for the parents as
/// well.
fn covers_all(map: &str) -> bool {
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    counts.sum::<u64>() >= UIDS
}

/// Checks that this process may open the store in the directory `path`, whose status is `stat`.
///
/// # Errors
/// [`Error::Permission`].
pub(crate) fn check_directory(stat: &Stat, path: &Path, ownership: Ownership) -> Result<()> {
    let (owner, own) = (stat.st_uid, geteuid().as_raw());
    let refuse = |what| Err(Error::Permission { what });
    let path = path.to_path_buf();
    if unmapped_uid() == Some(owner) {
        return refuse(PermissionReason::UnmappedOwner { path, shown: owner });
    }
    match ownership {
        _ if owner == own => Ok(()),
        Ownership::Foreign if own == 0 => Ok(()),
        Ownership::ForeignToRead => Ok(()),
        Ownership::Foreign => refuse(PermissionReason::NotRoot { path, owner, own }),
        Ownership::Own => refuse(PermissionReason::OtherUser { path, owner, own }),
    }
}

#[cfg(test)]
mod tests {
    //! A map of ids is complete only if it has a number for each.

    use super::*;

    #[test]
    fn maps() {
        assert!(covers_all("         0          0 4294967295\n"));
        assert!(covers_all("0 0 65534\n65534 65534 4294901761\n"));
        for map in ["", "0 1000 1\n", "0 100000 65536\n", "0 0 4294967294\n", "nonsense\n"] {
            assert!(!covers_all(map), "{map}");
        }
    }
}
