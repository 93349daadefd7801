//! Writing changed pages of mappings to the device. A test can make each call fail by its name.

use std::fs::File;
use std::io;

/// Writes a file's data to the device, including stores through its mappings.
pub(crate) fn sync(file: &File, _name: &str) -> io::Result<()> {
    #[cfg(untorn_instrumented)]
    if crate::crash::fails(_name) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    match file.sync_data() {
        Err(_) if planted_bug!("ignore-fsync-error") => Ok(()),
        Err(_) if planted_bug!("retry-fsync") => file.sync_data(),
        synced => synced,
    }
}
