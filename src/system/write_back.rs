//! Writing changed pages of mappings to the device. A test can make each call fail by its name.

use std::fs::File;
use std::io;

/// Writes a file's data to the device, including stores through its mappings.
pub(crate) fn sync(file: &File, name: &str) -> io::Result<()> {
    attempt(name, || file.sync_data())
}

/// Calls `write_back`, which writes some pages to the device.
pub(crate) fn attempt(_name: &str, write_back: impl Fn() -> io::Result<()>) -> io::Result<()> {
    #[cfg(untorn_instrumented)]
    if crate::crash::fails(_name) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    match write_back() {
        Err(_) if planted_bug!("ignore-fsync-error") => Ok(()),
        Err(_) if planted_bug!("retry-fsync") => write_back(),
        synced => synced,
    }
}
