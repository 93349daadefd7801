//! Containers for tests: namespaces of their own (mount, pid, IPC, host name, and user if asked
//! for) and a root that holds what it is given and nothing else.
//!
//! `unshare` starts a container's first process, the role `init`, which builds the root on a file
//! system in memory, goes there for good and waits. `nsenter` starts the others, under process ids
//! of the test's choice. All mounts are in the container's own namespace, so the host never sees
//! them; they and all of its processes go when `init` does, which dies with the test.

use crate::common::{Process, Role, copy_program, exists, listen, say, spawn_by, wait_until};
use crate::workload::instrumented;
use rustix::fs::{Mode, RawMode, chmod};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use untorn_test_kit::processes::is_stopped;

/// Where a container finds the test executable.
const PROGRAM: &str = "/test";

/// What a container is like.
pub(crate) struct Plan<'p> {
    /// What of the host it sees, and where; files or directories.
    pub(crate) mounts: &'p [(&'p Path, &'p str)],
    /// The uid of the host that its uid 0 is, the next for 1, and so on; if it has a user
    /// namespace.
    pub(crate) first_uid: Option<u32>,
    /// Whether it has `/proc` and `/dev/null`, which a direct client needs.
    pub(crate) has_proc: bool,
    /// A bug that is planted in all that runs there.
    pub(crate) bug: Option<&'static str>,
}

/// A running container.
pub(crate) struct Container {
    init: Process,
    /// The host's id of its first process.
    pid: u32,
    has_user_namespace: bool,
    has_proc: bool,
    bug: Option<&'static str>,
    _root: tempfile::TempDir,
}

/// A process in a container. Killed when dropped.
pub(crate) struct Inside {
    pub(crate) child: Process,
    /// The host's id of the process.
    pid: u32,
    /// Names it also when it has ended, and its id is another's.
    process: OwnedFd,
}

/// Whether containers can be made here. If not, it prints that the test is skipped, and panics
/// where the variable `CI` is set.
pub(crate) fn is_possible(test: &str) -> bool {
    let namespaces = ["--user", "--keep-caps", "--mount", "--pid", "--ipc", "--uts", "--fork"];
    let problem = match Command::new("unshare").args(namespaces).arg("true").output() {
        Ok(_) if !rustix::process::geteuid().is_root() => "this is not root".into(),
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "{test}: no containers: {problem}");
    eprintln!(
        "SKIPPED: {test}: 1 test of containers, since no namespaces can be made here (root, `unshare`): {problem}"
    );
    false
}

impl Container {
    pub(crate) fn start(plan: &Plan<'_>) -> Container {
        // A user of the container must find its way to what is mounted there.
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let program = root.path().join("test");
        let original = match plan.bug {
            Some(_) => instrumented::program().to_path_buf(),
            None => std::env::current_exe().unwrap(),
        };
        copy_program(&original, &program);
        fs::create_dir(root.path().join("root")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]);
        if plan.first_uid.is_some() {
            command.args(["--user", "--keep-caps"]);
        }
        // It complains when a container is killed.
        command.arg("--").arg(&program).stderr(Stdio::null());
        let mut arguments = vec![if plan.has_proc { "proc" } else { "bare" }.to_string()];
        let libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"].map(|dir| (Path::new(dir), dir));
        let mounts = plan.mounts.iter().copied().chain([(program.as_path(), PROGRAM)]).chain(libraries);
        for (from, to) in mounts.filter(|(from, _)| from.exists()) {
            arguments.push(from.to_str().unwrap().to_string());
            arguments.push(to.to_string());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut init = spawn_by(command, "containers::init", root.path(), &arguments);
        init.expect("unmapped");
        let pid = only_child(init.pid());
        if let Some(first) = plan.first_uid {
            fs::write(format!("/proc/{pid}/uid_map"), format!("0 {first} 65536")).unwrap();
            fs::write(format!("/proc/{pid}/gid_map"), format!("0 {first} 65536")).unwrap();
        }
        assert_eq!(init.ask("mapped"), "ready");
        let Plan { first_uid, has_proc, bug, .. } = *plan;
        Container { init, pid, has_user_namespace: first_uid.is_some(), has_proc, bug, _root: root }
    }

