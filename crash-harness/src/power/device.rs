//! Power cuts beneath a real file system. The file system is on a loop device whose file is on a
//! recorder, so all its writes and flushes are recorded. An image of the device after a cut is
//! mounted, which replays the file system's journal. Then the store on it is recovered and checked.
//!
//! Writes are torn only at whole sectors of the device, as file systems expect. Only the device's
//! writes since its last flush are in doubt. To the store, recovery happens in another boot, so the
//! file `control` may be there in any state.

use super::lives::{Lived, Processes};
use super::loop_device::{LoopDevice, SECTOR};
use super::search::{Bench, recovered};
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::process::Checked;
use crate::recorder::image::Image;
use crate::recorder::{OfOneBoot, Recorder, STORE, own_mounts};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The device's file on the recorder.
const DEVICE: &str = "device";
/// The file whose content differs between boots, and a content for the simulated boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const ANOTHER_BOOT: &str = "00000000-1111-2222-3333-444444444444\n";

/// A file system of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    /// With a journal of 4 MiB.
    Ext4,
    /// With the defaults of `mkfs.xfs`.
    Xfs,
    /// With the defaults of `mkfs.btrfs`; it is copy-on-write.
    Btrfs,
}

/// All file systems.
pub const ALL: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

impl FileSystem {
    /// Returns the kernel's name of the file system.
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }

    /// Returns the file system with that name.
    pub fn named(name: &str) -> Option<FileSystem> {
        ALL.into_iter().find(|file_system| file_system.name() == name)
    }

    /// Returns the size of its device in bytes, slightly above its minimum.
    fn size(self) -> u64 {
        let mebibytes = match self {
            FileSystem::Ext4 => 64,
            FileSystem::Xfs => 320,
            FileSystem::Btrfs => 160,
        };
        mebibytes << 20
    }

    /// Creates an empty file system.
    fn make(self, device: &Path) -> Result<(), String> {
        let (program, arguments): (&str, &[&str]) = match self {
            FileSystem::Ext4 => {
                let extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
                ("mkfs.ext4", &["-q", "-F", "-b", "4096", "-J", "size=4", "-m", "0", "-E", extended])
            }
            FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
            FileSystem::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"]),
        };
        let made = tool(program).args(arguments).arg(device).output();
        let made = made.map_err(|error| format!("{program} can't be run: {error}"))?;
        if made.status.success() {
            return Ok(());
        }
        Err(format!("{program}: {}", String::from_utf8_lossy(&made.stderr).trim()))
    }

    fn mount(self, device: &Path, at: &Path) -> io::Result<()> {
        // Another image of the same file system may be mounted at the same time.
        let data = (self == FileSystem::Xfs).then(|| CString::new("nouuid").expect("no zero byte"));
        Ok(mount(device, at, self.name(), MountFlags::NOATIME, data.as_deref())?)
    }
}

/// Returns a command for an administrator's program, whose directory may be missing from `PATH`.
fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// A mounted file system on a device; unmounted when dropped.
struct Mounted {
    at: PathBuf,
    /// Dropped after the unmount.
    _device: LoopDevice,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A killed process may not have exited completely.
        if let Err(error) = unmount(&self.at, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.at.display());
        }
    }
}

/// Why there is no record.
pub enum Unmade {
    /// The system does not permit it.
    Skipped(String),
    /// A check of a process failed.
    Found(Finding),
}

impl From<Finding> for Unmade {
    fn from(finding: Finding) -> Unmade {
        Unmade::Found(finding)
    }
}

/// Runs a plain life on a file system that is mounted at `directory`. The directory must not exist
/// yet. Cuts are made only from the first mount on.
///
/// # Errors
/// The reason why there is no record.
pub fn live(file_system: FileSystem, directory: &Path) -> Result<Lived, Unmade> {
    let skipped = |what: &str, error: io::Error| Unmade::Skipped(format!("{what}: {error}"));
    let recorder =
        Recorder::mount(OfOneBoot::default(), None).map_err(|error| skipped("no file system in user space", error))?;
    let backing = recorder.store().join(DEVICE);
    create_backing(&recorder, &backing, file_system.size()).map_err(|error| skipped("the device's file", error))?;
    let device = LoopDevice::attach(&backing, true).map_err(|error| skipped("no loop device", error))?;
    file_system.make(device.path()).map_err(Unmade::Skipped)?;
    std::fs::create_dir_all(directory).map_err(|error| skipped("a directory to mount at", error))?;
    file_system.mount(device.path(), directory).map_err(|error| skipped("mounting", error))?;
    let mounted = Mounted { at: directory.into(), _device: device };
    synced(directory).map_err(|error| skipped("syncfs", error))?;
    let from = recorder.position();
    let mut processes = Processes::new(instrumented::own(), directory.join(STORE), recorder.mark());
    processes.keep_little();
    processes.start_writers(2, 2);
    processes.wait_for_writers()?;
    processes.stop_logger()?;
    processes.start_writers(2, u64::MAX);
    wait_for_marks(&mut processes, &recorder)?;
    processes.kill_writers();
    let kills = processes.kills;
    // The power fails here; the writes of the unmount do not count.
    let to = recorder.position();
    drop(processes);
    drop(mounted);
    let mut record = recorder.finish();
    record.events.truncate(to);
    Ok(Lived { record, from, kills })
}

