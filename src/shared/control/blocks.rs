//! Writes that allocate a file's blocks.

use crate::error::reason::Space;
use crate::files::dir;
use crate::{Error, LimitKind, Result, limits};
use std::fs::File;

/// Writes zeros, so that the blocks are allocated and no later store can meet a full disk.
pub(crate) fn write_zeros(file: &File, from: u64, len: u64, name: &str) -> Result<()> {
    // Beyond the limit the kernel would kill the process by SIGXFSZ, whose disposition belongs to
    // the host.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX);
    if from + len > limit {
        return Err(Error::Limit { what: LimitKind::FileSize, found: from + len, limit });
    }
    if planted_bug!("mapped-without-blocks") && name == dir::ARENA {
        return file.set_len(from + len).map_err(Error::io("extending the arena"));
    }
    static ZEROS: [u8; limits::GROWTH_PIECE as usize] = [0; limits::GROWTH_PIECE as usize];
    let mut at = from;
    while at < from + len {
        let piece = (from + len - at).min(ZEROS.len() as u64) as usize;
        write_blocks(file, at, &ZEROS[..piece], name, from + len - at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Writes `bytes` at `at`. The error for a full disk names the file and `wanted`, the number of
/// bytes still to be written, including these.
pub(in crate::shared) fn write_blocks(file: &File, at: u64, bytes: &[u8], name: &str, wanted: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.write_all_at(bytes, at).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
            let what =
                if name == dir::ARENA { Space::Arena { bytes: wanted } } else { Space::Control { bytes: wanted } };
            Error::DiskFull { what }
        }
        _ => Error::Io { what: format!("write to {name} at byte {at}"), source: error },
    })
}
