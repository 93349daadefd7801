//! System calls whose failure a test can order by name; in ordinary builds they are just the calls.

use std::fs::File;
use std::io;

/// Writes a file's data to the device.
pub(crate) fn fdatasync(file: &File, _name: &str) -> io::Result<()> {
    #[cfg(feature = "crash-points")]
    if crate::crash::fails(_name) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    match file.sync_data() {
        Err(_) if planted_bug!("ignore-fsync-error") => Ok(()),
        Err(_) if planted_bug!("retry-fsync") => file.sync_data(),
        synced => synced,
    }
}