/// Makes the device's file durable, so that only its contents are in doubt.
fn create_backing(recorder: &Recorder, path: &Path, size: u64) -> io::Result<()> {
    std::fs::create_dir(recorder.store())?;
    let file = File::create(path)?;
    file.set_len(size)?;
    file.sync_all()?;
    for directory in [recorder.store(), recorder.root().to_path_buf()] {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn synced(at: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(at)?)?)
}

/// Waits for some more acknowledgements.
fn wait_for_marks(processes: &mut Processes, recorder: &Recorder) -> Result<(), Finding> {
    let (start, before) = (std::time::Instant::now(), recorder.position());
    while recorder.marks(before, "D ") < 30 {
        if start.elapsed() > HANGS {
            return Err(Finding::new(Kind::BlockedReader, "writers are blocked on a real file system"));
        }
        for writer in &mut processes.writers {
            writer.refuse_finding()?;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}

/// Mounts images of devices and recovers the store on them.
pub struct Devices {
    file_system: FileSystem,
    /// btrfs identifies a file system by its id, so it confuses two mounted images.
    one_at_a_time: Mutex<()>,
}

impl Devices {
    /// Creates a bench for this file system.
    pub fn new(file_system: FileSystem) -> Devices {
        Devices { file_system, one_at_a_time: Mutex::new(()) }
    }

    fn mounted(&self, image: &Image, directory: &Path) -> io::Result<Mounted> {
        let file = image.file(DEVICE).ok_or_else(|| io::Error::other("the device's file is gone"))?;
        let backing = directory.join(DEVICE);
        file.lay_out(&backing)?;
        let device = LoopDevice::attach(&backing, false)?;
        // The device keeps the file open.
        std::fs::remove_file(&backing)?;
        let at = directory.join("mount");
        std::fs::create_dir(&at)?;
        self.file_system.mount(device.path(), &at)?;
        Ok(Mounted { at, _device: device })
    }
}

/// Makes this thread and its future children see the id of another boot.
fn enter_another_boot(directory: &Path) -> io::Result<()> {
    own_mounts()?;
    if std::fs::read_to_string(BOOT_ID)? != ANOTHER_BOOT {
        let file = directory.join("boot_id");
        std::fs::write(&file, ANOTHER_BOOT)?;
        mount_bind(&file, BOOT_ID)?;
    }
    Ok(())
}

impl Bench for Devices {
    fn sector(&self) -> usize {
        SECTOR
    }

    fn judge(&self, image: &Image, directory: &Path, acknowledged: &Path) -> Result<(), Finding> {
        let is_alone = self.file_system == FileSystem::Btrfs;
        let _alone = is_alone.then(|| self.one_at_a_time.lock().expect("not poisoned"));
        let failed = |what: &str, error: io::Error| {
            Finding::new(Kind::Misbehaved, format!("{}: {what}: {error}", self.file_system.name()))
        };
        std::fs::create_dir_all(directory).map_err(|error| failed("a directory", error))?;
        enter_another_boot(directory).map_err(|error| failed("another boot", error))?;
        let mounted = self.mounted(image, directory).map_err(|error| failed("mounting what the cut left", error))?;
        let store = mounted.at.join(STORE);
        let judged = recovered(&store, store.join("checkpoint").exists(), acknowledged);
        drop(mounted);
        if is_alone {
            // Without this scan, btrfs would reject an older image.
            let _ = tool("btrfs").args(["device", "scan", "--forget"]).output();
        }
        let _ = std::fs::remove_dir_all(directory);
        judged
    }
}
