//! Small file systems for single stores, which tests can fill.

use crate::common::HANGS;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system for one store, which the test can fill. Dropping it ends the loggers of the
/// store and unmounts it.
pub(crate) struct Device {
    dir: tempfile::TempDir,
    end_loggers: fn(&Path),
}

/// The kinds of file systems that are tried.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Kind {
    Tmpfs,
    Ext4,
}

impl Device {
    /// Mounts a file system of this size. If nothing may be mounted here, prints that and returns
    /// `None`; panics if `CI` is set.
    pub(crate) fn mount(kind: Kind, mib: u64) -> Option<Device> {
        let dir = tempfile::tempdir().unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let done = Command::new(program).args(arguments).arg(dir.path()).output();
            done.as_ref().is_ok_and(|output| output.status.success()).then_some(()).ok_or(format!("{done:?}"))
        };
        let mounted = match kind {
            Kind::Tmpfs => run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "untorn-test"]),
            Kind::Ext4 => {
                let image = dir.path().with_extension("ext4");
                let name = image.to_str().unwrap().to_string();
                std::fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).unwrap();
                let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", &name]).output();
                let made = made.is_ok_and(|output| output.status.success());
                let mounted = match made {
                    true => run("mount", &["-o", "loop", &name]),
                    false => Err("mkfs.ext4 failed".into()),
                };
                // The loop device keeps the file.
                std::fs::remove_file(&image).unwrap();
                mounted
            }
        };
        match mounted {
            Ok(()) => Some(Device { dir, end_loggers: stop_logger }),
            Err(why) => {
                assert!(std::env::var_os("CI").is_none(), "CI must be able to mount {kind:?}: {why}");
                eprintln!("SKIPPED, and so not tested: no {kind:?} can be mounted here ({why})");
                None
            }
        }
    }

    /// Sets how the loggers of the store are ended. The default is [`untorn::logger::stop_logger`].
    pub(crate) fn ending_loggers_by(mut self, end_loggers: fn(&Path)) -> Device {
        self.end_loggers = end_loggers;
        self
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Fills the file system completely.
    pub(crate) fn fill(&self) {
        let mut file = std::fs::File::create(self.dir.path().join("filler")).unwrap();
        for piece in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; piece]).and_then(|()| file.sync_data()).is_ok() {}
        }
    }

    /// Frees the space that [`Device::fill`] has taken.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.dir.path().join("filler")).unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        (self.end_loggers)(&self.path());
        // The unmount is lazy: a mapping of a process that is exiting must not prevent it.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

fn stop_logger(store: &Path) {
    let _ = untorn::logger::stop_logger(store, HANGS);
}
