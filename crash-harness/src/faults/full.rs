//! The disk becomes full several times. Meanwhile, writers make the store grow and all processes
//! have it mapped. While the disk is full, writers get errors and readers continue. As soon as
//! there is space, the writers continue, too.
//!
//! The disk is a small separate file system: tmpfs, and ext4 on a loop device.

use super::after;
use super::processes::{ScenarioFailure, ScenarioProcesses, ScenarioResult};
use crate::context::Context;
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::process::{Checked, start_role};
use crate::recorder::own_mounts;
use crate::workload::oracle::Acknowledged;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The file systems of this test.
pub(super) const FILE_SYSTEMS: [&str; 2] = ["tmpfs", "ext4"];
/// Size of the file system, a small multiple of the initial size of the store.
const MIB: u64 = 32;
/// Space that is reserved for the final check, during which the store grows.
const RESERVE: u64 = 8 << 20;
/// Number of times that the disk is filled.
const FILLED: usize = 3;

/// A small file system, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(context: &Context, kind: &str) -> ScenarioResult<Small> {
        let skipped =
            |error: &dyn std::fmt::Display| ScenarioFailure::Skipped(format!("no {kind} can be mounted: {error}"));
        own_mounts().map_err(|error| skipped(&error))?;
        let at = context.directory(&format!("small-{kind}"));
        std::fs::create_dir_all(&at).map_err(|error| skipped(&error))?;
        if kind == "tmpfs" {
            let size = std::ffi::CString::new(format!("size={MIB}m")).expect("no zero byte");
            rustix::mount::mount("small", &at, "tmpfs", MountFlags::empty(), Some(&*size))
                .map_err(|error| skipped(&error))?;
            return Ok(Small(at));
        }
        let disk = context.directory(&format!("disk-{kind}"));
        let made = File::create(&disk).and_then(|file| file.set_len(MIB << 20));
        made.map_err(|error| skipped(&error))?;
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&disk)).map_err(|error| skipped(&error))?;
        // The loop device is removed with the mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&at)).map_err(|error| skipped(&error))?;
        Ok(Small(at))
    }

    /// Fills the file system to its last block.
    fn fill(&self) -> std::io::Result<()> {
        let mut file = File::create(self.0.join("ballast"))?;
        for piece in [1 << 20, 64 << 10, 4096, 1] {
            let bytes = vec![0x55; piece];
            while file.write_all(&bytes).is_ok() {}
        }
        // Some file systems allocate blocks only when the data is written back.
        let _ = file.sync_all();
        Ok(())
    }

    fn clear(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.0.join("ballast"))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {} {}", done.status, String::from_utf8_lossy(&done.stderr).trim()))
}

/// Plays the scenario on a file system of this kind. Returns the number of readers that failed
/// because no space was left.
pub(super) fn play(context: &Context, kind: &str) -> ScenarioResult<u64> {
    let small = Small::mount(context, kind)?;
    let reserve = small.0.join("reserve");
    let kept_back = File::create(&reserve).and_then(|mut file| file.write_all(&vec![0x55; RESERVE as usize]));
    kept_back.map_err(|error| ScenarioFailure::Skipped(format!("the reserve: {error}")))?;
    let acknowledged = writers_on(&small);
    let _ = std::fs::remove_file(&reserve);
    let judged = acknowledged.and_then(|(acknowledged, turned_away)| {
        after::judge(&small.0.join("store"), &acknowledged, true)?;
        Ok(turned_away)
    });
    crate::processes::loggers::kill_loggers(&small.0.join("store"));
    judged
}

/// Returns the acknowledgements of the writers, and the number of readers that failed because no
/// space was left.
fn writers_on(small: &Small) -> ScenarioResult<(Vec<(String, Acknowledged)>, u64)> {
    let path: &Path = &small.0.join("store");
    let mut processes = ScenarioProcesses::new(path)?;
    let mut writers = Vec::new();
    for name in ["g0", "g1"] {
        writers.push(processes.start(name, "enduring", &[name, "", "stay", "", "grow"])?);
    }
    let mut turned_away = 0;
    let io = |error: std::io::Error| ScenarioFailure::Skipped(format!("the ballast: {error}"));
    for cycle in 0..FILLED {
        for writer in &writers {
            let so_far = processes.count(*writer, "D ");
            processes.wait_for(*writer, "D ", so_far + 4 + cycle)?;
        }
        let errors = || writers.iter().map(|writer| processes.count(*writer, "E ")).sum::<usize>();
        let before = errors();
        small.fill().map_err(io)?;
        // A writer that needs space gets an error soon. A writer that needs no space may get no
        // error.
        let filled = Instant::now();
        while errors() < before + 2 && filled.elapsed() < Duration::from_secs(3) {
            processes.check()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        // A new reader can open the store. If the log could not be written for a long time, the
        // region may have been given up. Opening then recovers the store. Recovery needs space for
        // a new region; if there is none, the error states that.
        let mut reader = start_role(&instrumented::own(), "reader", path, &[], &[]);
        match reader.wait_for("ok", 3, HANGS) {
            Err(finding) if finding.what.contains("no space left for") => turned_away += 1,
            read => read?,
        }
        reader.kill();
        small.clear().map_err(io)?;
    }
    for writer in &writers {
        let so_far = processes.count(*writer, "D ");
        processes.wait_for(*writer, "D ", so_far + 6)?;
    }
    Ok((processes.end()?, turned_away))
}
