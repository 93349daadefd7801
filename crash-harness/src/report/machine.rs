//! Describes the environment of a report: the store's version, the kernel, the processors, the file
//! system of the stores, the command.

use std::os::linux::fs::MetadataExt;

/// Returns the description as one line.
pub(super) fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let program = std::env::current_exe().unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy();
    let command: Vec<String> = std::env::args().skip(1).collect();
    format!(
        "untorn {}, Linux {}, {cores} processors, stores on {}; {}; {program} {}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/sys/kernel/osrelease"),
        file_system(),
        std::env::consts::ARCH,
        command.join(" ")
    )
}

/// Returns the file system of the directory for temporary files, by its device number.
fn file_system() -> String {
    let device = std::fs::metadata(std::env::temp_dir()).map(|metadata| metadata.st_dev()).unwrap_or(0);
    let wanted = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&wanted));
    let kind = line.and_then(|line| line.split_once(" - ")?.1.split(' ').next());
    kind.unwrap_or("an unknown file system").to_string()
}