    /// Starts this test executable in a role, as process `pid` of the container (if it has `/proc`)
    /// and its user `uid`.
    pub(crate) fn run(&mut self, role: &str, pid: u32, uid: u32, store: &str, arguments: &[&str]) -> Inside {
        self.init.tell(&format!("next {pid}"));
        self.init.expect("set");
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.pid.to_string()]);
        let uid = uid.to_string();
        if self.has_user_namespace || uid != "0" {
            command.args(["--setuid", &uid, "--setgid", &uid]);
        }
        command.arg("--").arg(PROGRAM).envs(self.bug.map(|bug| ("UNTORN_BUG", bug)));
        let child = spawn_by(command, &format!("containers::{role}"), Path::new(store), arguments);
        let said = child.hear();
        assert!(!self.has_proc || said == format!("process {pid}"), "{said}, not {pid}");
        let pid = only_child(child.pid());
        let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
        Inside { child, pid, process }
    }

    /// Kills all that runs in it.
    pub(crate) fn destroy(self) {
        crate::common::send(self.pid, Signal::KILL);
        wait_until(|| !exists(self.pid));
    }
}

impl Inside {
    /// Kills it, and returns when nothing is left of it.
    pub(crate) fn kill(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        if !self.child.is_running() {
            return;
        }
        self.child.signal(Signal::CONT);
        // `nsenter` ends when it has taken note of the end: then the id is free again.
        wait_until(|| !self.child.is_running());
    }

    /// Stops it, and returns when it no longer runs.
    pub(crate) fn stop(&self) {
        pidfd_send_signal(&self.process, Signal::STOP).unwrap();
        // `nsenter` stops with it, and would otherwise continue it at some later time.
        wait_until(|| is_stopped(self.pid) && is_stopped(self.child.pid()));
    }

    pub(crate) fn resume(&self) {
        self.child.signal(Signal::CONT);
        wait_until(|| !is_stopped(self.pid));
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.child.ask(line)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kill();
        }
    }
}

/// The child of `unshare` or `nsenter`.
fn only_child(parent: u32) -> u32 {
    let wanted = format!("PPid:\t{parent}");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == wanted)
    };
    pids.find(is_child).expect("it has a child")
}

// ---- the first process

/// The role `init`: makes the root and goes there; then chooses the ids of processes to come.
pub(crate) fn init(role: &Role) {
    say("unmapped");
    listen();
    become_root();
    let has_proc = role.arguments[0] == "proc";
    if let Err(error) = make_root(&role.store, has_proc, &role.arguments[1..]) {
        return say(format_args!("making the root: {error}"));
    }
    say("ready");
    while let Some(line) = listen() {
        let next: u32 = line.strip_prefix("next ").unwrap().parse().unwrap();
        if has_proc {
            fs::write("/proc/sys/kernel/ns_last_pid", (next - 1).to_string()).unwrap();
        }
        say("set");
    }
}

/// Becomes the user 0 of a user namespace whose ids have been mapped since it began.
#[allow(unsafe_code)]
fn become_root() {
    // SAFETY: the calls change the ids of this process, which has one thread that does anything.
    unsafe {
        assert_eq!(libc::setresgid(0, 0, 0), 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::setresuid(0, 0, 0), 0, "{}", std::io::Error::last_os_error());
    }
    // A change of ids has it forgotten.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
}

/// Makes `root` the root, with nothing in it but what is bound there.
fn make_root(root: &Path, has_proc: bool, binds: &[String]) -> std::io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let root = root.join("root");
    let inside = |to: &str| root.join(to.trim_start_matches('/'));
    let mut binds: Vec<(PathBuf, PathBuf)> =
        binds.chunks(2).map(|bind| (bind[0].clone().into(), inside(&bind[1]))).collect();
    if has_proc {
        binds.push(("/dev/null".into(), inside("dev/null")));
    }
    mount("root", &root, "tmpfs", MountFlags::empty(), None)?;
    chmod(&root, Mode::from_raw_mode(0o755 as RawMode))?;
    for (from, to) in &binds {
        if from.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
            continue;
        }
        fs::create_dir_all(to.parent().expect("below the root"))?;
        if from.is_dir() {
            fs::create_dir_all(to)?;
        } else {
            fs::write(to, "")?;
        }
        mount_bind_recursive(from, to)?;
    }
    if has_proc {
        fs::create_dir(root.join("proc"))?;
        mount("proc", root.join("proc"), "proc", MountFlags::empty(), None)?;
    }
    std::env::set_current_dir(&root)?;
    // The old root comes to lie over the new one, and is taken off.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}
