//! The owner of a store: the uid of its directory, and no other.
//!
//! A direct client maps the store's memory and trusts its content, and its logger obeys the file
//! `access`. So the owner of the directory can read everything that the process puts into the
//! store. A process of another uid that joins would create files that the owner cannot open.
//! Therefore:
//!
//! - A store is opened only if the owner of its directory is the process's effective uid. Root may
//!   open the store of another user with an option ([`Ownership::Foreign`]); its logger changes to
//!   the owner's uid first (`logger::privileges`).
//! - The function that opens a file rejects one that belongs to another uid than the directory
//!   (`untorn_wal::files`).
//! - The mode bits for the group and others are ignored. The owner may grant them write access, and
//!   some systems set these bits at each start (a volume with `fsGroup`). A file that another uid
//!   creates by such a right is rejected because of its owner.
//!
//! **The overflow uid.** In a user namespace the kernel reports every uid that is not mapped there
//! as the same number, 65534 unless set otherwise. Two files with this uid may have the same owner
//! or different ones. So this uid counts as equal to no uid, not even to itself. The exception is a
//! namespace that maps every uid, as the initial one does: there 65534 is an ordinary user.

use crate::error::reason::PermissionReason;
use crate::{Error, Result};
use rustix::fs::Stat;
use rustix::process::geteuid;
use std::path::Path;

/// The kernel's default overflow id, used if `/proc` does not show the id.
const OVERFLOW_DEFAULT: u32 = 65534;
/// The number of uids: all 32-bit numbers but the last, which means "none" in system calls.
const UIDS: u64 = u32::MAX as u64;

/// The owners whose stores a process opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ownership {
    /// Only the process's own uid.
    Own,
    /// Root opens the store of another uid.
    Foreign,
    /// A process of any uid reads the store of another, without joining it.
    ForeignToRead,
}

/// Returns the uid that stands for all uids that are not mapped in this process's user namespace;
/// `None` if all are mapped.
pub(crate) fn unmapped_uid() -> Option<u32> {
    unmapped("uid")
}

/// Returns the same as [`unmapped_uid`], for groups.
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

/// Returns whether a map of ids, whose lines are `inside outside count`, covers every id. Its
/// ranges do not overlap. A namespace can map only ids that its parent maps, so the result holds
/// for the parents as well.
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
    //! A map of ids is complete only if it covers every id.

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
