//! Goal: the commands in `docs/operations.md` do what stands beside them.
//!
//! Method: they are taken from the document and run, all of them, in their order, in an empty
//! directory. They make namespaces and change user ids, so this needs root, `unshare` and
//! `setpriv`. Without them the test reports that it was skipped, and fails where the variable `CI`
//! is set.

use crate::common::{HANGS, copy_program, limit, program};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const DOCUMENT: &str = include_str!("../../../docs/operations.md");

#[test]
fn the_commands_of_the_document() {
    let namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "setpriv", "--reuid", "1001", "true"];
    let tried = Command::new("unshare").args(namespaces).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no namespaces, or no `setpriv`");
        eprintln!("SKIPPED: 1 test of the commands in docs/operations.md (root, `unshare`, `setpriv`)");
        return;
    }
    let programs = [program::untorn().to_path_buf(), program::logger().to_path_buf()];
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let (bin, lab) = (dir.path().join("bin"), dir.path().join("lab"));
    // Other users run them, and find the socket.
    for made in [dir.path(), &bin, &lab] {
        let _ = std::fs::create_dir(made);
        std::fs::set_permissions(made, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for program in programs {
        copy_program(&program, &bin.join(program.file_name().unwrap()));
    }
    let commands: String = DOCUMENT.split("```sh\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let script = format!("set -eux\n{commands}");
    let output = Command::new("bash").args(["-c", &script]).current_dir(&lab).env("PATH", path).output().unwrap();
    for store in ["store", "messages", "copy"] {
        let _ = untorn::logger::stop_logger(lab.join(store), HANGS);
    }
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{error}\n{out}", output.status);
    assert!(out.contains("refused, as it should be"), "{error}\n{out}");
    // What the store contains after all of them.
    assert!(out.contains("alice\t1\ncarol\t3\n"), "{error}\n{out}");
}
